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
from wmpo.data.in_place import InPlace, Span
from wmpo.data.info import Info, check_spec, new_info, read_info
from wmpo.data.parts import exact_stats, merge_parts, read_frames, relabel_part, remove_others, write_part
from wmpo.data.records import EpisodeRecord, Films, Summary, episode_stats, read_records, read_stats
from wmpo.data.stats import Stats, merge_stats
from wmpo.data.tables import damaged, read_tasks
from wmpo.data.video import LOSSLESS, Codec, Film, Reel, Video
from wmpo.errors import UserError
from wmpo.io.files import atomic_path, file_lock, write_json
from wmpo.types import EnvSpec, Episode

InPlaceFilms = Mapping[str, Sequence[Film]]
NO_FILMS: InPlaceFilms = {}
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
    def create(
        cls, root: str | Path, spec: EnvSpec, codec: Codec = LOSSLESS, in_place: InPlaceFilms = NO_FILMS
    ) -> EpisodeStore:
        """An empty store in a new folder; `in_place` tells of videos that lie in it as links, see `layout.video_path`,
        which `append` may name."""
        root = Path(root)
        if (root / layout.INFO).exists():
            raise UserError(f"There is already an episode store in {root}: open it, or choose another folder.")
        check_spec(spec, str(root))
        if codec.pixels == "yuv420p" and any(side % 2 for size in spec.cameras.values() for side in size):
            raise UserError("Ordinary H.264 takes pictures of even sides only: choose another size, or lossless.")
        try:
            _write_tasks(root, [])
            write_json(root / layout.STATS, {})
            write_json(root / layout.INFO, new_info(spec, codec, in_place))
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

    @property
    def in_place(self) -> InPlaceFilms:
        """Camera -> the videos of others that are read where they lie, of those that have any."""
        return self._info.own.in_place

    def video(self, part: int, camera: str) -> Reel:
        """All frames of a part, as a camera shows them."""
        size, fps = self.spec.cameras[camera], self.spec.fps
        if camera in self.in_place:
            records = [record for record in self._records if record.part == part]
            spans = [self._span(camera, r.films[camera], r.length + 1) for r in records if camera in r.films]
            if spans:
                return InPlace(tuple(spans), size, fps)
        return Video(layout.video_path(self.root, self.files[part], camera), size, fps, self.part_frames[part])

    def _span(self, camera: str, place: tuple[int, float], frames: int) -> Span:
        path = layout.video_path(self.root, place[0], camera)
        return Span(path, self.in_place[camera][place[0]], place[1], frames)

    def refresh(self) -> None:
        """Take in what others have appended."""
        info = read_info(self.root)
        if info.content != self._info.content:
            self._read(info)
            self._stats = None

    def append(self, episodes: Sequence[Episode], films: Sequence[Films] = ()) -> None:
        """Store episodes for good: all of them, or none when anything goes wrong. `films` says of each where the
        pictures of the same few cameras lie, which it doesn't hold: in videos that are read in place."""
        if not episodes:
            return
        films = films or [{}] * len(episodes)
        spec = replace(self.spec, cameras={k: size for k, size in self.spec.cameras.items() if k not in films[0]})
        for place, episode in enumerate(episodes):
            check_episode(episode, spec, f"Episode {place} of those to be stored in {self.root}")
        try:
            with file_lock(self.root / ".lock"):
                self._append(episodes, films)
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
                layout.require_own_folders(self.root)
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

    def _append(self, episodes: Sequence[Episode], films: Sequence[Films]) -> None:
        layout.require_own_folders(self.root)
        self.refresh()
        old, self._stats = self._stats, None  # unknown, should anything go wrong
        if old is None:
            self._remove_leftovers()
        tasks = list(self._tasks)
        tasks += [text for text in dict.fromkeys(item.instruction for item in episodes) if text not in tasks]
        index, frame = len(self), self.total_frames
        files = list(self.files)
        lengths = [episode.length + 1 for episode in episodes]
        stats = []
        for episode, film, frames in zip(episodes, films, lengths, strict=True):
            spans = {name: self._span(name, place, frames) for name, place in film.items()}
            seen = {name: span.stats(self.spec.cameras[name], self.spec.fps) for name, span in spans.items()}
            stats.append(episode_stats(episode, self.spec, seen))
        for run in layout.split_by_length(lengths, self.spec.fps * layout.PART_SECONDS):
            files.append(files[-1] + 1 if files else self._info.own.first)
            begin, end, before = run.start, run.stop, frame + sum(lengths[: run.start])
            some = (episodes[begin:end], stats[begin:end], films[begin:end])
            write_part(self.root, files[-1], *some, self.spec, self._info.own.codec, index + begin, before, tasks)
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
        kinds = {record.part: record.films.keys() for record in self._records}
        small = [
            counts[part] < MERGE and frames < limit / 4 and kinds[part] == kinds[self.parts - 1]
            for part, frames in enumerate(self.part_frames)
        ]
        begin = next((part + 1 for part in reversed(range(self.parts)) if not small[part]), 0)
        if self.parts - begin < MERGE:
            return
        fresh: list[int] = []
        try:
            for run in layout.split_by_length(self.part_frames[begin:], limit):
                fresh.append(self.files[-1] + 1 + len(fresh))
                some = range(begin + run.start, begin + run.stop)
                records = [record for record in self._records if record.part in some]
                merge_parts(self.root, [self.files[part] for part in some], fresh[-1], records, self.spec)
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
        counts = {camera: len(films) for camera, films in info.own.in_place.items()}
        self._tasks = read_tasks(self.root)
        frame = records[-1].first_frame + records[-1].length + 1 if records else 0
        part = same
        while len(records) < info.episodes and part < len(files):
            records += read_records(self.root, files[part], part, len(records), frame, counts)
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
            stats |= exact_stats(self.root, files, [key for key in new[0] if key not in images], self.spec)
            self._exact = frames
        return stats

    def _remove_leftovers(self) -> None:
        kept = {path for file in self.files for path in layout.part_paths(self.root, file, self.spec)}
        for camera, films in self.in_place.items():
            kept |= {layout.video_path(self.root, number, camera) for number in range(len(films))}
        remove_others(self.root, kept)


def _write_tasks(root: Path, tasks: Sequence[str]) -> None:
    with atomic_path(root / layout.TASKS) as path:
        pq.write_table(layout.tasks_table(tasks), path)
