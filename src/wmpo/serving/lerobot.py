"""LeRobot's asynchronous inference, the server's side, for its robot client as it is (version 0.4).

The client's loop runs at its own rate; whenever its queue of actions runs low it sends an observation, and all the time
it asks for a chunk. Messages are pickles in protocol buffers over gRPC; see `wmpo.serving.pickles`. The client says
which policy it wants, from where and on which device: that is ignored, since this server serves one policy.

Departure from LeRobot's server: an observation isn't passed over for being like the last one, only where its time step
has been answered.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import grpc
import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from wmpo.errors import UserError
from wmpo.serving.actor import Actor, as_state, free_port
from wmpo.serving.pickles import read, write_actions
from wmpo.training.fit import step_seed
from wmpo.types import Observation

SERVICE = "transport.AsyncInference"
LARGEST = 1 << 28  # bytes of an observation
LAST_PART = 3  # of the parts that an observation comes in: TRANSFER_END
CALLS = 64  # at once: a client that hangs in the middle of one holds it
OPTIONS = [("grpc.so_reuseport", 0), ("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
"""Whoever is gone without a word is noticed, and lets go of its call."""
PATIENCE = 2.0  # seconds that a client waits for an observation of its own to arrive


def _messages() -> tuple[Any, Any]:
    """Protocol buffers: (a part of an observation, all others), by the numbers of their fields in LeRobot's."""
    file = descriptor_pb2.FileDescriptorProto(name="wmpo/serving.proto", package="wmpo.serving", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in (
        ("Part", (("state", kinds.TYPE_INT32), ("data", kinds.TYPE_BYTES))),
        ("Whole", (("data", kinds.TYPE_BYTES),)),
    ):
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            message.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    part, whole = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"wmpo.serving.{name}"))
        for name in ("Part", "Whole")
    )
    return part, whole


Part, Whole = _messages()


class Waiting(NamedTuple):
    """An observation that has not been decided on."""

    seen: Observation
    timestep: int
    timestamp: float


class AsyncInference:
    """The four calls of the service, of one client at a time: one that comes takes over."""

    def __init__(self, actor: Actor, seed: int, tell: Callable[[str], None]) -> None:
        self.actor, self.seed, self.tell = actor, seed, tell
        self.clients = 0
        self.busy = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        with self.busy:
            self.clients += 1
            self.generator = torch.Generator().manual_seed(step_seed(self.seed, self.clients))
            self.waiting: queue.Queue[Waiting] = queue.Queue(maxsize=1)
            self.answered: set[int] = set()
            self.numbers: list[str] = []
            self.shown: list[str] = []
            self.longest = self.actor.chunk

    def ready(self, request: Any, context: Any) -> Any:
        self._begin()
        self.tell(f"A robot client has come: {context.peer()}")
        return Whole()

    def instructions(self, request: Any, context: Any) -> Any:
        """What the robot shows, and how many actions it wants at once."""
        with _refusing(context, grpc.StatusCode.FAILED_PRECONDITION, self.tell):
            asked = read(request.data, "RemotePolicyConfig")
            features, longest = asked.get("lerobot_features"), asked.get("actions_per_chunk")
            if not isinstance(features, dict) or type(longest) is not int:
                raise UserError("The client's instructions lack lerobot_features or actions_per_chunk.")
            felt = features.get("observation.state")
            names = felt.get("names") if isinstance(felt, dict) else []
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in (*names, *features)):
                raise UserError("The client's lerobot_features are damaged.")
            prefix = "observation.images."
            shown = [name.removeprefix(prefix) for name in features if name.startswith(prefix)]
            self.actor.check(shown, len(names))
            if min(longest, self.actor.chunk) < 2:
                raise UserError(
                    "LeRobot's client drops the first action of each chunk but the first, so that chunks of 1 never "
                    "move the robot: give it more actions_per_chunk, or a policy that decides more at once."
                )
            self.numbers, self.shown, self.longest = list(names), shown, longest
        return Whole()

    def observations(self, parts: Iterator[Any], context: Any) -> Any:
        """One observation, in parts; it takes the place of one that nobody has asked actions for."""
        with _refusing(context, grpc.StatusCode.INVALID_ARGUMENT, self.tell):
            sent = read(_joined(parts), "TimedObservation")
            raw, timestep, timestamp = sent.get("observation"), sent.get("timestep"), sent.get("timestamp")
            if not isinstance(raw, dict) or type(timestep) is not int or not isinstance(timestamp, float):
                raise UserError("The observation lacks its content, timestep or timestamp.")
            if timestep not in self.answered or sent.get("must_go") is True:
                made = Waiting(self._seen(raw), timestep, timestamp)
                with self.busy, contextlib.suppress(queue.Empty):
                    self.waiting.get_nowait()
                with contextlib.suppress(queue.Full):  # another one has just come
                    self.waiting.put_nowait(made)
        return Whole()

    def _seen(self, raw: dict[str, Any]) -> Observation:
        missing = [name for name in self.numbers if not isinstance(raw.get(name), (int, float))]
        if missing:
            raise UserError(f"The observation has no number {missing[0]!r}.")
        state = as_state([raw[name] for name in self.numbers])
        images = {name: raw[name] for name in self.shown if isinstance(raw.get(name), np.ndarray)}
        task = raw.get("task")
        return self.actor.observation(images, state, task if isinstance(task, str) else "")

    def actions(self, request: Any, context: Any) -> Any:
        """The chunk for the last observation; nothing where none has come for a while."""
        try:
            waiting = self.waiting.get(timeout=PATIENCE)
        except queue.Empty:
            return Whole()
        with _refusing(context, grpc.StatusCode.INTERNAL, self.tell):
            self.answered.add(waiting.timestep)
            chunk = self.actor.decide(waiting.seen, self.generator)[: self.longest]
        return Whole(data=write_actions(chunk, waiting.timestep, waiting.timestamp))


