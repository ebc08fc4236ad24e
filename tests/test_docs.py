"""The documentation as a site, and messages as they are."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs import generate
from wmpo import algorithm, families
from wmpo.cli import COMMANDS, main, understood
from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.io.provenance import Machine
from wmpo.report import results
from wmpo.report.results import PolicyResult, RunResult
from wmpo.run import Run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs")
def test_the_site_builds_with_strict_links(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()


def shown_commands() -> list[tuple[str, list[str]]]:
    """Page and arguments of every wmpo command in a block of code."""
    found = []
    for page in sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]):
        for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            waiting = ""
            for line in block.replace("\\\n", " ").splitlines():
                waiting += f"{line}\n"
                try:
                    words = shlex.split(waiting, comments=True)
                except ValueError:  # a quotation goes on in the next line
                    continue
                waiting = ""
                while words and "=" in words[0]:  # of the environment
                    words = words[1:]
                if words and words[0] in ("wmpo", "./wmpo.sh") and not words[1].startswith("-"):
                    found.append((page.name, words[1:]))
    return found


def test_commands_as_the_pages_show_them_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """As far as that can be told where the policies and modules that they name are not there."""
    commands, wrong = shown_commands(), []
    assert len(commands) > 90
    for page, words in commands:
        two = " ".join(words[:2])
        args = [two, *words[2:]] if two in COMMANDS else words
        if "--help" in args:
            assert args[0] in COMMANDS
            continue
        try:
            assert args[0] in COMMANDS, args
            understood(args)
        except UserError as error:
            if not re.search(r"holds no policy, since it has no|can't be imported: ModuleNotFoundError", str(error)):
                wrong.append((page, words, str(error)))
        except SystemExit as error:
            wrong.append((page, words, str(error)))
    assert wrong == []


def test_messages_that_are_explained_are_said() -> None:
    said = "\n".join(
        node.value
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "messages.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 25
    assert [part for row in rows for part in row.split("…") if part not in said] == []


@pytest.mark.parametrize(
    ("page", "name", "options", "complaint"),
    [
        ("own_env", "reach_env:Reach", ("--env.family", "--env.speed", "5"), "env.speed is 5.0; it must be at most 1"),
        ("own_policy", "linear_policy:LinearPolicy", ("--policy.family", "--policy.bins", "1"),
         "policy.bins is 1; it must be at least 2"),
        ("own_world_model", "next_frame:NextFrame", ("--world-model.family", "--world-model.width", "0"),
         "world_model.width is 0; it must be at least 1"),
        ("own_reward_model", "coarse_judge:CoarseJudge", ("--reward.family", "--reward.grid", "0"),
         "reward.grid is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_ranges_of_the_pages_classes_are_kept(
    page: str, name: str, options: tuple[str, str, str], complaint: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)[0]
    module = name.partition(":")[0]
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    family, option, value = options
    assert main(["run", "smoke", family, name, option, value, "--out", "run"]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_python_as_the_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its examples as they stand, without the hours between opening a run and its result."""
    blocks = {page: re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
              for page in ("python.md", "own_env.md")}  # fmt: skip
    (tmp_path / "reach_env.py").write_text(blocks["own_env.md"][0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "reach_env", raising=False)
    monkeypatch.setattr(families, "_allowed", set())

    def optimise(run: Run) -> RunResult:
        result = RunResult.begin(run.recipe)
        result.policies = {"base": PolicyResult([3, 5, 8, 9], [0, 1, 0, 0], [0, 4, 0, 0]),
                           "wmpo-1": PolicyResult([3, 5, 8, 9], [1, 1, 1, 0], [7, 4, 6, 0])}  # fmt: skip
        result.save(run.folder / "result.json")
        return result

    monkeypatch.setattr(algorithm, "optimise", optimise)
    names: dict[str, object] = {}
    for block in blocks["python.md"]:
        exec(block, names)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "+50.0 points, 2 won, 0 lost", "20", "base: 0.250 (0.046 to 0.699)", "wmpo-1: 0.750 (0.301 to 0.954)",
    ]  # fmt: skip
    recipe = names["recipe"]
    assert isinstance(recipe, Recipe) and recipe.env.family == "reach_env:Reach"


def test_every_number_of_a_result_is_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    parts = [one for one in vars(results).values() if isinstance(one, type) and is_dataclass(one)]
    assert len(parts) > 10
    said = {field.name for part in parts if part not in (Recipe, Machine, results.Summary) for field in fields(part)}
    missing = {name for name in said if f"`{name.removeprefix('still_')}`" not in page}
    assert missing <= {"camera", "won", "lost"}  # which it says in other words


def test_sections_of_settings_are_prefixes() -> None:
    page = generate.cli_page()
    assert "| `--world-model.*` | see [settings.md](settings.md) | Settings of the world model" in page
    assert "| `--env` |" not in page
