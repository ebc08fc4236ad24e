"""Fidelity of a dream, by hand: how far its pictures and its states are from the real ones."""

from __future__ import annotations

from dataclasses import replace
from math import log10

import numpy as np
import pytest

from wmpo.imagination import Replay
from wmpo.report.measure import SMALLEST_SPREAD, fidelity, state_fidelity
from wmpo.types import Episode


def lived(length: int) -> Episode:
    """Both cameras grow lighter, by 3 and by 5 levels a frame; so does the first number of the state, by 1."""
    times = np.arange(length + 1)
    light = np.zeros((length + 1, 8, 8, 3), np.uint8) + times[:, None, None, None].astype(np.uint8)
    state = np.stack([times, np.full(length + 1, 7.0)], axis=1).astype(np.float32)
    actions, success = np.zeros((length, 2), np.float32), np.zeros(length + 1, bool)
    return Episode({"wrist": 3 * light, "front": 5 * light}, state, actions, success, "wait", length, "push", "base")


def dreamt(episode: Episode, state: tuple[float, float]) -> Episode:
    """Wrong by one level in the first camera, by two in the second, and by these in the state."""
    images = {"wrist": episode.images["wrist"] + np.uint8(1), "front": episode.images["front"] + np.uint8(2)}
    return replace(episode, images=images, state=episode.state + np.float32(state))


REAL = [lived(9), lived(4), lived(9)]
REPLAY = Replay([dreamt(episode, by) for episode, by in zip(REAL, [(0.5, 0.002), (9, 9), (-1, 0)], strict=True)], [])


def decibel(levels: float) -> float:
    return 20 * log10(255 / levels)


def test_every_camera_is_measured_at_each_horizon() -> None:
    found = fidelity(REPLAY, REAL)
    assert [(at.camera, at.frames, at.episodes) for at in found] == [
        ("wrist", 4, 3), ("wrist", 8, 2), ("wrist", 9, 2), ("front", 4, 3), ("front", 8, 2), ("front", 9, 2),
    ]  # fmt: skip
    assert [at.psnr for at in found] == pytest.approx([decibel(1)] * 3 + [decibel(2)] * 3, abs=1e-3)
    still = [decibel(levels) for levels in (12, 24, 27, 20, 40, 45)]  # since the first frame
    assert [at.still_psnr for at in found] == pytest.approx(still, abs=1e-3)
    assert all(at.ssim > at.still_ssim and at.frechet < at.still_frechet for at in found)


def test_one_long_episode_alone_is_no_horizon() -> None:
    real = [*REAL, lived(12)]
    replayed = Replay([dreamt(episode, (0, 0)) for episode in real], [])
    assert [(at.frames, at.episodes) for at in fidelity(replayed, real)] == [(4, 4), (8, 3)] * 2
    assert [(at.frames, at.episodes) for at in state_fidelity(replayed, real)] == [(4, 4), (8, 3)]


def test_states_are_measured_in_their_own_units_and_in_standard_deviations() -> None:
    chunk, early, late = state_fidelity(REPLAY, REAL)
    assert (chunk.frames, chunk.episodes) == (4, 3) and chunk.still_error == [4, 0]
    assert chunk.error == pytest.approx([10.5 / 3, 9.002 / 3], rel=1e-3)  # of 0.5, 9 and 1; of 0.002, 9 and 0
    assert (early.frames, late.frames, early.episodes, late.episodes) == (8, 9, 2, 2)
    assert late.error == pytest.approx([0.75, 0.001], rel=1e-3)  # of 0.5 and 1, and of 0.002 and 0
    assert early.still_error == [8, 0] and late.still_error == [9, 0]
    spread = np.std([*range(10), *range(5), *range(10)])  # the other number never changes
    squares = [(0.5 / spread) ** 2, (1 / spread) ** 2, (0.002 / SMALLEST_SPREAD) ** 2, 0]
    assert late.rms == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-3)
    assert late.still_rms == pytest.approx(np.sqrt((9 / spread) ** 2 / 2), rel=1e-6)


def test_without_a_state_there_is_nothing_to_measure() -> None:
    blind = [replace(episode, state=episode.state[:, :0]) for episode in REAL]
    assert state_fidelity(Replay(blind, []), blind) == []
