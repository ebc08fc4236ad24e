"""A policy behind LeRobot's asynchronous inference: what comes over the line runs nothing, and what goes back is right.

The client here speaks the protocol by LeRobot's field numbers and class names. LeRobot's own client runs in a Python of
its own, which WMPO_LEROBOT_PYTHON names; without that its test is skipped. docs/serve.md tells how to make one.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmpo.errors import UserError
from wmpo.policies import build_policy, load_policy
from wmpo.policies.settings import MiniVLASettings
from wmpo.protocols import Policy
from wmpo.types import EnvSpec, Observation

grpc = pytest.importorskip("grpc")

from wmpo.serving import lerobot, pickles  # noqa: E402
from wmpo.serving.actor import Actor  # noqa: E402

CLIENT = Path(__file__).with_name("lerobot_client.py")
PYTHON = os.environ.get("WMPO_LEROBOT_PYTHON", "")
SPEC = EnvSpec({"front": (24, 32), "side": (16, 16)}, state_dim=2, action_dim=3, horizon=50, fps=10)
MOTORS = ("shoulder.pos", "gripper.pos")
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": list(MOTORS)},
    "observation.images.front": {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]},
    "observation.images.usb_1": {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]},
}
TASK = "pick up the cup"


@dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict[str, str] = field(default_factory=dict)


@dataclass
class TimedObservation:
    timestamp: float
    timestep: int
    observation: dict[str, Any]
    must_go: bool = False


@dataclass
class TimedAction:
    timestamp: float
    timestep: int
    action: torch.Tensor


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above by the names that LeRobot's have, as far as pickle can tell."""
    module = types.ModuleType(pickles.SAME)
    for cls in (RemotePolicyConfig, TimedObservation, TimedAction):
        monkeypatch.setattr(cls, "__module__", pickles.SAME)
        setattr(module, cls.__name__, cls)
    for name in ("lerobot", "lerobot.async_inference"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, pickles.SAME, module)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("serve") / "policy"
    build_policy(MiniVLASettings(chunk=4, width=8, hidden=16, image_size=24), SPEC).save_pretrained(folder)
    return folder


def seen(count: int) -> dict[str, Any]:
    """What the robot shows after so many actions."""
    rng = np.random.default_rng(count)
    front, side = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SPEC.cameras.values())
    return {"shoulder.pos": 0.1 * count, "gripper.pos": np.float32(1 - count), "front": front, "usb_1": side}


def decided(policy: Policy, raw: Mapping[str, Any]) -> np.ndarray:
    """(K, D) of the policy itself."""
    images = {
        own: torch.from_numpy(raw[name]).permute(2, 0, 1)[None] for own, name in (("front", "front"), ("side", "usb_1"))
    }
    state = torch.tensor([[float(raw[name]) for name in MOTORS]])
    generator = torch.Generator().manual_seed(0)
    return policy.act(Observation(images, state, (TASK,)), temperature=0.0, generator=generator).chunk[0].numpy()


