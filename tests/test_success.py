"""Where the threshold of the success classifier comes from, frames to practise from, and what stages follow from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from episodes_by_hand import make_episode, make_store
from wmpo import success
from wmpo.algorithm import collect, demonstrations, evaluate_policy, play
from wmpo.config import CollectConfig, DemonstrationConfig, EvaluateConfig, FitConfig, Recipe
from wmpo.data.cache import FrameCache
from wmpo.data.clips import RewardClips
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.first_frames import keyframes
from wmpo.imagination import Replay
from wmpo.opening import open_stage
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.report.measure import outcomes
from wmpo.rewards.settings import ConvSettings
from wmpo.run import Run
from wmpo.success import (
    FOLDS,
    SuccessData,
    cross_fitted_threshold,
    imagined_again,
    learn_success,
    threshold_by_rate,
    to_judge,
    verdicts,
)
from wmpo.types import Decision, Episode, Observation

SUCCESS = {0: (), 1: (), 2: (7, 8), 3: (5, 6, 7, 8)}  # episode -> frames that show it


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    make_store(tmp_path / "data", [make_episode(n, 8, hits, source="round-1") for n, hits in SUCCESS.items()])
    with open_stage(Recipe(device="cpu"), tmp_path / "log", tmp_path / "data", quiet=True) as opened:
        yield opened


class ByNumber:
    """Scores a clip by the number of its episode, which its red channel shows."""

    clip_length, threshold = 2, 0.5

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW[:, -1, 0].float().mean((1, 2))


def judge_by_number(fold: int, episodes: Sequence[int]) -> Iterator[tuple[float, bool]]:
    for episode in episodes:
        yield float(episode), bool(SUCCESS[episode])


@pytest.mark.parametrize("kind", ["f1", "calibrated"])
def test_the_cross_fitted_threshold_lies_between_failures_and_successes(run: Run, kind: Any) -> None:
    run.recipe = replace(run.recipe, reward=ConvSettings(threshold=kind))
    assert 1 <= cross_fitted_threshold(run, [0, 1, 2, 3], judge_by_number) < 2
    assert 0 <= cross_fitted_threshold(run, [0, 3], judge_by_number) < 3


def test_f1_and_calibration_choose_their_own_thresholds(run: Run) -> None:
    scores = [(0.0, False), (1.0, True), (2.0, False), (3.0, True), (4.0, True), (5.0, True)]
    found = {}
    for kind in ("f1", "calibrated"):
        run.recipe = replace(run.recipe, reward=ConvSettings(threshold=kind))  # type: ignore[arg-type]
        found[kind] = cross_fitted_threshold(run, [0, 1, 2, 3], lambda fold, kept: iter(scores[fold::2]))
    assert 0 <= found["f1"] < 1 < found["calibrated"] < 3


def test_every_episode_is_judged_once_and_those_of_one_state_together(tmp_path: Path) -> None:
    numbers = [40, 40, 7, 7, 7, 100, 3]
    make_store(tmp_path / "data", [make_episode(i, 8, (8,), source="round-1", initial_state=number)
                                   for i, number in enumerate(numbers)])  # fmt: skip
    judged: dict[int, list[int]] = {}

    def judge(fold: int, kept: Sequence[int]) -> Iterator[tuple[float, bool]]:
        judged[fold] = [*kept]
        return iter([(float(fold), False), (fold + 1.0, True)])

    with open_stage(Recipe(device="cpu"), tmp_path / "log", tmp_path / "data", quiet=True) as run:
        cross_fitted_threshold(run, range(7), judge)
        assert sorted(i for kept in judged.values() for i in kept) == [*range(7)] and len(judged) == FOLDS
        sides = [{numbers[i] for i in kept} for kept in judged.values()]
        assert not set.intersection(*sides) and min(map(len, sides)) == 2
        judged.clear()
        cross_fitted_threshold(run, [6, 3, 2, 1, 0, 4, 5], judge)
        assert [{numbers[i] for i in kept} for kept in judged.values()] == sides  # whatever their order
        judged.clear()
        cross_fitted_threshold(run, [3], judge)  # a single part, and nothing is asked of the other
        assert judged == {0: [3]}


class ByFrame:
    """Scores a clip by the number of its last frame, which its green channel shows."""

    clip_length, threshold = 2, 0.5

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW[:, -1, 1].float().mean((1, 2))


@pytest.mark.parametrize(
    ("length", "hits", "chunk", "stride", "found"),
    [
        (8, (), 4, 2, [(8, False)]),
        (8, (7, 8), 4, 2, [(8, True), (2, False)]),  # frames 0 to 3 show no success, 2 is scored
        (8, (8,), 4, 4, [(8, True), (4, False)]),
        (8, (6, 7, 8), 4, 4, [(8, True)]),  # nothing is scored before frame 3
        (8, (6, 7, 8), 4, 1, [(8, True), (2, False)]),
        (8, (2,), 1, 1, [(8, True)]),  # nothing is left before the margin
        (9, (), 4, 4, [(8, False)]),  # the end of a chunk, as in a dream
        (8, (), 3, 2, [(7, False)]),  # counted back from there: 1, 3, 4, 6, 7
        (3, (3,), 4, 4, [(3, True)]),  # it ends inside of its only chunk, whose end stands beyond it
    ],
)
def test_verdicts_by_hand(
    length: int, hits: tuple[int, ...], chunk: int, stride: int, found: list[tuple[float, bool]]
) -> None:
    judge: object = ByFrame()
    assert [*verdicts(judge, make_episode(0, length, hits), chunk, stride)] == found  # type: ignore[arg-type]


class Noted(RewardClips):
    """Clips that say which pictures they are of."""

    def __init__(self, cache: FrameCache, episodes: Sequence[int], clip_length: int, **more: Any) -> None:
        super().__init__(cache, episodes, clip_length, **more)
        self.numbers = {int(cache.images["front"][cache.first[episode]][0, 0, 0]) for episode in episodes}


@pytest.mark.parametrize("dreams", [False, True], ids=["real video", "imagined"])
@pytest.mark.parametrize("kind", ["f1", "calibrated"])
def test_no_episode_is_judged_by_a_classifier_that_saw_it(
    run: Run, dreams: bool, kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Episodes are told apart by their red channel, in the store as in the imagined replays of it."""
    hits: dict[int, tuple[int, ...]] = {n: (8,) if n % 3 else () for n in range(12)}
    episodes = [make_episode(n, 8, hits[n], source="expert" if n > 8 else "round-1") for n in hits]
    run.store = make_store(tmp_path / "more", episodes)
    fit = FitConfig(steps=1, batch_size=4)
    settings = ConvSettings(threshold=kind, width=8, imagined_fraction=0.5 * dreams, fit=fit)
    run.recipe = replace(run.recipe, reward=settings)
    made: list[Noted] = []
    seen: dict[int, set[int]] = {}
    judged: list[tuple[int, set[int]]] = []
    again: list[int] = []

    def clips(*args: Any, **more: Any) -> Noted:
        made.append(Noted(*args, **more))
        return made[-1]

    def fitted(model: Any, sample: Any, cfg: FitConfig, name: str, *_: object) -> None:
        sample(0)  # the clips of this classifier, and no others
        seen[id(model)] = set().union(*(part.numbers for part in made))
        names.append(name)
        models.append(model)
        made.clear()

    def replays(run: Run, world_model: object, wanted: Sequence[int], turn: int) -> EpisodeStore:
        again.extend(wanted)
        return make_store(tmp_path / "dreams", run.store.episodes(wanted))

    def verdict(model: Any, episode: Any, chunk: int, stride: int) -> Iterator[tuple[float, bool]]:
        number = int(episode.images["front"][0, 0, 0, 0])
        judged.append((number, seen[id(model)]))
        yield float(episode.succeeded), episode.succeeded

    names: list[str] = []
    models: list[object] = []  # kept, so that no two have one id
    monkeypatch.setattr(success, "RewardClips", clips)
    monkeypatch.setattr(success, "imagined_again", replays)
    monkeypatch.setattr(success, "verdicts", verdict)
    monkeypatch.setattr(Run, "fit", lambda self, *args: fitted(*args))
    world_model: Any = ByFrame() if dreams else None
    if dreams:
        world_model.chunk = 4
        monkeypatch.setattr(success, "digest_of", lambda model: "")
    tried = [*range(9)]
    model = learn_success(run, SuccessData([*range(12)], [*tried, 9, 10], tried, tried), world_model, None)
    assert names == ["reward_model_fit-1", "reward_model_fit-1-fold-0", "reward_model_fit-1-fold-1"]
    assert seen[id(models[0])] == {*range(12)}  # the one that is used has seen all
    assert sorted(number for number, _ in judged) == tried
    for number, known in judged:
        assert number not in known and {9, 10, 11} <= known and len(known) >= 7
    assert 0 < model.threshold < 1 and (again == [*tried, 9, 10]) == dreams