@contextlib.contextmanager
def _refusing(context: Any, status: Any, tell: Callable[[str], None]) -> Iterator[None]:
    """A UserError becomes the status of the call, with its sentence, and a line here."""
    try:
        yield
    except UserError as error:
        tell(f"Refused: {error}")
        _abort(context, status, str(error))


def _abort(context: Any, status: Any, text: str) -> NoReturn:
    context.abort(status, text)
    raise AssertionError  # abort raises


def _joined(parts: Iterator[Any]) -> bytes:
    content, size = [], 0
    for part in parts:
        content.append(part.data)
        size += len(part.data)
        if size > LARGEST:
            raise UserError(f"The observation is larger than {LARGEST >> 20} MiB.")
        if part.state == LAST_PART:
            break
    return b"".join(content)


def make_server(actor: Actor, host: str, port: int, seed: int, tell: Callable[[str], None]) -> tuple[Any, str]:
    """(a gRPC server that isn't started, its address). Raises UserError where the port is taken."""
    port, calls = free_port(host, port), AsyncInference(actor, seed, tell)
    one = {"request_deserializer": Whole.FromString, "response_serializer": Whole.SerializeToString}
    handlers = {
        "Ready": grpc.unary_unary_rpc_method_handler(calls.ready, **one),
        "SendPolicyInstructions": grpc.unary_unary_rpc_method_handler(calls.instructions, **one),
        "GetActions": grpc.unary_unary_rpc_method_handler(calls.actions, **one),
        "SendObservations": grpc.stream_unary_rpc_method_handler(
            calls.observations, Part.FromString, Whole.SerializeToString
        ),
    }
    server = grpc.server(ThreadPoolExecutor(max_workers=CALLS), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server.add_insecure_port(address)
    return server, address


def serve(actor: Actor, host: str, port: int, seed: int, tell: Callable[[str], None]) -> None:
    """Until Ctrl-C."""
    server, address = make_server(actor, host, port, seed, tell)
    server.start()
    try:
        tell(f"Serving LeRobot's robot client at {address} ({actor.about()}); Ctrl-C ends it.")
        server.wait_for_termination()
    except KeyboardInterrupt:
        print()
    finally:
        server.stop(None)
