"""Benchmarks refuse bad input in a sentence, before they measure anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from test_ranks import ROOT


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("plan.py --recipes nosuch", "There is no recipe 'nosuch'"),
        ("plan.py --recipes smoke --policies Nosuch", "There is no published policy 'Nosuch'"),
        ("ranks.py --processes 0", "--processes is 0"),
        ("ranks.py --repeats 0", "--repeats is 0"),
        ("fsdp.py --processes 2 0", "--processes is 0"),
        ("fsdp.py --width 12", "--width is 12"),
    ],
)
def test_bad_input_is_one_sentence(command: str, words: str) -> None:
    if command.startswith("plan.py"):
        pytest.importorskip("transformers")
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
