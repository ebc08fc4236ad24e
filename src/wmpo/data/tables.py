"""Parquet files that may be damaged: each column is there, of its type and finite, or a sentence says which isn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.errors import UserError

TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "whole numbers": pa.types.is_integer,
    "numbers": pa.types.is_floating,
    "truth values": pa.types.is_boolean,
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}
Damaged = Callable[[Path, str], UserError]
LISTS = (pa.FixedSizeListType, pa.ListType, pa.LargeListType)


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"The file {path} {what}: restore it from a copy of the store.")


@contextmanager
def reading(path: Path, damaged: Damaged = damaged) -> Iterator[None]:
    """What goes wrong while the parquet file is read is a UserError; `damaged` says what may have happened to it."""
    if path.exists() and not path.is_file():
        raise damaged(path, "is a folder or a device")
    try:
        yield
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except PermissionError:
        raise UserError(f"The file {path} can't be read: look for its permissions.") from None
    except (pa.ArrowException, OSError, ValueError):
        raise damaged(path, "is damaged or truncated") from None


def require_columns(file: pq.ParquetFile, names: Sequence[str] | None, path: Path, damaged: Damaged = damaged) -> None:
    """Raise UserError unless the file has each of these columns, or any that it has, once."""
    found = file.schema_arrow.names
    for name in dict.fromkeys(found if names is None else names):
        if (count := found.count(name)) != 1:
            raise damaged(path, f"has the column {name!r} {count} times" if count else f"lacks the column {name!r}")


def read_table(path: Path, columns: Sequence[str] | None = None, rows: int | None = None) -> pa.Table:
    """A parquet file, all of it or some columns, with `rows` rows. Raises UserError where it is anything else."""
    with reading(path), pq.ParquetFile(path) as file:
        found = file.metadata.num_rows
        if rows is not None and found != rows:
            raise damaged(path, f"has {found} rows in place of {rows}")
        require_columns(file, columns, path)
        return file.read(columns=None if columns is None else list(columns))


def column(table: pa.Table, name: str, kind: str, path: Path) -> pa.Array:
    """A column without gaps, of one of `TYPES`."""
    if name not in table.column_names:
        raise damaged(path, f"lacks the column {name!r}")
    values = table[name].combine_chunks()
    if values.null_count:
        raise damaged(path, f"has gaps in the column {name!r}")
    if not TYPES[kind](values.type):
        raise damaged(path, f"has {values.type} in the column {name!r} in place of {kind}")
    return values


def vector(table: pa.Table, name: str, width: int, path: Path) -> np.ndarray:
    """A column of finite float32 vectors (rows, width); where width is 1 the file holds plain numbers."""
    values = table[name].combine_chunks()
    if isinstance(values.type, LISTS):
        sizes = pc.unique(pc.list_value_length(values)).to_pylist()
        if sizes not in ([width], []):
            raise damaged(path, f"has {sizes[0]} dimensions in the column {name!r} in place of {width}")
        values = values.flatten()
    elif width != 1:
        raise damaged(path, f"has 1 dimension in the column {name!r} in place of {width}")
    rows = column(pa.table({name: values}), name, "numbers", path).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused
        matrix = rows.astype(np.float32).reshape(len(table), width)
    if not np.isfinite(matrix).all():
        row = int(np.argwhere(~np.isfinite(matrix))[0, 0])
        raise damaged(path, f"has NaN or infinite numbers in the column {name!r}, first in row {row}")
    return matrix


def read_tasks(root: Path) -> list[str]:
    """Sentences by task_index; pandas keeps them in the index, whose name depends on who wrote it."""
    path = root / layout.TASKS
    table = read_table(path)
    named = [name for name in ("__index_level_0__", "task") if name in table.column_names]
    if not named:
        raise damaged(path, "lacks the sentences of the tasks")
    tasks = column(table, named[0], "text", path).to_pylist()
    order = column(table, "task_index", "whole numbers", path).to_pylist()
    if order != list(range(len(tasks))) or len(set(tasks)) != len(tasks):
        raise damaged(path, "numbers the tasks otherwise than 0, 1, 2 and so on")
    return tasks


def check_equal(found: np.ndarray, wanted: np.ndarray, name: str, path: Path, tolerance: float = 0.0) -> None:
    """A column whose values follow from the others must hold them."""
    wrong = ~(np.abs(found - wanted) <= tolerance)  # NaN is wrong, too
    if wrong.any():
        row = int(wrong.argmax())
        raise damaged(path, f"has {found[row]} in row {row} of the column {name!r} in place of {wanted[row]}")
