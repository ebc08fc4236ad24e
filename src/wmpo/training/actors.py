"""Actors: processes of a Ray cluster that simulate and dream for this one, the learner.

The learner goes through the program as it would alone. What is heavy it deals out, in pieces whose result is the same
whoever works on them; a piece whose actor has died is given to another. Where an actor is lost another is asked for in
its place, which starts as soon as some node has room. A process on its own has no actors and does everything itself.

Actors trust the learner: functions and objects travel pickled. Ray is imported where a run asks for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from textwrap import shorten
from typing import Any, TypeVar

import torch

from wmpo.batches import to_device
from wmpo.errors import UserError, optional, reason
from wmpo.io.machine import usable_cores
from wmpo.protocols import Trainable
from wmpo.training import ranks

T = TypeVar("T")
Kept = dict[str, Any]
"""What an actor keeps between two pieces of work. It dies with the actor: who uses it must be able to make it anew."""
LOSSES = 3  # actors that may die of one and the same work, before it is given up
REACH = 10.0  # seconds that an address may take to answer
START = 60.0  # seconds in which all actors should have started; those that take longer join later
PATIENCE = 900.0  # seconds to wait for the first one, on a cluster that is busy or must start nodes
PACKAGES = ("wmpo", "torch", "numpy")  # whose versions decide what is computed
TOKEN = (  # what Ray itself says of it, it says to its own log
    " If `ray start` has said that token authentication is enabled, set RAY_AUTH_MODE=token here and on each machine "
    "of the cluster, all with the ~/.ray/auth_token of the first."
)
_log = logging.getLogger(__name__)


class ActorLostError(Exception):
    """An actor, or its node, has died, and with it what it kept and what it has answered last."""


class Actor:
    """What runs in the cluster."""

    def __init__(self) -> None:
        self.kept: Kept = {}

    def begin(self, path: Sequence[str], prepare: bytes) -> tuple[Any, str]:
        """Look for modules where the learner does, and prepare; the versions of `PACKAGES` here."""
        sys.path += [entry for entry in path if entry not in sys.path]
        return self.work(_begin, prepare)

    def work(self, function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
        """(what `function` returns, the sentence of a UserError or nothing)."""
        try:
            return function(self.kept, *args), ""
        except UserError as error:
            return None, str(error)


def _begin(kept: Kept, prepare: bytes) -> dict[str, str]:
    pickle.loads(prepare)()
    return {name: version(name) for name in PACKAGES}


def check_versions(theirs: Mapping[str, str]) -> None:
    """Raise UserError where those of an actor differ from the learner's."""
    for name in PACKAGES:
        if theirs[name] != version(name):
            raise UserError(
                f"A node of the Ray cluster has {name} {theirs[name]}, and this machine {version(name)}, which may "
                "compute other numbers: install the same everywhere."
            )


