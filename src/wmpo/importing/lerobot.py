"""LeRobot data sets of the formats v2.0, v2.1 and v3.0, and stores of ours that LeRobot's tools have edited."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.data.recorded import check_video, damaged, frames_at
from wmpo.data.tables import LISTS, reading, require_columns
from wmpo.data.video import CODECS
from wmpo.errors import UserError
from wmpo.importing.lerobot_meta import OLD, Place, read_places
from wmpo.importing.pictures import picture
from wmpo.importing.source import About, Column, Facts, check_facts, inside
from wmpo.io.files import read_json
from wmpo.io.plain import Json, JsonObject

NUMBERS = re.compile("bool|float(16|32|64)|u?int(8|16|32|64)")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
SUCCESS = ("next.success", "success")
"""Of a data set that wmpo has not written, the column of the frame that follows comes first: where there are both, as
in what `wmpo data export` makes, the other doesn't know the last one."""


class LeRobot:
    """Fulfils `source.Source`. The tables of episodes are read at once, the rest when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        info_path = inside(path, layout.INFO)
        info = read_json(info_path)
        if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
            raise damaged(info_path, "describes no features")
        version = info.get("codebase_version")
        if version not in (*OLD, layout.VERSION):
            raise UserError(
                f"{path} is of LeRobot's format {str(version)[:20]}: wmpo reads {', '.join(OLD)} and {layout.VERSION}; "
                "bring it to one of these with LeRobot's own converter."
            )
        self.info: JsonObject = info
        self.features: dict[str, JsonObject] = {}
        for key, feature in info["features"].items():
            if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
                raise damaged(info_path, f"does not say what the feature {key[:100]!r} is")
            self.features[key] = feature
        fps = info.get("fps")
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e4:
            raise damaged(info_path, f"has {fps!r} as its fps")
        self.fps = float(fps)
        shown = [key for key, feature in self.features.items() if feature["dtype"] in ("video", "image")]
        videos = [key for key in shown if self.features[key]["dtype"] == "video"]
        self.places = read_places(path, info, videos)
        self.keys: dict[str, str] = {}  # camera -> feature
        self.codecs: dict[str, str] = {}  # feature -> that of its first video
        self._cached: dict[tuple[str, ...], tuple[object, pa.Table]] = {}
        notes: list[str] = []
        sizes = {}
        for key in shown:
            size, note = self._size(key)
            notes += [note] if note else []
            if size:
                sizes[key] = size
        for key in sizes:
            name = key.removeprefix("observation.").removeprefix("images.").removeprefix("image.")
            self.keys[key if name in self.keys or not name else name] = key
        self.facts = self._facts({name: sizes[key] for name, key in self.keys.items()}, notes)
        check_facts(self.facts, path)

    def files(self) -> list[Path]:
        found = [path for folder in ("meta", "data", "videos") for path in (self.path / folder).rglob("*")]
        return sorted(path for path in found if path.is_file())

    def check(self, cameras: Sequence[str]) -> None:
        for camera in cameras:
            key, size, ends = self.keys[camera], self.facts.cameras[camera], dict[Path, float]()
            for place in self.places:
                path, begin = place.videos.get(key, (place.data, 0.0))
                ends[path] = max(ends.get(path, 0.0), begin + (place.length - 1) / self.fps)
            for path, last in ends.items():
                if self.features[key]["dtype"] == "image":
                    with reading(path, damaged), pq.ParquetFile(path) as file:
                        require_columns(file, [key], path, damaged)
                        _check_pictures(file.schema_arrow.field(key).type, key, path)
                elif (found := check_video(path, self.fps, last)[0]) != size:
                    raise damaged(path, f"shows {found[0]}x{found[1]} pixels in place of {size[0]}x{size[1]}")

    def columns(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        place = self.places[episode]
        wanted = list(dict.fromkeys([*names, "episode_index", "frame_index", "timestamp"]))
        table = self._rows(place, wanted)
        frame = np.arange(place.length)
        due = {"episode_index": np.full(place.length, episode), "frame_index": frame, "timestamp": frame / self.fps}
        for name, values in due.items():
            found = _numbers(table, name, 1, place.data)[:, 0]
            if (wrong := np.abs(found - values) > (0.25 / self.fps if name == "timestamp" else 0)).any():
                row = int(wrong.argmax())
                where = f"row {place.first_row + row} of the column {name!r}"
                raise damaged(place.data, f"has {found[row]:g} in {where} in place of {values[row]:g}")
        return {name: _numbers(table, name, self.facts.columns[name].size, place.data) for name in names}

    def frames(self, episode: int, camera: str, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        place, key, size = self.places[episode], self.keys[camera], self.facts.cameras[camera]
        if key in place.videos:
            path, begin = place.videos[key]
            yield from frames_at(path, [begin + frame / self.fps for frame in wanted], size, self.fps)
            return
        images = self._rows(place, [key])[key].combine_chunks()
        _check_pictures(images.type, key, place.data)
        for frame in wanted:
            content = (images[frame].as_py() or {}).get("bytes")
            if not isinstance(content, bytes):
                raise damaged(place.data, f"has no image in row {place.first_row + frame} of the column {key!r}")
            yield picture(content, size, place.data, place.first_row + frame)

    def film(self, episode: int, camera: str) -> tuple[Path, float] | None:
        key, place = self.keys[camera], self.places[episode]
        if key not in place.videos or key in place.replaceable or self.codecs.get(key) not in CODECS:
            return None
        path, begin = place.videos[key]
        return path.resolve(), begin

    def _rows(self, place: Place, names: list[str]) -> pa.Table:
        """The episode's rows; of the file, only the row groups that hold them are read."""
        path = place.data
        with reading(path, damaged), pq.ParquetFile(path) as file:
            require_columns(file, names, path, damaged)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum([0, *counts])
            begin, end = place.first_row, place.first_row + place.length
            if end > ends[-1]:
                raise damaged(path, f"has {ends[-1]} rows where its data set says {end} or more")
            groups = [g for g in range(len(counts)) if ends[g] < end and ends[g + 1] > begin]
            known = (str(path), groups)
            if self._cached.get(tuple(names), (None,))[0] != known:
                self._cached[tuple(names)] = known, file.read_row_groups(groups, columns=names)
            return self._cached[tuple(names)][1].slice(begin - ends[groups[0]], place.length)

    def _size(self, key: str) -> tuple[tuple[int, int] | None, str]:
        """((height, width), a note) of a feature that shows pictures; none where they have no colours."""
        feature, where = self.features[key], self.path / layout.INFO
        shape, names = feature.get("shape"), feature.get("names")
        if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int for side in shape):
            raise damaged(where, f"gives no shape of three whole numbers to {key[:100]!r}")
        first = names[0] if isinstance(names, list) and names else ""
        channels_first = "channel" in str(first) or (shape[0] == 3 and shape[2] != 3)
        height, width, channels = [*shape[1:], shape[0]] if channels_first else shape
        if channels != 3:
            return None, f"{key} has {channels} channel{'s' * (channels > 1)} and is left out: wmpo takes colours."
        if feature["dtype"] == "image" or not self.places:
            return (height, width), ""
        path = self.places[0].videos[key][0]
        size, codec = check_video(path, self.fps)
        if size != (height, width):
            raise damaged(path, f"shows {size[0]}x{size[1]} pixels where {where} says {height}x{width}")
        self.codecs[key] = codec
        return size, f"{key} is video: {codec}."

    def _facts(self, cameras: dict[str, tuple[int, int]], notes: list[str]) -> Facts:
        columns = {key: self._column(key, feature) for key, feature in self.features.items()
                   if NUMBERS.fullmatch(feature["dtype"]) and key not in BOOKKEEPING}  # fmt: skip
        ours = "label.action" in columns and layout.PADDED in columns
        success = reversed(SUCCESS) if ours else SUCCESS
        several = sum(place.sentences > 1 for place in self.places)
        notes += [f"{several} episodes have several sentences: the first counts."] if several else []
        return Facts(
            format=f"LeRobot {self.info['codebase_version']}" + (", written by wmpo" if ours else ""),
            fps=self.fps,
            cameras=cameras,
            columns=columns,
            episodes=tuple(_about(place) for place in self.places),
            action=tuple(key for key in columns if key == layout.ACTION),
            state=tuple(key for key in columns if key == layout.STATE),
            success=next((key for key in success if key in columns and columns[key].size == 1), ""),
            labels=layout.LABEL if ours else "",
            notes=tuple(notes),
        )  # fmt: skip

    def _column(self, key: str, feature: JsonObject) -> Column:
        shape, names = feature.get("shape"), feature.get("names")
        if not isinstance(shape, list) or not shape or not all(type(side) is int and side > 0 for side in shape):
            raise damaged(self.path / layout.INFO, f"gives no shape to the feature {key[:100]!r}")
        if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
            names = next(iter(names.values()))
        fits = isinstance(names, list) and len(names) == math.prod(shape)
        return Column(math.prod(shape), tuple(str(name)[:100] for name in names or ()) if fits else ())


