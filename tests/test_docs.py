"""The documentation as a site, and messages as they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from wmpo.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs")
def test_the_site_builds_with_strict_links(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()


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
