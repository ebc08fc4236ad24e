"""Simulator processes: any episode class, under any Python, replaced when they die or hang, gone with their parent."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.config import EnvConfig
from wmpo.contracts import check_env
from wmpo.envs import worker, worker_pool
from wmpo.envs.tabletop import display
from wmpo.envs.vector import VectorEnv
from wmpo.errors import UserError
from wmpo.protocols import CountsEvents, Demonstrates, NamesTasks, Restorable
from wmpo.types import Episode, Outcome

EPISODE = '''
import importlib.util, os, signal, sys, time
import numpy as np

class Bare:
    """A point that actions move; images show where it is."""
    cameras = {"front": (9, 16), "side": (12, 7)}
    state_dim, action_dim, horizon, fps = 2, 2, 10, 5

    def __init__(self, accidents="", slow=0):
        self.accidents = accidents
        time.sleep(slow)

    def reset(self, initial_state):
        self.number, self.taken = initial_state, 0
        self.point = np.random.default_rng(initial_state).uniform(-1, 1, 2)
        self.instruction = f"move point {initial_state}"

    @property
    def done(self):
        return bool(abs(self.point).max() > 2)

    def observe(self):
        seen = (self.point.sum() * 20 + 100).astype(np.uint8)
        images = {name: np.full((*size, 3), seen) for name, size in self.cameras.items()}
        images["side"][0, 0] = self.number % 256
        return {"images": images, "state": self.point.astype(np.float32)}

    def step(self, action):
        for kind in ("kill", "stop", "sleep", "exit"):
            mark = os.path.join(self.accidents, f"{kind}-{self.number}-{self.taken}")
            if self.accidents and os.path.exists(mark):
                if not os.path.exists(mark + "-always"):
                    os.remove(mark)
                if kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
                if kind == "stop": os.kill(os.getpid(), signal.SIGSTOP)
                if kind == "sleep": time.sleep(60)
                if kind == "exit": os._exit(7)
        self.taken += 1
        self.point = self.point + 0.3 * action
        return bool(self.point[0] > 1)


class Whole(Bare):
    tasks = ("even", "odd")

    def get_state(self):
        return self.number, self.taken, self.point, self.instruction

    def set_state(self, state):
        self.number, self.taken, self.point, self.instruction = state

    def events(self):
        return {"steps": self.taken}

    def task_of(self, initial_state):
        return self.tasks[initial_state % 2]

    def demonstrate(self, initial_state, noise, seed, min_pace):
        self.reset(initial_state)
        if initial_state == 6666:
            return {"images": {}}
        time.sleep(0.3 if initial_state == 0 else 0)  # the first is the slowest
        action = np.array([0.5, 0.0], np.float32)
        seen, success = [self.observe()], [False]
        for _ in range(3):
            success.append(self.step(action))
            seen.append(self.observe())
        return {
            "images": {name: np.stack([one["images"][name] for one in seen]) for name in self.cameras},
            "state": np.stack([one["state"] for one in seen]), "actions": np.stack([action] * 3), "success": success,
            "meta": {"python": sys.version.split()[0]},
        }


class Abroad(Bare):
    def reset(self, initial_state):
        super().reset(initial_state)
        found = [name for name in ("wmpo", "torch") if importlib.util.find_spec(name)]
        self.instruction = f"{sys.prefix} {found}"


class Wrong(Bare):
    def observe(self):
        seen = super().observe()
        if self.number == 1: seen["images"]["front"] = seen["images"]["front"][:5]
        if self.number == 2: seen["images"]["front"] = seen["images"]["front"] / 255
        if self.number == 3: seen["state"] = np.zeros(3)
        if self.number == 4: raise ZeroDivisionError("by nothing")
        return seen


class Angles(Bare):
    action_low, action_high = [-90, 0], 90


class NoHorizon(Bare):
    horizon = None


class Flat(Bare):
    cameras = {"front": (0, 16)}
'''

Make = Callable[..., VectorEnv]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """VectorEnvs of the classes above, closed afterwards."""
    (tmp_path / "point_episode.py").write_text(EPISODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "point_episode", raising=False)
    made: list[VectorEnv] = []

    def build(
        name: str = "Whole", workers: int = 2, timeout: float = 60.0, python: str = "", **settings: object
    ) -> VectorEnv:
        config = EnvConfig(workers=workers, timeout=timeout, python=python)
        made.append(VectorEnv(config, f"point_episode:{name}", settings))
        return made[-1]

    yield build
    for env in made:
        env.close()


def chunks(rows: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return list((torch.rand(count, rows, 2, 2, generator=generator) * 2 - 1).unbind())


def equal(one: Outcome, two: Outcome) -> bool:
    images = all(torch.equal(one.images[name], two.images[name]) for name in two.images)
    return images and all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("state", "success", "done"))


def pids(env: VectorEnv) -> list[int]:
    return [process.process.pid for process in env._pool._workers]  # type: ignore[union-attr]


# --- any episode class ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_of_anybody_keeps_the_contract(make: Make, workers: int) -> None:
    env = make(workers=workers)
    assert check_env(env) == []
    seen = env.reset([3, 250, 4])
    assert seen.images["front"].shape == (3, 3, 9, 16) and seen.images["side"].shape == (3, 3, 12, 7)
    assert seen.images["side"][:, 0, 0, 0].tolist() == [3, 250, 4]
    assert seen.instruction == ("move point 3", "move point 250", "move point 4")
    done = [env.step([0], torch.zeros(1, 4, 2)).done.item() for _ in range(3)]
    assert done == [False, False, False]  # the horizon of 10 is the business of who plays
    assert env.events == [{"steps": 12}, {"steps": 0}, {"steps": 0}]


def test_processes_and_one_process_agree(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = make(workers=0), make(workers=2)
    monkeypatch.setattr(worker_pool, "_nameless_file", lambda: -1)  # no shared memory: frames come through the pipes
    piped = make(workers=2)
    for env in (outside, piped):
        for count in (2, 5, 3):  # the shared memory grows
            for one in (inside, env):
                one.reset(range(count))
            for chunk in chunks(count, 3):
                assert equal(inside.step(range(count), chunk), env.step(range(count), chunk))
        assert env.get_state([2, 0]) == inside.get_state([2, 0])
        assert env.task_of(7) == inside.task_of(7) == "odd" and env.tasks == ("even", "odd")


def test_it_offers_what_the_class_offers(make: Make) -> None:
    bare, whole = make("Bare"), make("Whole")
    for protocol in (Demonstrates, NamesTasks, Restorable, CountsEvents):
        assert isinstance(whole, protocol) and not isinstance(bare, protocol)
    with pytest.raises(UserError, match="point_episode:Bare has no demonstrate"):
        bare.demonstrate([0], 0.0, 0)
    assert not hasattr(bare, "get_state") and not hasattr(bare, "anything")


def test_actions_have_the_bounds_of_the_class(make: Make) -> None:
    env = make("Angles", workers=0)
    env.reset([0])
    env.step([0], torch.tensor([[[-90.0, 90.0]]]))
    with pytest.raises(UserError, match=r"Action 1 must lie in \[0, 90\], not at -1"):
        env.step([0], torch.tensor([[[-90.0, -1.0]]]))
    assert env.spec.action_low == (-90.0, 0.0) and check_env(env) == []
    other = make("Bare", workers=0)
    other.reset([0])
    with pytest.raises(UserError, match=r"Action 0 must lie in \[-1, 1\], not at -90"):
        other.step([0], torch.tensor([[[-90.0, 90.0]]]))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_class_gets_wrong_is_said(make: Make, workers: int) -> None:
    env = make("Wrong", workers=workers)
    env.reset([0])
    for number, words in enumerate(
        [
            "camera front shows uint8 .5, 16, 3., not uint8 .9, 16, 3.",
            "float64",
            "state has the shape .3,.",
            r"ZeroDivisionError: by nothing \(point_episode.py, line \d+\)",
        ],
        1,
    ):
        with pytest.raises(UserError, match=words):
            env.reset([0, number])
    with pytest.raises(UserError, match="uint8") as caught:
        env.reset([1])
    assert "worker" not in str(caught.value)  # whose fault it is not
    line = EPISODE[: EPISODE.index("ZeroDivisionError")].count("\n") + 1
    with pytest.raises(UserError, match=rf"by nothing \(point_episode.py, line {line}\)"):
        env.reset([4])
    with pytest.raises(UserError, match="Call reset"):  # half of the batch had begun
        env.step([0], torch.zeros(1, 1, 2))
    env.reset([5])  # and it goes on
    for name, words in {"NoHorizon": "has no horizon", "Flat": "choose sides of 1 to", "None": "None"}.items():
        with pytest.raises(UserError, match=words):
            make(name, workers=workers)
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        make(colour="red", workers=workers)


# --- demonstrations -------------------------------------------------------------------------------------------


def test_demonstrations_come_one_by_one_in_order(make: Make) -> None:
    env, inside = make(), make(workers=0)
    env.reset([1, 2])
    whole = list(env.demonstrate([0, 5, 5, 2], 0.0, 0))
    assert [episode.initial_state for episode in whole] == [0, 5, 5, 2]
    assert [episode.task for episode in whole] == ["even", "odd", "odd", "even"]
    assert whole[0].labels is None and whole[0].meta.keys() == {"python"} and whole[1].instruction == "move point 5"
    assert whole[0].images["side"].shape == (4, 12, 7, 3)
    for one, two in zip(whole, inside.demonstrate([0, 5, 5, 2], 0.0, 0), strict=True):
        np.testing.assert_array_equal(one.state, two.state)
        np.testing.assert_array_equal(one.images["front"], two.images["front"])
    episodes = env.demonstrate(range(2000), 0.0, 0)
    assert isinstance(next(episodes), Episode)
    episodes.close()  # who has enough may stop: nobody waits for the rest
    chunk = chunks(2, 1)[0]
    inside.reset([1, 2])
    assert equal(env.step([0, 1], chunk), inside.step([0, 1], chunk))  # the batch was left as it was
    episodes = env.demonstrate(range(9), 0.0, 0)
    next(episodes)
    env.step([0, 1], chunk)
    with pytest.raises(RuntimeError, match="another request"):
        list(episodes)
    with pytest.raises(UserError, match="demonstrate gives actions as object"):
        list(env.demonstrate([6666], 0.0, 0))


# --- accidents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kill", "process 1 was ended by signal 9 (SIGKILL) (step, row 1, row 3)"),
        ("exit", "process 1 ended with exit code 7 (step, row 1, row 3)"),
        ("stop", "process 1 gave no sign of life until its time was up (env.timeout) (step, row 1, row 3)"),
        ("sleep", "process 1 gave no sign of life until its time was up (env.timeout) (step, row 1, row 3)"),
    ],
)
def test_a_lost_worker_is_replaced_and_nobody_notices(
    make: Make, tmp_path: Path, kind: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, env = make(workers=0), make(timeout=1.0, accidents=str(tmp_path))
    for one in (undisturbed, env):
        one.reset([10, 11, 12, 13, 14])
    blocks = chunks(5, 4)
    mark = tmp_path / f"{kind}-13-3"  # row 3, which worker 1 plays, in the middle of the second chunk
    mark.touch()
    before = pids(env)
    with caplog.at_level(logging.WARNING):
        for index, block in enumerate(blocks):
            rows = [0, 1, 2, 3, 4] if index != 2 else [4, 1]  # row 3 is not needed at once after its accident
            actions = block[rows]
            assert equal(undisturbed.step(rows, actions), env.step(rows, actions))
            actions.zero_()  # the caller may use it again
    assert undisturbed.events == env.events and not mark.exists()
    assert undisturbed.get_state([3]) == env.get_state([3])
    assert pids(env)[0] == before[0] and pids(env)[1] != before[1]
    assert [record.message for record in caplog.records if words not in record.message] == []
    assert not Path(f"/proc/{before[1]}").exists()


def test_saved_states_are_begun_again_too(make: Make) -> None:
    undisturbed, env = make(workers=0), make()
    blocks = chunks(2, 3)
    for one in (undisturbed, env):
        one.reset([1, 2])
        one.step([0, 1], blocks[0])
        one.reset_to(one.get_state([1, 0]))
        one.step([0, 1], blocks[1])
    for pid in pids(env):
        os.kill(pid, 9)
    assert equal(undisturbed.step([0, 1], blocks[2]), env.step([0, 1], blocks[2]))
    for pid in pids(env):
        os.kill(pid, 9)
    for one, two in zip(undisturbed.demonstrate([3, 4], 0.0, 0), env.demonstrate([3, 4], 0.0, 0), strict=True):
        np.testing.assert_array_equal(one.state, two.state)


def test_after_three_replacements_it_is_an_error(make: Make, tmp_path: Path) -> None:
    env = make(accidents=str(tmp_path))
    env.reset([0, 1])
    marks = [tmp_path / "exit-1-0", tmp_path / "exit-1-0-always"]
    for mark in marks:
        mark.touch()
    with pytest.raises(UserError, match=r"^[^\n]*1 ended with exit code 7 \(step, row 1\)[^\n]*3 that took[^\n]*$"):
        env.step([0, 1], torch.zeros(2, 1, 2))
    for mark in marks:
        mark.unlink()
    env.reset([0, 1])  # healed
    env.step([0, 1], torch.zeros(2, 1, 2))


def test_one_that_works_long_is_not_taken_for_dead(make: Make) -> None:
    env = make(workers=1, timeout=0.4)
    before = pids(env)
    assert len(list(env.demonstrate([0] * 4, 0.0, 0))) == 4  # 0.3 seconds each
    env.reset(range(3000))  # more than the timeout in all, with signs of life in between
    assert pids(env) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slow": 60, "timeout": 1.0}, "process 0 .* gave no sign of life .* while it started"),
        ({"python": "/no/such/python"}, "env.python is '/no/such/python', which is no program"),
        ({"python": "/bin/false"}, r"process 0 \(/bin/false\) ended with exit code 1 while it started"),
        ({"python": sys.executable, "workers": 0}, "env.workers must be at least 1"),
    ],
)
def test_what_cannot_start_is_an_error(
    make: Make, settings: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "START", 1.0)
    began = time.monotonic()
    with pytest.raises(UserError, match=words):
        make(**settings)
    assert time.monotonic() - began < 20


# --- another Python -------------------------------------------------------------------------------------------


def other_python(folder: Path, *packages: str) -> str:
    """An interpreter with nothing but these packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for package in packages:
        (site / package).symlink_to(Path(np.__file__).parents[1] / package)
    return str(folder / "bin" / "python")


