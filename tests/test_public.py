"""`import wmpo`: what it offers, and what it leaves alone until then."""

from __future__ import annotations

import subprocess
import sys

import pytest

import wmpo
from wmpo import algorithm, contracts, opening

HEAVY = ("torch", "mujoco", "numpy", "tyro", "av", "pyarrow", "scipy")


def heavy_after(code: str) -> list[str]:
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_after("import wmpo; wmpo.UserError; wmpo.__version__") == []


def test_the_overview_of_commands_imports_nothing_heavy() -> None:
    assert heavy_after("import os; from wmpo.cli import main; sys.stdout = open(os.devnull, 'w'); main(['--help'])"
                       "; sys.stdout = sys.__stdout__") == []  # fmt: skip


def test_every_public_name_is_the_one_of_its_module() -> None:
    assert set(wmpo.__all__) <= set(dir(wmpo))
    assert all(getattr(wmpo, name) is not None for name in wmpo.__all__)
    assert wmpo.optimise is algorithm.optimise
    assert wmpo.open_run is opening.open_run
    assert wmpo.check_policy is contracts.check_policy


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'optimize'"):
        wmpo.optimize  # noqa: B018
