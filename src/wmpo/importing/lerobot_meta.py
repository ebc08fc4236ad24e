"""Where the episodes of a LeRobot data set lie: one file each up to v2.1, many in a file in v3.0."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter

from wmpo.data import layout
from wmpo.data.in_place import require_unchanged
from wmpo.data.info import Own
from wmpo.data.recorded import damaged
from wmpo.data.tables import TYPES, column, read_table, read_tasks
from wmpo.data.video import Film
from wmpo.errors import UserError
from wmpo.importing.source import inside
from wmpo.io.files import is_stream
from wmpo.io.plain import Json, JsonObject, from_plain

OLD = ("v2.0", "v2.1")
OWN = {"wmpo/start": "whole numbers", "wmpo/source": "text", "wmpo/task": "text", "wmpo/meta": "text"}
"""What only a store of ours says of an episode, and what it holds."""
FORMAT = re.compile(r"(0?\d?d)?")


@dataclass(frozen=True)
class Place:
    """An episode's row among those of the data set, and its files."""

    length: int
    sentence: str
    sentences: int
    """How many the episode has."""
    data: Path
    first_row: int
    """In that file."""
    videos: Mapping[str, tuple[Path, float]]
    """Feature -> the file, and the second at which the episode begins there."""
    own: Mapping[str, Json]
    replaceable: Collection[str] = ()
    """Features whose video a store of ours has encoded: it puts others in their place when it grows or is labelled."""


def read_places(root: Path, info: JsonObject, videos: Sequence[str]) -> list[Place]:
    """All episodes in order; `videos` are features. Raises UserError where the tables are damaged."""
    places = list(_old_places(root, info, videos) if info["codebase_version"] in OLD else _places(root, info, videos))
    frames = sum(place.length for place in places)
    counts = [info.get("total_episodes", len(places)), info.get("total_frames", frames)]
    if counts != [len(places), frames]:
        what = f"counts {counts[0]!r} episodes of {counts[1]!r} frames where there are {len(places)} of {frames}"
        raise damaged(root / layout.INFO, what)
    return places


