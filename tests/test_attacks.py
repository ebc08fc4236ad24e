"""What users' classes, shells and disks do to the program: one sentence each, before the long work."""

from __future__ import annotations

import errno
import importlib
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from wmpo import algorithm
from wmpo.cli import main
from wmpo.cli.parse import sentence
from wmpo.config import EnvConfig
from wmpo.contracts import check_env
from wmpo.data.video import LOSSLESS, write_video
from wmpo.envs import worker_pool
from wmpo.envs.vector import VectorEnv
from wmpo.errors import UserError
from wmpo.io.files import atomic_folder, atomic_path, write_json
from wmpo.protocols import Demonstrates

BAD = '''
import os, subprocess, sys
from dataclasses import dataclass
import numpy as np
from wmpo.config import EnvConfig

class Bad:
    cameras = {"top": (8, 8)}
    state_dim = action_dim = 2
    horizon, fps, done, instruction = 6, 5, False, "go"

    def __init__(self, how=""):
        self.how = how
        name, equals, value = how.partition("=")
        if equals: setattr(self, name, eval(value))
        if how == "init": raise ValueError("of\\nmany\\nlines")
        if how == "init exit": sys.exit(0)

    def reset(self, number):
        self.taken = 0
        if self.how == "reset": raise OSError(28, "no space")
        if self.how == "reset exit": sys.exit(0)
        if self.how == "pipe": os.write(int(sys.argv[1]), b"\\x00\\x00\\x00\\x05hello")
        if self.how == "child":
            with open("child", "w") as file: file.write(str(subprocess.Popen(["sleep", "60"]).pid))

    def observe(self):
        if self.how == "observe": return None
        return {"images": {name: np.zeros((*size, 3), np.uint8) for name, size in self.cameras.items()},
                "state": np.zeros(2)}

    def step(self, action):
        self.taken += 1
        return getattr(self, "answer", self.taken > 2)

    def events(self): return getattr(self, "counted", {})

    def demonstrate(self, number, noise, seed, min_pace):
        frames = {"images": {"top": np.zeros((3, 8, 8, 3), np.uint8)}, "state": np.zeros((3, 2)),
                  "actions": np.zeros((2, 2)), "success": [False, False, "hopeless" != self.how]}
        if self.how.startswith("shown."):
            name, _, value = self.how[6:].partition(":")
            frames[name] = eval(value)
        return self.shown if hasattr(self, "shown") else frames


@dataclass(frozen=True)
class Settings(EnvConfig):
    how: str = ""
    """What goes wrong."""


class Env:
    Settings = Settings
    disruptions = ()

    @classmethod
    def build(cls, settings):
        from wmpo.envs.vector import VectorEnv
        if settings.how == "build": raise ValueError("no power")
        if settings.how == "build exit": sys.exit(3)
        return None if settings.how == "build none" else VectorEnv(settings, "bad:Bad", {"how": settings.how})


class Model:
    chunk = clip_length = 4

    @classmethod
    def build(cls, *settings): raise RuntimeError("boom")

    @classmethod
    def from_pretrained(cls, folder): raise KeyError("weights")


class Nothing(Model):
    @classmethod
    def build(cls, *settings): return None
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the classes above in it."""
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "torn.py").write_text("def x(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for module in ("bad", "torn", "leaves"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


Captured = pytest.CaptureFixture[str]


def complaint(capsys: Captured, *args: str) -> str:
    """What a command that is refused says: one line."""
    assert main(list(args)) == 2
    error = capsys.readouterr().err
    assert error.startswith("wmpo: ") and error.count("\n") == 1
    return error


HOWS = {  # what goes wrong in an episode class -> what is said
    "init": r"bad:Bad can't be made: ValueError: of many lines \(bad.py, line 16\)",
    "init exit": r"bad:Bad can't be made: it called sys.exit \(bad.py, line 17\)",
    "reset": r"bad:Bad failed: OSError: \[Errno 28\] no space \(bad.py, line 21\)",
    "reset exit": r"bad:Bad failed: it called sys.exit \(bad.py, line 22\)",
    "observe": "bad:Bad observes no images of all cameras with a state",
    "answer=None": "bad:Bad answers step with None where True or False",
    "answer='no'": "bad:Bad answers step with 'no' where",
    "answer=float('nan')": "bad:Bad answers step with nan where",
    "answer=np.ones(2)": "bad:Bad answers step with array",
    "done='False'": "bad:Bad says done with 'False' where",
    "done=None": "bad:Bad says done with None where",
    "counted=None": "bad:Bad counts events as None, not as a dict of whole numbers",
    "counted={'a': .5}": "not as a dict of whole numbers",
    "instruction=None": "bad:Bad has the instruction None where a sentence is due",
    "horizon=float('nan')": "bad:Bad: horizon is nan; it must be a whole number",
    "horizon=float('inf')": "bad:Bad: horizon is inf; it must be a whole number",
    "horizon=10**30": "bad:Bad: horizon is 10+; it must be from 1 to 1000000",
    "fps=29.97": "bad:Bad: fps is 29.97; it must be a whole number",
    "state_dim=10**12": "state_dim is 10+; it must be from 0 to 4096",
    "cameras={'a/b': (8, 8)}": "a camera is called 'a/b'",
    "cameras={'top': (8.5, 8)}": "the height of top is 8.5; it must be a whole number",
    "cameras={'top': (10**5, 8)}": "choose sides of 1 to 8192",
    "cameras='top'": "describes itself wrongly",
    "action_low=float('-inf')": "both finite",
    "shown=None": "bad:Bad answers demonstrate with a NoneType, not with a dict",
    "shown=5": "answers demonstrate with a int",
    "shown=iter([{}])": "answers demonstrate with a list_iterator",
    "shown.actions:None": r"gives actions as object \(\), not float32 \(0, 2\)",
    "shown.actions:5": "gives actions as int64",
    "shown.actions:[[0, 0], [0]]": "gives actions that are no array",
    "shown.actions:[[0, 0], [0, 50]]": r"gives an action 1 of 50 from initial state 0, .* bounds are \[-1, 1\]",
    "shown.images:None": "gives images as a NoneType, not as a dict",
    "shown.meta:['x']": "gives meta as a list, not as a dict",
    "shown.success:None": "gives success as object",
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.usefixtures("folder")
def test_what_goes_wrong_in_an_episode_class_is_one_sentence(workers: int) -> None:
    for how, words in HOWS.items():
        with pytest.raises(UserError, match=f"^[^\n]*{words}[^\n]*$"):
            env = VectorEnv(EnvConfig(workers=workers), "bad:Bad", {"how": how})
            try:
                assert isinstance(env, Demonstrates)
                if how.partition("=")[0] in ("reset", "reset exit", "observe", "answer", "done", "counted"):
                    complaints = check_env(env)  # says the same
                    raise UserError(*complaints)
                list(env.demonstrate([0], 0.0, 0))
            finally:
                env.close()


def test_whole_numbers_stand_for_truth(folder: Path) -> None:
    for how in ("answer=np.bool_(True)", "answer=1", "answer=np.array(False)", "done=0"):
        env = VectorEnv(EnvConfig(workers=0), "bad:Bad", {"how": how})
        assert check_env(env) == [], how


def test_garbage_on_the_pipe_is_a_lost_worker(folder: Path) -> None:
    env = VectorEnv(EnvConfig(workers=1), "bad:Bad", {"how": "pipe"})
    with pytest.raises(UserError, match=f"process 0 .*, as did the {worker_pool.LOSSES} that took its place"):
        env.reset([0])
    env.close()


@pytest.mark.parametrize("hard", [False, True])
def test_what_a_worker_has_started_ends_with_it(folder: Path, hard: bool) -> None:
    env = VectorEnv(EnvConfig(workers=1), "bad:Bad", {"how": "child"})
    env.reset([0])
    pool = env._pool
    assert isinstance(pool, worker_pool.WorkerPool)
    child = Path("/proc", (folder / "child").read_text(), "stat")
    assert child.exists()
    if hard:
        pool._workers[0].process.kill()
        env.step([0], torch.zeros(1, 1, 2))  # the worker is replaced
    else:
        env.close()
    deadline = time.monotonic() + 30
    while child.exists() and " Z " not in child.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    env.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check env torn:X", r"can't be imported: SyntaxError: .* \(torn.py, line 1\)"),
        ("check env leaves:X", r"can't be imported: it called sys.exit \(leaves.py, line 2\)"),
        ("check env nowhere:X", "can't be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("check env ../bad:Env", "'../bad:Env' is no name of a class: give it as module:Class"),
        ("run smoke --env.family .bad:Env", "'.bad:Env' is no name of a class"),
        ("run smoke --env.family :Env", "':Env' is no name of a class"),
        ("check env bad:Env --env.how build", r"bad:Env can't be built: ValueError: no power \(bad.py, line \d+\)"),
        ("check env bad:Env --env.how 'build exit'", "bad:Env can't be built: it called sys.exit"),
        ("check env bad:Env --env.how 'build none'", "bad:Env can't be built: its method build returns nothing"),
        ("check env bad:Env --env.how init --env.workers 0", "bad:Bad can't be made: ValueError: of many lines"),
        (
            "demonstrate --data out --env.family bad:Env --env.workers 1 --env.how shown=5",
            "with a int, not with a dict",
        ),
        ("check policy bad:Model", r"bad:Model can't be built: RuntimeError: boom \(bad.py, line \d+\)"),
        ("check world-model bad:Model", "bad:Model can't be built: RuntimeError: boom"),
        ("check reward-model bad:Nothing", "bad:Nothing can't be built: its method build returns nothing"),
        ("check policy saved --allow bad:Model", r"KeyError: 'weights' \(bad.py, line \d+\)"),
        ("check env bad", "There is no environment family 'bad'"),
        ("check env saved", "There is no environment family 'saved'"),
        ("check policy empty", "empty holds no policy, since it has no config.json"),
        ("check policy judge", "judge holds no policy but a reward model, conv"),
        ("check policy minivla --policy.family bad:Model", "Both minivla and --policy.family bad:Model"),
        ("check policy --policy.width 16 minivla", "Name what to check before its options"),
        ("check --size 8 8 policy minivla", "Name what to check before its options"),
    ],
)
def test_what_goes_wrong_in_a_class_is_one_sentence(folder: Path, command: str, words: str, capsys: Captured) -> None:
    (folder / "empty").mkdir()
    write_json(folder / "saved" / "config.json", {"family": "bad:Model"})
    write_json(folder / "judge" / "config.json", {"family": "conv"})
    assert re.search(words, complaint(capsys, *shlex.split(command)))


TINY = ["--policy.width", "16", "--policy.hidden", "32", "--policy.fit.steps", "2", "--device", "cpu"]
OWN = ["--env.family", "bad:Env", "--env.workers", "0"]


@pytest.mark.usefixtures("folder")
def test_what_does_not_belong_together_is_refused(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "HOPELESS", 3)
    demonstrate = ["demonstrate", *OWN, "--demonstrations.episodes", "2", "--data"]
    assert "bad:Env has failed 3 times in a row, and of 2 demonstrations there are 0" in complaint(
        capsys, *demonstrate, "hopeless", "--env.how", "hopeless"
    )
    assert main([*demonstrate, "data"]) == 0
    assert "data/log has begun episodes with env.how = , not horizon=6" in complaint(
        capsys, *demonstrate, "data", "--env.how", "horizon=6"
    )
    assert "policy.chunk is 7, but episodes of this environment have at most 6" in complaint(
        capsys, "imitate", "--data", "data", "--out", "base", "--policy.chunk", "7", *TINY
    )
    run = ["run", "smoke", *OWN, *TINY]
    assert "policy.chunk is 7" in complaint(capsys, *run, "--out", "run", "--policy.chunk", "7")
    assert "policy.chunk is 7" in complaint(capsys, "plan", "smoke", *OWN, "--policy.chunk", "7")
    assert "data is an episode store" in complaint(capsys, "imitate", "--data", "data", "--out", "data", *TINY)
    assert "data is an episode store" in complaint(capsys, *run, "--out", "data")
    for option in (["--out", ""], ["--out="]):
        assert "--out is empty" in complaint(capsys, "imitate", "--data", "data", *option)
    write_json(Path("run", "recipe.json"), {})
    assert "belongs to a run or a stage" in complaint(capsys, *demonstrate, "run/evaluation")
    write_json(Path("stage", "stages.json"), {})
    assert "belongs to a run or a stage" in complaint(capsys, *demonstrate, "stage")
    Path("stage", "practice-1").touch()
    assert "practice-1 is a file where a folder is due" in complaint(capsys, *run, "--out", "stage")
    Path("other", "result.json").mkdir(parents=True)
    assert "result.json is a folder where a file is due" in complaint(capsys, *run, "--out", "other")
    for place in ("dream/model", "base/policies/base"):
        write_json(Path(place, "config.json"), {"family": "conv"})
    world = ["world-model", "--data", "data", "--out", "dream", "--device", "cpu"]
    assert "dream/model holds no world model but a reward model, conv" in complaint(capsys, *world)
    assert "policies/base holds no policy but" in complaint(capsys, "imitate", "--data", "data", "--out", "base", *TINY)
    write_json(Path("dream", "model", "config.json"), {"family": "a:Dream"})
    assert "holds a world model of family a:Dream, not video_diffusion" in complaint(capsys, *world)


SHELL = """
import sys
import wmpo.cli

def dispatch(args):
    file = open("made", "w")
    print("words", flush="flush" in args)
    return int(file.fileno() < 3)
wmpo.cli.dispatch = dispatch
sys.exit(wmpo.cli.main())
"""


@pytest.mark.parametrize(
    ("redirect", "status", "words"),
    [
        (">&- 2>&- <&-", 0, ""),
        ("<&-", 0, ""),
        (">/dev/full 2>said", 2, "wmpo: No space left on device: "),
        (">/dev/full 2>/dev/full", 2, ""),
    ],
)
def test_a_shell_closes_streams_or_sends_them_to_a_full_disk(
    tmp_path: Path, redirect: str, status: int, words: str
) -> None:
    for more in ("", "flush"):
        command = f"{sys.executable} -c '{SHELL}' {more} {redirect}"
        assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == status
        if words:
            text = (tmp_path / "said").read_text()
            assert text.startswith(words) and text.count("\n") == 1


def test_sys_exit_of_a_user_is_no_success(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def leave(args: list[str]) -> int:
        importlib.import_module("leaves")

        return 0

    monkeypatch.setattr("wmpo.cli.dispatch", leave)
    assert "it called sys.exit (leaves.py, line 2)" in complaint(capsys)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as raised:
        main(["check", "--help"])
    assert raised.value.code == 0


def test_a_complaint_about_options_is_one_sentence_in_ascii_too() -> None:
    box = " Unrecognized options \n ------\n  Unrecognized options: --a, 3 \n  -----\n  For full helptext, run x \n"
    assert sentence(box) == "Unrecognized options: --a, 3."
    assert sentence(" Title \n ---\n count of `[bold]INT INT[/bold]`. \n ---\n") == "count of `INT INT`."


def test_a_file_that_can_not_be_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        write_json(tmp_path / "result.json", {})
    assert raised.value.filename == str(tmp_path / "result.json")


@pytest.mark.parametrize("kind", ["video", "table", "folder"])
def test_a_file_that_the_disk_does_not_hold_is_named_whichever_library_writes_it(kind: str, tmp_path: Path) -> None:
    """PyAV's errors can't be changed, PyArrow's name no file and say it in words of their own."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        place = atomic_path(tmp_path / "file") if kind != "folder" else atomic_folder(tmp_path / "file", tmp_path / "x")
        with pytest.raises(OSError) as raised, place as path:
            if kind == "video":
                write_video(path, [noise], 10, LOSSLESS)
            else:
                pq.write_table(pa.table({"a": noise.reshape(-1)}), path / "a" if kind == "folder" else path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = raised.value
    assert (found.errno, found.strerror) == (errno.EFBIG, os.strerror(errno.EFBIG))
    assert found.filename == str(tmp_path / "file") and not list(tmp_path.iterdir())
