"""The documentation as a site, and messages as they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