class Client:
    """The calls that LeRobot's client makes."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def call(self, name: str, data: bytes = b"") -> bytes:
        serializers = (lerobot.Whole.SerializeToString, lerobot.Whole.FromString)
        answer: bytes = self.channel.unary_unary(f"/{lerobot.SERVICE}/{name}", *serializers)(
            lerobot.Whole(data=data), timeout=20
        ).data
        return answer

    def send(self, observation: bytes, size: int = 1000) -> None:
        cuts = range(0, len(observation), size)
        parts = [lerobot.Part(state=3 if cut == cuts[-1] else 2, data=observation[cut : cut + size]) for cut in cuts]
        stub = self.channel.stream_unary(
            f"/{lerobot.SERVICE}/SendObservations", lerobot.Part.SerializeToString, lerobot.Whole.FromString
        )
        stub(iter(parts), timeout=20)

    def begin(self, **other: Any) -> None:
        self.call("Ready")
        asked = {"lerobot_features": FEATURES, "actions_per_chunk": 50, **other}
        self.call("SendPolicyInstructions", pickle.dumps(RemotePolicyConfig("act", "someone/model", **asked)))

    def act(self, raw: Mapping[str, Any], timestep: int = 0, must_go: bool = True) -> list[TimedAction]:
        self.send(pickle.dumps(TimedObservation(7.5, timestep, {**raw, "task": TASK}, must_go)))
        found = self.call("GetActions")
        return pickle.loads(found) if found else []


@pytest.fixture
def served(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(lerobot, "PATIENCE", 0.1)
    actor = Actor(load_policy(saved), saved, ["side=usb_1"])
    server, address = lerobot.make_server(actor, "127.0.0.1", 0, 0, lambda line: None)
    server.start()
    client = Client(address)
    yield client
    client.channel.close()
    server.stop(None).wait()


def test_a_client_gets_the_actions_of_the_policy(theirs: None, served: Client, saved: Path) -> None:
    policy = load_policy(saved)
    served.begin()
    for timestep in (0, 3, 9):
        found = served.act(seen(timestep), timestep)
        expected = decided(policy, seen(timestep))
        assert np.array_equal(np.stack([action.action.numpy() for action in found]), expected)
        assert [action.timestep for action in found] == list(range(timestep, timestep + 4))
        assert {action.timestamp for action in found} == {7.5}
    assert not np.array_equal(decided(policy, seen(0)), decided(policy, seen(9)))


def test_chunks_are_as_short_as_asked_for_and_a_timestep_is_answered_once(theirs: None, served: Client) -> None:
    served.begin(actions_per_chunk=2)
    assert len(served.act(seen(0), 5)) == 2
    assert served.act(seen(1), 5, must_go=False) == []
    assert len(served.act(seen(1), 5, must_go=True)) == 2
    served.begin()  # a new client is answered anew
    assert len(served.act(seen(0), 5, must_go=False)) == 4


def test_only_the_newest_observation_is_decided_on(theirs: None, served: Client, saved: Path) -> None:
    served.begin()
    served.send(pickle.dumps(TimedObservation(7.5, 1, {**seen(1), "task": TASK})))
    found = served.act(seen(2), 2)
    assert np.array_equal(found[0].action.numpy(), decided(load_policy(saved), seen(2))[0])
    assert served.call("GetActions") == b""


@pytest.mark.parametrize(
    ("features", "longest", "words"),
    [
        ({"observation.images.usb_1": None}, 50, "no camera 'usb_1', which the policy looks through, but only front"),
        ({"observation.state": {"names": ["one"]}}, 50, "trained with 2 state numbers, but 1 came"),
        ({}, 1, "chunks of 1 never move"),
        ({}, "many", "lack"),
    ],
)
def test_a_robot_that_does_not_fit_is_told_so_at_once(
    theirs: None, served: Client, features: dict[str, Any], longest: Any, words: str
) -> None:
    shown = {name: value for name, value in {**FEATURES, **features}.items() if value}
    with pytest.raises(grpc.RpcError, match=words) as caught:
        served.begin(lerobot_features=shown, actions_per_chunk=longest)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"front": None}, "no camera 'front'"),
        ({"front": np.zeros((24, 32), np.uint8)}, "shows uint8 of 24x32, not uint8"),
        ({"front": np.zeros((24, 32, 3), np.float32)}, "shows float32 of 24x32x3"),
        ({"gripper.pos": None}, "no number 'gripper.pos'"),
        ({"gripper.pos": float("nan")}, "NaN"),
        ({"gripper.pos": 1e300}, "NaN or infinity"),
        ({"gripper.pos": 10**400}, "The state is no list of numbers"),
        ({"task": ""}, "names no task"),
    ],
)
def test_an_observation_that_lacks_something_is_refused_by_name(
    theirs: None, served: Client, change: dict[str, Any], words: str
) -> None:
    served.begin()
    raw = {name: value for name, value in {**seen(0), "task": TASK, **change}.items() if value is not None}
    with pytest.raises(grpc.RpcError, match=words) as caught:
        served.send(pickle.dumps(TimedObservation(7.5, 0, raw)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_clients_that_hang_in_the_middle_of_a_call_keep_nobody_out(theirs: None, served: Client) -> None:
    ended = threading.Event()

    def stuck() -> Iterator[Any]:
        yield lerobot.Part(state=1, data=b"x")
        ended.wait(60)

    stub = served.channel.stream_unary(
        f"/{lerobot.SERVICE}/SendObservations", lerobot.Part.SerializeToString, lerobot.Whole.FromString
    )
    calls = [stub.future(stuck()) for _ in range(8)]
    time.sleep(0.5)
    served.begin()
    assert len(served.act(seen(0))) == 4
    ended.set()
    for call in calls:
        call.cancel()


# What comes over the line


@pytest.mark.parametrize("protocol", [4, 5])
def test_numbers_texts_and_arrays_arrive_as_they_were(theirs: None, protocol: int) -> None:
    sent = {
        "one": 1.5, "two": np.float32(2.5), "three": 3, "four": True, "five": "fünf", "six": np.int64(-6),
        "picture": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "turned": np.arange(6, dtype=">f4").reshape(2, 3).T, "empty": np.zeros((0, 3)),
    }  # fmt: skip
    found = pickles.read(pickle.dumps(TimedObservation(1.0, 2, sent), protocol), "TimedObservation")
    assert (found["timestamp"], found["timestep"], found["must_go"]) == (1.0, 2, False)
    for name, value in sent.items():
        assert np.array_equal(found["observation"][name], value), name
        assert getattr(found["observation"][name], "shape", ()) == np.shape(value)


def test_the_names_of_numpy_1_and_2_are_both_known(theirs: None) -> None:
    sent = pickle.dumps(TimedObservation(1.0, 2, {"picture": np.ones((2, 2), np.uint8)}))
    new, old = b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray"
    assert new in sent or old in sent
    other = sent.replace(new, old) if new in sent else sent.replace(old, new)
    frame = other.index(b"\x95") + 1  # whose length has changed
    other = other[:frame] + (len(other) - frame - 8).to_bytes(8, "little") + other[frame + 8 :]
    assert pickles.read(other, "TimedObservation")["observation"]["picture"].sum() == 4


class Evil:
    """Would leave a file behind."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


