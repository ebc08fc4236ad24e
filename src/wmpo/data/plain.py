"""An episode store as a plain LeRobot data set, for the trainers of others.

A store has a row for the last frame too, which has no action and repeats the one before; LeRobot knows no mark for that
and would teach it. Here that row is left out, and `action` is what an imitator should do (`label.action`). Videos are
copied as they are: an episode ends a frame before its pictures do. None is a link, since LeRobot's tools may write into
files of a data set, which would reach the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.data.records import EpisodeRecord, place_of, read_stats
from wmpo.data.stats import Stats, merge_stats, vector_stats
from wmpo.data.store import EpisodeStore
from wmpo.data.tables import read_table
from wmpo.errors import UserError
from wmpo.io.files import atomic_folder, copy_file, read_json, write_json
from wmpo.io.plain import JsonObject, to_plain

LEFT_OUT = (layout.PADDED, layout.LABEL)


def export_plain(store: EpisodeStore, episodes: Sequence[int], out: Path) -> None:
    """Write these episodes of the store, in their order there, to a folder that isn't there yet."""
    if not episodes:
        raise UserError(f"{store.root} has no such episodes: choose others.")
    with atomic_folder(out, store.root) as made:
        _write(store, sorted(set(episodes)), made)


def _write(store: EpisodeStore, episodes: Sequence[int], made: Path) -> None:
    every_one = store.records()
    records = [every_one[number] for number in episodes]
    images = [layout.video_key(camera) for camera in store.spec.cameras]
    numbers = [name for name in (layout.ACTION, layout.STATE) if name == layout.ACTION or store.spec.state_dim]
    every: dict[str, list[np.ndarray]] = {name: [] for name in numbers}
    pictures: list[dict[str, Stats]] = []
    number = frame = 0
    for part, file in enumerate(store.files):
        own = [record for record in records if record.part == part]
        if not own:
            continue
        table, begin = read_table(layout.data_path(store.root, file)), frame
        rows, seen = [], list(read_stats(store.root, file, images))
        first = next(record.index for record in every_one if record.part == part)
        for record in own:
            values = {name: _of(store, record, name) for name in numbers}
            stats = {name: vector_stats(row) for name, row in values.items()} | seen[record.index - first]
            rows.append(_row(store, record, file, number, frame, stats))
            pictures.append({key: stats[key] for key in images})
            for name, row in values.items():
                every[name].append(row)
            number, frame = number + 1, frame + record.length
        _put(layout.data_path(made, file), _frames(table, own, number - len(own), begin))
        _put(layout.episodes_path(made, file), pa.Table.from_pylist(rows))
        for camera in store.spec.cameras:
            for video in store.video(part, camera).files():
                if not (copy := made / video.relative_to(store.root)).exists():
                    copy_file(video, copy)
    stats = {name: vector_stats(np.concatenate(rows)) for name, rows in every.items()}
    stats |= {key: merge_stats([row[key] for row in pictures]) for key in images}
    write_json(made / layout.STATS, to_plain(stats))
    copy_file(store.root / layout.TASKS, made / layout.TASKS)
    write_json(made / layout.INFO, _info(read_json(store.root / layout.INFO), number, frame))


def _of(store: EpisodeStore, record: EpisodeRecord, name: str) -> np.ndarray:
    """(T, D) of an episode."""
    stored = layout.LABEL if name == layout.ACTION else name
    return store.columns(record.part, stored)[record.offset : record.offset + record.length]


def _frames(table: pa.Table, records: Sequence[EpisodeRecord], number: int, frame: int) -> pa.Table:
    """The rows of these episodes, which begin at episode `number` and frame `frame`."""
    table = table.take(np.concatenate([np.arange(r.offset, r.offset + r.length) for r in records]))
    lengths = [record.length for record in records]
    fresh = {
        layout.ACTION: table[layout.LABEL],
        "episode_index": pa.array(np.repeat(np.arange(number, number + len(records)), lengths)),
        "index": pa.array(np.arange(frame, frame + sum(lengths))),
    }
    for name, values in fresh.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table.drop_columns(list(LEFT_OUT))


def _row(
    store: EpisodeStore, record: EpisodeRecord, file: int, number: int, frame: int, stats: dict[str, Stats]
) -> JsonObject:
    return {
        "episode_index": number,
        "tasks": [record.instruction],
        "length": record.length,
        "dataset_from_index": frame,
        "dataset_to_index": frame + record.length,
        **place_of(store.spec, file, record.offset, record.length, record.films),
        **{f"stats/{key}/{name}": value.tolist() for key, row in stats.items() for name, value in row.items()},
    }


def _info(content: JsonObject, episodes: int, frames: int) -> JsonObject:
    features: JsonObject = {name: feature for name, feature in content["features"].items() if name not in LEFT_OUT}
    for name in features:  # stores of 0.3.0 name RGB as pixel format, in which LeRobot's tools can't encode
        if name.startswith(layout.video_key("")):
            told = {fact: value for fact, value in features[name]["info"].items() if fact != "video.pix_fmt"}
            features[name] = {**features[name], "info": told}
    kept = {name: value for name, value in content.items() if name != "wmpo"}
    totals = {"total_episodes": episodes, "total_frames": frames, "splits": {"train": f"0:{episodes}"}}
    return {**kept, "features": features, **totals}


def _put(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
