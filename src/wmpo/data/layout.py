"""The LeRobot dataset v3.0 layout: paths, features, and tables. See docs/data.md.

One *part* is one parquet file of frames, one of episodes and one mp4 per camera, all with the same number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wmpo.data.video import Codec
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


def part_paths(root: Path, part: int, spec: EnvSpec) -> list[Path]:
    """Every file of a part."""
    videos = [video_path(root, part, camera) for camera in spec.cameras]
    return [data_path(root, part), episodes_path(root, part), *videos]


def _features(spec: EnvSpec, codec: Codec) -> dict[str, Any]:
    def vector(size: int, stem: str) -> dict[str, Any]:
        return {"dtype": "float32", "shape": [size], "names": [f"{stem}_{i}" for i in range(size)]}

    def scalar(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [1], "names": None}

    features: dict[str, Any] = {}
    for camera, (height, width) in spec.cameras.items():
        features[video_key(camera)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": codec.stored,
                "video.is_depth_map": False,
                "video.fps": spec.fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    if spec.state_dim:
        features[STATE] = vector(spec.state_dim, "state")
    features[ACTION] = vector(spec.action_dim, "action")
    features[LABEL] = vector(spec.action_dim, "action")
    features["success"] = scalar("bool")
    features["next.reward"] = scalar("float32")
    features["next.success"] = scalar("bool")
    features["next.done"] = scalar("bool")
    features[PADDED] = scalar("bool")
    features["timestamp"] = scalar("float32")
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = scalar("int64")
    return features


def new_info(spec: EnvSpec, codec: Codec) -> dict[str, Any]:
    """meta/info.json of an empty store. The key "wmpo" is ours; LeRobot reads over it."""
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": spec.fps,
        "splits": {},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(spec, codec),
        "wmpo": {"horizon": spec.horizon, "state_dim": spec.state_dim, "codec": asdict(codec)},
    }


def spec_of(info: Mapping[str, Any]) -> EnvSpec:
    features = info["features"]
    prefix = video_key("")
    cameras = {
        key.removeprefix(prefix): (value["shape"][0], value["shape"][1])
        for key, value in features.items()
        if key.startswith(prefix)
    }
    own = info["wmpo"]
    return EnvSpec(cameras, own["state_dim"], features[ACTION]["shape"][0], own["horizon"], info["fps"])


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


def array_of(table: pa.Table, name: str) -> np.ndarray:
    """A column as (rows,) or (rows, D)."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)
