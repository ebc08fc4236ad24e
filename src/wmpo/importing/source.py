"""What recorded episodes offer, whoever wrote them. Each format has a module of its own that makes a `Source`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from wmpo.data.info import DIMENSIONS, FPS, HORIZON, SIDE
from wmpo.errors import UserError


@dataclass(frozen=True)
class Column:
    """Numbers that come with each row."""

    size: int
    names: tuple[str, ...] = ()
    """Of its dimensions, where they are known."""


@dataclass(frozen=True)
class About:
    """What is known of an episode without reading its frames; what only a store of ours says may be empty."""

    rows: int
    """Rows of numbers, an action in each."""
    frames: int
    """As many, the last action's outcome was not recorded, or one more."""
    instruction: str
    initial_state: int = -1
    source: str = ""
    task: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def actions(self) -> int:
        """Those whose outcome was recorded."""
        return min(self.rows, self.frames - 1)


@dataclass(frozen=True)
class Facts:
    """What a source holds."""

    format: str
    fps: float
    cameras: Mapping[str, tuple[int, int]]
    """Camera -> (height, width) in pixels."""
    columns: Mapping[str, Column]
    episodes: tuple[About, ...]
    action: tuple[str, ...]
    """Columns that are taken as the action unless others are named; so for the rest."""
    state: tuple[str, ...]
    success: str = ""
    """Empty: no column is known to say it."""
    labels: str = ""
    """What an imitator should do, where that differs from the action."""
    delta: bool = False
    """Whether actions are changes, not targets."""
    absolute: tuple[int, ...] = ()
    """Dimensions that are targets all the same."""
    notes: tuple[str, ...] = ()
    """What else one should know, a sentence each."""


class Source(Protocol):
    """Recorded episodes, read one at a time. What is damaged raises UserError, in a sentence that names the file."""

    path: Path
    facts: Facts

    def check(self, cameras: Sequence[str]) -> None:
        """Whether the pictures of these cameras are there, as far as that is told without decoding them."""
        ...

    def columns(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (rows, size) float64, or one row per frame; all finite."""
        ...

    def frames(self, episode: int, camera: str, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8: the frames with these numbers, which ascend."""
        ...

    def film(self, episode: int, camera: str) -> tuple[Path, float] | None:
        """The video file, no link to it, that shows the episode as this camera saw it, and the second at which that
        begins there; None: its pictures lie elsewhere, or no store can read that file in place."""
        ...

    def files(self) -> list[Path]:
        """All that is read."""
        ...


def inside(root: Path, relative: str) -> Path:
    """root / relative. Raises UserError where that, or what it links to, lies outside."""
    try:
        path = (root / relative).resolve()
        if path.is_relative_to(root.resolve()):
            return root / relative
    except (OSError, ValueError, RuntimeError):  # names that no file can have; links in a circle
        pass
    raise UserError(
        f"{root} names a file outside of itself ({relative[:100]!r}): if it holds links, give a copy made by cp -rL."
    )


def check_facts(facts: Facts, path: Path) -> None:
    """Raise UserError where no store could hold this, whatever is chosen of it."""
    if not facts.episodes:
        raise UserError(f"{path} holds no episodes.")
    if not facts.cameras:
        raise UserError(f"{path} shows no camera in colour, and wmpo learns from what cameras see.")
    if not 0.5 <= facts.fps <= FPS:
        raise UserError(f"{path} was recorded at {facts.fps:g} frames a second: wmpo takes 1 to {FPS}.")
    for name, size in facts.cameras.items():
        if not all(1 <= side <= SIDE for side in size):
            raise UserError(f"{path}: camera {name[:100]!r} has {size[0]}x{size[1]} pixels: sides may be 1 to {SIDE}.")
    for name, column in facts.columns.items():
        if not 1 <= column.size <= DIMENSIONS:
            raise UserError(f"{path}: {name[:100]!r} has {column.size} dimensions: there may be 1 to {DIMENSIONS}.")
    for number, about in enumerate(facts.episodes):
        if not 1 <= about.actions <= HORIZON:
            raise UserError(f"{path}: episode {number} has {about.frames} frames: there may be 2 to {HORIZON + 1}.")
        texts = (about.instruction, about.task, about.source, *about.meta, *about.meta.values())
        if any(text != text.encode(errors="replace").decode() for text in texts):
            raise UserError(f"{path}: a sentence of episode {number} is no text in UTF-8: record it again.")
