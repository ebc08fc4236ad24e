"""meta/info.json: what it says of a new store, and what it may say of one that is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wmpo.data import layout
from wmpo.data.video import STORED, Codec, Film
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.io.plain import JsonObject, from_plain, to_plain
from wmpo.types import EnvSpec

CAMERA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Names of cameras become names of folders."""
SIDE, DIMENSIONS, HORIZON, FPS = 8192, 4096, 1_000_000, 1000
"""Largest sizes: pixels of a side; of state and action; actions of an episode; Hz."""
EPISODES, FRAMES = 10**8, 10**10
SCALARS = {
    "bool": ("success", "next.success", "next.done", layout.PADDED),
    "float32": ("next.reward", "timestamp"),
    "int64": ("frame_index", "episode_index", "index", "task_index"),
}
EMPTY_TOTALS = {"total_episodes": 0, "total_frames": 0, "total_tasks": 0}


@dataclass(frozen=True)
class Own:
    """What only wmpo needs to know; the key "wmpo" of info.json, which LeRobot reads over."""

    horizon: int
    state_dim: int
    codec: Codec
    files: tuple[int, ...] | None = None
    """Numbers of the files that count, in order; None: 0, 1, 2 and so on."""
    in_place: Mapping[str, tuple[Film, ...]] = field(default_factory=dict)
    """Camera -> its videos 0, 1 and so on that are read in place; the store's own have higher numbers."""

    @property
    def first(self) -> int:
        """The least number that a file of the store's own may have."""
        return max((len(films) for films in self.in_place.values()), default=0)


@dataclass(frozen=True)
class Info:
    """A store's info.json, read and found plausible."""

    spec: EnvSpec
    own: Own
    episodes: int
    frames: int
    content: JsonObject

    def grown(self, episodes: int, frames: int, tasks: int, files: list[int]) -> JsonObject:
        """The content once the store has grown."""
        own = {**self.content["wmpo"], "files": files}
        totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": tasks}
        return {**self.content, **totals, "splits": {"train": f"0:{episodes}"}, "wmpo": own}


def read_info(root: Path) -> Info:
    """Raises UserError where there is no store that wmpo can read, and says what there is."""
    path = root / layout.INFO
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{root} can't be opened: {error.strerror}.") from None
    if not exists:
        if is_hdf5(root):
            raise not_ours(root, "an HDF5 file, which")
        raise UserError(f"There is no episode store in {root}: check the path, or collect episodes.")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("features"), dict):
        raise UserError(f"The file {path} is damaged or not of an episode store: restore it from a copy.")
    version = content.get("codebase_version")
    if "wmpo" not in content:
        if {layout.LABEL, layout.PADDED} <= content["features"].keys():
            raise edited(root)
        raise not_ours(root, f"a LeRobot data set ({str(version)[:20]}) that wmpo has not written; it")
    if version != layout.VERSION or content.get("chunks_size") != layout.FILES_PER_CHUNK:
        raise UserError(
            f"{path} is of format {str(version)[:20]} with {str(content.get('chunks_size'))[:20]} files to a folder, "
            f"but wmpo reads {layout.VERSION} with {layout.FILES_PER_CHUNK}: restore it from a copy."
        )
    own = from_plain(Own, content["wmpo"], f"{path}: wmpo")
    fps = _whole(content, "fps", path, 1, FPS)
    spec = EnvSpec(_cameras(content, path, fps), own.state_dim, _width(content, layout.ACTION, path), own.horizon, fps)
    check_spec(spec, str(path))
    for name, size in ((layout.LABEL, spec.action_dim), (layout.STATE, spec.state_dim)):
        if size and (found := _width(content, name, path)) != size:
            raise UserError(f"{path}: {name} has {found} dimensions in place of {size}: restore it from a copy.")
    episodes, frames = (
        _whole(content, "total_episodes", path, 0, EPISODES),
        _whole(content, "total_frames", path, 0, FRAMES),
    )
    files = own.files
    least = own.first
    if files is not None and (
        list(files) != sorted({n for n in files if least <= n < EPISODES}) or len(files) > episodes
    ):
        raise UserError(f"{path}: the numbers of its files are out of order: restore it from a copy.")
    if strange := [camera for camera in own.in_place if camera not in spec.cameras]:
        raise UserError(f"{path}: there is no camera {strange[0][:100]!r} to read in place: restore it from a copy.")
    return Info(spec, own, episodes, frames, content)


