"""Episodes on disk: append-only, crash-safe, in the LeRobot dataset v3.0 layout.

Each `append` writes new files beside the old ones under temporary names, puts them in place, and then
replaces meta/info.json: that replacement is the commit. Whatever stops the program before it leaves the store as
it was; what was left behind is removed by the next append.
"""

from __future__ import annotations

import fcntl
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmpo.data import layout
from wmpo.data.checks import check_episode
from wmpo.data.files import json_writer, read_table, replace_file
from wmpo.data.records import EpisodeRecord, episode_row, episode_stats, read_records, read_stats
from wmpo.data.stats import Stats, merge_stats, vector_stats
from wmpo.data.video import LOSSLESS, Codec, read_video, take, write_video
from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode


@dataclass(frozen=True)
class Summary:
    """How much a store holds."""

    episodes: int
    frames: int
    by_source: dict[str, int]
    """Source -> episodes."""
    success_rate: dict[str, float]
    """Source -> share of episodes that succeeded, in [0, 1]."""


class EpisodeStore:
    """A growing sequence of episodes of one environment. Make one with `create`, `open` or `open_or_create`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._columns: tuple[int, pa.Table] | None = None
        self._reload()

    @classmethod
    def create(cls, root: str | Path, spec: EnvSpec, codec: Codec = LOSSLESS) -> EpisodeStore:
        """An empty store in a new folder."""
        root = Path(root)
        if (root / layout.INFO).exists():
            raise UserError(f"There is already an episode store in {root}: open it, or choose another folder.")
        if not spec.cameras:
            raise UserError("An episode store needs at least one camera: name one in the environment's spec.")
        replace_file(root / layout.TASKS, lambda path: pq.write_table(layout.tasks_table([]), path))
        replace_file(root / layout.STATS, json_writer({}))
        replace_file(root / layout.INFO, json_writer(layout.new_info(spec, codec)))
        return cls(root)

    @classmethod
    def open(cls, root: str | Path) -> EpisodeStore:
        """The store in a folder."""
        return cls(root)

    @classmethod
    def open_or_create(cls, root: str | Path, spec: EnvSpec, codec: Codec = LOSSLESS) -> EpisodeStore:
        """The store in a folder, new if there is none; it must be of the same environment."""
        if not (Path(root) / layout.INFO).exists():
            return cls.create(root, spec, codec)
        store = cls(root)
        wanted = EnvSpec({name: (size[0], size[1]) for name, size in spec.cameras.items()}, *_numbers(spec))
        if wanted != store.spec:
            raise UserError(
                f"The episode store in {root} holds another environment ({store.spec}) than the one asked for "
                f"({wanted}): choose another folder, or the settings that it was collected with."
            )
        return store

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Episode]:
        """All episodes in order; each video is decoded once, one episode is in memory at a time."""
        return self._walk(range(len(self)))

    def episodes(self, indices: Sequence[int]) -> list[Episode]:
        """Some episodes, in the order asked for: far quicker than one by one, since each video is decoded once."""
        wanted = sorted({self._record(index).index for index in indices})
        found = dict(zip(wanted, self._walk(wanted), strict=True))
        return [found[index] for index in indices]

    def _walk(self, indices: Sequence[int]) -> Iterator[Episode]:
        """The episodes with these numbers, which ascend."""
        wanted = set(indices)
        for part, rows in itertools.groupby(self._records, lambda row: row.part):
            group = list(rows)
            if wanted.isdisjoint(row.index for row in group):
                continue
            videos = {name: self._video(part, name) for name in self.spec.cameras}
            for row in group:
                images = {name: self._take(frames, row, name) for name, frames in videos.items()}
                if row.index in wanted:
                    yield self._episode(row, images)

    def episode(self, index: int) -> Episode:
        """One episode, frames and all."""
        row = self._record(index)
        images = {name: self._take(self._video(row.part, name, row.offset), row, name) for name in self.spec.cameras}
        return self._episode(row, images)

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
        successes = Counter(row.source for row in self._records if row.succeeded)
        rates = {source: successes[source] / count for source, count in counts.items()}
        return Summary(len(self._records), self.total_frames, dict(counts), rates)

    @property
    def total_frames(self) -> int:
        return sum(self.part_frames)

    @property
    def parts(self) -> int:
        """How many sets of files the episodes lie in."""
        return len(self.part_frames)

    def columns(self, part: int, name: str) -> np.ndarray:
        """A column of a part's frames, (rows,) or (rows, D): "action", "observation.state", "success" ..."""
        if self._columns is None or self._columns[0] != part:
            self._columns = (part, read_table(layout.data_path(self.root, part)))
        rows = self.part_frames[part]
        values = layout.array_of(self._columns[1], name)
        if len(values) != rows:
            path = layout.data_path(self.root, part)
            raise UserError(f"The file {path} has {len(values)} rows in place of {rows}: restore it from a copy.")
        return values

    def frames(self, part: int, camera: str) -> Iterator[np.ndarray]:
        """All frames (H, W, 3) of a part, in order."""
        return self._video(part, camera)

    def append(self, episodes: Sequence[Episode]) -> None:
        """Store episodes for good: all of them, or none when anything goes wrong."""
        if not episodes:
            return
        for place, episode in enumerate(episodes):
            check_episode(episode, self.spec, f"Episode {place} of those to be stored in {self.root}")
        try:
            with self._locked():
                self._append(episodes)
        except OSError as error:
            raise UserError(
                f"The episodes could not be written to {self.root} ({error}): look for space and permissions; what was "
                "stored before is untouched."
            ) from error

    def _append(self, episodes: Sequence[Episode]) -> None:
        self._reload()
        self._remove_leftovers()
        tasks = list(self._tasks)
        tasks += [text for text in dict.fromkeys(item.instruction for item in episodes) if text not in tasks]
        index, frame, part = len(self._records), self.total_frames, self.parts
        image_parts = self._image_stats()
        for group in _groups(episodes, self.spec.fps * layout.PART_SECONDS):
            rows = self._write_part(group, part, index, frame, tasks, image_parts)
            index, frame, part = index + len(group), frame + rows, part + 1
        info = dict(self._info)
        info.update(total_episodes=index, total_frames=frame, total_tasks=len(tasks), splits={"train": f"0:{index}"})
        # Both files may run ahead of the commit: more tasks than needed, statistics of episodes to come.
        replace_file(self.root / layout.TASKS, lambda path: pq.write_table(layout.tasks_table(tasks), path))
        replace_file(self.root / layout.STATS, json_writer(self._all_stats(part, image_parts)))
        replace_file(self.root / layout.INFO, json_writer(info))
        self._reload()

    def _write_part(
        self,
        episodes: Sequence[Episode],
        part: int,
        index: int,
        frame: int,
        tasks: list[str],
        image_parts: dict[str, list[Stats]],
    ) -> int:
        """Write one set of files; the number of frames in it. Adds to `image_parts`."""
        table = layout.frames_table(episodes, self.spec, index, frame, tasks)
        rows = []
        offset = 0
        for number, episode in enumerate(episodes, start=index):
            stats = episode_stats(episode, self.spec)
            for key, entries in image_parts.items():
                entries.append(stats[key])
            place = {"index": number, "part": part, "first_frame": frame + offset, "offset": offset}
            rows.append(episode_row(episode, stats, self.spec, **place))
            offset += episode.length + 1
        replace_file(layout.data_path(self.root, part), lambda path: pq.write_table(table, path))
        for camera in self.spec.cameras:
            shots = (episode.images[camera] for episode in episodes)
            target = layout.video_path(self.root, part, camera)
            replace_file(target, lambda path, shots=shots: write_video(path, shots, self.spec.fps, self.codec))  # type: ignore[misc]
        replace_file(
            layout.episodes_path(self.root, part), lambda path: pq.write_table(pa.Table.from_pylist(rows), path)
        )
        return offset

    def _reload(self) -> None:
        """Read what is committed."""
        path = self.root / layout.INFO
        try:
            self._info: dict[str, Any] = json.loads(path.read_text())
            self.spec = layout.spec_of(self._info)
            self.codec = Codec(**self._info["wmpo"]["codec"])
        except FileNotFoundError:
            raise UserError(f"There is no episode store in {self.root}: check the path, or collect episodes.") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"The file {path} is damaged or not of an episode store: restore it from a copy.") from None
        self._records: list[EpisodeRecord] = []
        self._columns = None
        total = self._info["total_episodes"]
        part = 0
        while len(self._records) < total:
            self._records += read_records(self.root, part)
            part += 1
        self.part_frames = [0] * part
        for row in self._records:
            self.part_frames[row.part] += row.length + 1
        if len(self._records) != total:
            raise UserError(f"The files in {self.root}/meta/episodes hold more than the {total} episodes of {path}.")
        self._tasks = read_table(self.root / layout.TASKS)["__index_level_0__"].to_pylist()

    def _video(self, part: int, camera: str, first: int = 0) -> Iterator[np.ndarray]:
        path = layout.video_path(self.root, part, camera)
        return read_video(path, self.spec.cameras[camera], self.spec.fps, first)

    def _take(self, frames: Iterator[np.ndarray], row: EpisodeRecord, camera: str) -> np.ndarray:
        return take(frames, row.length + 1, layout.video_path(self.root, row.part, camera))

    def _episode(self, row: EpisodeRecord, images: dict[str, np.ndarray]) -> Episode:
        rows = slice(row.offset, row.offset + row.length + 1)
        vectors = self._vectors(row)
        state = vectors.get(layout.STATE, np.zeros((row.length + 1, 0), np.float32))
        return Episode(
            images=images,
            state=state,
            actions=vectors[layout.ACTION],
            success=self.columns(row.part, "success")[rows].astype(bool),
            instruction=row.instruction,
            initial_state=row.initial_state,
            task=row.task,
            source=row.source,
            meta=dict(row.meta),
            labels=vectors[layout.LABEL] if row.labelled else None,
        )

    def _vectors(self, row: EpisodeRecord) -> dict[str, np.ndarray]:
        """Actions and labels (T, D), states (T+1, S)."""
        rows = slice(row.offset, row.offset + row.length)
        names = [layout.ACTION, layout.LABEL]
        found = {name: _matrix(self.columns(row.part, name))[rows].copy() for name in names}
        if self.spec.state_dim:
            found[layout.STATE] = _matrix(self.columns(row.part, layout.STATE))[rows.start : rows.stop + 1].copy()
        return found

    def _image_stats(self) -> dict[str, list[Stats]]:
        """Per camera, the statistics of each stored episode."""
        keys = [layout.video_key(camera) for camera in self.spec.cameras]
        episodes = [stats for part in range(self.parts) for stats in read_stats(self.root, part, keys)]
        return {key: [stats[key] for stats in episodes] for key in keys}

    def _all_stats(self, parts: int, images: dict[str, list[Stats]]) -> dict[str, dict[str, Any]]:
        """meta/stats.json over all parts, the new ones too. Rows that only repeat the last action don't count."""
        stats = {key: merge_stats(entries) for key, entries in images.items()}
        names = [layout.ACTION, layout.LABEL] + [layout.STATE] * bool(self.spec.state_dim)
        gathered: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for part in range(parts):
            table = read_table(layout.data_path(self.root, part), [*names, layout.PADDED])
            real = ~layout.array_of(table, layout.PADDED).astype(bool)
            for name in names:
                values = _matrix(layout.array_of(table, name))
                gathered[name].append(values if name == layout.STATE else values[real])
        stats.update({name: vector_stats(np.concatenate(values)) for name, values in gathered.items()})
        return {key: {name: value.tolist() for name, value in values.items()} for key, values in stats.items()}

    def _remove_leftovers(self) -> None:
        """Files of an append that was cut short: LeRobot reads every parquet file that it finds."""
        kept = {path for part in range(self.parts) for path in layout.part_paths(self.root, part, self.spec)}
        for folder in ("data", "meta/episodes", "videos"):
            for path in (self.root / folder).rglob("file-*"):
                if path not in kept:
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, also between processes."""
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _numbers(spec: EnvSpec) -> tuple[int, int, int, int]:
    return spec.state_dim, spec.action_dim, spec.horizon, spec.fps


def _matrix(values: np.ndarray) -> np.ndarray:
    """(rows, D) also where D is 1."""
    return values.reshape(len(values), -1)


def _groups(episodes: Sequence[Episode], limit: int) -> Iterator[list[Episode]]:
    """Runs of episodes of at most `limit` frames, or of one longer episode."""
    group: list[Episode] = []
    frames = 0
    for episode in episodes:
        if group and frames + episode.length + 1 > limit:
            yield group
            group, frames = [], 0
        group.append(episode)
        frames += episode.length + 1
    yield group
