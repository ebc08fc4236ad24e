"""What meta/episodes says of each episode: its row written, and read, in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from wmpo.data import layout
from wmpo.data.info import edited
from wmpo.data.initial_states import split_of
from wmpo.data.stats import NAMES, Stats, image_stats, vector_stats
from wmpo.data.tables import column, damaged, read_table
from wmpo.errors import printable
from wmpo.io.plain import JsonObject
from wmpo.types import EnvSpec, Episode

Films = Mapping[str, tuple[int, float]]
"""Camera -> the number of the video that is read in place, and the second at which an episode begins there."""
BY, PROBABILITY = "success", "success_probability"
"""Facts of an episode: who says whether it succeeds, and how likely a model takes success to be. Without the first the
environment, or whoever recorded it, has said so."""
UNLABELLED = {BY: "unknown"}
"""Nobody has said it; the frames then show no success."""


def is_unlabelled(meta: Mapping[str, str]) -> bool:
    return UNLABELLED.items() <= meta.items()


def labelled_by(meta: Mapping[str, str], probability: float | None = None) -> dict[str, str]:
    """The facts of an episode once a person has said whether it succeeds; or a model, which gives a probability."""
    told = {BY: "person"} if probability is None else {BY: "model", PROBABILITY: f"{probability:.4f}"}
    return without_label(meta) | told


def without_label(meta: Mapping[str, str]) -> dict[str, str]:
    """The other facts of an episode."""
    return {key: text for key, text in meta.items() if key not in (BY, PROBABILITY)}


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of a stored episode without reading its frames."""

    index: int
    length: int
    """T, in actions; there are T+1 frames."""
    first_frame: int
    """Number of frame 0 in the store."""
    part: int
    """Which of the store's parts holds it, counted from 0."""
    offset: int
    """Number of frame 0 in those files."""
    initial_state: int
    """Negative where it is unknown."""
    source: str
    task: str
    instruction: str
    succeeded: bool
    """False too where nobody knows: see `unlabelled`."""
    labelled: bool
    """Whether it says what an imitator should do."""
    meta: dict[str, str]
    films: Films = field(default_factory=dict)
    """Where its pictures lie, of the cameras whose videos are read in place."""

    @property
    def unlabelled(self) -> bool:
        """Whether nobody has said if it succeeds."""
        return is_unlabelled(self.meta)

    @property
    def by(self) -> str:
        """Who says whether it succeeds: person, model, unknown; empty where it was recorded with the episode."""
        return self.meta.get(BY, "")

    @property
    def probability(self) -> float | None:
        """Of success, where a model has said it; within [0, 1]."""
        try:
            return min(max(float(self.meta.get(PROBABILITY, "")), 0.0), 1.0) if self.by == "model" else None
        except ValueError:
            return 0.5  # a number of nobody's knows nothing

    @property
    def split(self) -> str:
        return split_of(self.initial_state)


def initial_states_of(records: Sequence[EpisodeRecord]) -> list[int]:
    """The initial state of each episode: its number, or -1 - index where that is unknown, so that it equals no other.

    One number for all says nothing, and counts as unknown.
    """
    unknown = len(records) > 1 and len({record.initial_state for record in records}) == 1
    return [-1 - r.index if unknown or r.initial_state < 0 else r.initial_state for r in records]


def episode_stats(episode: Episode, spec: EnvSpec, in_place: Mapping[str, Stats]) -> dict[str, Stats]:
    """Feature -> its statistics over the episode; `in_place` has those of cameras whose pictures it doesn't hold."""
    labels = episode.actions if episode.labels is None else episode.labels
    stats = {layout.ACTION: vector_stats(episode.actions), layout.LABEL: vector_stats(labels)}
    if spec.state_dim:
        stats[layout.STATE] = vector_stats(episode.state)
    for camera in spec.cameras:
        stats[layout.video_key(camera)] = in_place.get(camera) or image_stats(episode.images[camera])
    return stats


def episode_row(
    episode: Episode,
    stats: Mapping[str, Stats],
    spec: EnvSpec,
    films: Films,
    *,
    index: int,
    part: int,
    first_frame: int,
    offset: int,
) -> JsonObject:
    """The episode's row; `index`, `first_frame`, `offset` and `films` are those of its record, `part` is its files'
    number."""
    frames = episode.length + 1
    row: JsonObject = {
        "episode_index": index,
        "tasks": [episode.instruction],
        "length": frames,
        "dataset_from_index": first_frame,
        "dataset_to_index": first_frame + frames,
        "wmpo/start": episode.initial_state,
        "wmpo/source": episode.source,
        "wmpo/task": episode.task,
        "wmpo/success": episode.succeeded,
        "wmpo/labelled": episode.labels is not None,
        "wmpo/meta": json.dumps(episode.meta, sort_keys=True),
        **place_of(spec, part, offset, frames, films),
    }
    for key, values in stats.items():
        if key != layout.LABEL:  # not one of LeRobot's columns
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
    return row


def place_of(spec: EnvSpec, part: int, offset: int, frames: int, films: Films) -> JsonObject:
    """The columns that say where an episode lies: in the files with this number, from frame `offset` on, but for its
    `films`."""

    def numbered(kind: str, number: int) -> JsonObject:
        chunk, file = divmod(number, layout.FILES_PER_CHUNK)
        return {f"{kind}/chunk_index": chunk, f"{kind}/file_index": file}

    place = numbered("data", part) | numbered("meta/episodes", part)
    for camera in spec.cameras:
        kind = f"videos/{layout.video_key(camera)}"
        if camera in films:
            number, begin = films[camera]
            times = (begin, begin + frames / spec.fps)
        else:
            number, times = part, (offset / spec.fps, (offset + frames) / spec.fps)
        place |= numbered(kind, number)
        place |= {f"{kind}/from_timestamp": times[0], f"{kind}/to_timestamp": times[1]}
    return place