def rewritten(head: bytes, *parts: bytes) -> bytes:
    return b"\x80\x04" + head + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def attacks(folder: Path) -> dict[str, bytes]:
    """Pickles that do, or might do, more than hold numbers."""
    command = f"touch {folder / 'pwned'}"
    evil = {
        "system": Evil(os.system, command), "eval": Evil(eval, f"open({str(folder / 'pwned')!r}, 'w')"),
        "popen": Evil(subprocess.Popen, ["touch", str(folder / "pwned")]),
        "tensor": torch.zeros(2), "objects": np.array([Evil(os.system, command)], dtype=object),
        "record": np.zeros(2, [("a", "u1")]), "path": Path("x"),
    }  # fmt: skip
    made = {name: pickle.dumps(TimedObservation(1.0, 0, {"x": value})) for name, value in evil.items()}
    made["bare"] = pickle.dumps(evil["system"])
    made["old"] = pickle.dumps(TimedObservation(1.0, 0, {"x": evil["system"]}), protocol=2)
    made["other class"] = pickle.dumps(RemotePolicyConfig("act", "x", {}, 1))
    made["no class"] = pickle.dumps({"timestep": 1})
    made["attribute"] = rewritten(text(pickles.SAME), text("TimedObservation.__init__.__globals__"), b"\x93")
    made["builtin"] = rewritten(text("builtins"), text("getattr"), b"\x93")
    made["memo"] = b"\x80\x04N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f."
    made["registry"] = b"\x80\x04" + pickle.EXT1 + b"\x01."
    made["persistent"] = b"\x80\x04" + pickle.PERSID + b"x\n."
    made["many"] = b"\x80\x04" + pickle.EMPTY_TUPLE * 100_000 + b"."
    made["deep"] = b"\x80\x04" + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + b"."
    made["size"] = pickle.dumps(TimedObservation(1.0, 0, {"x": np.zeros((3, 5), np.uint8)})).replace(
        b"K\x03K\x05", b"K\x7fK\x05"
    )
    made["cut"] = pickle.dumps(TimedObservation(1.0, 0, {"x": np.zeros(9)}))[:-20]
    made["nothing"], made["noise"] = b"", b"hello"
    return made


