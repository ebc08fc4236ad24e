"""Small videos and pictures for people to look at: mp4 for reports, PNG strips for documents."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wmpo.errors import UserError

Frames = NDArray[np.uint8]  # (T, H, W, 3) RGB
GREEN, GREY, DARK = (38, 166, 91), (150, 150, 150), (40, 40, 40)
GAP = 4  # pixels between two pictures


def enlarge(frames: Frames, factor: int) -> Frames:
    """Every pixel becomes a square of `factor` pixels: nothing is smoothed over."""
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def hold(frames: Frames, length: int) -> Frames:
    """`length` frames: the last one is repeated, or the rest cut off."""
    missing = max(0, length - len(frames))
    return np.concatenate([frames[:length], np.repeat(frames[-1:], missing, axis=0)])


def with_progress(frames: Frames, success_at: int | None, height: int = 6) -> Frames:
    """A bar below each frame that grows with time, and is green from the first successful frame on."""
    T, _, W, _ = frames.shape
    bar = np.full((T, height, W, 3), DARK, np.uint8)
    for t in range(T):
        done = success_at is not None and t >= success_at
        bar[t, :, : max(1, round(W * (t + 1) / T))] = GREEN if done else GREY
    return np.concatenate([frames, bar], axis=1)


def side_by_side(
    left: Frames, right: Frames, success_at: tuple[int | None, int | None] = (None, None), factor: int = 4
) -> Frames:
    """Two videos of frames of one size beside each other, enlarged, in step, each above its bar of progress."""
    if left.shape[1:] != right.shape[1:]:
        raise UserError(f"Videos of sizes {left.shape[1:3]} and {right.shape[1:3]} can't stand side by side.")
    length = max(len(left), len(right))
    pairs = zip((left, right), success_at, strict=True)
    parts = [with_progress(enlarge(hold(frames, length), factor), hit) for frames, hit in pairs]
    space = np.full((*parts[0].shape[:2], GAP, 3), DARK, np.uint8)
    return np.concatenate([parts[0], space, parts[1]], axis=2)


def encode_mp4(frames: Frames, fps: int = 10, quality: int = 24, pause: float = 1.0) -> bytes:
    """H.264 that every browser plays. `quality`: 0 best ... 51; the last frame stays for `pause` seconds."""
    frames = hold(frames, len(frames) + round(pause * fps))
    H, W = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")  # 4:2:0 needs even sizes
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(quality), "preset": "medium", "threads": "1", "bf": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(content: bytes) -> Frames:
    """(T, H, W, 3) frames of `encode_mp4`'s output, up to what compression lost."""
    with av.open(io.BytesIO(content), "r") as container:
        frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
    return np.stack(frames)


def filmstrip(rows: Sequence[Frames], columns: int = 8, factor: int = 2) -> Frames:
    """One picture (H, W, 3): each video is a row of `columns` frames spread evenly over its length."""
    lines = []
    for frames in rows:
        picked = enlarge(frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)], factor)
        space = np.full((picked.shape[1], GAP, 3), 255, np.uint8)
        line = [part for frame in picked for part in (space, frame)][1:]
        lines.append(np.concatenate(line, axis=1))
    widths = {line.shape[1] for line in lines}
    if len(widths) != 1:
        raise UserError("The videos of a film strip must have frames of one size.")
    space = np.full((GAP, widths.pop(), 3), 255, np.uint8)
    return np.concatenate([part for line in lines for part in (space, line)][1:], axis=0)


def encode_png(picture_HW3: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "png", optimize=True)
    return buffer.getvalue()
