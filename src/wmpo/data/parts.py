"""The files of one part: written with new episodes, read and checked, and many small ones merged into one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.data.normalizer import OTHER_UNITS, spread_ratio
from wmpo.data.records import EpisodeRecord, Films, episode_row, labelled_by, place_of
from wmpo.data.stats import Stats, vector_stats
from wmpo.data.tables import check_equal, column, damaged, read_table, vector
from wmpo.data.video import Codec, write_video
from wmpo.io.files import atomic_path
from wmpo.types import EnvSpec, Episode

JUDGED = 100  # labelled frames of a part, from which on their units are compared with those of the actions


def write_part(
    root: Path,
    file: int,
    episodes: Sequence[Episode],
    stats: Sequence[dict[str, Stats]],
    films: Sequence[Films],
    spec: EnvSpec,
    codec: Codec,
    index: int,
    first_frame: int,
    tasks: list[str],
) -> None:
    """Files of this number, but for the videos of cameras that each episode has `films` of. `index` and `first_frame`
    number the first episode and its first frame in the store."""
    rows = []
    offset = 0
    for number, (episode, own, film) in enumerate(zip(episodes, stats, films, strict=True), start=index):
        place = {"index": number, "part": file, "first_frame": first_frame + offset, "offset": offset}
        rows.append(episode_row(episode, own, spec, film, **place))
        offset += episode.length + 1
    _write_table(layout.data_path(root, file), layout.frames_table(episodes, spec, index, first_frame, tasks))
    for camera in _encoded(spec, films[0]):
        with atomic_path(layout.video_path(root, file, camera)) as path:
            write_video(path, (episode.images[camera] for episode in episodes), spec.fps, codec)
    _write_table(layout.episodes_path(root, file), pa.Table.from_pylist(rows))


def read_frames(root: Path, file: int, records: Sequence[EpisodeRecord], spec: EnvSpec) -> dict[str, np.ndarray]:
    """Column -> (rows,) or (rows, D) of the part that holds these episodes, all checked against what is known of them.

    Raises UserError where the columns are not what `layout.frames_table` wrote.
    """
    path = layout.data_path(root, file)
    counts = np.array([record.length + 1 for record in records])
    starts = np.cumsum(counts) - counts
    rows = int(counts.sum())
    numbers = ("episode_index", "frame_index", "index")
    vectors = {layout.ACTION: spec.action_dim, layout.LABEL: spec.action_dim}
    if spec.state_dim:
        vectors[layout.STATE] = spec.state_dim
    table = read_table(path, [*vectors, "success", *numbers, "timestamp"], rows)
    frame = np.arange(rows) - np.repeat(starts, counts)
    wanted = {
        "episode_index": np.repeat([record.index for record in records], counts),
        "frame_index": frame,
        "index": np.arange(rows) + records[0].first_frame,
    }
    for name, values in wanted.items():
        check_equal(column(table, name, "whole numbers", path).to_numpy(), values, name, path)
    times = column(table, "timestamp", "numbers", path).to_numpy()
    check_equal(times, frame / spec.fps, "timestamp", path, tolerance=1e-6 * rows / spec.fps + 1e-4)
    found = {name: vector(table, name, width, path) for name, width in vectors.items()}
    success = column(table, "success", "truth values", path).to_numpy(zero_copy_only=False)
    succeeded = np.array([record.succeeded for record in records])
    check_equal(np.logical_or.reduceat(success, starts).astype(int), succeeded.astype(int), "success by episode", path)
    labelled = np.repeat([record.labelled for record in records], counts)
    if not np.array_equal(found[layout.LABEL][~labelled], found[layout.ACTION][~labelled]):
        raise damaged(path, "has other labels than actions in an episode without labels")
    # in a few rows, what was meant may hardly vary beside the noise of what was done
    if labelled.sum() >= JUDGED and not (
        1 / OTHER_UNITS < spread_ratio(found[layout.LABEL], found[layout.ACTION]) < OTHER_UNITS
    ):
        raise damaged(path, "has labels in other units than its actions")
    return {**found, "success": success}


def merge_parts(root: Path, files: Sequence[int], into: int, records: Sequence[EpisodeRecord], spec: EnvSpec) -> None:
    """One part of several, which hold these episodes in order; the old files stay. Videos are joined as they are, not
    encoded again; those that are read in place are left alone."""
    tables = [read_table(layout.data_path(root, file)) for file in files]
    rows = [read_table(layout.episodes_path(root, file)).to_pylist() for file in files]
    offset = 0
    for row, record in zip(merged := [row for part in rows for row in part], records, strict=True):
        row |= place_of(spec, into, offset, row["length"], record.films)
        offset += row["length"]
    _write_table(layout.data_path(root, into), pa.concat_tables(tables))
    lengths = [sum(row["length"] for row in part) for part in rows]
    for camera in _encoded(spec, records[0].films):
        with atomic_path(layout.video_path(root, into, camera)) as path:
            _join([layout.video_path(root, file, camera) for file in files], lengths, spec.fps, path)
    _write_table(layout.episodes_path(root, into), pa.Table.from_pylist(merged))


def relabel_part(
    root: Path,
    file: int,
    into: int,
    records: Sequence[EpisodeRecord],
    success: Mapping[int, np.ndarray],
    probability: Mapping[int, float],
    spec: EnvSpec,
) -> None:
    """The part once more, with other frames of success: episode -> (T+1,) bool, by a model where there is a
    probability. The old one stays; videos are shared with it."""
    table, rows = read_table(layout.data_path(root, file)), read_table(layout.episodes_path(root, file)).to_pylist()
    hits = column(table, "success", "truth values", layout.data_path(root, file)).to_numpy(zero_copy_only=False).copy()
    for row, record in zip(rows, records, strict=True):
        row |= place_of(spec, into, record.offset, record.length + 1, record.films)
        if record.index in success:
            hits[record.offset : record.offset + record.length + 1] = shown = success[record.index]
            meta = labelled_by(record.meta, probability.get(record.index))
            row |= {"wmpo/success": bool(shown.any()), "wmpo/meta": json.dumps(meta, sort_keys=True)}
    padded = column(table, layout.PADDED, "truth values", layout.data_path(root, file)).to_numpy(zero_copy_only=False)
    following = np.where(padded, hits, np.append(hits[1:], False))
    fresh = {"success": hits, "next.success": following, "next.reward": (following & ~padded).astype(np.float32)}
    for name, values in fresh.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    _write_table(layout.data_path(root, into), table)
    for camera in _encoded(spec, records[0].films):
        with atomic_path(layout.video_path(root, into, camera)) as path:
            try:
                os.link(layout.video_path(root, file, camera), path)
            except OSError:  # of a disk that knows no links
                shutil.copy2(layout.video_path(root, file, camera), path)
    _write_table(layout.episodes_path(root, into), pa.Table.from_pylist(rows))


def exact_stats(root: Path, files: Sequence[int], names: Sequence[str], spec: EnvSpec) -> dict[str, Stats]:
    """Of vectors, over all these files. Rows that only repeat the last action don't count."""
    gathered: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in (layout.data_path(root, file) for file in files):
        table = read_table(path, [*names, layout.PADDED])
        real = ~column(table, layout.PADDED, "truth values", path).to_numpy(zero_copy_only=False)
        for name in names:
            width = spec.state_dim if name == layout.STATE else spec.action_dim
            rows = vector(table, name, width, path)
            gathered[name].append(rows if name == layout.STATE else rows[real])
    return {name: vector_stats(np.concatenate(rows)) for name, rows in gathered.items()}