def test_replays_hold_few_episodes_at_once_and_go_on_after_a_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def imagine(world: object, reward: object, spec: object, episodes: Sequence[Episode], **settings: Any) -> Replay:
        held.append(len(episodes))
        if len(held) == 2:
            raise KeyboardInterrupt
        dreamt = []
        for episode in episodes:
            assert all(len(frames) == 1 for frames in episode.images.values())  # the others were not decoded
            images = {name: np.repeat(frames, episode.length + 1, 0) for name, frames in episode.images.items()}
            dreamt.append(replace(episode, images=images, source=f"dream {settings['seed']}"))
        return Replay(dreamt, [])

    monkeypatch.setattr(success, "replay", imagine)
    monkeypatch.setattr(success, "REPLAYED_AT_ONCE", 2)
    world: Any = ByFrame()
    world.chunk = 4
    with pytest.raises(KeyboardInterrupt):
        imagined_again(run, world, [3, 0, 1], 1)
    dreams = imagined_again(run, world, [3, 0, 1], 1)
    assert held == [2, 1, 1]
    assert [episode.images["front"][0, 0, 0, 0] for episode in dreams.episodes(range(3))] == [3, 0, 1]
    seeds = [record.source for record in dreams.records()]
    assert seeds[0] == seeds[1] != seeds[2]