def test_another_python_needs_neither_wmpo_nor_torch(make: Make, tmp_path: Path) -> None:
    libraries = [name for name in ("numpy", "numpy.libs") if (Path(np.__file__).parents[1] / name).exists()]
    env = make("Abroad", workers=1, python=other_python(tmp_path / "other", *libraries))
    assert env.reset([0]).instruction == (f"{tmp_path / 'other'} []",)
    inside = make("Bare", workers=0)
    inside.reset([0])
    chunk = torch.full((1, 3, 2), 0.5)
    assert equal(env.step([0], chunk), inside.step([0], chunk))


def test_another_python_without_numpy_says_so(make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="ended with exit code 1 while it started"):
        make(workers=1, python=other_python(tmp_path / "other"))
    assert "has no NumPy" in capfd.readouterr().err


def test_its_side_is_plain_old_python() -> None:
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 8))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - {"numpy"} <= set(sys.stdlib_module_names)


def test_files_of_the_working_directory_are_not_imported(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("random", "mujoco", "secrets", "pickle"):
        (trap / f"{name}.py").write_text(f"open({str(trap / 'sprung')!r}, 'w'); raise SystemExit('not mine')")
    works = display.egl_works()
    monkeypatch.chdir(trap)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(trap))
    env = make(workers=1)
    env.reset([0])
    assert display.egl_works.__wrapped__() == works
    assert not (trap / "sprung").exists()


