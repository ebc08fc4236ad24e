"""Stored results: one JSON Lines file per experiment, one line per result; pages and the runner read no other way.

The first line is `{"common": {...}}`: what most results have of recipe, baseline settings, versions, machine and
commit, as dotted names. Every other line is a result with the fields of `RunResult` or `CellResult`, except that

    differs, lacks   what its own dotted names have otherwise than the common ones, and which they lack
    initial_states   [first, n] for n consecutive numbers (see `wmpo.data.initial_states`), else a list of such spans
    success          one character per initial state, 0 or 1
    finish_step, events
                     base64 of one byte per initial state, or of two (little-endian) where a number exceeds 255
    curves           [first iteration, distance, value, value ...] where iterations are equally far apart, else pairs

A line is replaced, never changed in place: the whole file is written anew beside the old one and takes its place, under
a lock, so that a killed process loses nothing and several may finish at once. Results of other kinds than those of a
run are lines of their own, `read_lines` and `add_line`, and kept as safely.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wmpo.cli import exit_status
from wmpo.errors import UserError
from wmpo.io.files import atomic_write
from wmpo.io.plain import from_plain, to_plain
from wmpo.report.results import FORMAT, RunResult

Plain = dict[str, Any]  # values as JSON has them
Result = TypeVar("Result", bound=RunResult)
SHARED = ("recipe", "settings", "versions", "machine", "commit")  # what the results of a file mostly have in common


def read_results(path: Path, kind: type[Result]) -> dict[str, Result]:
    """Name -> result, in the order of the file; nothing where there is no file. A damaged line is a UserError."""
    found = {}
    for name, record in _read(path)[1].items():
        if record.get("format") not in range(1, FORMAT + 1):
            raise UserError(f"{path}, {name}, has format {record.get('format')!r}; this version reads 1 to {FORMAT}.")
        result = from_plain(kind, record, f"{path}, {name}", null_is_nan=True)
        result.check(f"{path}, {name}")
        found[name] = result
    return found


def write_result(path: Path, name: str, result: RunResult) -> None:
    """Add a result to the file at `path`, or put it in the place of the one of this name."""
    result.check(name)
    plain = json.loads(json.dumps(to_plain(result)), parse_constant=lambda _: None)  # JSON has no NaN
    with file_lock(path):
        records = {**_read(path)[1], name: plain}
        common = _common(records.values())
        lines = [_pack(own, which, common) for which, own in records.items()]
        text = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in ({"common": common}, *lines))
        atomic_write(path, "".join(f"{line}\n" for line in text))


def read_lines(path: Path, *needed: str) -> list[Plain]:
    """The lines of a file of other results, each an object that has what is `needed`; none where there is no file.
    A damaged line is a UserError."""
    found = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not set(needed) <= set(record):
            raise UserError(f"{path}, line {number}, is damaged: restore the file from a copy, or delete the line.")
        found.append(record)
    return found


def add_line(path: Path, name: Mapping[str, Any], line: Plain) -> None:
    """Add a line to the file at `path`, in the place of one that has all of `name`, which the line has, too."""
    with file_lock(path):
        others = [other for other in read_lines(path) if not name.items() <= other.items()]
        atomic_write(path, "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in [*others, {**name, **line}]))


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock beside `path`, then hold it; it dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path.parent} can't be locked ({error.strerror}): choose a folder on a local disk."
            ) from None
        yield


def flat(plain: Mapping[str, Any], prefix: str = "") -> Plain:
    """Dotted name -> value of nested objects."""
    found: Plain = {}
    for name, value in plain.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def nested(dotted: Mapping[str, Any]) -> Plain:
    """The inverse of `flat`."""
    found: Plain = {}
    for name, value in dotted.items():
        *path, last = name.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return found


def _read(path: Path) -> tuple[Plain, dict[str, Plain]]:
    """What results have in common, and each of them by name, unpacked."""
    common: Plain = {}
    found: dict[str, Plain] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
            if number == 1:
                common = dict(record["common"])
            else:
                name = record.pop("name")
                if not isinstance(name, str) or name in found:
                    raise ValueError  # the next result that is written would drop one of the two
                found[name] = _unpack(record, common)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            cure = (
                "delete the line, and run what it was the result of again" if number > 1 else "restore it from a copy"
            )
            raise UserError(f"{path}, line {number}, is damaged: {cure}.") from None
    return common, found


def _lines(path: Path) -> list[bytes]:
    """Those of a text file, of which none is split within its texts; none where nothing is there."""
    if not path.exists() and not path.is_symlink():
        return []
    if not path.is_file():
        raise UserError(f"{path} is no file: results are stored there, so move what it is away.")
    *lines, last = path.read_bytes().split(b"\n")
    return [*lines, last] if last else lines


def _shared(plain: Plain) -> Plain:
    """The dotted names of what may be common."""
    return flat({name: plain[name] for name in SHARED if plain.get(name) is not None})


def _common(results: Collection[Plain]) -> Plain:
    """Of each of these names the value that more than half of the results have, where there is one."""
    votes: dict[str, Counter[str]] = {}
    for plain in results:
        for name, value in _shared(plain).items():
            votes.setdefault(name, Counter())[json.dumps(value)] += 1
    most = {name: counted.most_common(1)[0] for name, counted in votes.items()}
    return {name: json.loads(value) for name, (value, count) in most.items() if 2 * count > len(results)}


def _pack(plain: Plain, name: str, common: Plain) -> Plain:
    own = _shared(plain)
    rest = {key: value for key, value in plain.items() if key not in SHARED}
    rest["policies"] = {who: _pack_policy(policy) for who, policy in plain["policies"].items()}
    rest["curves"] = {
        practice: {metric: _pack_curve(points) for metric, points in curves.items()}
        for practice, curves in plain["curves"].items()
    }
    differs = {key: value for key, value in own.items() if key not in common or common[key] != value}
    return {"name": name, "differs": differs, "lacks": sorted(common.keys() - own.keys()), **rest}


def _unpack(record: Plain, common: Plain) -> Plain:
    lacks = set(record.pop("lacks"))
    own = {key: value for key, value in common.items() if key not in lacks} | record.pop("differs")
    record["policies"] = {who: _unpack_policy(policy) for who, policy in record["policies"].items()}
    record["curves"] = {
        practice: {metric: _unpack_curve(points) for metric, points in curves.items()}
        for practice, curves in record["curves"].items()
    }
    return {**nested(own), **record}


def _pack_policy(policy: Plain) -> Plain:
    return {
        **policy,
        "initial_states": _pack_states(policy["initial_states"]),
        "success": "".join(map(str, policy["success"])),
        "finish_step": _pack_numbers(policy["finish_step"]),
        "events": {name: _pack_numbers(counts) for name, counts in policy["events"].items()},
    }


def _unpack_policy(packed: Plain) -> Plain:
    return {
        **packed,
        "initial_states": _unpack_states(packed["initial_states"], len(packed["success"])),
        "success": [int(hit) for hit in packed["success"]],
        "finish_step": _unpack_numbers(packed["finish_step"], len(packed["success"])),
        "events": {
            name: _unpack_numbers(counts, len(packed["success"])) for name, counts in packed.get("events", {}).items()
        },
    }


def _pack_states(states: Sequence[int]) -> list[Any]:
    spans: list[list[int]] = []
    for state in states:
        if spans and state == sum(spans[-1]):
            spans[-1][1] += 1
        else:
            spans.append([state, 1])
    return spans[0] if len(spans) == 1 else spans


def _unpack_states(packed: Sequence[Any], count: int) -> list[int]:
    spans = packed if isinstance(packed[0], list) else [packed]
    if sum(n for _, n in spans) != count:
        raise ValueError("another number of initial states than of outcomes")
    return [first + i for first, count in spans for i in range(count)]


def _pack_numbers(numbers: Sequence[int]) -> str:
    return base64.b64encode(np.asarray(numbers, "u1" if max(numbers, default=0) < 256 else "<u2").tobytes()).decode()


def _unpack_numbers(packed: str, count: int) -> list[int]:
    content = base64.b64decode(packed, validate=True)
    return np.frombuffer(content, "u1" if len(content) == count else "<u2").tolist()


def _pack_curve(points: Sequence[Sequence[float]]) -> list[Any]:
    if len(points) < 2:
        return list(points)
    first, step = points[0][0], points[1][0] - points[0][0]
    if [at for at, _ in points] != [first + i * step for i in range(len(points))]:
        return list(points)
    return [first, step, *(value for _, value in points)]


def _unpack_curve(packed: Sequence[Any]) -> list[Any]:
    if not packed or isinstance(packed[0], list):
        return list(packed)
    first, step, *values = packed
    return [[first + i * step, value] for i, value in enumerate(values)]


def main() -> int:
    """Add the result of a finished run to a file: python -m experiments.store RESULT.JSON FILE.JSONL NAME"""
    parser = argparse.ArgumentParser(prog="python -m experiments.store", description=main.__doc__)
    for name in ("result", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    write_result(args.file, args.name, RunResult.load(args.result))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
