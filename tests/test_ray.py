"""A Ray cluster: what its actors play equals what one process plays, whoever dies meanwhile; and its errors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from wmpo.contracts import check_env
from wmpo.data.normalizer import Normalizer
from wmpo.envs import make_env
from wmpo.envs.ray_env import RayEnv
from wmpo.errors import UserError
from wmpo.evaluate import evaluate
from wmpo.grpo import practise
from wmpo.imagination import ImaginedEnv
from wmpo.losses.verdicts import matching_threshold
from wmpo.opening import prepare_actor
from wmpo.policies import build_policy
from wmpo.protocols import Policy
from wmpo.recipes import RECIPES
from wmpo.rewards import build_reward_model
from wmpo.rollout import rollout
from wmpo.training import actors
from wmpo.training.log import RunLog, read_metrics
from wmpo.types import EnvSpec, Observation
from wmpo.world_models import build_world_model

pytest.importorskip("ray")
SMOKE = RECIPES["smoke"]
ENV = replace(SMOKE.env, workers=1)
SPEC = EnvSpec({"front": (32, 32)}, 4, 4, 12, 5)
STATES = list(range(8))
PRACTICE = replace(
    SMOKE.grpo, iterations=3, groups=6, group_size=4, shards=6, min_group_success=0.0, max_group_success=1.0, lr=1e-2
)


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    """The second of two nodes on this machine, each with room for one actor; both have started."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    with actors.hired(cluster.address, 0, 1, 0, partial(prepare_actor, SMOKE, "cpu")):
        assert actors.count() == len(actors.alive()) == 2
        yield second
    cluster.shutdown()


def policy() -> Policy:
    torch.manual_seed(0)
    made = build_policy(SMOKE.policy, SPEC)
    made.set_normalizer(Normalizer.fit(*(2 * torch.rand(64, 4).numpy() - 1 for _ in range(2))))
    return made


def process_of(kept: actors.Kept) -> int:
    return os.getpid()


def refuse(kept: actors.Kept, what: str) -> None:
    raise UserError(f"An actor has had enough of {what}: give it less.")


def die(kept: actors.Kept) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_environment_of_actors_is_an_environment_like_another(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    env, alone = RayEnv(ENV), make_env(ENV)
    assert env.spec == alone.spec and check_env(env) == []
    shown, expected = (list(which.demonstrate([5, 6, 7], 0.3, 1, 0.9)) for which in (env, alone))
    assert [episode.initial_state for episode in shown] == [5, 6, 7]
    assert all((a.actions == b.actions).all() and a.meta == b.meta for a, b in zip(shown, expected, strict=True))
    mine, theirs = (evaluate(which, policy(), STATES, temperature=0.5, seed=3) for which in (alone, env))
    assert mine == theirs and len(set(map(str, mine.events))) > 1
    seen = [which.reset(STATES) for which in (env, alone)]
    chunk = 2 * torch.rand(8, 4, 4, generator=torch.Generator().manual_seed(1)) - 1
    for which in (env, alone):
        which.step(range(8), chunk)
    lost = actors.ask([(actors.alive()[0], process_of, ())])[0]
    os.kill(lost, signal.SIGKILL)
    after = [which.step([6, 1, 3], -chunk[:3]) for which in (env, alone)]
    for one, other in (seen, after):
        assert torch.equal(one.images["front"], other.images["front"]) and torch.equal(one.state, other.state)
    assert "is lost" in caplog.text
    alone.close()


def test_what_goes_wrong_in_an_actor_is_told_here(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^An actor has had enough of work: give it less\.$"):
        list(actors.deal(refuse, [("work",)]))
    with pytest.raises(UserError, match=r"^There is no task .nonsense.:"):
        RayEnv(replace(ENV, task="nonsense"))
    with pytest.raises(UserError, match="have died of the same work"):
        list(actors.deal(die, [()]))


def learn(folder: Path, meanwhile: Any = None) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """Weights and metrics of a practice in a dream of noise; `meanwhile` is called when its first iteration is over."""
    torch.manual_seed(1)
    world_model = build_world_model(SMOKE.world_model, SPEC, SMOKE.policy.chunk)
    world_model.set_normalizer(Normalizer.fit(*(2 * torch.rand(64, 4).numpy() - 1 for _ in range(2))))
    judge = build_reward_model(SMOKE.reward, SPEC)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    first, generator = Observation({"front": images}, torch.rand(8, 4), ("push it",) * 8), torch.Generator()

    def dream(stop: bool) -> ImaginedEnv:
        return ImaginedEnv(world_model, judge, SPEC, first, STATES, generator=generator, stop=stop)

    some, learner = dream(False), policy()
    rollout(some, learner, STATES, temperature=0.5, generator=generator.manual_seed(0))
    judge = judge.with_threshold(matching_threshold(some.best_scores(), 0.5))
    with RunLog(folder, quiet=True) as log:
        practise(
            dream(True), learner, STATES, PRACTICE, seed=0, generator=generator, folder=folder, name="practice",
            log=log, callback=lambda iteration, policy: meanwhile() if meanwhile and iteration == 1 else None,
        )  # fmt: skip
        metrics = {name: values for name, values in read_metrics(folder).items() if "seconds" not in name}
    return learner.state_dict(), metrics


def test_practice_goes_on_when_a_node_is_killed(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as alone:
        alone.setattr(actors._State, "pool", None)
        mine, told = learn(tmp_path / "alone")
    assert 0 < told["practice/success"][0][1] < 1 and told["practice/grad_norm"][0][1] > 0
    asked: list[object] = []
    deal = actors.deal
    monkeypatch.setattr(actors, "deal", lambda *args: asked.append(args) or deal(*args))

    def kill() -> None:
        for process in node.all_processes["raylet"]:
            process.process.send_signal(signal.SIGKILL)

    theirs, metrics = learn(tmp_path / "actors", meanwhile=kill)
    assert len(asked) >= PRACTICE.iterations
    assert "is lost" in caplog.text
    assert metrics == told
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
