"""Rounds: where practice begins, when it ends, and a run without a single rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo import algorithm
from wmpo.algorithm import optimise, practise_in_dream, save_policy
from wmpo.config import (
    CollectConfig,
    DemonstrationConfig,
    EvaluateConfig,
    FitConfig,
    GRPOConfig,
    PolicyConfig,
    Recipe,
    SelfImitationConfig,
)
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.opening import open_run, open_stage
from wmpo.policies import load_policy
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.report.statistics import fisher_exact
from wmpo.rewards import load_reward_model
from wmpo.rewards.settings import ConvSettings
from wmpo.rounds import ends, fell
from wmpo.run import Run
from wmpo.training.log import read_metrics
from wmpo.types import Observation
from wmpo.world_models.settings import VideoDiffusionSettings

SETTINGS = TabletopSettings(image_size=16, workers=0, renderer="rays")


def test_fisher_by_hand() -> None:
    """Of 4 hits in 8, all in the first row of 4: one arrangement of 70; and nothing is surprising about more hits."""
    assert fisher_exact([[4, 0], [0, 4]]) == pytest.approx(1 / 70)
    assert fisher_exact([[3, 1], [1, 3]]) == pytest.approx((1 + 16) / 70)
    assert fisher_exact([[0, 4], [4, 0]]) == pytest.approx(1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """A run whose rounds have had so many successes, of so many rollouts each."""
    opened = []

    def make(*rounds: tuple[int, int]) -> Run:
        folder = tmp_path / str(len(opened))
        episodes = [make_episode(0, 4, (4,), source="expert")]
        for turn, (hits, n) in enumerate(rounds, start=1):
            episodes += [make_episode(i % 200, 4, (4,) if i < hits else (), source=f"round-{turn}") for i in range(n)]
        make_store(folder / "data", episodes)
        manager = open_stage(Recipe(device="cpu"), folder / "log", folder / "data", quiet=True)
        opened.append(manager)
        return manager.__enter__()

    yield make
    for manager in opened:
        manager.__exit__(None, None, None)


def test_practice_ends_unless_it_does_good(stage: Callable[..., Run]) -> None:
    for rounds, good in {(6, 15): True, (11, 15): False, (15, 15): False, (15, 6): False, (0, 0): False}.items():
        run = stage(*((hits, 20) for hits in rounds))
        run.recipe = replace(run.recipe, rounds_while="better")
        assert ends(run, 2) is not good
        assert fell(run, 2) == (rounds == (15, 6))


def test_a_fall_is_one_beyond_chance(stage: Callable[..., Run]) -> None:
    assert fell(stage((15, 20), (6, 20)), 2)  # p = 0.005
    assert not fell(stage((15, 20), (11, 20)), 2)  # p = 0.16
    assert not fell(stage((6, 20), (15, 20)), 2)  # it is better
    assert not fell(stage((20, 20), (20, 20)), 2) and not fell(stage((0, 20), (0, 20)), 2)
    run = stage((15, 20), (16, 20), (6, 20), (7, 20))
    assert [fell(run, turn) for turn in (2, 3, 4)] == [False, True, False]
    assert not fell(stage((0, 0), (0, 0)), 2)  # without rollouts nothing is known


@pytest.mark.parametrize("from_base", [False, True])
@pytest.mark.parametrize(
    ("hits", "while_", "last", "with_"),
    [
        ([15, 16, 15], "not_worse", 3, None),  # each round practises
        ([15, 5], "not_worse", 2, "base"),
        ([15, 18, 5], "not_worse", 3, "wmpo-1"),
        ([1, 8, 17], "better", 3, None),
        ([5, 16, 15], "better", 3, "wmpo-1"),
        ([5, 15, 16], "better", 3, "wmpo-2"),
        ([15, 15], "better", 2, "wmpo-1"),
    ],
)
def test_rounds_go_on_and_practice_that_did_harm_is_undone(
    hits: list[int], while_: Any, last: int, with_: str | None, from_base: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    evaluated: list[str] = []
    practised: dict[str, float] = {}  # what practice makes -> how far from the base it has begun
    tried: list[float] = []  # the same of the policies that collected
    with closing(make_env(SETTINGS)) as env:
        base = MiniVLA.build(MiniVLASettings(width=8, hidden=16), env.spec)
    spec = base.config  # only to name what the pictures are of
    assert spec is not None

    zero = next(base.parameters()).detach().clone()

    def moved(policy: Any) -> float:
        return round(float((next(policy.parameters()).detach() - zero).mean()))

    def imitate(run: Run) -> Any:
        save_policy(run, base, "base")
        return base

    def collect(run: Run, policy: Any, turn: int) -> None:
        tried.append(moved(policy))
        run.store.append([
            replace(make_episode(i, 4, (4,) if i < hits[turn - 1] else (), run.env.spec, f"round-{turn}"))
            for i in range(20)
        ])  # fmt: skip

    def practise(run: Run, policy: Any, world: Any, reward: Any, turn: int, name: str, cfg: Any, save_as: str) -> Any:
        practised[save_as] = moved(policy)
        with torch.no_grad():
            next(policy.parameters()).add_(float(turn))
        save_policy(run, policy, save_as)
        return policy

    for name, stand_in in {
        "demonstrations": lambda run: None, "imitate": imitate, "collect": collect, "practise_in_dream": practise,
        "model_the_world": lambda run, turn: turn, "model_success": lambda run, policy, world, turn: turn,
        "evaluate_policy": lambda run, policy, name: evaluated.append(name),
        "measure_run": lambda run, policy, world, reward: (policy, world),
    }.items():  # fmt: skip
        monkeypatch.setattr(algorithm, name, stand_in)
    alone = SelfImitationConfig(steps=0)
    recipe = Recipe(
        env=SETTINGS, device="cpu", rounds=3, rounds_from_base=from_base, rounds_while=while_, control=False,
        self_imitation=alone,
    )  # fmt: skip
    with open_run(recipe, tmp_path / "run", quiet=True) as run:
        policy, world = optimise(run)  # type: ignore[misc]
        folder = run.folder / "policies"
    begun, collected = ([0, 0, 0], [0, 1, 2]) if from_base else ([0, 1, 3], [0, 1, 3])
    assert practised == {f"wmpo-{turn}": begun[turn - 1] for turn in range(1, last + (with_ is None))}
    assert tried == collected[:last]
    assert evaluated == ["base", *(f"wmpo-{turn}" for turn in range(1, last + 1))]
    assert world == len(practised)  # the last dream that there is
    saved = load_policy(folder / f"wmpo-{last}")
    assert all(torch.equal(one, two) for one, two in zip(policy.parameters(), saved.parameters(), strict=True))
    if with_ is not None:
        first = next(load_policy(folder / with_).parameters())
        assert torch.equal(next(saved.parameters()), first)
        before = next(load_policy(folder / f"wmpo-{last - 1}").parameters())
        assert torch.equal(first, before) == (with_ == f"wmpo-{last - 1}")
        assert not (folder / "wmpo-4").exists() and len([*folder.iterdir()]) == last + 1


@pytest.mark.parametrize(("fresh", "task"), [(3, ""), (0, ""), (0, "place"), (0, "place+stack")])
def test_practice_begins_at_every_first_frame_that_was_paid_for(
    fresh: int, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of demonstrations that succeeded and of rollouts of all rounds, each initial state once, beside fresh resets."""
    made = [
        ("expert", 10, (4,), "place"), ("expert", 11, (), "place"), ("expert", 12, (4,), "stack"),
        ("round-1", 20, (), "place"), ("round-1", 20, (4,), "place"), ("round-2", 21, (), "push"),
        ("watched", 30, (4,), "place"),
    ]  # fmt: skip
    make_store(tmp_path / "data", [
        replace(make_episode(i, 4, hits, source=source, initial_state=number), task=its)
        for i, (source, number, hits, its) in enumerate(made)
    ])  # fmt: skip
    given: dict[str, Any] = {}

    def practise_from(
        run: Run, policy: Any, world: Any, reward: Any, numbers: Sequence[int], first: Observation,
        tried: Sequence[int], *more: Any, callback: object,
    ) -> None:  # fmt: skip
        given.update(numbers=numbers, first=first, tried=tried)

    def reset(run: Run, n: int, turn: int) -> tuple[list[int], Observation]:
        images = {name: torch.full((n, 3, *size), 99, dtype=torch.uint8) for name, size in SPEC.cameras.items()}
        return run.initial_states("practise", n, turn), Observation(images, torch.zeros(n, 2), ("fresh",) * n)

    for name, stand_in in {
        "practise_from": practise_from,
        "fresh_first_frames": reset,
        "save_policy": lambda *_: None,
    }.items():
        monkeypatch.setattr(algorithm, name, stand_in)
    recipe = Recipe(device="cpu", collect=CollectConfig(task=""))
    with open_stage(recipe, tmp_path / "log", tmp_path / "data", quiet=True) as run:
        run.recipe = replace(run.recipe, collect=CollectConfig(task=task))
        stand_in: Any = None
        cfg = GRPOConfig(n_initial_states=fresh)
        practise_in_dream(run, stand_in, stand_in, stand_in, 2, "practice-2", cfg, "wmpo-2")
        resets = run.initial_states("practise", fresh, 2) if fresh else []
    known = {"": {10: 0, 12: 2, 20: 3, 21: 5}, "place": {10: 0, 20: 3}, "place+stack": {10: 0, 12: 2, 20: 3}}[task]
    assert given["numbers"][:fresh] == resets and {*given["numbers"][fresh:]} == {*known}
    assert len(given["numbers"]) == len(given["first"]) == fresh + len(known)
    shown = given["first"].images["front"][:, 0, 0, 0].tolist()
    assert dict(zip(given["numbers"], shown, strict=True)) == dict.fromkeys(resets, 99) | known
    assert given["tried"] == [5]  # whose middle frames may be practised from


