"""The command line: bad input gets one sentence and exit code 2, `--help` explains every field."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from episodes_by_hand import make_episode
from wmpo.cli import COMMANDS, main
from wmpo.cli.models import fitting
from wmpo.cli.parse import sentence
from wmpo.cli.run import RunCommand
from wmpo.config import PolicyConfig, Recipe
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.families import save_model
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.policies import build_policy, load_policy
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.recipes import RECIPES
from wmpo.training.metrics import METRICS
from wmpo.types import EnvSpec


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one sentence that these arguments are refused with."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    told = capsys.readouterr().err
    assert told.startswith("wmpo: ") and told.count("\n") == 1 and "Traceback" not in told
    return told


def test_a_reader_who_has_seen_enough() -> None:
    for more in ("run place --help", "recipes"):
        told = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m wmpo.cli {more} | true; echo ${{PIPESTATUS[0]}}"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert told.stderr == "" and told.stdout in ("141\n", "0\n")


def test_without_an_output() -> None:
    for command, status in (("zzz", "2"), ("recipes", "0")):
        told = subprocess.run(
            ["bash", "-c", f"({sys.executable} -m wmpo.cli {command} >&-); echo $?"], capture_output=True, text=True
        )
        assert told.stdout == f"{status}\n" and "Traceback" not in told.stderr


def test_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean push?" in refused(capsys, "run", "psh")
    assert "place, wrist, flow, transformer, push" in refused(capsys, "run", "zzz")
    assert "did you mean evaluate?" in refused(capsys, "evalute", "x")
    assert "Which recipe?" in refused(capsys, "run")
    assert "Name the recipe before its options" in refused(capsys, "run", "--seed", "1")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--grpo.iterations", "many"], "--grpo.iterations"),
        (["--grpo.iterations"], "Missing value"),
        (["--grpo.iteration", "3"], "--grpo.iteration"),
        (["--grpo.ratio", "word"], "Expected one of ('chunk', 'token')"),
        (["--grpo.lr", "-1"], "grpo.lr is -1.0; it must be above 0"),
        (["--env.task", "fly"], "There is no task 'fly'"),
        (["--env.cameras", "rear"], "There is no camera 'rear'"),
        (["--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--device", "abacus"], "There is no device 'abacus'"),
    ],
)
def test_bad_settings(args: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert words in refused(capsys, "run", "smoke", "--out", out, *args)
    assert not out.exists()


def test_folders_that_hold_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "There is no folder" in refused(capsys, "evaluate", tmp_path / "nowhere")
    assert "holds no run" in refused(capsys, "evaluate", tmp_path)
    assert "holds no run" in refused(capsys, "report", tmp_path)
    write_json(tmp_path / "recipe.json", to_plain(Recipe()))
    assert "has no policy yet" in refused(capsys, "evaluate", tmp_path)
    assert "There is no policy 'wmpo-9'" in refused(capsys, "evaluate", tmp_path, "--policy", "wmpo-9")
    assert "is not finished" in refused(capsys, "report", tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": "pu')
    assert "damaged or incomplete" in refused(capsys, "evaluate", tmp_path)


SPEC = EnvSpec(cameras={"front": (32, 32)}, state_dim=0, action_dim=4, horizon=32, fps=5)


def small_run(folder: Path, size: int = 32) -> Path:
    """The folder of a run that has got as far as a base policy, for images of `size`."""
    recipe = to_plain(Recipe())
    recipe["env"]["image_size"] = 32
    recipe["env"] |= {"renderer": "rays", "state": False}
    write_json(folder / "recipe.json", recipe)
    spec = EnvSpec({"front": (size, size)}, 0, 4, 32, 5)
    MiniVLA.build(MiniVLASettings(width=8, hidden=16), spec).save_pretrained(folder / "policies" / "base")
    return folder


def test_broken_checkpoints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = small_run(tmp_path)
    weights = run / "policies" / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(capsys, "evaluate", run, "--episodes", 2)
    weights.unlink()
    assert "does not exist" in refused(capsys, "evaluate", run, "--episodes", 2)
    weights.write_bytes(whole)
    assert main(["evaluate", str(run), "--episodes", "2", "--device", "cpu"]) == 0
    (kept,) = (run / "evaluations").glob("none-*.json")
    assert len(json.loads(kept.read_text())["policies"]["base"]["success"]) == 2


def test_pictures_of_another_size_are_scaled_to_the_policys(tmp_path: Path) -> None:
    run = small_run(tmp_path, size=64)  # of an environment that shows 32x32 pixels
    assert main(["evaluate", str(run), "--episodes", "2", "--device", "cpu"]) == 0


def test_stores_that_can_not_be_learned_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    assert "There is no episode store" in refused(capsys, "imitate", "--data", tmp_path / "none", *out)
    EpisodeStore.create(tmp_path / "empty", SPEC)
    assert "is empty" in refused(capsys, "imitate", "--data", tmp_path / "empty", *out)
    assert "is empty" in refused(capsys, "world-model", "--data", tmp_path / "empty", *out)
    store = EpisodeStore.create(tmp_path / "cut", SPEC)
    store.append([make_episode(number, 5, (5,), SPEC, "expert") for number in range(4)])
    video = next((tmp_path / "cut").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:100])
    assert str(video) in refused(capsys, "imitate", "--data", tmp_path / "cut", *out)


def test_actions_that_are_no_numbers(tmp_path: Path) -> None:
    from wmpo.errors import UserError

    store = EpisodeStore.create(tmp_path, SPEC)
    bad = make_episode(0, 5, (5,), SPEC, "expert")
    bad.actions[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinite actions at frame 3"):
        store.append([bad])
    assert len(EpisodeStore.open(tmp_path)) == 0


def test_two_processes_can_not_share_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from wmpo.opening import locked

    with locked(tmp_path):
        told = refused(capsys, "run", "smoke", "--out", tmp_path, "--env.workers", 0, "--device", "cpu")
    assert "Another process is at work" in told


def test_full_disk_and_ctrl_c_end_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmpo.cli.lists import RecipesCommand as Recipes

    def fail(self: object) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(Recipes, "execute", fail)
    assert "No space left on device: runs/x" in refused(capsys, "recipes")

    def stop(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipes, "execute", stop)
    assert main(["recipes"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def option_names(config: Any, prefix: str = "") -> list[str]:
    names = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}".replace("_", "-")
        names += option_names(value, f"{name}.") if is_dataclass(value) else [f"--{name}"]
    return names


def test_help_mentions_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "push", "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert [name for name in option_names(Recipe()) if f"{name} " not in told and f"{name}," not in told] == []
    assert "The ratio is clipped below 1 - clip_low" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: wmpo {command}" in capsys.readouterr().out


def test_help_is_quick_and_lists_commands() -> None:
    code = "import sys; from wmpo.cli import main; main(['--help']); main(['--version']); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in told for name in COMMANDS)
    assert told.endswith("False\n")


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == main(["tasks"]) == 0
    told = capsys.readouterr().out
    assert "smoke" in told and "red cube" in told


def test_a_box_becomes_a_sentence() -> None:
    lines = ["╭─ Value error ──╮", "│ Error parsing  │", "│ --x: bad.      │", "│ ────────────── │", "│ More │", "╰──╯"]
    box = "\n".join(lines)
    assert sentence(box) == "Error parsing --x: bad."
    assert sentence("") == "The options could not be understood."


TINY = [
    "run", "smoke", "--env.image-size", "16", "--env.workers", "0", "--env.renderer", "rays", "--device", "cpu",
    "--demonstrations.episodes", "12", "--policy.width", "16", "--policy.hidden", "32", "--policy.fit.steps", "30",
    "--policy.fit.batch-size", "16", "--collect.episodes", "12", "--world-model.width",
    "16", "--world-model.fit.steps", "20", "--world-model.fit.batch-size", "8", "--world-model.align.steps", "10",
    "--world-model.align.batch-size", "8", "--reward.fit.steps", "20", "--grpo.iterations", "3", "--grpo.groups", "2",
    "--grpo.group-size", "4", "--grpo.n-initial-states", "4", "--evaluate.episodes", "8",
    "--evaluate.practice-eval-freq", "2",
    "--evaluate.practice-eval-episodes", "4",
]  # fmt: skip


def test_an_unfinished_run_is_told_its_whole_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrist = RECIPES["wrist"]
    options = ["--seed", "3", "--no-control", "--env.no-state", "--env.cameras", "wrist", "--grpo.freeze", "a", "b",
               "--policy.fit.lr", "1e-05", "--reward.family", "videomae", "--reward.width", "96"]  # fmt: skip
    for name, given in (("a b", options), ("plain", [])):
        recipe = RunCommand.parse(["wrist", *given]).recipe
        assert (recipe == wrist) == (not given)
        write_json(tmp_path / name / "recipe.json", to_plain(recipe))
        told = refused(capsys, "report", name).strip()
        command = shlex.split(told.partition("continue it with ")[2])
        assert command[:3] == ["wmpo", "run", "wrist"] and len(command) < 25
        again = RunCommand.parse(command[2:])
        assert again.recipe == recipe and again.out == Path(name)
    write_json(tmp_path / "mine" / "recipe.json", to_plain(replace(wrist, name="mine")))
    assert "open_run" in refused(capsys, "report", "mine")


def test_a_model_for_other_cameras_is_told_how_to_give_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, state_dim in (("top", 4), ("front", 2)):
        spec = EnvSpec({name: (16, 16)}, state_dim, action_dim=4, horizon=10, fps=5)
        save_model("policy", "minivla", MiniVLA.build(MiniVLASettings(width=8, hidden=16), spec), tmp_path / name, 5)
        assert "--data STORE, or by --size" in refused(capsys, "check", "policy", tmp_path / name)
    assert main(["check", "policy", str(tmp_path / "front"), "--state-dim", "2"]) == 0


def test_a_model_of_another_rate_is_refused(tmp_path: Path) -> None:
    spec = EnvSpec({"top": (16, 16)}, 4, action_dim=4, horizon=10, fps=5)
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), spec)
    save_model("policy", "minivla", policy, tmp_path / "policy", 5)
    fitting(load_policy, tmp_path / "policy", spec, torch.device("cpu"))
    faster, begun = replace(spec, fps=15), PolicyConfig(pretrained=str(tmp_path / "policy"))
    for load in (
        lambda: fitting(load_policy, tmp_path / "policy", faster, torch.device("cpu")),
        lambda: build_policy(begun, faster),
    ):
        with pytest.raises(UserError, match="learned from 5 actions a second, but here there are 15"):
            load()
    config = {"type": "act", "fps": 50}
    theirs = SimpleNamespace(save_pretrained=lambda folder: write_json(folder / "config.json", config))
    save_model("policy", "act", theirs, tmp_path / "theirs", 5)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "theirs" / "config.json").read_text()) == config
    policy.save_pretrained(tmp_path / "alone")  # by its class alone: nothing is known of a rate
    fitting(load_policy, tmp_path / "alone", faster, torch.device("cpu"))


def start(out: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wmpo.cli", *TINY, "--out", str(out)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_smoke_recipe_runs_to_its_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "smoke", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "Report:" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["policies"]) == ["base", "imitated", "wmpo-1", "control"]
    assert result["interactions"]["rollouts"]["episodes"] == RECIPES["smoke"].collect.episodes
    assert result["fidelity"] and result["gaps"] and result["curves"]["practice-1"]["success"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:video/mp4") >= 2 and "http://" not in page.replace("http://www.w3.org", "")
    written = (tmp_path / "result.json").read_bytes()
    assert main(["run", "smoke", "--out", str(tmp_path), "--device", "cpu"]) == 0
    told = " ".join(capsys.readouterr().out.split())  # the console wraps lines
    assert "is finished" in told and (tmp_path / "result.json").read_bytes() == written
    assert "too small to learn" in told and "too small to learn" in page
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {name.rpartition("/")[2] for line in lines for name in line} - {"step", "time"}
    assert logged > {"groups_kept", "real_success_steps"} and logged <= {name[2:] for name in METRICS}
    assert main(["report", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["fidelity"] == result["fidelity"] and again["policies"] == result["policies"]
    capsys.readouterr()
    assert "not 9" in refused(capsys, "run", "smoke", "--out", tmp_path, "--device", "cpu", "--grpo.iterations", 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cameras", "dimensions"),
    [([], ["front", "wrist"], 4), (["--env.cameras", "wrist", "front", "--env.no-state"], ["wrist", "front"], 0)],
    ids=["with-state", "images-alone"],
)
def test_several_cameras_are_dreamt_together(
    options: list[str], cameras: list[str], dimensions: int, tmp_path: Path
) -> None:
    tiny = [
        "--no-control",
        "--world-model.depth",
        "1",
        "--world-model.kinematics-fit.steps",
        "30",
        "--evaluate.episodes",
        "4",
        "--reward.threshold",
        "half",
    ]
    assert main(["run", "wrist", *TINY[2:], *tiny, *options, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(dict.fromkeys(at["camera"] for at in result["fidelity"])) == cameras
    horizons = [at["frames"] for at in result["fidelity"]]
    assert horizons == [4, 8, 32, 48] * 2
    assert [len(at["error"]) for at in result["state_fidelity"]] == [dimensions] * 4 * bool(dimensions)
    assert (tmp_path / "report.html").exists() and (tmp_path / "dream.png").exists()


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """Of all stages together. So small a run hardly practises: `test_practice` and `test_training_fit` look closer."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=200) == 0
    landmarks = [
        "policies/base",
        "world_model/model.safetensors",
        "practice-1/checkpoint.safetensors",
        "policies/wmpo-1",
    ]
    for landmark in landmarks:  # dead soon after each of them, wherever that is
        process = start(killed)
        deadline = time.monotonic() + 120
        while not (killed / landmark).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert start(killed).wait(timeout=200) == 0
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (whole, killed))
    for part in ("policies", "curves", "reward", "agreement", "fidelity", "gaps", "interactions"):
        assert without_clocks(one[part]) == without_clocks(other[part]), part
    from safetensors.torch import load_file

    for path in sorted(whole.rglob("model.safetensors")):
        there = load_file(killed / path.relative_to(whole))
        assert all(torch.equal(tensor, there[name]) for name, tensor in load_file(path).items()), path
    assert (killed / "report.html").stat().st_size > 10_000


def without_clocks(part: Any) -> Any:
    """Curves without those of seconds."""
    if not isinstance(part, dict):
        return part
    return {name: without_clocks(value) for name, value in part.items() if not name.startswith("seconds")}