LATEST = 1e9  # s, at which an episode may begin in a video
NUMBERS = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "wmpo/start")
TEXTS = ("wmpo/source", "wmpo/task", "wmpo/meta")
TRUTHS = ("wmpo/success", "wmpo/labelled")


def read_records(
    root: Path, file: int, part: int, index: int, first_frame: int, in_place: Mapping[str, int]
) -> list[EpisodeRecord]:
    """The episodes in the files of this number, in order; the first must be the store's episode `index`, from its frame
    `first_frame` on. `in_place`: camera -> how many of its videos are read in place, from number 0 on."""
    path = layout.episodes_path(root, file)
    table = read_table(path)
    if not len(table):
        raise damaged(path, "is empty")
    if not any(name.startswith("wmpo/") for name in table.column_names):
        raise edited(root)
    kinds = {**dict.fromkeys(NUMBERS, "whole numbers"), **dict.fromkeys(TEXTS, "text")}
    kinds |= dict.fromkeys(TRUTHS, "truth values")
    columns = {name: column(table, name, kind, path).to_pylist() for name, kind in kinds.items()}
    sentences = _sentences(table, path)
    films = _films(table, file, in_place, path)
    records = []
    frame = first_frame
    for n in range(len(table)):
        row = {name: values[n] for name, values in columns.items()}
        frames, until = row["length"], row["dataset_to_index"]
        if (row["episode_index"], row["dataset_from_index"], until) != (index + n, frame, frame + frames) or frames < 2:
            raise damaged(path, f"does not go on with episode {index + n} at frame {frame} in row {n}")
        records.append(
            EpisodeRecord(
                index=index + n,
                length=frames - 1,
                first_frame=frame,
                part=part,
                offset=frame - first_frame,
                initial_state=row["wmpo/start"],
                source=row["wmpo/source"],
                task=row["wmpo/task"],
                instruction=sentences[n],
                succeeded=row["wmpo/success"],
                labelled=row["wmpo/labelled"],
                meta=_meta(row["wmpo/meta"], path),
                films=films[n],
            )
        )
        frame = until
    return records


def _films(table: pa.Table, file: int, in_place: Mapping[str, int], path: Path) -> list[dict[str, tuple[int, float]]]:
    """Of each episode; a part is read in place with all its episodes, or with none."""
    films: list[dict[str, tuple[int, float]]] = [{} for _ in range(len(table))]
    for camera, count in in_place.items():
        kind = f"videos/{layout.video_key(camera)}"
        chunks, files = (
            column(table, f"{kind}/{name}", "whole numbers", path).to_pylist() for name in ("chunk_index", "file_index")
        )
        begins = column(table, f"{kind}/from_timestamp", "numbers", path).to_pylist()
        numbers = [chunk * layout.FILES_PER_CHUNK + number for chunk, number in zip(chunks, files, strict=True)]
        if set(numbers) == {file}:
            continue
        if not all(0 <= number < count for number in numbers) or not all(0 <= begin < LATEST for begin in begins):
            raise damaged(path, f"names no place in a video of {camera!r} in some row")
        for film, number, begin in zip(films, numbers, begins, strict=True):
            film[camera] = (number, begin)
    return films


def _sentences(table: pa.Table, path: Path) -> list[str]:
    """One of each episode; the format has room for more."""
    if "tasks" not in table.column_names:
        raise damaged(path, "lacks the column 'tasks'")
    lists = table["tasks"].to_pylist()
    if not all(isinstance(row, list) and row and isinstance(row[0], str) for row in lists):
        raise damaged(path, "has episodes without a sentence in the column 'tasks'")
    return [row[0] for row in lists]


def _meta(text: str, path: Path) -> dict[str, str]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise damaged(path, "has something else than facts in the column 'wmpo/meta'")
    return meta


def read_stats(root: Path, file: int, keys: Sequence[str]) -> Iterator[dict[str, Stats]]:
    """Statistics of these features, episode by episode."""
    path = layout.episodes_path(root, file)
    table = read_table(path)
    names = {key: [f"stats/{key}/{name}" for name in NAMES] for key in keys}
    if missing := [name for own in names.values() for name in own if name not in table.column_names]:
        raise damaged(path, f"lacks the column {missing[0]!r}")
    try:
        for row in table.select([name for own in names.values() for name in own]).to_pylist():
            yield {
                key: {name.rpartition("/")[2]: np.array(row[name], dtype=np.float64) for name in own}
                for key, own in names.items()
            }
    except (ValueError, TypeError):
        raise damaged(path, "has something else than numbers among its statistics") from None


@dataclass(frozen=True)
class Summary:
    """How much a store holds."""

    episodes: int
    frames: int
    by_source: dict[str, int]
    """Source -> episodes."""
    success_rate: dict[str, float]
    """Source -> share of episodes that succeeded, in [0, 1], of those of which somebody has said it."""
    unlabelled: dict[str, int]
    """Source -> episodes of which nobody has."""
    by_model: dict[str, int]
    """Source -> episodes of which a model has said it."""

    def lines(self) -> list[str]:
        """For a person, one for each source."""
        lines = []
        for source, count in self.by_source.items():
            left = self.unlabelled[source]
            rate = f"{self.success_rate[source]:.1%} successful" if count > left else "none labelled"
            more = f", {left} not labelled" if 0 < left < count else ""
            more += f", {found} labelled by a model" if (found := self.by_model[source]) else ""
            lines.append(f"{count} episodes of {printable(source)}, {rate}{more}")
        return lines