def _about(place: Place) -> About:
    own = place.own
    try:
        meta = json.loads(own.get("wmpo/meta", "{}"))
    except (ValueError, RecursionError):
        meta = {}
    facts: Json = meta if isinstance(meta, dict) and all(isinstance(text, str) for text in meta.values()) else {}
    return About(place.length, place.length, place.sentence, own.get("wmpo/start", -1), own.get("wmpo/source", ""),
                 own.get("wmpo/task", ""), facts)  # fmt: skip


def _check_pictures(kind: pa.DataType, name: str, path: Path) -> None:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise damaged(path, f"has {kind} in the column {name!r} in place of images")


def _numbers(table: pa.Table, name: str, size: int, path: Path) -> np.ndarray:
    """(rows, size) float64, all finite; whatever lists they lie in."""
    values = table[name].combine_chunks()
    while isinstance(values.type, LISTS):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or lengths == [None]:
            raise damaged(path, f"has lists of different lengths in the column {name!r}")
        values = values.flatten()
    if values.null_count:
        raise damaged(path, f"has gaps in the column {name!r}")
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise damaged(path, f"has {kind} in the column {name!r} in place of numbers")
    if len(values) != len(table) * size:
        raise damaged(path, f"has {len(values) / max(len(table), 1):g} numbers a row in {name!r} in place of {size}")
    rows = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(table), size)
    if not (finite := np.abs(rows) <= np.finfo(np.float32).max).all():
        row = int(np.argwhere(~finite)[0, 0])
        raise damaged(path, f"has NaN or infinite numbers in the column {name!r}, first in row {row} of an episode")
    return rows