class Pool:
    """The actors of a learner that has joined a cluster."""

    def __init__(self, ray: Any, count: int, cpus: int, gpus: int, prepare: Callable[[], object]) -> None:
        self.ray, self.count = ray, count
        self._kind = ray.remote(num_cpus=cpus, num_gpus=gpus)(Actor)
        self._room = f"{cpus} CPU" + " and 1 GPU" * gpus
        self._prepare = ray.cloudpickle.dumps(prepare)
        self._alive: list[Any] = []
        self._starting: dict[Any, Any] = {}  # what will be answered -> by whom
        self._losses = 0
        self._lent: tuple[object, ...] = ()
        self._lent_as: Any = None
        for _ in range(count):
            self._spawn()
        self._welcome(START)

    def _spawn(self) -> None:
        actor = self._kind.remote()
        self._starting[actor.begin.remote(sys.path, self._prepare)] = actor

    def alive(self) -> list[Any]:
        """Those that have started and have not been lost: one at least, which may have to be waited for."""
        began, told = time.monotonic(), False
        while True:
            self._welcome(0.0 if self._alive else 1.0)
            if self._alive:
                return list(self._alive)
            waited = time.monotonic() - began
            if waited > PATIENCE:
                raise UserError(
                    f"The Ray cluster has had no room for an actor, which takes {self._room}, for {PATIENCE / 60:.0f} "
                    "minutes: free some, or add a node; the same command continues."
                )
            if waited > START and not told:
                _log.warning("Waiting for the Ray cluster to start an actor, which takes %s.", self._room)
                told = True

    def _welcome(self, patience: float) -> None:
        """Those that have started, or do so within so many seconds."""
        refs = list(self._starting)
        for ref in self.ray.wait(refs, num_returns=len(refs), timeout=patience)[0] if refs else ():
            actor = self._starting.pop(ref)
            try:
                check_versions(self.answer(ref))
            except ActorLostError as error:
                self._losses += 1
                if self._losses > LOSSES * self.count:
                    raise UserError(f"The actors of the Ray cluster die when they start: {error}.") from None
                self._spawn()
            else:
                self._alive.append(actor)
                self._losses = 0

    def lose(self, actor: Any, error: ActorLostError) -> None:
        """Have another in its place."""
        if actor in self._alive:
            _log.warning("An actor of the Ray cluster is lost (%s); its work is done again.", error)
            self._alive.remove(actor)
            with suppress(Exception):  # it may be out of reach rather than dead
                self.ray.kill(actor)
            self._spawn()

    def answer(self, ref: Any) -> Any:
        """What an actor has answered. Raises ActorLostError, or the UserError that was raised there."""
        lost = self.ray.exceptions
        try:
            found, sentence = self.ray.get(ref)
        except (lost.RayActorError, lost.ObjectLostError, lost.WorkerCrashedError, lost.NodeDiedError) as error:
            raise ActorLostError(shorten(str(error), 200)) from error
        except lost.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise UserError(
                    f"A node of the Ray cluster can't do its work: {error.cause}; install it there."
                ) from error
            raise
        if sentence:
            raise UserError(sentence)
        return found

    def lend(self, things: tuple[object, ...]) -> Any:
        """A reference to a copy of these, which is made only when other things were lent before."""
        if len(things) != len(self._lent) or any(a is not b for a, b in zip(things, self._lent, strict=True)):
            self._lent, self._lent_as = things, self.ray.put(things)
        return self._lent_as


class _State:
    pool: Pool | None = None


def count() -> int:
    """How many actors there should be; 0 for a process on its own."""
    return 0 if _State.pool is None else _State.pool.count


def alive() -> list[Any]:
    """The actors that work can be given to now."""
    return _pool().alive()


