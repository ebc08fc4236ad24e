"""Files that are whole or not there, and what to say when one is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wmpo.errors import UserError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that its name holds either the old or the whole new content, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    write(fresh)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def json_writer(content: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(content, indent=2))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file, or a sentence that says what is wrong with it."""
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"The file {path} is missing: restore it from a copy of the store.") from None
    except (pa.ArrowException, OSError):
        raise UserError(f"The file {path} is damaged or truncated: restore it from a copy of the store.") from None
