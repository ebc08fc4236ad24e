"""One environment made of many: each actor of a Ray cluster plays some rows of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from wmpo.batches import cat, map_leaves, to_device
from wmpo.config import EnvConfig
from wmpo.envs import make_env
from wmpo.errors import UserError
from wmpo.protocols import CountsEvents, Demonstrates, Env, NamesTasks
from wmpo.training import actors
from wmpo.training.actors import LOSSES, ActorLostError, Kept
from wmpo.types import EnvSpec, Episode, Observation, Outcome

Seen = TypeVar("Seen", Observation, Outcome)
Events = list[Mapping[str, int]]


class RayEnv:
    """Fulfils `wmpo.protocols.Env` with the environments of a recipe in actors, as `wmpo.training.actors` has them.

    Also fulfils Demonstrates, NamesTasks and CountsEvents, each where those do. Rows are dealt out in turn. When an
    actor is lost the batch begins again, among those that are left, and what was done in it is done again: so an
    environment must do the same when it is given the same, and no row may depend on the others.
    """

    # Set only where the environments offer them:
    tasks: tuple[str, ...]
    task_of: Callable[[int], str]
    demonstrate: Callable[..., Iterator[Episode]]
    events: Events

    def __init__(self, config: EnvConfig) -> None:
        self._config = config
        [(self.spec, tasks, demonstrates, counts)] = actors.deal(_describe, [(config,)])
        if tasks:
            self.tasks, self.task_of = tasks, self._task_of
        if demonstrates:
            self.demonstrate = self._demonstrate
        if counts:
            self.events = []
        self._initial_states: list[int] = []
        self._steps: list[tuple[list[int], Tensor]] = []
        self._players: list[Any] = []

    def reset(self, initial_states: Sequence[int]) -> Observation:
        if len(initial_states) == 0:
            raise UserError("A batch needs at least one initial-state number.")
        self._initial_states, self._steps = [int(number) for number in initial_states], []
        try:
            return self._begin()
        except ActorLostError as error:
            return self._again([], error)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        if not self._initial_states:
            raise UserError("Call reset before step.")
        step = [int(row) for row in rows], chunk_AKD.detach().to("cpu", copy=True)
        try:
            outcome = self._step(*step)
        except ActorLostError as error:
            outcome = self._again([*self._steps, step], error)
        self._steps.append(step)
        return outcome

    def _again(self, steps: Sequence[tuple[list[int], Tensor]], error: ActorLostError) -> Any:
        """What is seen at last when the batch begins again with those that are left, and takes these steps."""
        for _ in range(LOSSES):
            try:
                seen: Observation | Outcome = self._begin()
                for step in steps:
                    seen = self._step(*step)
                return seen
            except ActorLostError as another:
                error = another
        raise UserError(actors.gone_too_often(error)) from error

    def _begin(self) -> Observation:
        self._players = actors.alive()[: len(self._initial_states)]
        if "events" in vars(self):
            self.events = [{} for _ in self._initial_states]
        return self._together(range(len(self._initial_states)), _reset, lambda rows: (
            self._config, [self._initial_states[row] for row in rows]
        ))  # fmt: skip

    def _step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        place, count = {row: i for i, row in enumerate(rows)}, len(self._players)
        return self._together(rows, _step, lambda own: (
            [row // count for row in own], chunk_AKD[[place[row] for row in own]]
        ))  # fmt: skip

    def _together(
        self,
        rows: Sequence[int],
        work: Callable[..., tuple[Seen, Events]],
        given: Callable[[list[int]], tuple[Any, ...]],
    ) -> Seen:
        """What all players see in the given rows, in their order; `given(own)` is what one gets for those it plays."""
        count = len(self._players)
        shares = [[row for row in rows if row % count == which] for which in range(count)]
        calls = [(player, work, given(own)) for player, own in zip(self._players, shares, strict=True) if own]
        seen, events = zip(*actors.ask(calls), strict=True)
        own = [row for share in shares for row in share]
        for row, counted in zip(own, (some for part in events for some in part), strict=False):
            self.events[row] = counted
        place = {row: i for i, row in enumerate(own)}
        order = [place[row] for row in rows]
        return map_leaves(
            lambda leaf: leaf[order] if isinstance(leaf, Tensor) else tuple(leaf[i] for i in order), cat(seen)
        )

    def _task_of(self, initial_state: int) -> str:
        [name] = actors.deal(_task_of, [(self._config, int(initial_state))])
        return name

    def _demonstrate(
        self, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
    ) -> Iterator[Episode]:
        """One expert episode per initial-state number, in their order."""
        size = max(1, self._config.workers)  # as many as an actor plays at the same time
        some = [list(initial_states[begin : begin + size]) for begin in range(0, len(initial_states), size)]
        for episodes in actors.deal(_demonstrate, [(self._config, numbers, noise, seed, min_pace) for numbers in some]):
            yield from episodes

    def close(self) -> None:
        """Nothing to close: environments end with their actors."""


# In an actor:


def _env(kept: Kept, config: EnvConfig) -> Env:
    if kept.get("config") != config:
        kept["env"], kept["config"] = make_env(config), config
    env: Env = kept["env"]
    return env


def _describe(kept: Kept, config: EnvConfig) -> tuple[EnvSpec, tuple[str, ...], bool, bool]:
    env = _env(kept, config)
    tasks = tuple(env.tasks) if isinstance(env, NamesTasks) else ()
    return env.spec, tasks, isinstance(env, Demonstrates), isinstance(env, CountsEvents)


def _reset(kept: Kept, config: EnvConfig, initial_states: list[int]) -> tuple[Observation, Events]:
    env = _env(kept, config)
    return env.reset(initial_states).to("cpu"), _events(env, range(len(initial_states)))


def _step(kept: Kept, rows: list[int], chunk: Tensor) -> tuple[Outcome, Events]:
    env: Env = kept["env"]
    return to_device(env.step(rows, chunk), "cpu"), _events(env, rows)


def _events(env: Env, rows: Sequence[int]) -> Events:
    return [dict(env.events[row]) for row in rows] if isinstance(env, CountsEvents) else []


def _task_of(kept: Kept, config: EnvConfig, initial_state: int) -> str:
    env = _env(kept, config)
    assert isinstance(env, NamesTasks)
    return env.task_of(initial_state)


def _demonstrate(
    kept: Kept, config: EnvConfig, initial_states: list[int], noise: float, seed: int, min_pace: float
) -> list[Episode]:
    env = _env(kept, config)
    assert isinstance(env, Demonstrates)
    return list(env.demonstrate(initial_states, noise, seed, min_pace))