def ask(calls: Sequence[tuple[Any, Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """What each of (actor, function, arguments) returns, all at the same time.

    Raises ActorLostError, when all others are done, where an actor has died.
    """
    refs = [actor.work.remote(function, *args) for actor, function, args in calls]
    answers, lost = [], None
    for ref, (actor, _, _) in zip(refs, calls, strict=True):
        try:
            answers.append(_pool().answer(ref))
        except ActorLostError as error:
            _pool().lose(actor, error)
            lost = error
    if lost is not None:
        raise lost
    return answers


def deal(function: Callable[..., T], pieces: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """`function(kept, *piece)` of each piece, in order, by whichever actors are free."""
    pool, given = _pool(), list(pieces)
    todo, done = deque(range(len(given))), dict[int, T]()
    doing: dict[Any, tuple[Any, int]] = {}  # what will be answered -> by whom, to which piece
    losses = [0] * len(given)
    place = 0
    while place < len(given):
        busy = [actor for actor, _ in doing.values()]
        for actor in pool.alive():
            if todo and actor not in busy:
                which = todo.popleft()
                doing[actor.work.remote(function, *given[which])] = actor, which
        for ref in pool.ray.wait(list(doing), timeout=1.0)[0]:
            actor, which = doing.pop(ref)
            try:
                done[which] = pool.answer(ref)
            except ActorLostError as error:
                pool.lose(actor, error)
                losses[which] += 1
                if losses[which] > LOSSES:
                    raise UserError(gone_too_often(error)) from error
                todo.appendleft(which)
        while place in done:
            yield done.pop(place)
            place += 1


def deal_lent(
    function: Callable[..., T], things: tuple[object, ...], learning: Trainable, pieces: Iterable[tuple[Any, ...]]
) -> list[T]:
    """`function(*things, *piece)` of each piece, as `deal`, with tensors on the CPU.

    The actors keep a copy of `things`, in which what is shared stays shared, as long as no others are lent. `learning`
    is one of them: of that, what has gradients is sent anew each time; nothing else may change meanwhile.
    """
    lent = _pool().lend(things)
    which = next(place for place, thing in enumerate(things) if thing is learning)
    weights = _pool().ray.put([tensor.detach().cpu() for tensor in learning.parameters() if tensor.requires_grad])
    return list(deal(_with_lent, [([lent], which, [weights], function, piece) for piece in pieces]))


def _with_lent(
    kept: Kept, lent: list[Any], which: int, weights: list[Any], function: Callable[..., T], piece: tuple[Any, ...]
) -> T:
    """In an actor. References travel in lists, so that Ray leaves it to us to follow them."""
    import ray

    if kept.get("lent") != lent:
        kept.pop("things", None)  # first, since both may not fit in the memory
        kept["things"], kept["lent"] = ray.get(lent[0]), lent
    learning = kept["things"][which]
    with torch.no_grad():
        own = [parameter for parameter in learning.parameters() if parameter.requires_grad]
        for parameter, tensor in zip(own, ray.get(weights[0]), strict=True):
            parameter.copy_(tensor)
    return to_device(function(*kept["things"], *piece), "cpu")


def gone_too_often(error: ActorLostError) -> str:
    return (
        f"{LOSSES + 1} actors of the Ray cluster have died of the same work ({error}): look into Ray's logs, in "
        "/tmp/ray/session_latest/logs on the node; the same command continues."
    )


def _pool() -> Pool:
    assert _State.pool is not None
    return _State.pool


@contextmanager
def hired(address: str, wanted: int, cpus: int, gpus: int, prepare: Callable[[], object]) -> Iterator[None]:
    """With actors of the Ray cluster at `address`: local, one that is started here and ended; auto, the one that runs
    on this machine; or HOST:PORT. Empty: without any.

    `wanted` actors, 0: as many as there is room for. Each takes so many cores and GPUs, and calls `prepare` first.
    Raises UserError where Ray or the cluster can't be had.
    """
    if not address:
        yield
        return
    if ranks.world() > 1:
        raise UserError("A run is shared either by Ray or by torchrun: leave --ray away, or start it without torchrun.")
    ray: Any = optional("ray", "--ray needs", "ray")
    with _own_signals():
        _join(ray, address, max(usable_cores(), cpus * max(wanted, 1)))
    try:
        _State.pool = Pool(ray, wanted or _room(ray, address, cpus, gpus), cpus, gpus, prepare)
        yield
    finally:
        _State.pool = None
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray handles SIGTERM, and doesn't give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join(ray: Any, address: str, cores: int) -> None:
    """Connect to the cluster, or start one with so many cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, object] = {"num_cpus": cores, "include_dashboard": False} if address == "local" else {}
    host, colon, port = address.rpartition(":")
    reachable = host and colon and port.isdecimal() and 0 < int(port) < 2**16 and "/" not in host
    if not (own or address == "auto" or reachable):
        raise UserError(
            f"--ray is {address!r}: give local, auto, or HOST:PORT of a cluster that `ray start` has started."
        )
    try:
        if host:  # which Ray would try to reach for minutes
            socket.create_connection((host, int(port)), REACH).close()
    except (OSError, UnicodeError) as error:  # which Ray's own words, of tokens and versions, would hide
        why = getattr(error, "strerror", None) or reason(error)
        raise UserError(
            f"There is no way to the Ray cluster {address} ({why}): give the address that "
            "`ray start --head` has printed on its first machine, where `ray status` says whether it runs."
        ) from error
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        token = "" if own or os.environ.get("RAY_AUTH_MODE") == "token" else TOKEN
        why = shorten(str(error), 300).rstrip(".")
        raise UserError(f"There is no way to the Ray cluster {address}: {why}.{token}") from error


def _room(ray: Any, address: str, cpus: int, gpus: int) -> int:
    """How many actors the nodes have room for, whoever else is there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [int(node.get("CPU", 0) // cpus) for node in nodes]
    if gpus:
        places = [min(place, int(node.get("GPU", 0) // gpus)) for place, node in zip(places, nodes, strict=True)]
    if not sum(places):
        raise UserError(
            f"No node of the Ray cluster {address} has room for an actor, which takes {cpus} CPU (env.workers)"
            f"{' and a GPU' if gpus else ''}: add one, or say how many actors are to come with --ray-actors."
        )
    return sum(places)