def not_ours(root: Path, what: str) -> UserError:
    """`what` it is instead of a store."""
    return UserError(
        f"{root} is {what} can't be learned from: `wmpo data import {root} OUT` makes an episode store of it, and "
        f"`wmpo data check {root}` says what it holds."
    )


def edited(root: Path) -> UserError:
    return not_ours(root, "an episode store that LeRobot's tools have edited since; as it is now it")


def is_hdf5(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".hdf5", ".h5")


def check_spec(spec: EnvSpec, where: str) -> None:
    """Raise UserError where a store of such an environment makes no sense, or would lie outside of its folder."""
    if not spec.cameras:
        raise UserError(f"{where}: an episode store needs at least one camera: name one in the environment's spec.")
    for name, size in spec.cameras.items():
        if not CAMERA.fullmatch(name) or ".." in name:
            raise UserError(
                f"{where}: a camera is called {name[:100]!r}: use letters, digits, and _ - . between them, since the "
                "name becomes a folder's."
            )
        if not all(1 <= side <= SIDE for side in size):
            raise UserError(f"{where}: camera {name!r} has {size[0]}x{size[1]} pixels: choose sides of 1 to {SIDE}.")
    ranges = {
        "state_dim": (spec.state_dim, 0, DIMENSIONS),
        "action_dim": (spec.action_dim, 1, DIMENSIONS),
        "horizon": (spec.horizon, 1, HORIZON),
        "fps": (spec.fps, 1, FPS),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise UserError(f"{where}: {name} is {value}; it must be from {least} to {most}.")


def new_info(spec: EnvSpec, codec: Codec, in_place: Mapping[str, Sequence[Film]]) -> JsonObject:
    """meta/info.json of an empty store."""
    own = {"horizon": spec.horizon, "state_dim": spec.state_dim, "codec": asdict(codec), "files": []}
    return {
        "codebase_version": layout.VERSION,
        "robot_type": None,
        **EMPTY_TOTALS,
        "chunks_size": layout.FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": spec.fps,
        "splits": {},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(spec, {camera: films[0].codec for camera, films in in_place.items()}),
        "wmpo": own | ({"in_place": to_plain(in_place)} if in_place else {}),
    }


def _features(spec: EnvSpec, codecs: Mapping[str, str]) -> JsonObject:
    def vector(size: int, stem: str) -> JsonObject:
        return {"dtype": "float32", "shape": [size], "names": [f"{stem}_{i}" for i in range(size)]}

    features: JsonObject = {}
    for camera, (height, width) in spec.cameras.items():
        features[layout.video_key(camera)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                # no pixel format: LeRobot's tools would encode in it again, and can't in RGB
                "video.codec": codecs.get(camera, STORED),
                "video.is_depth_map": False,
                "video.fps": spec.fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    if spec.state_dim:
        features[layout.STATE] = vector(spec.state_dim, "state")
    features |= {name: vector(spec.action_dim, "action") for name in (layout.ACTION, layout.LABEL)}
    for dtype, names in SCALARS.items():
        features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name in names}
    return features


def _cameras(content: JsonObject, path: Path, fps: int) -> dict[str, tuple[int, int]]:
    """Camera -> (height, width)."""
    prefix = layout.video_key("")
    cameras = {}
    for key in content["features"]:
        if key.startswith(prefix):
            height, width, channels = _shape(content, key, path, 3)
            facts = content["features"][key].get("info")
            if channels != 3 or not isinstance(facts, dict) or facts.get("video.fps", fps) != fps:
                raise UserError(
                    f"{path}: {key} has no 3 channels of {fps} Hz as the store has: restore it from a copy."
                )
            cameras[key.removeprefix(prefix)] = (height, width)
    return cameras


def _width(content: JsonObject, name: str, path: Path) -> int:
    return _shape(content, name, path, 1)[0]


def _shape(content: JsonObject, name: str, path: Path, sizes: int) -> list[int]:
    feature = content["features"].get(name)
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != sizes or not all(type(side) is int for side in shape):
        raise UserError(f"{path}: the feature {name!r} has no shape of {sizes} whole numbers: restore it from a copy.")
    return shape


def _whole(content: JsonObject, name: str, path: Path, least: int, most: int) -> int:
    value = content.get(name)
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{path}: {name} is {repr(value)[:40]}; it must be a whole number from {least} to {most}.")
    return value
