"""mp4 files: frames in, the same frames out."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from wmpo.errors import UserError, named
from wmpo.io.files import is_stream

ENCODERS = {
    "libx264rgb": ("rgb24", "gbrp", {"qp", "preset"}),
    "libx264": ("yuv420p", "yuv420p", {"crf", "preset"}),
}
"""Encoder -> the pixel format that it takes, the one in the file, and its options: nothing else reaches FFmpeg."""
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
STORED = "h264"
"""What both encoders make, as FFmpeg calls it."""
CODECS = ("h264", "hevc", "av1")
"""Of others' videos that may be read in place, as FFmpeg calls them: those that LeRobot writes."""
BLOCK_BYTES = 1 << 26
"""Decoded frames that are held at a time."""


@dataclass(frozen=True)
class Codec:
    """How frames are compressed. Raises UserError for what is not in `ENCODERS`."""

    name: str = "libx264rgb"
    """Encoder, as FFmpeg calls it."""
    pixels: str = "rgb24"
    """Pixel format that it is fed with."""
    stored: str = "gbrp"
    """Pixel format in the file."""
    options: Mapping[str, str] = field(default_factory=lambda: {"qp": "0", "preset": "ultrafast"})
    lossless: bool = True
    """Frames come back bit for bit."""
    keyframe_interval: int = 20
    """Frames; every episode begins with a key frame in any case."""

    def __post_init__(self) -> None:
        pixels, stored, known = named("video encoder", self.name, ENCODERS)
        options = dict(self.options)
        strength = options.pop("qp", options.pop("crf", "0"))
        if (self.pixels, self.stored) != (pixels, stored) or not self.options.keys() <= known:
            raise UserError(f"The encoder {self.name} takes {pixels}, gives {stored} and has the options {known}.")
        if not (strength.isascii() and strength.isdigit() and int(strength[:3]) <= 51):
            raise UserError(
                f"The strength of video compression is {strength[:40]!r}: choose a whole number of 0 to 51."
            )
        if (preset := options.get("preset", "medium")) not in PRESETS:
            raise UserError(
                f"There is no preset {preset[:40]!r} of video compression: choose one of {', '.join(PRESETS)}."
            )
        if not 1 <= self.keyframe_interval <= 1000:
            raise UserError(f"Key frames every {self.keyframe_interval} frames: choose 1 to 1000.")


LOSSLESS = Codec()
"""H.264 without loss in RGB: what the policy saw is what is stored."""


def lossy(crf: int = 18, preset: str = "veryfast") -> Codec:
    """Ordinary H.264 for big images: several times smaller, frames come back a little different."""
    return Codec("libx264", "yuv420p", "yuv420p", {"crf": str(crf), "preset": preset}, lossless=False)


def write_video(path: Path, episodes: Iterable[np.ndarray], fps: int, codec: Codec = LOSSLESS) -> None:
    """Encode episodes, each (frames, H, W, 3) uint8, one after the other; frame n is shown at n / fps seconds."""
    tick = Fraction(1, fps)
    count = itertools.count()
    with av.open(str(path), "w", format="mp4") as container:
        stream: av.VideoStream | None = None
        for frames in episodes:
            if stream is None:
                # No B frames: frames are stored in the order they are shown, and seeking stays exact.
                options = {**codec.options, "g": str(codec.keyframe_interval), "bf": "0"}
                stream = cast(av.VideoStream, container.add_stream(codec.name, rate=fps, options=options))
                stream.height, stream.width = frames.shape[1:3]
                stream.pix_fmt = codec.pixels
                stream.time_base = tick
                # The result must not depend on the number of cores.
                stream.codec_context.thread_count = 1
            for place, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = next(count), tick
                if place == 0:
                    frame.pict_type = PictureType.I
                container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())


