"""A user's own environment, policy, world model and reward model, together, through every command."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wmpo import families
from wmpo.cli import main
from wmpo.envs.mimicgen.settings import MimicGenSettings
from wmpo.opening import keep_recipe
from wmpo.recipes import RECIPES

DOCS = Path(__file__).parents[1] / "docs"
FILES = {"own_env": "reach_env", "own_policy": "linear_policy", "own_world_model": "next_frame",
         "own_reward_model": "coarse_judge"}  # fmt: skip
ENV, POLICY = "reach_env:Reach", "linear_policy:LinearPolicy"
WORLD, JUDGE = "next_frame:NextFrame", "coarse_judge:CoarseJudge"
ALLOW = [word for name in (ENV, POLICY, WORLD, JUDGE) for word in ("--allow", name)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files of the four pages in it."""
    for page, module in FILES.items():
        code = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)[0]
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(families, "_allowed", set())
    return tmp_path


@pytest.mark.slow
def test_four_plugs_of_a_users_own_through_every_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wmpo(*args: object, status: int = 0) -> str:
        assert main([str(arg) for arg in args]) == status
        return " ".join(capsys.readouterr().out.split())

    env = ("--env.family", ENV, "--env.workers", 0)
    policy = ("--policy.family", POLICY, "--policy.fit.steps", 60)
    world = ("--world-model.family", WORLD, "--world-model.fit.steps", 40)
    judge = ("--reward.family", JUDGE, "--reward.fit.steps", 40, "--reward.threshold", "half")
    few = ("--grpo.iterations", 1, "--grpo.groups", 4, "--grpo.group-size", 4)
    kinds = (("env", ENV), ("policy", POLICY), ("world-model", WORLD), ("reward-model", JUDGE))
    for kind, name in kinds:
        assert "keeps the contract" in wmpo("check", kind, name)

    recipe = (*env, *policy, *world, *judge)
    assert "next_frame" in wmpo("plan", "smoke", *recipe)
    run = ("run", "smoke", *recipe, *few, "--grpo.n-initial-states", 8, "--collect.episodes", 16, "--no-control",
           "--evaluate.episodes", 6, "--evaluate.practice-eval-episodes", 2, "--device", "cpu",
           "--out", "run")  # fmt: skip
    shown = wmpo(*run)
    assert "reach" in shown and (folder / "run" / "report.html").is_file()
    assert "is finished" in wmpo(*run)
    wmpo("report", "run", *ALLOW)
    wmpo("evaluate", "run", "--disruption", "dark", "--episodes", 2, *ALLOW)
    for kind, place in (
        ("policy", "policies/base"),
        ("world-model", "world_model-1"),
        ("reward-model", "reward_model-1"),
    ):
        assert "keeps the contract" in wmpo("check", kind, f"run/{place}", *ALLOW, "--data", "run/episodes")

    store = ("--data", "data")
    wmpo("demonstrate", *store, *env, "--demonstrations.episodes", 12)
    wmpo("imitate", *store, "--out", "base", *policy)
    base = folder / "base" / "policies" / "base"
    wmpo("collect", *store, "--policy", base, *env, *ALLOW, "--collect.episodes", 8)
    wmpo("world-model", *store, "--out", "dream", *world)
    wmpo("reward-model", *store, "--out", "judge", "--world-model", "dream/model", "--policy", base, *judge, *ALLOW)
    wmpo("practise", *store, "--policy", base, "--world-model", "dream/model", "--reward-model", "judge/model",
         "--out", "better", *few, *ALLOW)  # fmt: skip
    assert (folder / "better" / "policy" / "config.json").is_file()
    assert "keeps the contract" in wmpo("check", "data", "data")


@pytest.mark.usefixtures("folder")
def test_no_file_lets_a_class_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a person names is imported; what only a file names is not."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text(f'{{"family": "{POLICY}"}}')
    assert main(["check", "policy", "saved"]) == 2
    assert "add --allow" in capsys.readouterr().err and "linear_policy" not in sys.modules


def test_no_file_starts_a_program(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter in a recipe is started where a person has named it: in --allow, --env.python or Python."""
    monkeypatch.setattr(families, "_allowed", set())
    program, other, run = tmp_path / "other python", tmp_path / "moved", tmp_path / "run"
    for path in (program, other):
        path.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(path))}.ran\n")
        path.chmod(0o755)
    begin = ["run", "smoke", "--out", str(run), "--env.python"]
    recipe = replace(RECIPES["smoke"], env=replace(RECIPES["smoke"].env, python=str(program)))
    keep_recipe(recipe, run)
    for command in ("evaluate", "play", "report"):
        assert main([command, str(run)]) == 2
        assert f"a program, which no file may start by itself: add --allow '{program}'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.ran"))
    for leave in (["--allow", str(program)], ["--env.python", str(other)]):
        assert main(["evaluate", str(run), *leave]) == 2
        assert "has no policy yet" in capsys.readouterr().err
        families._allowed.clear()
    assert main([*begin, str(other)]) == 2
    assert f"({other}) ended with exit code 0 while it started" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.ran")] == ["moved.ran"]
    keep_recipe(replace(recipe, env=replace(recipe.env, python="")), run)  # the run goes on without, too


def test_no_file_imports_from_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`env.checkout` of a recipe, likewise; `--allow` takes its name as the recipe has it."""
    monkeypatch.setattr(families, "_allowed", set())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their code").mkdir()
    keep_recipe(replace(RECIPES["smoke"], env=MimicGenSettings(checkout="their code")), tmp_path / "run")
    for command in ("evaluate", "play", "report"):
        assert main([command, "run"]) == 2
        told = capsys.readouterr().err
        assert "a folder of code, which no file may import by itself: add --allow 'their code'" in told
    for leave in (["--allow", "their code"], ["--env.family", "mimicgen", "--env.checkout", "their code"]):
        assert main(["evaluate", "run", *leave]) == 2
        assert "has no policy yet" in capsys.readouterr().err
        families._allowed.clear()


@pytest.mark.usefixtures("folder")
def test_all_that_is_not_allowed_is_named_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = {"name": "smoke", "env": {"family": ENV}, "policy": {"family": POLICY}, "reward": {"family": "conv"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    for command in ("report", "evaluate"):
        assert main([command, "run"]) == 2
        assert f"add --allow {ENV} --allow {POLICY} if you trust them" in capsys.readouterr().err
    assert main(["report", "run", "--allow", ENV]) == 2
    assert f"'{POLICY}' is a class of yours" in capsys.readouterr().err
