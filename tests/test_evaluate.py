"""Evaluation beyond the horizon, what is counted in episodes, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from episodes_by_hand import make_episode, make_store
from wmpo.algorithm import collect, evaluate_policy
from wmpo.config import CollectConfig, DemonstrationConfig, EvaluateConfig, Recipe
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.evaluate import Evaluation, evaluate
from wmpo.opening import open_run, open_stage
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.report.measure import outcomes
from wmpo.rollout import rollout
from wmpo.types import Decision, EnvSpec, Observation, Outcome


class Uncounted:
    """Initial state n succeeds at frame n, and is done two frames later; 0 never."""

    spec = EnvSpec({"front": (2, 2)}, 0, 1, 6, 1)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.states, self.time = list(initial_states), [0] * len(initial_states)
        self.counted: list[dict[str, int]] = [{"frames": 0, "hits": 0} for _ in initial_states]
        N = len(initial_states)
        return Observation({"front": torch.zeros(N, 3, 2, 2, dtype=torch.uint8)}, torch.zeros(N, 0), ("wait",) * N)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        K = chunk_AKD.shape[1]
        success = torch.zeros(len(rows), K, dtype=torch.bool)
        for place, row in enumerate(rows):
            for k in range(K):
                self.time[row] += 1
                success[place, k] = 0 < self.states[row] <= self.time[row]
                hits = self.counted[row]["hits"] + int(success[place, k])
                self.counted[row] = {"frames": self.time[row], "hits": hits}
        done = torch.tensor([0 < self.states[row] <= self.time[row] - 2 for row in rows])
        images = torch.zeros(len(rows), K, 3, 2, 2, dtype=torch.uint8)
        return Outcome({"front": images}, torch.zeros(len(rows), K, 0), success, done)

    def close(self) -> None: ...


class Late(Uncounted):
    """Tells how many frames there were, and how many of them showed success."""

    @property
    def events(self) -> list[dict[str, int]]:
        return self.counted


class Still:
    """Does nothing, in chunks of 2."""

    chunk = 2

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        B = len(observation)
        return Decision(torch.zeros(B, 2, 1), torch.zeros(B, 2, 1, dtype=torch.long), torch.full((B, 2, 1), -1.0))


def judged(time_factor: float, states: Sequence[int] = (0, 3, 6, 7, 12, 13)) -> Evaluation:
    policy: object = Still()
    return evaluate(Late(), policy, states, temperature=0.0, seed=0, time_factor=time_factor)  # type: ignore[arg-type]


def test_success_counts_within_the_horizon_and_is_seen_beyond_it() -> None:
    found = judged(2.0)
    assert (found.horizon, found.time_limit, found.initial_states) == (6, 12, [0, 3, 6, 7, 12, 13])
    assert found.finish_step == [0, 3, 6, 7, 12, 0]  # 13 is beyond the limit
    assert found.success == [False, True, True, False, False, False] and found.rate == 1 / 3
    assert found.steps == 12 + 6 + 8 + 10 + 12 + 12  # whole chunks, until two frames after success
    assert judged(1.0).finish_step == [0, 3, 6, 0, 0, 0] and judged(1.0).time_limit == 6
    assert judged(7 / 6).finish_step == [0, 3, 6, 7, 0, 0]  # the last chunk is cut
    assert judged(7 / 6).steps == 7 + 6 + 7 + 7 + 7 + 7


def test_events_of_every_batch_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Late, "spec", replace(Late.spec, max_batch=2))
    found = judged(2.0)
    assert [counted["frames"] for counted in found.events] == [12, 6, 8, 10, 12, 12]
    assert [counted["hits"] for counted in found.events] == [0, 4, 3, 4, 1, 0]


def test_a_rollout_ends_at_the_horizon_that_it_is_given() -> None:
    policy: object = Still()
    for horizon, length in ((None, 6), (6, 6), (8, 8), (9, 9), (2, 2)):
        played = rollout(
            Late(), policy, [0, 3], temperature=0.0, generator=torch.Generator(), record="x", horizon=horizon,  # type: ignore[arg-type]
        )  # fmt: skip
        assert [episode.length for episode in played.episodes] == [length, min(length, 6)]
        assert played.mask.shape[1:] == (-(-length // 2), 2)


def test_what_an_environment_counts_is_kept_with_its_episodes() -> None:
    policy: object = Still()
    played = rollout(Late(), policy, [7, 0, 3], temperature=0.0, generator=torch.Generator(), record="x", horizon=12)  # type: ignore[arg-type]
    meta = [{"frames": "10", "hits": "4"}, {"frames": "12", "hits": "0"}, {"frames": "6", "hits": "4"}]
    assert [dict(episode.meta) for episode in played.episodes] == meta
    played = rollout(Uncounted(), policy, [7, 0], temperature=0.0, generator=torch.Generator(), record="x")  # type: ignore[arg-type]
    assert [dict(episode.meta) for episode in played.episodes] == [{}, {}]


SETTINGS = TabletopSettings(task="place", image_size=16, workers=0, renderer="rays")


@pytest.fixture
def policy() -> Iterator[MiniVLA]:
    with closing(make_env(SETTINGS)) as env:
        torch.manual_seed(0)
        yield MiniVLA.build(MiniVLASettings(width=8, hidden=16), env.spec).eval()


def test_a_run_evaluates_beyond_the_horizon_and_keeps_events(policy: MiniVLA, tmp_path: Path) -> None:
    """Rollouts end at the horizon, evaluations at twice that; both are stored with what the simulator counted."""
    recipe = Recipe(
        env=SETTINGS, device="cpu", collect=CollectConfig(episodes=2), evaluate=EvaluateConfig(episodes=2),
        demonstrations=DemonstrationConfig(episodes=1),
    )  # fmt: skip
    with open_run(recipe, tmp_path / "run", quiet=True) as run:
        collect(run, policy, 1)
        evaluate_policy(run, policy, "base")
        result, played = outcomes(run)
        base = result.policies["base"]
        assert {episode.length for episode in run.store} == {48}  # it has learned nothing
        assert {episode.length for episode in run.evaluation} == {96} and result.interactions["evaluation"].steps == 192
        assert {episode.length for episode in played["base"]} == {48}  # pictures and dreams are of the horizon
    assert (base.horizon, base.time_limit, base.finish_step) == (48, 96, [0, 0])
    assert set(base.events) == {"contacts", "grasps", "drops", "disturbances"}
    for store in ("episodes", "evaluation"):
        for episode in EpisodeStore.open(tmp_path / "run" / store):
            assert set(episode.meta) >= set(base.events) and all(count.isdecimal() for count in episode.meta.values())
    stored = EpisodeStore.open(tmp_path / "run" / "evaluation").episodes([0, 1])
    counted = {episode.initial_state: int(episode.meta["contacts"]) for episode in stored}
    assert base.events["contacts"] == [counted[number] for number in base.initial_states]


def test_outcomes_of_stored_episodes(tmp_path: Path) -> None:
    """Late successes don't count, and are known; what comes after the horizon is cut off for those who look on."""
    make_store(tmp_path / "evaluation", [
        replace(make_episode(n, 30, hits, source="base"), meta={"grasps": str(n), "renderer": "rays"})
        for n, hits in enumerate([(20, 21), (21, 22), ()])
    ])  # fmt: skip
    make_store(tmp_path / "data", [make_episode(9, 8, (8,), source="expert")])
    with open_stage(Recipe(device="cpu"), tmp_path / "log", tmp_path / "data", quiet=True) as run:
        run.evaluation = EpisodeStore.open(tmp_path / "evaluation")
        result, played = outcomes(run)
    base = result.policies["base"]
    assert (base.success, base.finish_step, base.horizon, base.time_limit) == ([1, 0, 0], [20, 21, 0], 20, 40)
    assert base.events == {"grasps": [0, 1, 2]}
    assert [(episode.length, episode.succeeded) for episode in played["base"]] == [(20, True), (20, False), (20, False)]