# --- gone with their parent -----------------------------------------------------------------------------------

_PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
from wmpo.config import EnvConfig
from wmpo.envs.vector import VectorEnv
import torch
env = VectorEnv(EnvConfig(workers=2), "point_episode:Bare", {{"accidents": {accidents!r}}})
env.reset([0, 1])
print(*[worker.process.pid for worker in env._pool._workers], flush=True)
{ending}
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("make")
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at /proc")
@pytest.mark.parametrize("end", ["exit", "interrupt", "kill", "kill while they hang"])
def test_they_end_with_their_parent(tmp_path: Path, end: str) -> None:
    shared = set(os.listdir("/dev/shm"))
    ending = {"exit": "", "kill while they hang": "env.step([0, 1], torch.zeros(2, 1, 2))"}.get(end, "time.sleep(60)")
    for mark in ("stop-0-0", "sleep-1-0"):
        (tmp_path / mark).touch()
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(accidents=str(tmp_path), ending=ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while end == "kill while they hang" and len(list(tmp_path.glob("s*-?-0"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    if end == "interrupt":
        os.killpg(parent.pid, 2)  # what a terminal does on Ctrl-C: everybody gets it
    elif end != "exit":
        parent.kill()
    parent.wait(timeout=20)
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if "wmpo" in name}