def _old_places(root: Path, info: JsonObject, videos: Sequence[str]) -> Iterator[Place]:
    path = root / "meta/episodes.jsonl"
    size = info.get("chunks_size", 1000)
    if type(size) is not int or size < 1:
        raise damaged(root / layout.INFO, f"has a chunks_size of {size!r}")
    for number, row in enumerate(_lines(path)):
        _check_next(row.get("episode_index"), number, path)
        numbers = {"episode_chunk": number // size, "episode_index": number}
        data = _filled(root, info, "data_path", numbers)
        shown = {key: (_filled(root, info, "video_path", {**numbers, "video_key": key}), 0.0) for key in videos}
        yield _place(row, path, data, 0, shown, {})


def _places(root: Path, info: JsonObject, videos: Sequence[str]) -> Iterator[Place]:
    """LeRobot takes whatever tables it finds; of a store of ours, those that its own key counts."""
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    own = info.get("wmpo")
    files = own.get("files") if isinstance(own, dict) else None
    if isinstance(files, list) and paths:
        counted = [layout.episodes_path(root, file) for file in files if type(file) is int]
        paths = counted if set(counted) <= set(paths) else paths
    if not paths:
        raise damaged(root / "meta/episodes", "has no tables of episodes")
    films = _films(root, own)
    number, begins, spoken = 0, dict[Path, int](), dict[Path, list[str]]()
    for path in paths:
        inside(root, str(path.relative_to(root)))
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        for key in videos:
            wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        table = read_table(path)
        if missing := [name for name in wanted if name not in table.column_names]:
            raise damaged(path, f"lacks the column {missing[0]!r}")
        known = [name for name, kind in OWN.items()
                 if name in table.column_names and TYPES[kind](table[name].type)]  # fmt: skip
        told = ["tasks"] if "tasks" in table.column_names else []
        for row in table.select([*wanted, *told, *known]).to_pylist():
            _check_next(row["episode_index"], number, path)
            data = _filled(root, info, "data_path", _numbers(row, "data", path))
            if not told:
                spoken[data] = spoken.get(data) or _sentences(root, data)
                row["tasks"] = spoken[data][begins.get(data, 0) :][:1]
            shown, encoded = {}, set()
            for key in videos:
                numbers: dict[str, int | str] = {**_numbers(row, f"videos/{key}", path), "video_key": key}
                begin = row[f"videos/{key}/from_timestamp"]
                if not isinstance(begin, float) or not 0 <= begin < 1e9:
                    raise damaged(path, f"has no time at which the video of {key} begins in row {number}")
                file = int(numbers["chunk_index"]) * layout.FILES_PER_CHUNK + int(numbers["file_index"])
                if file < len(own_films := films.get(key, ())):
                    link = layout.video_path(root, file, key.removeprefix(layout.video_key("")))
                    inside(root, str(link.parent.relative_to(root)))
                    shown[key] = (require_unchanged(link, own_films[file]), begin)
                else:
                    shown[key] = (_filled(root, info, "video_path", numbers), begin)
                    encoded |= {key} if isinstance(own, dict) else set()
            first = begins.setdefault(data, 0)
            told_by_us = {name: row[name] for name in known if row[name] is not None}
            place = replace(_place(row, path, data, first, shown, told_by_us), replaceable=encoded)
            begins[data] += place.length
            number += 1
            yield place


def _films(root: Path, own: Json) -> Mapping[str, Sequence[Film]]:
    """Feature -> what a store of ours reads in place, by links that lead out of its folder."""
    if not isinstance(own, dict) or "in_place" not in own:
        return {}
    found = from_plain(Own, own, f"{root / layout.INFO}: wmpo").in_place
    return {layout.video_key(camera): films for camera, films in found.items()}


def _sentences(root: Path, data: Path) -> list[str]:
    """Those of the rows. LeRobot's converter of images to video keeps none by episode."""
    tasks = read_tasks(root)
    numbers = column(read_table(data, ["task_index"]), "task_index", "whole numbers", data).to_pylist()
    if strange := [number for number in numbers if not 0 <= number < len(tasks)]:
        raise damaged(data, f"has the task_index {strange[0]} where there are {len(tasks)} sentences")
    return [tasks[number] for number in numbers]


def _place(
    row: JsonObject, path: Path, data: Path, first: int, videos: Mapping[str, tuple[Path, float]], own: JsonObject
) -> Place:
    length, sentences = row.get("length"), row.get("tasks")
    if type(length) is not int or length < 1:
        raise damaged(path, f"says of an episode that its length is {length!r}")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise damaged(path, "has something else than sentences as the tasks of an episode")
    return Place(length, sentences[0] if sentences else "", len(sentences), data, first, videos, own)


def _check_next(found: Json, number: int, path: Path) -> None:
    if found != number or type(found) is not int:
        raise damaged(path, f"has the episode_index {found!r} where {number} is due")


def _numbers(row: JsonObject, prefix: str, path: Path) -> dict[str, int]:
    numbers = {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
    if not all(type(number) is int and 0 <= number < 10**9 for number in numbers.values()):
        raise damaged(path, f"does not say in which file of {prefix} an episode lies")
    return numbers


def _filled(root: Path, info: JsonObject, name: str, values: Mapping[str, int | str]) -> Path:
    """The path that a template of info.json makes. Templates come from others: only plain fields are filled."""
    template: Json = info.get(name)
    try:
        if not isinstance(template, str):
            raise ValueError
        for _, field, spec, conversion in Formatter().parse(template):
            if field is not None and (field not in values or conversion or not FORMAT.fullmatch(spec or "")):
                raise ValueError
        return inside(root, template.format(**values))
    except ValueError:
        raise damaged(root / layout.INFO, f"has {repr(template)[:100]} as its {name}, which wmpo can't fill") from None


def _lines(path: Path) -> Iterator[JsonObject]:
    if is_stream(path):
        raise damaged(path, "is no file but a pipe or a device")
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError
                yield row
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except OSError as error:
        raise UserError(f"The file {path} can't be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise damaged(path, "is damaged: not every line is a JSON object") from None
