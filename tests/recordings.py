"""Small data sets as others record them, written without their libraries: LeRobot's v3.0 and v2.1, robomimic's HDF5.

Every frame is of one grey, which says where it belongs: 10 x episode + frame, in each camera; so do states (episode +
frame / 100) and actions (targets: the next frame's state).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SENTENCES = ("put the cup on the plate", "Lege den Würfel in die Schale", "把红色方块放进碗里")
LENGTHS = (6, 9, 7)


@dataclass(frozen=True)
class Recording:
    version: str = "v3.0"
    codec: str = "libx264"  # or libsvtav1, or "" for images in the tables
    lengths: tuple[int, ...] = LENGTHS
    cameras: tuple[tuple[str, tuple[int, int]], ...] = (
        ("observation.images.front", (48, 64)),
        ("observation.images.wrist", (64, 64)),
    )
    fps: int = 30
    per_file: int = 2  # episodes, in v3.0
    state: str = "observation.state"
    action: str = "action"
    size: int = 6
    dtype: str = "float32"
    success: bool = False  # a column next.success, true in the last row of even episodes


def grey(episode: int, frame: int) -> int:
    return (10 * episode + 5 * frame + 20) % 256


def state_of(episode: int, frame: int, size: int) -> list[float]:
    return [100.0 * episode + frame + dimension / 10 for dimension in range(size)]


def record(root: Path, recording: Recording) -> Path:
    """A LeRobot data set in a folder."""
    r, old = recording, recording.version != "v3.0"
    groups = [[e] for e in range(len(r.lengths))] if old else [
        list(range(b, min(b + r.per_file, len(r.lengths)))) for b in range(0, len(r.lengths), r.per_file)]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for file, episodes in enumerate(groups):
        data = f"data/chunk-000/episode_{file:06d}.parquet" if old else f"data/chunk-000/file-{file:03d}.parquet"
        _write(root / data, _table(r, episodes))
        begin = 0
        for e in episodes:
            first = sum(r.lengths[:e])
            row = {"episode_index": e, "tasks": [SENTENCES[e % 3]], "length": r.lengths[e]}
            row |= {"data/chunk_index": 0, "data/file_index": file, "dataset_from_index": first,
                    "dataset_to_index": first + r.lengths[e]}  # fmt: skip
            for key, _ in r.cameras if r.codec else ():
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file,
                        f"videos/{key}/from_timestamp": begin / r.fps,
                        f"videos/{key}/to_timestamp": (begin + r.lengths[e]) / r.fps}  # fmt: skip
            begin += r.lengths[e]
            rows.append(row)
        for key, size in r.cameras if r.codec else ():
            name = f"chunk-000/{key}/episode_{file:06d}.mp4" if old else f"{key}/chunk-000/file-{file:03d}.mp4"
            greys = [grey(e, frame) for e in episodes for frame in range(r.lengths[e])]
            film(root / "videos" / name, greys, size, r.fps, r.codec)
    (root / "meta").mkdir(parents=True, exist_ok=True)
    if old:
        lines = [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in rows]
        _lines(root / "meta/episodes.jsonl", lines)
        _lines(root / "meta/tasks.jsonl", [{"task_index": n, "task": text} for n, text in enumerate(SENTENCES)])
    else:
        _write(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
        _write(root / "meta/tasks.parquet", pa.table({"task_index": range(3), "task": SENTENCES}))
    (root / "meta/info.json").write_text(json.dumps(_info(r, old)))
    return root


def _table(r: Recording, episodes: Sequence[int]) -> pa.Table:
    moments = [(e, frame) for e in episodes for frame in range(r.lengths[e])]
    states = np.array([state_of(e, frame, r.size) for e, frame in moments], r.dtype)
    targets = np.array([state_of(e, frame + 1, r.size) for e, frame in moments], r.dtype)
    columns: dict[str, Any] = {r.state: states.tolist(), r.action: targets.tolist()}
    if r.success:
        columns["next.success"] = [e % 2 == 0 and frame == r.lengths[e] - 1 for e, frame in moments]
    columns |= {"timestamp": np.array([frame / r.fps for _, frame in moments], np.float32)}
    columns |= {"frame_index": [frame for _, frame in moments], "episode_index": [e for e, _ in moments]}
    columns |= {
        "index": [sum(r.lengths[:e]) + frame for e, frame in moments],
        "task_index": [e % 3 for e, _ in moments],
    }
    for key, size in () if r.codec else r.cameras:
        columns[key] = [{"bytes": png(grey(e, frame), size), "path": f"frame-{frame}.png"} for e, frame in moments]
    return pa.table(columns)


def _info(r: Recording, old: bool) -> dict[str, Any]:
    vector = {"dtype": r.dtype, "shape": [r.size], "names": [f"joint_{n}.pos" for n in range(r.size)]}
    features: dict[str, Any] = {r.state: vector, r.action: vector}
    features |= {"next.success": {"dtype": "bool", "shape": [1], "names": None}} if r.success else {}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    for key, size in r.cameras:
        dtype = "video" if r.codec else "image"
        features[key] = {"dtype": dtype, "shape": [*size, 3], "names": ["height", "width", "channels"]}
    where = "episode_{episode_index:06d}" if old else "file-{file_index:03d}"
    chunk = "chunk-{episode_chunk:03d}" if old else "chunk-{chunk_index:03d}"
    video = f"videos/{chunk}/{{video_key}}/{where}.mp4" if old else f"videos/{{video_key}}/{chunk}/{where}.mp4"
    return {
        "codebase_version": r.version, "robot_type": "so101_follower", "fps": r.fps, "features": features,
        "total_episodes": len(r.lengths), "total_frames": sum(r.lengths), "total_tasks": 3, "chunks_size": 1000,
        "data_path": f"data/{chunk}/{where}.parquet", "video_path": video if r.codec else None,
        "splits": {"train": f"0:{len(r.lengths)}"},
    }  # fmt: skip


def film(path: Path, greys: Sequence[int], size: tuple[int, int], fps: int, codec: str) -> None:
    """A video of plain frames, with B frames where the codec likes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options={"g": "2", "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number, value in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def png(value: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def record_hdf5(path: Path, after: bool = False, lengths: Sequence[int] = LENGTHS) -> Path:
    """A file in robomimic's layout; `after`: with the observations that follow each action, too."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Square_D0", "env_kwargs": {"control_freq": 20}})
        for e in reversed(range(len(lengths))):  # in no order
            demo = data.create_group(f"demo_{e}")
            T = lengths[e]
            for name, later in (("obs", 0), ("next_obs", 1))[: 1 + after]:
                greys = np.array([grey(e, frame + later) for frame in range(T)], np.uint8)
                demo[f"{name}/agentview_image"] = np.broadcast_to(greys[:, None, None, None], (T, 24, 32, 3))
                position = np.array([state_of(e, frame + later, 3) for frame in range(T)])
                demo[f"{name}/robot0_eef_pos"], demo[f"{name}/robot0_eef_quat"] = position, np.zeros((T, 4))
                demo[f"{name}/robot0_gripper_qpos"] = np.zeros((T, 2))
            actions = np.full((T, 7), 0.01)
            actions[:, 6] = np.arange(T) - 1.0
            demo["actions"], demo["dones"] = actions, np.arange(T) == T - 1
            demo["rewards"] = (np.arange(T) == T - 1).astype(float) * (e != 1)
    return path


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
