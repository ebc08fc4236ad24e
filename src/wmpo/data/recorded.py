"""Frames of videos that wmpo has not written, in any codec that FFmpeg decodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from wmpo.data.info import SIDE
from wmpo.errors import UserError
from wmpo.io.files import is_stream

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
"""Nothing else is opened: other formats may be lists of further files."""
NEAR = 0.4
"""A frame counts as that of a time which it is closer to than this part of the time between two."""
MANY = 10  # frames from which on a header tells their rate
BACK = (0.0, 1.0, 10.0, float("inf"))
"""Seconds before a time from which on frames are decoded, one after the other, until they begin early enough: where
frames are stored in another order than they are shown in, seeking may end too late."""


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"The file {path} {what}: restore it from a copy, or record it again.")


def open_video(path: Path) -> InputContainer:
    """Raises UserError where there is no video."""
    if path.suffix.lower() not in CONTAINERS:
        raise UserError(f"The file {path} is no video that wmpo opens: it takes {', '.join(CONTAINERS)}.")
    if is_stream(path):
        raise damaged(path, "is no file but a pipe or a device")
    try:
        container = av.open(str(path), format=CONTAINERS[path.suffix.lower()])
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except PermissionError:
        raise UserError(f"The file {path} can't be read: look for its permissions.") from None
    except (av.error.FFmpegError, OSError):
        raise damaged(path, "is damaged or truncated") from None
    if not container.streams.video:
        container.close()
        raise damaged(path, "shows no pictures")
    return container


def check_video(path: Path, fps: float, last: float = 0.0) -> tuple[tuple[int, int], str]:
    """((height, width), codec) by its header, which must be at this rate and reach the frame at second `last`. The
    first picture is decoded."""
    with decoding(path), open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        if rate and (stream.frames or MANY) >= MANY and not 0.95 <= rate / fps <= 1.05:
            raise damaged(path, f"has {float(rate):g} frames a second where its data set says {fps:g}")
        if stream.duration and stream.time_base:
            end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
            if end < last + NEAR / fps:
                raise damaged(path, f"ends before {last:.3f} s, where its table has more frames")
        if not (1 <= stream.height <= SIDE and 1 <= stream.width <= SIDE):
            raise damaged(path, f"shows {stream.height}x{stream.width} pixels")
        first = next(container.decode(stream), None)
        if first is None:
            raise damaged(path, "shows no pictures")
        if turned := getattr(first, "rotation", 0):
            raise UserError(f"The file {path} says that it is to be turned by {turned:g} degrees: encode it upright.")
        return (stream.height, stream.width), stream.codec_context.codec.canonical_name


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """What goes wrong while the video is decoded is a UserError."""
    try:
        yield
    except (av.error.FFmpegError, OSError, IndexError):
        raise damaged(path, "is damaged or truncated") from None


def frames_at(
    path: Path, times: Sequence[float], size: tuple[int, int], fps: float, codec: str = ""
) -> Iterator[np.ndarray]:
    """The frames shown at these seconds, which ascend, as (H, W, 3) uint8 of this size; of this codec, where one is
    named."""
    left = iter(times)
    time = next(left, None)
    if time is None:
        return
    with decoding(path), open_video(path) as container:
        stream = container.streams.video[0]
        if codec not in ("", found := stream.codec_context.codec.canonical_name):
            raise damaged(path, f"is {found} in place of {codec}")
        stream.thread_type = "AUTO"
        tick = cast(Fraction, stream.time_base)
        to_rgb = VideoReformatter()
        for frame in _decoded(container, stream, time, NEAR / fps):
            shown = float((frame.pts or 0) * tick)
            if shown < time - NEAR / fps:
                continue
            if shown > time + NEAR / fps:
                raise damaged(path, f"shows no frame at {time:.3f} s, as its table says")
            if (frame.height, frame.width) != size:
                raise damaged(path, f"shows {frame.height}x{frame.width} pixels in place of {size[0]}x{size[1]}")
            yield to_rgb.reformat(frame, format="rgb24").to_ndarray()
            if (time := next(left, None)) is None:
                return
    raise damaged(path, f"ends before {time:.3f} s, where its table has more frames")


def _decoded(container: InputContainer, stream: VideoStream, time: float, near: float) -> Iterator[VideoFrame]:
    """Frames from that of second `time` on, or from an earlier one."""
    if time <= 0:
        yield from container.decode(stream)
        return
    tick = cast(Fraction, stream.time_base)
    for back in BACK:
        begin = max(time - near - back, 0.0)
        container.seek(round(begin / tick), stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or float((first.pts or 0) * tick) <= time + near or begin == 0:
            break
    if first is not None:
        yield from itertools.chain([first], frames)