def test_it_imitates_demonstrations_and_its_own_successes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rounds so far, of none to come; and the same policy where it isn't asked to."""
    made = [
        ("expert", (4,)), ("expert", ()), ("round-1", (4,)), ("round-1", ()), ("round-2", (4,)), ("round-3", (4,)),
        ("base", (4,)),
    ]  # fmt: skip
    make_store(tmp_path / "data", [make_episode(i, 4, hits, source=name) for i, (name, hits) in enumerate(made)])
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), SPEC)
    before = [parameter.clone() for parameter in policy.parameters()]
    imitated: list[list[int]] = []

    class Frames(ImitationFrames):
        def __init__(self, cache: FrameCache, episodes: Sequence[int], *rest: Any, **more: Any) -> None:
            imitated.append(list(episodes))
            super().__init__(cache, episodes, *rest, **more)

    monkeypatch.setattr(algorithm, "ImitationFrames", Frames)
    fit = FitConfig(steps=9, batch_size=4)
    recipe = Recipe(device="cpu", policy=PolicyConfig(fit=fit), self_imitation=SelfImitationConfig(steps=2))
    with open_stage(recipe, tmp_path / "log", tmp_path / "data", quiet=True) as run:
        for turn, known in ((1, [0, 2]), (2, [0, 2, 4])):
            algorithm.imitate_successes(run, policy, turn)
            assert imitated.pop() == known == algorithm.successes(run, turn)
        moved = [parameter.clone() for parameter in policy.parameters()]
        assert not all(torch.equal(one, two) for one, two in zip(before, moved, strict=True))
        run.recipe = replace(run.recipe, self_imitation=SelfImitationConfig(steps=0))
        algorithm.imitate_successes(run, policy, 1)
    assert all(torch.equal(one, two) for one, two in zip(moved, policy.parameters(), strict=True)) and not imitated


