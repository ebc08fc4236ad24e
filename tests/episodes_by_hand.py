"""Small episodes whose every value says where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmpo.data.initial_states import initial_states as numbers_of
from wmpo.data.store import EpisodeStore
from wmpo.types import EnvSpec, Episode

SPEC = EnvSpec(cameras={"front": (16, 24), "wrist": (8, 8)}, state_dim=2, action_dim=3, horizon=20, fps=10)


def make_episode(
    number: int,
    length: int,
    success: tuple[int, ...] = (),
    spec: EnvSpec = SPEC,
    source: str = "policy",
    initial_state: int | None = None,
    labels: bool = False,
) -> Episode:
    """Pixels are (number, frame, noise); actions number + t / 100; states number + frame / 100; labels minus actions.

    `success` lists the frames that show it.
    """
    noise = np.random.default_rng(number)
    images = {}
    for name, (height, width) in spec.cameras.items():
        image = np.empty((length + 1, height, width, 3), np.uint8)
        image[..., 0] = number
        image[..., 1] = np.arange(length + 1)[:, None, None]
        image[..., 2] = noise.integers(0, 256, image.shape[:3])
        images[name] = image
    times = np.arange(length + 1, dtype=np.float32)[:, None] / 100 + number
    hits = np.zeros(length + 1, bool)
    hits[list(success)] = True
    actions = np.repeat(times[:-1], spec.action_dim, axis=1)
    return Episode(
        images=images,
        state=np.repeat(times, spec.state_dim, axis=1),
        actions=actions,
        success=hits,
        instruction=f"push block {number % 2}",
        initial_state=numbers_of("collect", 0, number + 1)[number] if initial_state is None else initial_state,
        task="push",
        source=source,
        meta={"renderer": "rays"},
        labels=-actions if labels else None,
    )


def make_store(root: Path, episodes: list[Episode], spec: EnvSpec = SPEC) -> EpisodeStore:
    store = EpisodeStore.create(root, spec)
    store.append(episodes)
    return store


def assert_same(one: Episode, other: Episode) -> None:
    assert one.images.keys() == other.images.keys()
    for name in one.images:
        assert one.images[name].dtype == np.uint8
        assert np.array_equal(one.images[name], other.images[name])
    for name in ("state", "actions", "success"):
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert np.array_equal(getattr(one, name), getattr(other, name))
    for name in ("instruction", "initial_state", "task", "source", "meta"):
        assert getattr(one, name) == getattr(other, name)
