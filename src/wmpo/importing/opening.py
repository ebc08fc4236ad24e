"""Which format a path holds."""

from __future__ import annotations

from pathlib import Path

from wmpo.data.info import is_hdf5
from wmpo.data.layout import INFO
from wmpo.errors import UserError
from wmpo.importing.hdf5 import RoboMimic
from wmpo.importing.lerobot import LeRobot
from wmpo.importing.source import Source


def open_source(path: Path) -> Source:
    """The episodes in a folder or a file. Raises UserError where there are none that wmpo can read."""
    if not path.exists():
        raise UserError(f"There is no {path}: give the folder of a data set, or an HDF5 file.")
    if path.is_file() and is_hdf5(path):
        return RoboMimic(path)
    if (path / INFO).is_file():
        return LeRobot(path)
    inner = [place.parents[1] for pattern in (f"*/{INFO}", f"*/*/{INFO}") for place in sorted(path.glob(pattern))]
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else []
    if found := [*inner, *files]:
        raise UserError(f"{path} is no data set itself, but {found[0]} in it is: give that.")
    raise UserError(
        f"{path} holds no episodes that wmpo can read: it takes folders in LeRobot's format v2.0, v2.1 or v3.0 (with "
        "meta/info.json), and HDF5 files in the layout of robomimic."
    )
