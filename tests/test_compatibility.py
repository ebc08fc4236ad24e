"""Stores that are learned from together, and what they say of initial states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo.data.cache import FrameCache
from wmpo.data.compatibility import comparable
from wmpo.data.initial_states import initial_states
from wmpo.data.records import initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.first_frames import stored_first_frames
from wmpo.types import EnvSpec


def store(root: Path, spec: EnvSpec = SPEC, scale: float = 1.0) -> EpisodeStore:
    """Two episodes with actions from 0 to `scale`."""
    episodes = []
    for n in range(2):
        episode = make_episode(n, 8, spec=spec)
        actions = np.linspace(0, scale, 8 * spec.action_dim, dtype=np.float32).reshape(8, spec.action_dim)
        episodes.append(dataclasses.replace(episode, actions=actions))
    return make_store(root, episodes, spec)


@pytest.mark.parametrize(
    ("change", "scale", "words"),
    [
        ({"fps": 60}, 1.0, "first has so many frames a second: 10; but .*other: 60"),
        ({"state_dim": 0}, 1.0, "state dimensions: 2; but .*: 0"),
        ({"action_dim": 4}, 1.0, "action dimensions: 3; but .*: 4"),
        ({"cameras": {"front": (16, 24)}}, 1.0, "cameras: front of 16x24, wrist of 8x8; but .*: front of 16x24:"),
        ({"cameras": {"front": (24, 16), "wrist": (8, 8)}}, 1.0, "front of 16x24.*front of 24x16"),
        ({"cameras": {"front": (16, 24), "left": (8, 8)}}, 1.0, "wrist of 8x8.*left of 8x8"),
        ({}, 57.3, "other spread 57.3 times as far as those of .*first"),
        ({}, 1 / 57.3, "other spread 0.0175 times"),
    ],
)
def test_stores_that_do_not_go_together(tmp_path: Path, change: dict, scale: float, words: str) -> None:
    first = store(tmp_path / "first")
    other = store(tmp_path / "other", dataclasses.replace(SPEC, **change), scale)
    with pytest.raises(UserError, match=words):
        comparable(other, first)


def test_cameras_come_in_the_order_of_the_first_store(tmp_path: Path) -> None:
    first = store(tmp_path / "first")
    turned = dataclasses.replace(SPEC, cameras=dict(reversed(SPEC.cameras.items())))
    other = comparable(store(tmp_path / "other", turned, 2.0), first)
    other.append([make_episode(5, 3, spec=turned)])  # what is read anew keeps the order
    assert list(other.spec.cameras) == list(FrameCache(other).images) == list(SPEC.cameras) == ["front", "wrist"]
    assert list(EpisodeStore.open(other.root).spec.cameras) == ["wrist", "front"]
    assert list(EpisodeStore.open_or_create(other.root, SPEC).spec.cameras) == ["front", "wrist"]
    with pytest.raises(UserError, match="has the cameras front, wrist, not front"):
        other.with_cameras(["front"])


def test_one_number_for_all_says_nothing_of_first_frames(tmp_path: Path) -> None:
    cache = FrameCache(make_store(tmp_path, [make_episode(n, 3, initial_state=7) for n in range(16)]))
    numbers, first = stored_first_frames(cache, range(16))
    assert len(set(numbers)) == 16 and sorted(first.images["front"][:, 0, 0, 0].tolist()) == list(range(16))


def test_first_frames_of_stored_episodes(tmp_path: Path) -> None:
    """One for each initial state, of the episodes that are asked for alone."""
    numbers = [4, 9, 4, 9, -1, -1, 2]
    cache = FrameCache(make_store(tmp_path, [make_episode(i, 3, initial_state=n) for i, n in enumerate(numbers)]))
    states, first = stored_first_frames(cache, range(7))
    assert len(states) == len(first) == 5 and {4, 9, 2} < set(states)
    shown = dict(zip(states, first.images["front"][:, 0, 0, 0].tolist(), strict=True))
    assert (shown[4], shown[9], shown[2]) == (0, 1, 6) and {4, 5} < set(shown.values())
    assert (first.images["front"][:, 1] == 0).all()  # frame 0 of each
    assert first.state[:, 0].tolist() == [*shown.values()]
    assert first.instruction == tuple(f"push block {n % 2}" for n in shown.values())
    states, first = stored_first_frames(cache, [3, 2, 6])
    assert dict(zip(states, first.images["wrist"][:, 0, 0, 0].tolist(), strict=True)) == {9: 3, 4: 2, 2: 6}


def test_unknown_initial_states_are_each_one_of_its_own(tmp_path: Path) -> None:
    numbers = [3, 3, -1, -1, 4]
    records = make_store(tmp_path, [make_episode(i, 3, initial_state=n) for i, n in enumerate(numbers)]).records()
    assert initial_states_of(records) == [3, 3, -3, -4, 4]
    assert initial_states_of(records[:1]) == [3]


@pytest.mark.parametrize(
    ("seed", "n", "round", "words"),
    [
        (256, 1, 0, "Seed 256 has no initial states of its own: choose one from 0 to 255"),
        (-1, 1, 0, "Seed -1"),
        (0, 65537, 0, "65537 initial states"),
        (0, 1, 32, "Round 32"),
    ],
)
def test_what_does_not_fit_into_a_number(seed: int, n: int, round: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        initial_states("collect", seed, n, round)
