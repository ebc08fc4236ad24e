"""Where the threshold of the success classifier comes from, frames to practise from, and what stages follow from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from episodes_by_hand import make_episode, make_store
from wmpo.algorithm import collect, demonstrations, evaluate_policy, keyframes, play
from wmpo.config import CollectConfig, DemonstrationConfig, EvaluateConfig, Recipe
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.opening import open_stage
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.report.measure import outcomes
from wmpo.rewards.settings import ConvSettings
from wmpo.run import Run
from wmpo.success import SuccessData, learn_success, threshold_by_f1

SUCCESS = {0: (), 1: (), 2: (7, 8), 3: (5, 6, 7, 8)}  # episode -> frames that show it


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    make_store(tmp_path / "data", [make_episode(n, 8, hits, source="round-1") for n, hits in SUCCESS.items()])
    with open_stage(Recipe(device="cpu"), tmp_path / "log", tmp_path / "data", quiet=True) as opened:
        yield opened


class ByNumber:
    """Scores a clip by the number of its episode, which its red channel shows."""

    clip_length = 2

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW[:, -1, 0].float().mean((1, 2))


def test_the_threshold_by_f1_lies_between_failures_and_successes(run: Run) -> None:
    judge: object = ByNumber()
    assert 1 <= threshold_by_f1(run, None, judge, [0, 1, 2, 3]) < 2  # type: ignore[arg-type]
    assert 0 <= threshold_by_f1(run, None, judge, [0, 3]) < 3  # type: ignore[arg-type]


def test_keyframes_are_of_the_given_episodes_and_before_success(run: Run) -> None:
    seen = keyframes(run, 64, [1, 3], 1)
    number, frame = np.divmod(np.rint(seen.state[:, 0].numpy() * 100).astype(int), 100)
    assert set(number) == {1, 3} and frame.min() >= 1
    assert frame[number == 1].max() == 7 and frame[number == 3].max() == 4  # frame 5 is the first success
    assert (seen.images["front"][:, 0, 0, 0].numpy() == number).all()
    assert (seen.images["front"][:, 1, 0, 0].numpy() == frame).all()
    assert seen.instruction == tuple(f"push block {n % 2}" for n in number)
    assert torch.equal(keyframes(run, 64, [1, 3], 1).state, seen.state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ConvSettings(threshold="rate", imagined_fraction=0.0), "reward.threshold is rate, which needs a world model"),
        (
            ConvSettings(threshold="f1", imagined_fraction=0.5),
            "imagined_fraction is above 0, which needs",
        ),
    ],
)
def test_what_needs_a_dream_is_refused_without_one(run: Run, settings: ConvSettings, words: str) -> None:
    run.recipe = replace(run.recipe, reward=settings)
    with pytest.raises(UserError, match=words):
        learn_success(run, SuccessData([0, 2], [0, 2], [1, 3], [0, 1, 2, 3]), None, None)


def test_a_stage_that_follows_from_something_else_says_what(run: Run) -> None:
    run.same_inputs("collect-1", {"policy": "abc", "settings": {"temperature": 0.5}})
    run.same_inputs("collect-1", {"policy": "abc", "settings": {"temperature": 0.5}})
    with pytest.raises(UserError, match=r"has begun collect-1 with settings.temperature = 0.5, not 1.0: give the same"):
        run.same_inputs("collect-1", {"policy": "abc", "settings": {"temperature": 1.0}})
    with pytest.raises(UserError, match=r"with seed = none on record, not 3: give the same to continue, or another"):
        run.same_inputs("collect-1", {"policy": "abc", "settings": {"temperature": 0.5}, "seed": 3})


def test_episodes_of_two_seeds_are_not_mixed(tmp_path: Path) -> None:
    settings = TabletopSettings(image_size=16, workers=0, renderer="rays")
    recipe = Recipe(
        env=settings, device="cpu", demonstrations=DemonstrationConfig(episodes=1), collect=CollectConfig(episodes=4),
        evaluate=EvaluateConfig(episodes=1),
    )  # fmt: skip
    with closing(make_env(settings)) as env:
        policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), env.spec).eval()

        def stages(seed: int) -> list[Callable[[], None]]:
            run = stack.enter_context(
                open_stage(replace(recipe, seed=seed), tmp_path / "log", tmp_path / "data", env=env, quiet=True)
            )
            return [
                lambda: demonstrations(run), lambda: collect(run, policy, 1), lambda: evaluate_policy(run, policy, "a"),
            ]  # fmt: skip

        with ExitStack() as stack:
            for stage in stages(3):
                stage()
        stored = len(EpisodeStore.open(tmp_path / "data"))
        with ExitStack() as stack:
            for stage in stages(4):
                with pytest.raises(UserError, match="with seed = 3, not 4: give the same to continue, or another"):
                    stage()
        assert len(EpisodeStore.open(tmp_path / "data")) == stored


def test_policies_are_compared_by_initial_state(run: Run, tmp_path: Path) -> None:
    """Whatever the order in which their episodes ended."""
    make_store(tmp_path / "evaluation", [
        *(make_episode(n, 8, SUCCESS[n], source="base") for n in (2, 0, 1)),
        *(make_episode(n, 8, (3,), source="wmpo-1") for n in (1, 2, 0)),
    ])  # fmt: skip
    run.evaluation = EpisodeStore.open(tmp_path / "evaluation")
    result, played = outcomes(run)
    base, better = result.policies["base"], result.policies["wmpo-1"]
    assert base.initial_states == better.initial_states == sorted(base.initial_states)
    assert (base.success, better.success) == ([0, 0, 1], [1, 1, 1])
    assert [episode.initial_state for episode in played["base"]] == base.initial_states
    assert "wmpo-1" in result.summary().gains


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_what_a_stop_has_left_is_played_and_nothing_is_lost(tmp_path: Path, kept: int) -> None:
    """However many episodes were on disk, the rest is what it would have been; each was stored as it ended."""
    settings = TabletopSettings(image_size=16, workers=0, renderer="rays")
    env = make_env(settings)
    torch.manual_seed(0)
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), env.spec).eval()
    numbers = [10, 11, 10, 12, 13]  # one of them twice

    class StopError(Exception): ...

    def collect(folder: Path, stop_after: int) -> list[tuple[int, bytes]]:
        with open_stage(
            Recipe(env=settings, device="cpu"), folder / "log", folder / "data", env=env, quiet=True
        ) as run:
            append, stored = run.store.append, 0

            def watched(episodes: Sequence[object]) -> None:
                nonlocal stored
                if stored == stop_after:
                    raise StopError
                append(episodes)  # type: ignore[arg-type]
                stored += 1

            run.store.append = watched  # type: ignore[method-assign]
            play(run, run.store, policy, numbers, "round-1", 1.0, lambda begin: 5 + begin)
            chosen = run.store.episodes(run.episodes(lambda record: True))
            return [(episode.initial_state, episode.actions.tobytes()) for episode in chosen]

    whole = collect(tmp_path / "whole", -1)
    with pytest.raises(StopError):
        collect(tmp_path / "cut", kept)
    assert sorted(collect(tmp_path / "cut", -1)) == sorted(whole) and len(whole) == 5
    env.close()
