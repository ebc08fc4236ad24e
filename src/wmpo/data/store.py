"""Episodes on disk: append-only, crash-safe, in the LeRobot dataset v3.0 layout.

Each `append` writes new files beside the old ones under temporary names, puts them in place, and then
replaces meta/info.json: that replacement is the commit. Whatever stops the program before it leaves the store as
it was; what was left behind is removed by the next append.

Episodes may be appended one by one: what an append costs does not grow with the store. Each makes a part of its own;
once there are `MERGE` small ones at the end, they are merged.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.data.checks import check_episode
from wmpo.data.info import Info, check_spec, new_info, read_info
from wmpo.data.parts import merge_parts, read_frames, relabel_part, split_by_length, write_part
from wmpo.data.records import EpisodeRecord, Summary, episode_stats, read_records, read_stats
from wmpo.data.stats import Stats, merge_stats, vector_stats
from wmpo.data.tables import column, damaged, read_table, read_tasks, vector
from wmpo.data.video import LOSSLESS, Codec, Video
from wmpo.errors import UserError
from wmpo.io.files import atomic_path, file_lock, write_json
from wmpo.types import EnvSpec, Episode

MERGE = 32
"""Parts with fewer episodes than this, and shorter than a quarter of the longest, are merged when there are as many."""
GROWTH = 8
"""Quantiles are exact again whenever the store has grown by one part in so many; in between they are averaged."""


class EpisodeStore:
    """A growing sequence of episodes of one environment. Make one with `create`, `open` or `open_or_create`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.spec: EnvSpec
        self._cameras: tuple[str, ...] = ()
        self._frames: tuple[int, dict[str, np.ndarray]] | None = None
        self._stats: dict[str, Stats] | None = None  # None: not known yet, or somebody else has appended since
        self._exact = 0  # frames that the quantiles are exact of
        self._read(read_info(self.root))

    @classmethod
    def create(cls, root: str | Path, spec: EnvSpec, codec: Codec = LOSSLESS) -> EpisodeStore:
        """An empty store in a new folder."""
        root = Path(root)
        if (root / layout.INFO).exists():
            raise UserError(f"There is already an episode store in {root}: open it, or choose another folder.")
        check_spec(spec, str(root))
        if codec.pixels == "yuv420p" and any(side % 2 for size in spec.cameras.values() for side in size):
            raise UserError("Ordinary H.264 takes pictures of even sides only: choose another size, or lossless.")
        try:
            _write_tasks(root, [])
            write_json(root / layout.STATS, {})
            write_json(root / layout.INFO, new_info(spec, codec))
        except OSError as error:
            raise UserError(f"No episode store can be made in {root}: {error.strerror}.") from error
        return cls(root)

    @classmethod
    def open(cls, root: str | Path) -> EpisodeStore:
        """The store in a folder."""
        return cls(root)

    @classmethod
    def open_or_create(cls, root: str | Path, spec: EnvSpec, codec: Codec = LOSSLESS) -> EpisodeStore:
        """The store in a folder, new if there is none; it must be of the same environment. Cameras come in the order of
        `spec`."""
        if not (Path(root) / layout.INFO).exists():
            return cls.create(root, spec, codec)
        store = cls(root)
        cameras = {name: (size[0], size[1]) for name, size in spec.cameras.items()}
        wanted = replace(spec, cameras=cameras, max_batch=store.spec.max_batch)  # which no store knows
        if wanted != store.spec:
            raise UserError(
                f"The episode store in {root} holds another environment ({store.spec}) than the one asked for "
                f"({wanted}): choose another folder, or the settings that it was collected with."
            )
        return store.with_cameras(tuple(spec.cameras))

    def with_cameras(self, names: Sequence[str]) -> EpisodeStore:
        """This store, with its cameras in this order."""
        if sorted(names) != sorted(self.spec.cameras):
            raise UserError(f"{self.root} has the cameras {', '.join(self.spec.cameras)}, not {', '.join(names)}.")
        self._cameras = tuple(names)
        self.spec = self._in_order(self.spec)
        return self

    def _in_order(self, spec: EnvSpec) -> EnvSpec:
        return replace(spec, cameras={name: spec.cameras[name] for name in self._cameras or spec.cameras})

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Episode]:
        """All episodes in order; each video is decoded once, one episode is in memory at a time."""
        return self.each(range(len(self)))

    def episodes(self, indices: Sequence[int]) -> list[Episode]:
        """Some episodes, in the order asked for: far quicker than one by one, since each video is decoded once."""
        wanted = sorted({self._record(index).index for index in indices})
        found = dict(zip(wanted, self.each(wanted), strict=True))
        return [found[index] for index in indices]

    def each(self, indices: Sequence[int]) -> Iterator[Episode]:
        """Some episodes one after the other, by number: one at a time is in memory, however many there are."""
        wanted = set(indices)
        for part, rows in itertools.groupby(self._records, lambda row: row.part):
            group = list(rows)
            if wanted.isdisjoint(row.index for row in group):
                continue
            videos = {name: self.video(part, name) for name in self.spec.cameras}
            shown = {name: video.frames() for name, video in videos.items()}
            for row in group:
                images = {name: video.take(shown[name], row.length + 1) for name, video in videos.items()}
                if row.index in wanted:
                    yield self._episode(row, images)

    def episode(self, index: int) -> Episode:
        """One episode, frames and all."""
        row = self._record(index)
        videos = {name: self.video(row.part, name) for name in self.spec.cameras}
        images = {name: video.take(video.frames(row.offset), row.length + 1) for name, video in videos.items()}
        return self._episode(row, images)

    def with_first_frames(self, indices: Sequence[int]) -> list[Episode]:
        """Episodes whose videos hold their first frames alone, which are found by seeking, in the order asked for."""
        shown: dict[int, dict[str, np.ndarray]] = {}
        rows = (self._record(index) for index in sorted(set(indices)))
        for part, group in itertools.groupby(rows, lambda row: row.part):
            offsets = {row.index: row.offset for row in group}
            for camera in self.spec.cameras:
                frames = self.video(part, camera).at([*offsets.values()])
                for index, frame in zip(offsets, frames, strict=True):
                    shown.setdefault(index, {})[camera] = frame[None]
        return [self._episode(self._record(index), shown[index]) for index in indices]

    def without_pictures(self, indices: Sequence[int]) -> list[Episode]:
        """Episodes whose videos are not decoded."""
        return [self._episode(self._record(index), {}) for index in indices]

    def _record(self, index: int) -> EpisodeRecord:
        if not 0 <= index < len(self._records):
            raise UserError(f"There is no episode {index} in {self.root}: it holds {len(self._records)}.")
        return self._records[index]

    def records(self) -> Sequence[EpisodeRecord]:
        """What is known of each episode, in order, without reading frames."""
        return tuple(self._records)

    def select(
        self, source: str | None = None, split: str | None = None, task: str | None = None, success: bool | None = None
    ) -> list[int]:
        """Numbers of the episodes that fit all that is given; `split` is that of the initial state."""
        return [
            row.index
            for row in self._records
            if (source is None or row.source == source)
            and (split is None or row.split == split)
            and (task is None or row.task == task)
            and (success is None or row.succeeded == success)
        ]

    def summary(self) -> Summary:
        counts = Counter(row.source for row in self._records)
        unlabelled = Counter(row.source for row in self._records if row.unlabelled)
        successes = Counter(row.source for row in self._records if row.succeeded)
        rates = {source: successes[source] / max(count - unlabelled[source], 1) for source, count in counts.items()}
        by_model = Counter(row.source for row in self._records if row.by == "model")
        left, found = ({source: some[source] for source in counts} for some in (unlabelled, by_model))
        return Summary(len(self._records), self.total_frames, dict(counts), rates, left, found)

    @property
    def total_frames(self) -> int:
        return sum(self.part_frames)

    @property
    def parts(self) -> int:
        """How many sets of files the episodes lie in."""
        return len(self.part_frames)

    def columns(self, part: int, name: str) -> np.ndarray:
        """A column of a part's frames: "action", "label.action", "observation.state" as (rows, dimensions) float32,
        "success" as (rows,) bool. Raises UserError where the part is damaged."""
        if self._frames is None or self._frames[0] != part:
            records = [record for record in self._records if record.part == part]
            self._frames = (part, read_frames(self.root, self.files[part], records, self.spec))
        return self._frames[1][name]

    def video(self, part: int, camera: str) -> Video:
        """All frames of a part, as a camera shows them."""
        path = layout.video_path(self.root, self.files[part], camera)
        return Video(path, self.spec.cameras[camera], self.spec.fps, self.part_frames[part])

    def refresh(self) -> None:
        """Take in what others have appended."""
        info = read_info(self.root)
        if info.content != self._info.content:
            self._read(info)
            self._stats = None

    def append(self, episodes: Sequence[Episode]) -> None:
        """Store episodes for good: all of them, or none when anything goes wrong."""
        if not episodes:
            return
        for place, episode in enumerate(episodes):
            check_episode(episode, self.spec, f"Episode {place} of those to be stored in {self.root}")
        try:
            with file_lock(self.root / ".lock"):
                self._append(episodes)
        except OSError as error:
            raise UserError(
                f"The episodes could not be written to {self.root} ({error}): look for space and permissions; what was "
                "stored before is untouched."
            ) from error

    def relabel(self, success: Mapping[int, np.ndarray], probability: Mapping[int, float] | None = None) -> None:
        """Say anew which frames of some episodes show success: index -> (T+1,) bool. A person says so, or a model that
        gives a probability of success. All of them, or none when anything goes wrong; videos are not touched."""
        for index, shown in success.items():
            frames = self._record(index).length + 1
            if shown.shape != (frames,) or shown.dtype != np.bool_:
                raise UserError(f"Episode {index} of {self.root} takes {frames} truth values, one for each frame.")
        if not success:
            return
        try:
            with file_lock(self.root / ".lock"):
                if read_info(self.root).content != self._info.content:
                    raise UserError(f"{self.root} has been changed meanwhile: open it again, and label it then.")
                self._remove_leftovers()
                begin = min(self._record(index).part for index in success)  # numbers of files ascend
                fresh = [self.files[-1] + 1 + n for n in range(self.parts - begin)]
                for part, into in enumerate(fresh, start=begin):
                    records = [record for record in self._records if record.part == part]
                    relabel_part(self.root, self.files[part], into, records, success, probability or {}, self.spec)
                self._commit(len(self), self.total_frames, len(self._tasks), self.files[:begin] + fresh)
                self._remove_leftovers()
        except OSError as error:
            raise UserError(f"The labels could not be written to {self.root} ({error}): they are as before.") from error

    def _append(self, episodes: Sequence[Episode]) -> None:
        self.refresh()
        old, self._stats = self._stats, None  # unknown, should anything go wrong
        if old is None:
            self._remove_leftovers()
        tasks = list(self._tasks)
        tasks += [text for text in dict.fromkeys(item.instruction for item in episodes) if text not in tasks]
        index, frame = len(self), self.total_frames
        files = list(self.files)
        stats = [episode_stats(episode, self.spec) for episode in episodes]
        lengths = [episode.length + 1 for episode in episodes]
        for run in split_by_length(lengths, self.spec.fps * layout.PART_SECONDS):
            files.append(files[-1] + 1 if files else 0)
            some = slice(run.start, run.stop)
            place = {"index": index + run.start, "first_frame": frame + sum(lengths[: run.start])}
            write_part(
                self.root, files[-1], episodes[some], stats[some], self.spec, self._info.own.codec, tasks=tasks, **place
            )
        # Both files may run ahead of the commit: more tasks than needed, statistics of episodes to come.
        if tasks != self._tasks or old is None:
            _write_tasks(self.root, tasks)
        grown = self._grown_stats(old, stats, files)
        content = {key: {name: value.tolist() for name, value in values.items()} for key, values in grown.items()}
        write_json(self.root / layout.STATS, content)
        self._commit(index + len(episodes), frame + sum(lengths), len(tasks), files)
        self._stats = grown
        self._merge_small()

    def _commit(self, episodes: int, frames: int, tasks: int, files: list[int]) -> None:
        write_json(self.root / layout.INFO, self._info.grown(episodes, frames, tasks, files))
        self._read(read_info(self.root))

    def _merge_small(self) -> None:
        """Of episodes that were appended one by one, thousands of files would be left. Where it fails they stay."""
        limit = self.spec.fps * layout.PART_SECONDS
        counts = Counter(record.part for record in self._records)
        small = [counts[part] < MERGE and frames < limit / 4 for part, frames in enumerate(self.part_frames)]
        begin = next((part + 1 for part in reversed(range(self.parts)) if not small[part]), 0)
        if self.parts - begin < MERGE:
            return
        fresh: list[int] = []
        try:
            for run in split_by_length(self.part_frames[begin:], limit):
                fresh.append(self.files[-1] + 1 + len(fresh))
                merge_parts(self.root, [self.files[begin + part] for part in run], fresh[-1], self.spec)
        except (OSError, ValueError):
            return self._remove_leftovers()
        self._commit(len(self), self.total_frames, len(self._tasks), self.files[:begin] + fresh)
        self._remove_leftovers()

    def _read(self, info: Info) -> None:
        """Read what is committed; of parts that are known already, nothing."""
        known = getattr(self, "files", [])
        files = list(range(info.episodes)) if info.own.files is None else list(info.own.files)
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(known, files, strict=False))))
        records = [record for record in getattr(self, "_records", []) if record.part < same]
        self._tasks = read_tasks(self.root)
        frame = records[-1].first_frame + records[-1].length + 1 if records else 0
        part = same
        while len(records) < info.episodes and part < len(files):
            records += read_records(self.root, files[part], part, len(records), frame)
            frame = records[-1].first_frame + records[-1].length + 1
            part += 1
        if (len(records), frame) != (info.episodes, info.frames) or (info.own.files and part < len(files)):
            raise damaged(
                self.root / layout.INFO,
                f"counts {info.episodes} episodes of {info.frames} frames where there are {len(records)} of {frame}",
            )
        self._info, self._records, self.files, self._frames = info, records, files[:part], None
        self.spec = self._in_order(info.spec)
        self.part_frames = [0] * part
        for record in records:
            self.part_frames[record.part] += record.length + 1

    def _episode(self, row: EpisodeRecord, images: dict[str, np.ndarray]) -> Episode:
        def values(name: str, frames: int) -> np.ndarray:
            return self.columns(row.part, name)[row.offset : row.offset + frames].copy()

        T = row.length
        return Episode(
            images=images,
            state=values(layout.STATE, T + 1) if self.spec.state_dim else np.zeros((T + 1, 0), np.float32),
            actions=values(layout.ACTION, T),
            success=values("success", T + 1),
            instruction=row.instruction,
            initial_state=row.initial_state,
            task=row.task,
            source=row.source,
            meta=dict(row.meta),
            labels=values(layout.LABEL, T) if row.labelled else None,
        )

    def _grown_stats(
        self, old: dict[str, Stats] | None, new: Sequence[dict[str, Stats]], files: Sequence[int]
    ) -> dict[str, Stats]:
        """Of all features over the old episodes and the new ones, whose files are written already."""
        images = [layout.video_key(camera) for camera in self.spec.cameras]
        before = [old] if old else [row for file in self.files for row in read_stats(self.root, file, images)]
        stats = {key: merge_stats([entry[key] for entry in (*before, *new)]) for key in (old or images)}
        frames = int(stats[images[0]]["count"][0])
        if old is None or (frames - self._exact) * GROWTH >= frames:
            stats |= self._exact_stats([key for key in new[0] if key not in images], files)
            self._exact = frames
        return stats

    def _exact_stats(self, names: Sequence[str], files: Sequence[int]) -> dict[str, Stats]:
        """Of vectors, over all files. Rows that only repeat the last action don't count."""
        gathered: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for path in (layout.data_path(self.root, file) for file in files):
            table = read_table(path, [*names, layout.PADDED])
            real = ~column(table, layout.PADDED, "truth values", path).to_numpy(zero_copy_only=False)
            for name in names:
                width = self.spec.state_dim if name == layout.STATE else self.spec.action_dim
                rows = vector(table, name, width, path)
                gathered[name].append(rows if name == layout.STATE else rows[real])
        return {name: vector_stats(np.concatenate(rows)) for name, rows in gathered.items()}

    def _remove_leftovers(self) -> None:
        """Files of an append that was cut short, or that were merged: LeRobot reads every parquet file it finds."""
        kept = {path for file in self.files for path in layout.part_paths(self.root, file, self.spec)}
        for folder in ("data", "meta/episodes", "videos"):
            for path in (self.root / folder).rglob("*file-*"):
                if path not in kept:
                    path.unlink(missing_ok=True)


def _write_tasks(root: Path, tasks: Sequence[str]) -> None:
    with atomic_path(root / layout.TASKS) as path:
        pq.write_table(layout.tasks_table(tasks), path)
