"""A batch of tabletop episodes: equal to one process, exact in its rows, and clear about mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from wmpo.envs import make_env
from wmpo.envs.tabletop.env import TabletopEnv
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.envs.vector import VectorEnv
from wmpo.errors import UserError
from wmpo.types import Episode


def demonstrate(settings: TabletopSettings, *args: Any, **more: Any) -> list[Episode]:
    with closing(make_env(settings)) as env:
        return list(env.demonstrate(*args, **more))


def config(workers: int = 0, **settings: object) -> TabletopSettings:
    return TabletopSettings(**{"renderer": "rays", "image_size": 16, "workers": workers, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def local() -> Iterator[VectorEnv]:
    env = make_env(config(state=True, cameras=("front", "wrist")))
    yield env
    env.close()


@pytest.fixture(scope="module")
def processes() -> Iterator[VectorEnv]:
    env = make_env(config(2, state=True, cameras=("front", "wrist")))
    yield env
    env.close()


def random_chunk(rows: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, frames, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_processes_and_one_process_agree_exactly(local: VectorEnv, processes: VectorEnv) -> None:
    initial_states = [4, 9, 2, 4, 7]
    chunk = random_chunk(5, 3)
    first = local.reset(initial_states), local.step(range(5), chunk)
    second = processes.reset(initial_states), processes.step(range(5), chunk)
    for one, two in zip(first, second, strict=True):
        for camera in ("front", "wrist"):
            assert torch.equal(one.images[camera], two.images[camera])
        assert torch.equal(one.state, two.state)
    assert first[0].images["front"].shape == (5, 3, 16, 16)
    assert first[1].images["wrist"].shape == (5, 3, 3, 16, 16)
    assert first[1].state.shape == (5, 3, 4)
    assert first[0].instruction == ("push the red cube onto the green zone",) * 5
    assert torch.equal(first[0].images["front"][0], first[0].images["front"][3])  # equal initial-state numbers
    assert local.events == processes.events and len(local.events) == 5


def test_it_shows_what_a_single_episode_shows(processes: VectorEnv) -> None:
    observation = processes.reset([6, 1])
    chunk = random_chunk(1, 4)
    outcome = processes.step([1], chunk)
    single = TabletopEnv("push", ("front",), 16, "rays")
    frame, _ = single.reset(seed=1)
    np.testing.assert_array_equal(observation.images["front"][1].permute(1, 2, 0), frame["front"])
    for k in range(4):
        frame, *_ = single.step(chunk[0, k].numpy())
        np.testing.assert_array_equal(outcome.images["front"][0, k].permute(1, 2, 0), frame["front"])
        np.testing.assert_array_equal(outcome.state[0, k], frame["state"])


def test_rows_keep_their_order_and_others_stand_still(processes: VectorEnv) -> None:
    initial_states, chunk = [3, 5, 8], random_chunk(3, 2)
    processes.reset(initial_states)
    together = processes.step([0, 1, 2], chunk)
    processes.reset(initial_states)
    swapped = processes.step([2, 0], chunk[[2, 0]])
    alone = processes.step([1], chunk[[1]])
    assert torch.equal(swapped.images["front"], together.images["front"][[2, 0]])
    assert torch.equal(alone.state[0], together.state[1])


def test_a_chunk_is_its_actions_one_by_one(local: VectorEnv) -> None:
    chunk = random_chunk(2, 4)
    local.reset([1, 2])
    whole = local.step([0, 1], chunk)
    local.reset([1, 2])
    parts = [local.step([0, 1], chunk[:, k : k + 1]) for k in range(4)]
    assert torch.equal(whole.images["front"], torch.cat([part.images["front"] for part in parts], 1))


def test_episodes_go_on_beyond_the_horizon(local: VectorEnv, processes: VectorEnv) -> None:
    """Whoever plays ends them there."""
    still = torch.tensor([0.0, 0, 0, 1]).expand(1, 4, 4)
    for env in (local, processes):
        env.reset([0])
        assert env.spec.horizon == 32
        assert not any(bool(env.step([0], still).done) for _ in range(9))


def test_saved_states_continue_exactly(processes: VectorEnv) -> None:
    processes.reset([1, 2, 3])
    processes.step([0, 1, 2], random_chunk(3, 5))
    saved = processes.get_state([2, 0])
    expected = processes.step([2, 0], random_chunk(2, 4, seed=1))
    processes.reset_to(saved)
    again = processes.step([0, 1], random_chunk(2, 4, seed=1))
    assert torch.equal(expected.images["front"], again.images["front"])
    assert torch.equal(expected.state, again.state)


def test_a_state_that_nobody_asked_for_is_empty() -> None:
    env = make_env(config(state=False))
    assert env.spec.state_dim == 0
    assert env.reset([0, 1]).state.shape == (2, 0)
    assert env.step([0], random_chunk(1, 2)).state.shape == (1, 2, 0)


# --- demonstrations -------------------------------------------------------------------------------------------


def test_demonstrations_do_not_depend_on_the_number_of_processes(processes: VectorEnv, local: VectorEnv) -> None:
    one, two = (list(env.demonstrate([5, 3, 8, 1], noise=0.3, seed=1)) for env in (local, processes))
    assert [episode.initial_state for episode in two] == [5, 3, 8, 1]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.images["front"], second.images["front"])
        np.testing.assert_array_equal(first.actions, second.actions)
        assert first.meta == second.meta


def test_demonstrations_say_what_was_done_and_what_was_meant() -> None:
    clean = demonstrate(config(), [1, 2], noise=0.0, seed=0)
    noisy = demonstrate(config(), range(1, 7), noise=0.8, seed=0)
    for episode in clean:
        assert episode.labels is not None
        np.testing.assert_array_equal(episode.actions, episode.labels)
        assert episode.succeeded and episode.source == "expert" and episode.meta["renderer"] == "rays"
        frames = episode.length + 1
        assert len(episode.images["front"]) == len(episode.success) == len(episode.state) == frames
        assert episode.success[-5:].all()  # success, and four frames beyond
        assert episode.finish_step == episode.length - 4
    for episode in noisy:
        assert episode.labels is not None
        assert np.abs(episode.actions).max() <= 1
    spread = [float(np.abs(episode.actions - episode.labels).mean()) for episode in noisy]
    assert max(spread) > 0.1 and min(spread) < 0.5 * max(spread)  # each demonstrator has a noise of their own


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "chunk", "words"),
    [
        ([0, 1], torch.full((2, 2, 4), float("nan")), "NaN"),
        ([0, 1], torch.full((2, 2, 4), 1.5), "1.5"),
        ([0, 1], torch.zeros(2, 2, 3), "(2, 2, 3)"),
        ([0, 1], torch.zeros(1, 2, 4), "(1, 2, 4)"),
        ([0, 1], torch.zeros(2, 4), "(2, 4)"),
        ([0, 0], torch.zeros(2, 2, 4), "[0, 0]"),
        ([2], torch.zeros(1, 2, 4), "[2]"),
    ],
)
def test_bad_actions_are_refused(local: VectorEnv, rows: list[int], chunk: torch.Tensor, words: str) -> None:
    local.reset([0, 1])
    with pytest.raises(UserError) as caught:
        local.step(rows, chunk)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"task": "juggle"}, {"cameras": ("top",)}, {"image_size": 2}, {"renderer": "x"}, {"workers": -1}]
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError):
        make_env(config(**settings))  # type: ignore[arg-type]
    with pytest.raises(UserError):
        make_env(config(), "fog")


def test_a_closed_environment_says_so() -> None:
    for workers in (0, 1):
        env = make_env(config(workers))
        env.reset([0])
        env.close()
        env.close()
        with pytest.raises(RuntimeError, match="closed"):
            env.reset([0])


def test_demonstrators_differ_in_pace_and_take_their_time() -> None:
    brisk = demonstrate(config(), range(6), noise=0.0, seed=0)
    mixed = demonstrate(config(), range(6), noise=0.0, seed=0, min_pace=0.3)
    reach = [max(float(np.abs(episode.actions[:, :3]).max()) for episode in group) for group in (brisk, mixed)]
    assert reach[0] == 1.0 > reach[1]
    longer = [slow.length - fast.length for slow, fast in zip(mixed, brisk, strict=True)]
    assert min(longer) >= 0 and sum(gap > 0 for gap in longer) >= 4
    assert all(episode.succeeded for episode in mixed)
    assert max(episode.length for episode in mixed) > 32  # longer than a policy is given


def test_simulator_processes_need_no_torch() -> None:
    code = "import sys, wmpo.envs.tabletop.episode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
