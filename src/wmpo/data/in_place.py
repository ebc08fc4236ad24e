"""Videos that somebody else has recorded, and a store reads where they lie: by links, or from copies of the files.

A store finds them by the links in its folder, and knows what the files were like when they were taken in (`Film`).
Nothing here writes through such a link; whoever has made a store, nothing is opened but mp4 files that are as it says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from stat import S_ISREG

import numpy as np

from wmpo.data.recorded import frames_at
from wmpo.data.stats import Stats, image_stats
from wmpo.data.video import Film, Reel
from wmpo.errors import UserError
from wmpo.io.files import atomic_path

SUFFIX = ".mp4"
LOOK_AT = 8
"""Frames of an episode that its statistics are taken of."""
_ENDS = 1 << 20


@dataclass(frozen=True)
class Span:
    """The frames of one episode, in a file that holds others, too."""

    path: Path
    """In the store: a link to the file, or a copy."""
    film: Film
    begin: float
    """In seconds."""
    frames: int

    def shown(self, numbers: Sequence[int], size: tuple[int, int], fps: int) -> Iterator[np.ndarray]:
        """Frames of the episode, of ascending numbers."""
        times = [self.begin + number / fps for number in numbers]
        return frames_at(require_unchanged(self.path, self.film), times, size, fps, self.film.codec)

    def stats(self, size: tuple[int, int], fps: int) -> Stats:
        """Those of the episode's pictures: of a few of them, evenly spaced, which stand for all."""
        numbers = sorted({round(place) for place in np.linspace(0, self.frames - 1, LOOK_AT)})
        seen = [frame for number in numbers for frame in self.shown([number], size, fps)]
        return image_stats(np.stack(seen)) | {"count": np.array([self.frames])}


@dataclass(frozen=True)
class InPlace(Reel):
    """A part's frames, in files of others."""

    spans: tuple[Span, ...]
    size: tuple[int, int]
    fps: int

    @property
    def count(self) -> int:  # type: ignore[override]
        return sum(span.frames for span in self.spans)

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        for span in self.spans:
            yield from span.shown(range(first, span.frames), self.size, self.fps)
            first = max(first - span.frames, 0)

    def at(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        begins = [0, *accumulate(span.frames for span in self.spans)]
        for number in numbers:
            place = bisect_right(begins, number) - 1
            yield from self.spans[place].shown([number - begins[place]], self.size, self.fps)

    def files(self) -> list[Path]:
        first = {span.path: span for span in self.spans}
        for span in first.values():
            require_unchanged(span.path, span.film)
        return [*first]

    def stamp(self) -> list[int]:
        places = [number for span in self.spans for number in (round(span.begin * 1e6), span.frames)]
        return super().stamp() + places


def require_unchanged(path: Path, film: Film) -> Path:
    """The file that `path` in a store leads to. Raises UserError unless it is as it was when it was taken in."""
    target = Path(os.path.realpath(path))
    what = f"The video {target}, which {path.parents[3]} reads in place,"
    again = "put back what was there, or import the data set again"
    try:
        status = target.stat()
        if not S_ISREG(status.st_mode) or target.suffix.lower() != SUFFIX:
            raise UserError(f"{what} is no mp4 file: {again}.")
        if status.st_size != film.size:
            raise UserError(f"{what} has {status.st_size} bytes where it had {film.size}: {again}.")
        if (now := status.st_mtime_ns) != film.modified and digest(target, now) != film.digest:
            raise UserError(f"{what} is another one than was imported: {again}.")
    except FileNotFoundError:
        raise UserError(
            f"{what} is gone: put it back, or a link to where it is now, or import the data set again."
        ) from None
    except OSError as error:
        raise UserError(f"{what} can't be read: {error.strerror}.") from None
    return target


@lru_cache(maxsize=1024)
def digest(path: Path, modified: int) -> str:
    """Of a file's first and last megabyte, where mp4 has its index; `modified` tells whether it is still the same."""
    with path.open("rb") as file:
        begin = file.read(_ENDS)
        file.seek(max(path.stat().st_size - _ENDS, 0))
        return hashlib.sha256(begin + file.read(_ENDS)).hexdigest()[:16]


def lay(path: Path, file: Path, copy: bool) -> None:
    """Make `path` in a store a link to the file of somebody else's; or a copy of it, where that is asked for or the
    disk knows no links."""
    if path.is_symlink() or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            return path.symlink_to(file)
        except OSError:
            pass
    with atomic_path(path) as temporary:
        shutil.copy2(file, temporary)


def content(folder: Path) -> tuple[set[Path], set[Path]]:
    """The files that lie in a folder, and those elsewhere that links in it lead to."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    links = {path for path in files if path.is_symlink()}
    return files - links, {path.resolve() for path in links}


def size(files: Iterable[Path]) -> int:
    """Bytes of files together."""
    return sum(path.stat().st_size for path in files)
