"""Training curves elsewhere than in TensorBoard: all numbers arrive, stage by stage, and a run goes on in its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wmpo import errors
from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.families import completed
from wmpo.opening import keep_recipe
from wmpo.recipes.checks import check_recipe
from wmpo.training.curves import number_of

LOG = """
import sys
from pathlib import Path
from wmpo.training.log import RunLog
folder, kind = Path(sys.argv[1]), sys.argv[2]
for values in ([1.0, 0.5], [0.25]):  # stopped and begun again
    with RunLog(folder, True, kind, {"seed": 3}) as log:
        for step, value in enumerate(values, start=1 if len(values) == 2 else 3):
            log.scalars(step, {"imitation/loss": value})
        log.scalars(1, {"world/loss": 7.0})
"""
WANDB = """
import json, struct, sys
from wandb.proto.wandb_internal_pb2 import Record
for path in sys.argv[1:]:
    data, place, whole = open(path, "rb").read(), 7, b""
    while place < len(data):  # records in LevelDB's log format, which the library writes and does not read
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):
            items = Record.FromString(whole).history.item
            print(json.dumps({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}))
            whole = b""
"""
TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage as storage
for name in storage.get_runs("wmpo"):
    for row in storage.get_logs("wmpo", name):
        print(json.dumps({"run": name, **{key: row[key] for key in row if "loss" in key or key == "step"}}))
"""
ROWS = [(1, "imitation/loss", 1.0), (2, "imitation/loss", 0.5), (1, "world/loss", 7.0), (3, "imitation/loss", 0.25),
        (1, "world/loss", 7.0)]  # fmt: skip


def python(code: str, *args: object, **environ: object) -> str:
    """What a program prints; each has its own process, since these packages keep to where they first wrote."""
    own = {**os.environ, **{name: str(value) for name, value in environ.items()}}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def told(rows: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return sorted((row["step"], name, row[name]) for row in rows for name in row if name.endswith("/loss"))


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": tmp_path / "config"}
    python(LOG, tmp_path / "place", "wandb", **quiet)
    files = sorted((tmp_path / "place" / "wandb").glob(f"offline-run-*-{number_of(tmp_path / 'place')}/*.wandb"))
    assert len(files) == 2  # of one run, which went on
    assert told(rows_of(python(WANDB, *files))) == sorted(ROWS)


def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    place = {"TRACKIO_DIR": tmp_path / "trackio", "HF_HUB_OFFLINE": "1"}
    python(LOG, tmp_path / "place", "trackio", **place)
    rows = rows_of(python(TRACKIO, **place))
    assert {row["run"] for row in rows} == {f"place-{number_of(tmp_path / 'place')}"}
    assert told(rows) == sorted(ROWS)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_missing_package_is_told_before_the_work(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"curves is {kind}, which needs {kind}: pip install 'wmpo\[{kind}\]'"):
        check_recipe(Recipe(curves=kind))
    check_recipe(Recipe())


def test_a_run_may_go_on_with_other_curves(tmp_path: Path) -> None:
    recipe = completed(Recipe())
    keep_recipe(recipe, tmp_path)
    keep_recipe(replace(recipe, curves="trackio"), tmp_path)
    with pytest.raises(UserError, match="holds a run with"):
        keep_recipe(replace(recipe, seed=1), tmp_path)
