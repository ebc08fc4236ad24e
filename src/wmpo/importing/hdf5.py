"""HDF5 files in the layout of robomimic, MimicGen and LIBERO: `data/demo_*/obs/*`, actions, rewards, dones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wmpo.data.recorded import damaged
from wmpo.errors import UserError, optional
from wmpo.importing.source import About, Column, Facts, check_facts
from wmpo.io.plain import JsonObject

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DEFAULT_HZ = 20.0  # robosuite's own
STATE = (
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),  # robomimic
    ("ee_states", "gripper_states"),  # LIBERO
)
BESIDE = ("rewards", "dones")


class RoboMimic:
    """Fulfils `source.Source`. Nothing outside of the file is read, whatever it links to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        optional("h5py", f"{path} is an HDF5 file; reading it needs", "hdf5")
        with self._open() as file:
            data = self._group(file, "data")
            self.demos = sorted(
                (name for name in data if re.fullmatch("demo_[0-9]{1,9}", name)), key=lambda n: int(n[5:])
            )
            if not self.demos:
                raise UserError(f"{path} holds no data/demo_0 and so on: it is not in the layout of robomimic.")
            about = _json(data.attrs.get("env_args")), _json(data.attrs.get("problem_info"))
            self.facts = self._facts(data, *about)
        check_facts(self.facts, path)

    def files(self) -> list[Path]:
        return [self.path]

    def check(self, cameras: Sequence[str]) -> None:
        with self._open() as file:
            for episode in range(len(self.demos)):
                for camera in cameras:
                    self._images(self._demo(file, episode), episode, camera)

    def columns(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        with self._open() as file:
            demo, about = self._demo(file, episode), self.facts.episodes[episode]
            for name in names:
                value = self._read(self._values(demo, name))
                if name not in ("actions", *BESIDE) and about.frames > about.rows:
                    value = np.concatenate([value, self._read(self._last(demo, name))[-1:]])
                if value.dtype.kind not in "fiub":
                    raise self._damaged(episode, f"has {value.dtype} in place of numbers in {name!r}")
                rows = value.astype(np.float64).reshape(len(value), -1)
                if (
                    rows.shape[1] != self.facts.columns[name].size
                    or not (np.abs(rows) <= np.finfo(np.float32).max).all()
                ):
                    raise self._damaged(episode, f"has other sizes, NaN or infinite numbers in {name!r}")
                found[name] = rows
        return found

    def frames(self, episode: int, camera: str, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        with self._open() as file:
            demo = self._demo(file, episode)
            images = self._images(demo, episode, camera)
            for frame in wanted:
                if frame < len(images):
                    yield self._read(images, frame)
                elif (last := self._last(demo, self.keys[camera])) is not None:
                    yield self._read(last, -1)
                else:
                    raise self._damaged(episode, f"has {len(images)} frames in {self.keys[camera]!r}")

    def film(self, episode: int, camera: str) -> None:
        return None

    def _images(self, demo: h5py.Group, episode: int, camera: str) -> h5py.Dataset:
        images = self._values(demo, self.keys[camera])
        if images.shape[1:] != (*self.facts.cameras[camera], 3) or images.dtype != np.uint8:
            raise self._damaged(episode, f"shows {images.shape[1:]} {images.dtype} in {self.keys[camera]!r}")
        return images

    def _facts(self, data: h5py.Group, env: JsonObject, problem: JsonObject) -> Facts:
        columns: dict[str, Column] = {}
        episodes = []
        self.keys: dict[str, str] = {}
        cameras = {}
        first = self._group(data, self.demos[0])
        for key in self._group(first, "obs"):
            values = self._values(first, key)
            if values.ndim == 4 and values.dtype == np.uint8 and values.shape[-1] == 3:
                name = re.sub("_(image|rgb)$", "", key)
                self.keys[name], cameras[name] = key, (values.shape[1], values.shape[2])
            elif values.ndim <= 2 and values.dtype.kind in "fiub":
                columns[key] = Column(int(np.prod(values.shape[1:])))
        for key in ("actions", *(name for name in BESIDE if name in first)):
            columns[key] = Column(int(np.prod(self._values(first, key).shape[1:])))
        kwargs = env.get("env_kwargs") if isinstance(env.get("env_kwargs"), dict) else {}
        rate = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
        sentence = problem.get("language_instruction") or env.get("env_name") or ""
        for place, name in enumerate(self.demos):
            demo = self._group(data, name)
            rows = len(self._values(demo, "actions"))
            seen = [*self.keys.values(), *(key for key in columns if key not in ("actions", *BESIDE))]
            more = all(self._last(demo, key) is not None for key in seen)
            lengths = {len(self._values(demo, key)) for key in (*self.keys.values(), *columns)}
            if lengths != {rows}:
                raise self._damaged(place, f"has columns of {', '.join(map(str, sorted(lengths)))} rows")
            episodes.append(About(rows, rows + more, str(sentence).strip('"')))
        state = next((names for names in STATE if all(name in columns for name in names)), ())
        known = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        controllers = kwargs.get("controller_configs") if isinstance(kwargs, dict) else None
        targets = isinstance(controllers, dict) and controllers.get("control_delta") is False
        notes = () if known else (f"The file doesn't say its rate: {DEFAULT_HZ:g} Hz, robosuite's own, is assumed.",)
        return Facts(
            format="HDF5 in the layout of robomimic", fps=float(rate or 0) if known else DEFAULT_HZ, cameras=cameras,
            columns=columns, episodes=tuple(episodes), action=("actions",), state=state,
            delta=not targets, absolute=(columns["actions"].size - 1,), notes=notes,
        )  # fmt: skip

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        """Whatever h5py raises of what lies in the file is a UserError."""
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except FileNotFoundError:
            raise damaged(self.path, "is missing") from None
        except PermissionError:
            raise UserError(f"The file {self.path} can't be read: look for its permissions.") from None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError, MemoryError):
            raise damaged(self.path, "is damaged or truncated") from None

    def _demo(self, file: h5py.File, episode: int) -> h5py.Group:
        return self._group(self._group(file, "data"), self.demos[episode])

    def _group(self, parent: h5py.Group, name: str) -> h5py.Group:
        import h5py

        if not isinstance(parent.get(name, getlink=True), h5py.HardLink) or not isinstance(parent[name], h5py.Group):
            raise damaged(self.path, f"has no group {parent.name.rstrip('/')}/{name}")
        return parent[name]

    def _values(self, demo: h5py.Group, name: str) -> h5py.Dataset:
        """A column of an episode: beside its observations, or among them."""
        import h5py

        parent = demo if name in ("actions", *BESIDE) else self._group(demo, "obs")
        if isinstance(parent.get(name, getlink=True), h5py.HardLink) and isinstance(parent[name], h5py.Dataset):
            values = parent[name]
            if values.ndim and not values.is_virtual and not values.external:
                return values
        raise damaged(self.path, f"has no column {parent.name}/{name} of its own")

    def _last(self, demo: h5py.Group, name: str) -> h5py.Dataset | None:
        """Of the observations after each action, which some files have."""
        import h5py

        if "next_obs" in demo and name in (after := self._group(demo, "next_obs")):
            values = after[name]
            same = isinstance(values, h5py.Dataset) and values.shape == self._values(demo, name).shape
            return values if same and not values.is_virtual and not values.external else None
        return None

    def _read(self, values: h5py.Dataset | None, place: int | None = None) -> np.ndarray:
        try:
            if values is None:
                raise OSError
            return np.asarray(values[:] if place is None else values[place])
        except (OSError, ValueError, MemoryError):
            raise damaged(self.path, f"is damaged in {values.name if values is not None else 'next_obs'}") from None

    def _damaged(self, episode: int, what: str) -> UserError:
        return damaged(self.path, f"{what} of data/{self.demos[episode]}")


def _json(text: object) -> JsonObject:
    """An attribute that holds a JSON object; nothing where it doesn't."""
    try:
        found = json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
