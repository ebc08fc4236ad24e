"""Imagination is an environment like the real one: with true dynamics behind it, nobody can tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.envs.vector import VectorEnv
from wmpo.imagination import ImaginedEnv, replay
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.rollout import rollout
from wmpo.types import Decision, EnvSpec, Episode, Observation

SPEC = EnvSpec({"front": (8, 8)}, 0, 2, 8, 5)


class TrueDynamics:
    """The simulator behind the WorldModel protocol. First frames tell it which initial state it is in."""

    def __init__(self, env: VectorEnv, initial_states: Sequence[int]) -> None:
        self.env = env
        first = env.reset(initial_states).images["front"]
        self.start_of = {
            frame.numpy().tobytes(): initial_state for frame, initial_state in zip(first, initial_states, strict=True)
        }

    def begin(self, first: Observation) -> Any:
        self.env.reset([self.start_of[frame.numpy().tobytes()] for frame in first.images["front"]])
        return self.env.get_state(range(len(first)))

    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        self.env.reset_to(memory)
        rows = range(len(memory))
        outcome = self.env.step(rows, chunk_BKD)
        return self.env.get_state(rows), outcome

    def decode(self, latents: Any) -> tuple[dict[str, Tensor], Tensor]:
        return dict(latents.images), latents.state

    def select(self, memory: Any, rows: Sequence[int]) -> Any:
        return [memory[row] for row in rows]


class Memorised:
    """A referee that has seen which clips of real episodes ended in success."""

    clip_length, threshold = 6, 0.5

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return torch.tensor([float(clip.numpy().tobytes() in self.seen) for clip in clips_BLCHW])


@pytest.fixture(scope="module")
def tabletop() -> Iterator[tuple[VectorEnv, VectorEnv]]:
    config = TabletopSettings(cameras=("front", "wrist"), image_size=32, workers=0)
    real, inside = make_env(config), make_env(config)
    yield real, inside
    real.close()
    inside.close()


def test_perfect_dream_equals_reality_frame_for_frame(tabletop: tuple[VectorEnv, VectorEnv]) -> None:
    real, inside = tabletop
    initial_states = [3, 4, 5, 3]
    torch.manual_seed(0)
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), real.spec).eval()

    lived = rollout(
        real, policy, initial_states, temperature=1.0, generator=torch.Generator().manual_seed(1), record="real"
    )
    world = TrueDynamics(inside, sorted(set(initial_states)))
    first = real.reset(initial_states)
    dream = ImaginedEnv(
        world, Memorised(), real.spec, first[[0, 1, 2]], [3, 4, 5], generator=torch.Generator().manual_seed(9)
    )
    dreamt = rollout(
        dream, policy, initial_states, temperature=1.0, generator=torch.Generator().manual_seed(1), record="dream"
    )
    for a, b in zip(lived.episodes, dreamt.episodes, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(a.images[camera], b.images[camera])
        np.testing.assert_array_equal(a.state, b.state)
    assert torch.equal(lived.log_prob, dreamt.log_prob)
    # Equal initial_states, other dice: the batch is no copy of one episode.
    assert not np.array_equal(lived.episodes[0].actions, lived.episodes[3].actions)


def test_perfect_dream_gives_the_real_verdicts(tabletop: tuple[VectorEnv, VectorEnv]) -> None:
    real, inside = tabletop
    initial_states = [10, 11, 12, 13]
    shown = list(real.demonstrate(initial_states, noise=0.0, seed=0))
    assert any(episode.succeeded for episode in shown)
    referee = Memorised()
    L = referee.clip_length
    for episode in shown:
        frames = np.concatenate([np.repeat(episode.images["front"][:1], L - 1, 0), episode.images["front"]])
        for t in np.flatnonzero(episode.success):
            referee.seen.add(np.ascontiguousarray(frames[t : t + L].transpose(0, 3, 1, 2)).tobytes())
    replayed = replay(TrueDynamics(inside, initial_states), referee, real.spec, shown, chunk=4)
    for episode, dreamt, scores in zip(shown, replayed.episodes, replayed.scores, strict=True):
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(dreamt.images[camera], episode.images[camera])
        np.testing.assert_array_equal(dreamt.state, episode.state)
        hits = np.flatnonzero(scores > referee.threshold)
        assert (int(hits[0]) if len(hits) else episode.length) == episode.finish_step


class Counter:
    """A world in which every action adds 1 to all pixels; the memory is the current frame."""

    def __init__(self) -> None:
        self.imagined = 0

    def begin(self, first: Observation) -> Tensor:
        return first.images["front"]

    def imagine(self, memory: Tensor, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.imagined += len(memory)
        frames = torch.stack([memory + k + 1 for k in range(chunk_BKD.shape[1])], dim=1)
        return frames[:, -1], frames

    def decode(self, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"front": latents}, torch.zeros(*latents.shape[:2], 0)

    def select(self, memory: Tensor, rows: Sequence[int]) -> Tensor:
        return memory[list(rows)]


class AtLeast:
    """Success where the clip's last frame has reached a value."""

    clip_length, threshold = 3, -2.0  # of logits -3 and 3

    def __init__(self, value: int) -> None:
        self.value, self.clips = value, []  # type: ignore[var-annotated]

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        self.clips.append(clips_BLCHW[:, :, 0, 0, 0].tolist())
        return (clips_BLCHW[:, -1, 0, 0, 0] >= self.value).float() * 6 - 3