@dataclass(frozen=True)
class Film:
    """What a video file that somebody else has made was like when it was taken into a store, to be read in place."""

    codec: str
    """One of CODECS."""
    size: int
    """In bytes."""
    modified: int
    """When it was last changed, in ns."""
    digest: str
    """Of its first and last megabyte, 16 hexadecimal digits."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UserError(f"Video of the codec {self.codec[:40]!r} can't be read in place, only {', '.join(CODECS)}.")


class Reel(ABC):
    """All frames of a part, in order, as one camera shows them. Raises UserError where its files hold anything else."""

    size: tuple[int, int]
    """(H, W) in pixels."""
    count: int
    """Of frames."""

    @abstractmethod
    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 from number `first` on."""

    @abstractmethod
    def at(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Single frames (H, W, 3) uint8, of ascending numbers: nothing is decoded but from the key frame before each,
        which the first one of an episode usually is itself."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Where they lie. Raises UserError where one is missing."""

    def stamp(self) -> list[int]:
        """Changes when the files do."""
        return [number for path in self.files() for number in (path.stat().st_size, path.stat().st_mtime_ns)]

    def blocks(self) -> Iterator[np.ndarray]:
        """All frames in arrays (n, H, W, 3) of bounded size."""
        frames = self.frames()
        at_once = max(1, BLOCK_BYTES // (3 * self.size[0] * self.size[1]))
        for begin in range(0, self.count, at_once):
            yield self.take(frames, min(at_once, self.count - begin))

    def take(self, frames: Iterator[np.ndarray], count: int) -> np.ndarray:
        """The next `count` of these frames as one array (count, H, W, 3)."""
        block = list(itertools.islice(frames, count))
        if len(block) != count:
            raise UserError(f"The video {self.files()[-1]} ends too early: restore it from a copy of the store.")
        return np.stack(block)


@dataclass(frozen=True)
class Video(Reel):
    """A file of `count` frames of (H, W) pixels at `fps` Hz, as its store describes it."""

    path: Path
    size: tuple[int, int]
    fps: int
    count: int

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        with self._open() as container:
            yield from self._decode(container, first)

    def at(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        with self._open() as container:
            for number in numbers:
                yield next(self._decode(container, number))

    def files(self) -> list[Path]:
        if not self.path.exists():
            raise UserError(f"The video {self.path} is missing: restore it from a copy of the store.")
        return [self.path]

    @contextmanager
    def _open(self) -> Iterator[InputContainer]:
        if is_stream(self.path):
            raise self._wrong("is no file but a pipe or a device")
        try:
            # Of any other format, e.g. a list of other files, nothing is opened.
            with av.open(str(self.path), format="mp4") as container:
                self._check(container.streams.video[0])
                yield container
        except FileNotFoundError:
            raise UserError(f"The video {self.path} is missing: restore it from a copy of the store.") from None
        except PermissionError:
            raise UserError(f"The video {self.path} can't be read: look for its permissions.") from None
        except (av.error.FFmpegError, OSError, IndexError, StopIteration):
            raise self._wrong("is damaged or truncated") from None

    def _check(self, stream: av.VideoStream) -> None:
        stream.codec_context.thread_count = 1
        if stream.codec_context.name != STORED:
            raise self._wrong(f"is {stream.codec_context.name} where its store has {STORED}")
        if (stream.height, stream.width) != self.size:
            raise self._wrong(f"shows {stream.height}x{stream.width} pixels where its store says {_by(self.size)}")
        if stream.frames != self.count:
            raise self._wrong(f"has {stream.frames} frames where its store says {self.count}")

    def _decode(self, container: InputContainer, first: int) -> Iterator[np.ndarray]:
        stream = container.streams.video[0]
        to_rgb = VideoReformatter()  # one for all frames: setting it up costs ten times a small frame
        tick = cast(Fraction, stream.time_base)
        if first:
            container.seek(round(first / self.fps / tick), stream=stream)
        expected = first
        for frame in container.decode(stream):
            number = round((frame.pts or 0) * tick * self.fps)
            if number < first:  # seeking stops at the key frame before
                continue
            if number != expected:
                raise self._wrong(f"shows frame {expected} at another time than {self.fps} frames a second would")
            if (frame.height, frame.width) != self.size:
                raise self._wrong(f"changes its size to {frame.height}x{frame.width} pixels")
            expected += 1
            yield to_rgb.reformat(frame, format="rgb24").to_ndarray()

    def _wrong(self, what: str) -> UserError:
        return UserError(f"The video {self.path} {what}: restore it from a copy of the store.")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