NAMES = [
    "system", "eval", "popen", "tensor", "objects", "record", "path", "bare", "old", "other class", "no class",
    "attribute", "builtin", "memo", "registry", "persistent", "many", "deep", "size", "cut", "nothing", "noise",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_more_than_numbers_is_refused_and_nothing_runs(theirs: None, name: str, tmp_path: Path) -> None:
    data = attacks(tmp_path)[name]
    with pytest.raises(UserError):
        pickles.read(data, "TimedObservation")
    assert not list(tmp_path.iterdir())


def test_every_attack_is_tried_and_the_worst_would_work(theirs: None, tmp_path: Path) -> None:
    made = attacks(tmp_path)
    assert set(made) == set(NAMES)
    pickle.loads(made["bare"])
    assert (tmp_path / "pwned").exists()


def test_nothing_stays_in_the_stand_ins(theirs: None) -> None:
    """A pickle may set attributes of the classes that it names."""
    cls = rewritten(text(pickles.SAME) + text("TimedObservation") + b"\x93")[2:-1]
    fields = pickle.dumps((None, {"__setstate__": 1, "timestep": 5}), 4)
    fields = fields[fields.index(b"\x95") + 9 : -1]
    with pytest.raises(UserError):
        pickles.read(rewritten(cls, fields, pickle.BUILD), "TimedObservation")
    found = pickles.read(pickle.dumps(TimedObservation(1.0, 2, {})), "TimedObservation")
    assert found == {"timestamp": 1.0, "timestep": 2, "observation": {}, "must_go": False}


def test_a_served_attack_is_refused(theirs: None, served: Client, tmp_path: Path) -> None:
    served.begin()
    for data in attacks(tmp_path).values():
        for call in (served.send, lambda data: served.call("SendPolicyInstructions", data)):
            with pytest.raises((grpc.RpcError, IndexError)):  # nothing at all has no last part
                call(data)
    assert not list(tmp_path.iterdir())
    assert len(served.act(seen(0))) == 4  # and goes on


def test_what_goes_back_names_torch_and_lerobot_only() -> None:
    data = pickles.write_actions(np.ones((3, 2), np.float32), 4, 1.0)
    names = {arg for opcode, arg, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}
    assert names == {
        f"{pickles.SAME} TimedAction", "torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes",
        "collections OrderedDict", "_codecs encode",
    }  # fmt: skip


# LeRobot's own client


@pytest.mark.skipif(not PYTHON, reason="needs LeRobot's own Python in WMPO_LEROBOT_PYTHON")
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_lerobots_own_client_moves_its_robot_as_the_policy_says(saved: Path, tmp_path: Path, threshold: float) -> None:
    """With 0 it asks when it has no action left, and every action can be told beforehand; with 0.7 chunks overlap."""
    policy = load_policy(saved)
    lines: list[str] = []
    server, address = lerobot.make_server(Actor(policy, saved, ["side=usb_1"]), "127.0.0.1", 0, 0, lines.append)
    server.start()
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    asked = {"address": address, "motors": MOTORS, "actions": ["a", "b", "c"], "count": 12, "task": TASK,
             "threshold": threshold, "pictures": {"front": [24, 32], "usb_1": [16, 16]}}  # fmt: skip
    try:
        done = subprocess.run(
            [PYTHON, str(CLIENT), json.dumps(asked)], env={**environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    finally:
        server.stop(None).wait()
    assert done.returncode == 0, done.stderr
    moves = np.array(json.loads(done.stdout.splitlines()[-1]), np.float32)
    assert moves.shape == (12, 3)
    assert [line for line in lines if line.startswith("Refused")] == []
    if threshold == 0:
        # The client numbers an observation by the last action, and drops the action of that number.
        expected, last = [], -1
        while len(expected) < 12:
            chunk = decided(policy, seen(last + 1))
            new = chunk[1:] if last >= 0 else chunk
            expected += list(new)
            last += len(new)
        assert np.allclose(moves, np.stack(expected[:12]), atol=1e-6)
