"""The LeRobot dataset v3.0 layout: paths, features, and tables. See docs/data.md.

One *part* is one parquet file of frames, one of episodes and one mp4 per camera, all with the same number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
FILES_PER_CHUNK = 1000
PART_SECONDS = 500
"""Video of one part. LeRobot finds frames by float32 times within 1e-4 s, which longer files would break."""

ACTION = "action"
STATE = "observation.state"
LABEL = "label.action"  # not "action.label": LeRobot takes every name that begins with "action" for a policy output
PADDED = "next.is_pad"


def video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _file(part: int) -> str:
    return f"chunk-{part // FILES_PER_CHUNK:03d}/file-{part % FILES_PER_CHUNK:03d}"


def data_path(root: Path, part: int) -> Path:
    return root / f"data/{_file(part)}.parquet"


def episodes_path(root: Path, part: int) -> Path:
    return root / f"meta/episodes/{_file(part)}.parquet"


def video_path(root: Path, part: int, camera: str) -> Path:
    return root / f"videos/{video_key(camera)}/{_file(part)}.mp4"


def split_by_length(frames: Sequence[int], limit: int) -> Iterator[range]:
    """Runs of episodes, or parts, of at most `limit` frames together, or of one longer one."""
    begin = total = 0
    for n, count in enumerate(frames):
        if n > begin and total + count > limit:
            yield range(begin, n)
            begin, total = n, 0
        total += count
    yield range(begin, len(frames))


def require_own_folders(root: Path) -> None:
    """Raise UserError where a folder of the store is a link, through which something would be written elsewhere."""
    for path in (place for depth in ("*", "*/*", "*/*/*") for place in root.glob(depth)):
        if path.is_symlink() and path.is_dir() and path.name != "cache":
            raise UserError(f"{path} is a link to another folder, where nothing is written: put a folder in its place.")


def part_paths(root: Path, part: int, spec: EnvSpec) -> list[Path]:
    """Every file of a part."""
    videos = [video_path(root, part, camera) for camera in spec.cameras]
    return [data_path(root, part), episodes_path(root, part), *videos]


def _column(values: np.ndarray) -> pa.Array:
    """(rows,) or (rows, 1) as plain values, (rows, D) as lists of fixed size, as LeRobot expects them."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    size = 1 if values.ndim == 1 else values.shape[1]
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def frames_table(
    episodes: Sequence[Episode], spec: EnvSpec, first: int, first_frame: int, tasks: list[str]
) -> pa.Table:
    """T+1 rows per episode; `first` and `first_frame` number the first episode and its first frame in the store."""
    blocks: dict[str, list[np.ndarray]] = {}
    for number, episode in enumerate(episodes, start=first):
        T = episode.length
        # The last frame has no action: its row repeats the last one and says so.
        repeat_last = np.minimum(np.arange(T + 1), T - 1)
        following = np.minimum(np.arange(T + 1) + 1, T)
        padded = np.arange(T + 1) == T
        labels = episode.actions if episode.labels is None else episode.labels
        columns = {
            ACTION: episode.actions[repeat_last],
            LABEL: labels[repeat_last],
            "success": episode.success,
            "next.reward": (episode.success[following] & ~padded).astype(np.float32),
            "next.success": episode.success[following],
            "next.done": np.arange(T + 1) >= T - 1,
            PADDED: padded,
            "timestamp": (np.arange(T + 1) / spec.fps).astype(np.float32),
            "frame_index": np.arange(T + 1),
            "episode_index": np.full(T + 1, number),
            "index": np.arange(first_frame, first_frame + T + 1),
            "task_index": np.full(T + 1, tasks.index(episode.instruction)),
        }
        if spec.state_dim:
            columns[STATE] = episode.state
        first_frame += T + 1
        for name, values in columns.items():
            blocks.setdefault(name, []).append(values)
    return pa.table({name: _column(np.concatenate(values)) for name, values in blocks.items()})


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """Sentence -> number, with the sentence as the index of the pandas frame that LeRobot reads."""
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    sentence = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"}
    about = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [{**number, "metadata": None}, {**sentence, "metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    columns = {
        "task_index": pa.array(range(len(tasks)), pa.int64()),
        "__index_level_0__": pa.array(tasks, pa.string()),
    }
    return pa.table(columns).replace_schema_metadata({"pandas": json.dumps(about)})