def test_a_run_without_rollouts(tmp_path: Path) -> None:
    """P = 0: dream and reward model from demonstrations alone, practice from their first frames."""
    fit = FitConfig(steps=8, batch_size=8, warmup=1)
    recipe = Recipe(
        env=replace(SETTINGS, image_size=16), device="cpu", control=False,
        demonstrations=DemonstrationConfig(episodes=4),
        policy=MiniVLASettings(width=8, hidden=16, fit=fit),
        collect=CollectConfig(episodes=0),
        world_model=VideoDiffusionSettings(width=8, depth=1, kinematics_fit=fit, fit=fit, align=fit),
        reward=ConvSettings(width=8, fit=replace(fit, steps=60, batch_size=16, lr=3e-3)),
        self_imitation=SelfImitationConfig(steps=8),
        grpo=GRPOConfig(iterations=1, groups=2, group_size=2, n_initial_states=0, keyframes=2, imitation_coef=0.1),
        evaluate=EvaluateConfig(episodes=2, practice_eval_freq=0),
    )  # fmt: skip
    with open_run(recipe, tmp_path / "run", quiet=True) as run:
        result = optimise(run)
        folder = run.folder
    assert list(result.policies) == ["base", "wmpo-1"]
    assert "self_imitation-1" in {name.split("/")[0] for name in read_metrics(folder)}  # of demonstrations alone
    assert result.interactions["rollouts"].episodes == result.interactions["practice_resets"].episodes == 0
    assert not [record for record in EpisodeStore.open(folder / "episodes").records() if record.source != "expert"]
    dreams = EpisodeStore.open(folder / "dreams-1")
    assert len(dreams) == 4 and all(record.succeeded for record in dreams.records())  # every success, imagined again
    assert abs(load_reward_model(folder / "reward_model-1").threshold) < 1e6
    stages = {name.split("/")[0] for name in read_metrics(folder)}
    assert {"reward_model_fit-1-fold-0", "reward_model_fit-1-fold-1"} <= stages
    assert not [name for name in stages if "align" in name]