class Still(nn.Module):
    """A world in which nothing moves."""

    chunk, begun = 4, 0

    def begin(self, first: Observation) -> Observation:
        self.begun = max(self.begun, len(first))
        return first

    def imagine(self, memory: Observation, chunk: Tensor, generator: object) -> tuple[Observation, Observation]:
        return memory, memory

    def decode(self, latents: Observation) -> tuple[dict[str, Tensor], Tensor]:
        images = {name: image[:, None].expand(-1, 4, -1, -1, -1) for name, image in latents.images.items()}
        return images, latents.state[:, None].expand(-1, 4, -1)


class Idle:
    chunk = 4

    def act(self, observation: Observation, **settings: object) -> Decision:
        chunk = torch.zeros(len(observation), 4, 3)
        return Decision(chunk, chunk, torch.zeros_like(chunk))


def test_a_threshold_by_rate_holds_few_episodes_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four succeed, so half of the dreams must: each scores the number of the episode that it begins as."""
    monkeypatch.setattr(success, "REPLAYED_AT_ONCE", 3)
    monkeypatch.setattr(type(run.store), "each", lambda *given: pytest.fail("whole videos are decoded"))
    world, policy, judge = Still(), Idle(), ByNumber()
    threshold = threshold_by_rate(run, cast(Any, policy), cast(Any, world), cast(Any, judge), [3, 0, 2, 1], 1)
    assert world.begun == 3 * success.DREAMS_PER_INITIAL_STATE
    assert 1 <= threshold < 2


def test_keyframes_are_of_the_given_episodes_and_before_success(run: Run) -> None:
    seen = keyframes(run, 64, [1, 3], 1)
    number, frame = np.divmod(np.rint(seen.state[:, 0].numpy() * 100).astype(int), 100)
    assert set(number) == {1, 3} and frame.min() >= 1
    assert frame[number == 1].max() == 7 and frame[number == 3].max() == 4  # frame 5 is the first success
    assert (seen.images["front"][:, 0, 0, 0].numpy() == number).all()
    assert (seen.images["front"][:, 1, 0, 0].numpy() == frame).all()
    assert seen.instruction == tuple(f"push block {n % 2}" for n in number)
    assert torch.equal(keyframes(run, 64, [1, 3], 1).state, seen.state)


def test_keyframes_of_an_episode_that_succeeds_at_once_are_its_first(tmp_path: Path) -> None:
    make_store(tmp_path / "data", [make_episode(0, 4, (1, 2, 3, 4), source="round-1")])
    with open_stage(Recipe(device="cpu"), tmp_path / "log", tmp_path / "data", quiet=True) as run:
        assert keyframes(run, 3, [0], 1).images["front"][:, 1].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ConvSettings(threshold="rate", imagined_fraction=0.0), "reward.threshold is rate, which needs a world model"),
        (ConvSettings(threshold="half", imagined_fraction=0.0), "reward.threshold is half, which needs a world model"),
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


def test_a_threshold_is_chosen_on_demonstrations_too_where_no_rollout_succeeds(run: Run) -> None:
    records = run.store.records()
    hits, misses = ([i for i, record in enumerate(records) if record.succeeded is kind] for kind in (True, False))
    assert to_judge(run, [*misses, hits[0]], hits) == [*misses, hits[0]]
    assert to_judge(run, misses, hits) == [*misses, *hits]
    assert to_judge(run, [], hits) == hits
