"""What meta/episodes says of each episode: its row written, and read, in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.data import layout
from wmpo.data.files import read_table
from wmpo.data.initial_states import split_of
from wmpo.data.stats import Stats, image_stats, vector_stats
from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of a stored episode without reading its frames."""

    index: int
    length: int
    """T, in actions; there are T+1 frames."""
    first_frame: int
    """Number of frame 0 in the store."""
    part: int
    """Which files hold it."""
    offset: int
    """Number of frame 0 in those files."""
    initial_state: int
    source: str
    task: str
    instruction: str
    succeeded: bool
    labelled: bool
    meta: dict[str, str]

    @property
    def split(self) -> str:
        return split_of(self.initial_state)


def episode_stats(episode: Episode, spec: EnvSpec) -> dict[str, Stats]:
    """Feature -> its statistics over the episode."""
    stats = {layout.ACTION: vector_stats(episode.actions)}
    if spec.state_dim:
        stats[layout.STATE] = vector_stats(episode.state)
    return stats | {layout.video_key(camera): image_stats(episode.images[camera]) for camera in spec.cameras}


def episode_row(
    episode: Episode, stats: Mapping[str, Stats], spec: EnvSpec, *, index: int, part: int, first_frame: int, offset: int
) -> dict[str, Any]:
    """The episode's row; `index`, `part`, `first_frame` and `offset` are those of its record."""
    chunk, file = divmod(part, layout.FILES_PER_CHUNK)
    frames = episode.length + 1
    row: dict[str, Any] = {
        "episode_index": index,
        "tasks": [episode.instruction],
        "length": frames,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": first_frame,
        "dataset_to_index": first_frame + frames,
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": file,
        "wmpo/start": episode.initial_state,
        "wmpo/source": episode.source,
        "wmpo/task": episode.task,
        "wmpo/success": episode.succeeded,
        "wmpo/labelled": episode.labels is not None,
        "wmpo/meta": json.dumps(episode.meta, sort_keys=True),
    }
    for camera in spec.cameras:
        key = layout.video_key(camera)
        row[f"videos/{key}/chunk_index"] = chunk
        row[f"videos/{key}/file_index"] = file
        row[f"videos/{key}/from_timestamp"] = offset / spec.fps
        row[f"videos/{key}/to_timestamp"] = (offset + frames) / spec.fps
    for key, values in stats.items():
        row |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
    return row


def read_records(root: Path, part: int) -> list[EpisodeRecord]:
    """A part's episodes, in order."""
    path = layout.episodes_path(root, part)
    table = read_table(path)
    own = [name for name in table.column_names if not name.startswith(("stats/", "videos/"))]
    rows = table.select(own).to_pylist()
    if not rows:
        raise UserError(f"The file {path} is empty: restore it from a copy.")
    return [
        EpisodeRecord(
            index=row["episode_index"],
            length=row["length"] - 1,
            first_frame=row["dataset_from_index"],
            part=part,
            offset=row["dataset_from_index"] - rows[0]["dataset_from_index"],
            initial_state=row["wmpo/start"],
            source=row["wmpo/source"],
            task=row["wmpo/task"],
            instruction=row["tasks"][0],
            succeeded=row["wmpo/success"],
            labelled=row["wmpo/labelled"],
            meta=json.loads(row["wmpo/meta"]),
        )
        for row in rows
    ]


def read_stats(root: Path, part: int, keys: Sequence[str]) -> Iterator[dict[str, Stats]]:
    """Statistics of these features, episode by episode."""
    table = read_table(layout.episodes_path(root, part))
    own = {key: [name for name in table.column_names if name.startswith(f"stats/{key}/")] for key in keys}
    for row in table.select([name for names in own.values() for name in names]).to_pylist():
        yield {key: {n.removeprefix(f"stats/{key}/"): np.array(row[n]) for n in names} for key, names in own.items()}
