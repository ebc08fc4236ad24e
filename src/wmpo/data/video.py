"""mp4 files: frames in, the same frames out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from wmpo.errors import UserError


@dataclass(frozen=True)
class Codec:
    """How frames are compressed."""

    name: str = "libx264rgb"
    """Encoder, as FFmpeg calls it."""
    pixels: str = "rgb24"
    """Pixel format that it is fed with."""
    stored: str = "gbrp"
    """Pixel format in the file."""
    options: dict[str, str] = field(default_factory=lambda: {"qp": "0", "preset": "ultrafast"})
    lossless: bool = True
    """Frames come back bit for bit."""
    keyframe_interval: int = 20
    """Frames; every episode begins with a key frame in any case."""


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


def read_video(path: Path, size: tuple[int, int], fps: int, first: int = 0) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 from number `first` on; size is (H, W) in pixels."""
    to_rgb = VideoReformatter()  # one for all frames: setting it up costs ten times a small frame
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if (stream.height, stream.width) != tuple(size):
                raise UserError(
                    f"The video {path} shows {stream.height}x{stream.width} pixels where its store says "
                    f"{size[0]}x{size[1]}: restore the file from a copy."
                )
            tick = cast(Fraction, stream.time_base)
            if first:
                container.seek(round(first / fps / tick), stream=stream)
            for frame in container.decode(stream):
                # Seeking stops at the key frame before.
                if round(cast(int, frame.pts) * tick * fps) >= first:
                    yield to_rgb.reformat(frame, format="rgb24").to_ndarray()
    except FileNotFoundError:
        raise UserError(f"The video {path} is missing: restore it from a copy of the store.") from None
    except (av.error.FFmpegError, IndexError):
        raise UserError(f"The video {path} is damaged or truncated: restore it from a copy of the store.") from None


def take(frames: Iterator[np.ndarray], count: int, path: Path) -> np.ndarray:
    """The next `count` frames as one array (count, H, W, 3)."""
    block = list(itertools.islice(frames, count))
    if len(block) != count:
        raise UserError(f"The video {path} ends too early: restore it from a copy of the store.")
    return np.stack(block)