def remove_others(root: Path, kept: Collection[Path]) -> None:
    """Files of an append that was cut short, or that were merged: LeRobot reads every parquet file it finds. Of a link
    to somebody else's file, the link goes."""
    for folder in ("data", "meta/episodes", "videos"):
        for path in (root / folder).rglob("*file-*"):
            if path not in kept:
                path.unlink(missing_ok=True)


def _encoded(spec: EnvSpec, films: Films) -> list[str]:
    """The cameras that a part has a video of its own of; the others are read in place."""
    return [camera for camera in spec.cameras if camera not in films]


def _join(videos: Sequence[Path], lengths: Sequence[int], fps: int, target: Path) -> None:
    """Videos of these numbers of frames, one after the other. Raises ValueError where their encoders differ."""
    with av.open(str(target), "w", format="mp4") as joined:
        stream: av.VideoStream | None = None
        header: bytes | None = None
        tick = Fraction(1)
        before = 0
        for video, length in zip(videos, lengths, strict=True):
            with av.open(str(video), format="mp4") as container:
                source = container.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source, opaque=True)
                    stream.time_base = source.time_base
                    header = source.codec_context.extradata
                    tick = cast(Fraction, source.time_base)
                elif (source.codec_context.extradata, source.time_base) != (header, tick):
                    raise ValueError(f"{video} was made by another encoder")
                shift = round(before / fps / tick)
                for packet in container.demux(source):
                    if packet.dts is not None:  # the last packet is an empty one
                        packet.pts, packet.dts = cast(int, packet.pts) + shift, packet.dts + shift
                        packet.stream = stream
                        joined.mux(packet)
            before += length


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