def counting_dream(value: int, *, stride: int = 1, stop: bool = True) -> tuple[ImaginedEnv, Counter, AtLeast]:
    images = torch.tensor([0, 10], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8).clone()
    first = Observation({"front": images}, torch.zeros(2, 0), ("count",) * 2)
    world, referee = Counter(), AtLeast(value)
    dream = ImaginedEnv(world, referee, SPEC, first, [7, 8], generator=torch.Generator(), stride=stride, stop=stop)
    return dream, world, referee


def test_success_ends_an_episode_and_it_costs_nothing_more() -> None:
    dream, world, _ = counting_dream(12)
    dream.reset([7, 8])  # they begin at 0 and 10
    outcome = dream.step([0, 1], torch.zeros(2, 4, 2))
    assert outcome.success.tolist() == [[False] * 4, [False, True, True, True]]  # stays a success once it was one
    assert outcome.done.tolist() == [False, True]
    outcome = dream.step([0], torch.zeros(1, 4, 2))
    assert outcome.images["front"][0, :, 0, 0, 0].tolist() == [5, 6, 7, 8]  # row 0's own memory
    assert outcome.done.tolist() == [True]  # the horizon
    assert world.imagined == 3


def test_clips_reach_back_across_chunks_and_repeat_the_first_frame() -> None:
    dream, _, referee = counting_dream(255, stride=2)
    dream.reset([7])
    dream.step([0], torch.zeros(1, 4, 2))
    dream.step([0], torch.zeros(1, 4, 2))
    assert sorted(clip[0] for clip in referee.clips) == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]
    dream.reset([7])
    referee.clips.clear()
    dream.stride = 1
    dream.step([0], torch.zeros(1, 1, 2))
    assert referee.clips == [[[0, 0, 1]]]


def test_what_comes_after_the_horizon_is_not_judged() -> None:
    dream, _, _ = counting_dream(7, stop=False)
    dream.reset([7])
    dream.step([0], torch.zeros(1, 5, 2))
    outcome = dream.step([0], torch.zeros(1, 5, 2))  # frames 6 to 10 of 8
    assert outcome.success.tolist() == [[False, True, True, True, True]] and outcome.done.tolist() == [True]
    assert dream.scores[1].isnan().tolist() == [[False, False, False, True, True]]
    late, _, _ = counting_dream(9)
    late.reset([7])
    assert not late.step([0], torch.zeros(1, 10, 2)).success.any()
    assert late.best_scores().tolist() == [-3]


class Waits(MiniVLA):
    """Chunks of 5, of which the second reaches beyond the horizon of 8."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.chunk = 5

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        chunk = torch.zeros(len(observation), 5, 2)
        return Decision(chunk, chunk, chunk)


@pytest.mark.parametrize(("value", "step", "succeeded"), [(8, 8, True), (9, 8, False), (6, 6, True)])
def test_episodes_end_at_the_horizon_whatever_the_chunk(value: int, step: int, succeeded: bool) -> None:
    dream, _, _ = counting_dream(value)
    found = rollout(dream, Waits(), [7], temperature=0, generator=torch.Generator(), record="waits")
    assert found.success.tolist() == [succeeded] and found.length.tolist() == [8]
    assert found.finish_step.tolist() == [step] and int(found.mask.sum()) == step
    episode = found.episodes[0]
    assert (episode.length, len(episode.state), len(episode.success)) == (8, 9, 9)
    assert episode.images["front"][:, 0, 0, 0].tolist() == list(range(9)) and episode.finish_step == step


def test_a_replay_may_go_on_after_success() -> None:
    dream, _, _ = counting_dream(1, stop=False)
    dream.reset([7, 8])
    assert dream.step([0, 1], torch.zeros(2, 4, 2)).done.tolist() == [False, False]


class Watched(Counter):
    """The same, also seen by a camera that turns light into dark; the state is the value of the frame."""

    def decode(self, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"wrist": 255 - latents, "front": latents}, latents[:, :, 0, 0, :1].float()


def test_a_replay_keeps_what_every_camera_was_imagined_to_show_and_the_state() -> None:
    def lived(value: int, length: int) -> Episode:
        """Nothing moves in reality."""
        front = np.full((length + 1, 8, 8, 3), value, np.uint8)
        state = np.full((length + 1, 1), value, np.float32)
        actions, success = np.zeros((length, 2), np.float32), np.arange(length + 1) > 1
        return Episode({"front": front, "wrist": 255 - front}, state, actions, success, "count", 7, "push", "base")

    spec = EnvSpec({"front": (8, 8), "wrist": (8, 8)}, 1, 2, 8, 5)
    real = [lived(10, 3), lived(20, 6)]
    replayed = replay(Watched(), AtLeast(22), spec, real, chunk=4)
    expected = [[10, 11, 12, 13], [20, 21, 22, 23, 24, 25, 26]]
    for values, episode, dreamt in zip(expected, real, replayed.episodes, strict=True):
        assert dreamt.images["front"].shape == episode.images["front"].shape
        assert dreamt.images["front"][:, 3, 5, 2].tolist() == values
        assert dreamt.images["wrist"][:, 3, 5, 2].tolist() == [255 - value for value in values]
        assert dreamt.state.tolist() == [[value] for value in values]
        assert (dreamt.source, dreamt.success.tolist()) == ("dream", episode.success.tolist())
    np.testing.assert_array_equal(replayed.scores[1], [np.nan, -3, 3, 3, 3, 3, 3])
    assert replayed.best_scores().tolist() == [-3, 3]
