"""A Ray cluster: what its actors play equals what one process plays, whoever dies meanwhile; and its errors."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coin import Coin, Hand, pictures
from wmpo.cli import main
from wmpo.config import GRPOConfig
from wmpo.contracts import check_env
from wmpo.envs import make_env
from wmpo.envs.ray_env import RayEnv
from wmpo.errors import UserError
from wmpo.evaluate import evaluate
from wmpo.grpo import practise
from wmpo.imagination import ImaginedEnv
from wmpo.opening import prepare_actor
from wmpo.recipes import RECIPES
from wmpo.training import actors
from wmpo.training.log import RunLog, read_metrics
from wmpo.types import EnvSpec, Observation

pytest.importorskip("ray")
SMOKE = RECIPES["smoke"]
ENV = replace(SMOKE.env, workers=1)
STATES = list(range(8))
PRACTICE = GRPOConfig(iterations=4, groups=8, group_size=6, shards=8, lr=0.2, warmup=0, minibatches=2, temperature=1.0)


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    """The second of two nodes on this machine, each with room for one actor; both have started."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    with actors.hired(cluster.address, 0, 1, 0, partial(prepare_actor, SMOKE, "cpu")):
        wait_for_both()
        yield second
    cluster.shutdown()


def wait_for_both() -> None:
    assert actors.count() == 2
    while len(actors.alive()) < 2:
        time.sleep(0.2)


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
    mine, theirs = (evaluate(which, Hand(), STATES, temperature=0.5, seed=3) for which in (alone, env))
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
    with pytest.raises(UserError, match=r"^There is no task 'nonsense'; "):
        RayEnv(replace(ENV, task="nonsense"))
    monkeypatch.setattr(actors, "LOSSES", 0)
    with pytest.raises(UserError, match="1 actors of the Ray cluster have died of the same work"):
        list(actors.deal(die, [()]))


class Echo:
    """A world model that shows, in white, whether the first action of a chunk was what the first picture asked for."""

    chunk = context = 2

    def begin(self, first: Observation) -> Tensor:
        return first.images["front"][:, 0, 0, 0] > 127

    def imagine(self, memory: Tensor, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise_B = torch.rand(len(memory), generator=generator)
        return memory, ((chunk_BKD[:, 0, 0] > 0.5) == memory) & (noise_B < 0.9)

    def decode(self, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"front": pictures(latents.repeat_interleave(2)).view(-1, 2, 3, 2, 2)}, torch.zeros(len(latents), 2, 0)

    def select(self, memory: Tensor, rows: list[int]) -> Tensor:
        return memory[rows]


class White:
    """A reward model to which white is success."""

    clip_length, threshold = 2, 0.0

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW[:, -1, 0, 0, 0].float() - 127


def learn(folder: Path, meanwhile: Callable[[], None] = lambda: None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and metrics of practice in a dream; `meanwhile` is called when its first iteration is over."""
    spec, generator, coin = EnvSpec({"front": (2, 2)}, 0, 1, 4, 1), torch.Generator(), Coin()
    first = Observation({"front": pictures(torch.arange(8) % 2)}, torch.zeros(8, 0), ("guess",) * 8)
    dream = ImaginedEnv(Echo(), White(), spec, first, STATES, generator=generator)  # type: ignore[arg-type]
    with RunLog(folder, quiet=True) as log:
        practise(
            dream, coin, STATES, PRACTICE, seed=0, generator=generator, folder=folder, name="practice", log=log,
            callback=lambda iteration, policy: meanwhile() if iteration == 1 else None,
        )  # fmt: skip
        metrics = {name: values for name, values in read_metrics(folder).items() if "seconds" not in name}
    return coin.state_dict(), metrics


def test_practice_goes_on_when_a_node_is_killed(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as alone:
        alone.setattr(actors._State, "pool", None)
        mine, told = learn(tmp_path / "alone")
    assert 0 < told["practice/success"][0][1] < 1 and told["practice/grad_norm"][0][1] > 0

    def kill() -> None:
        for process in node.all_processes["raylet"]:
            process.process.send_signal(signal.SIGKILL)

    wait_for_both()
    theirs, metrics = learn(tmp_path / "actors", meanwhile=kill)
    assert "is lost" in caplog.text
    assert metrics == told
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "There is no way to the Ray cluster 127.0.0.1:1 (Connection refused): give the address that "),
        (f"{'a' * 70}:1", f"There is no way to the Ray cluster {'a' * 70}:1 ("),
        ("127.0.0.1:99999", "--ray is '127.0.0.1:99999': give local, auto, or HOST:PORT "),
        ("ray://127.0.0.1:1", "--ray is 'ray://127.0.0.1:1': give local, auto, or HOST:PORT "),
    ],
)
def test_a_cluster_that_is_not_there_is_told(
    address: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "smoke", "--ray", address, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"wmpo: {sentence}")


def test_without_ray_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "smoke", "--ray", "local", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == 'wmpo: --ray needs one more package: pip install "wmpo[ray]".\n'


def test_other_versions_on_a_node_are_refused() -> None:
    ours = {name: actors.version(name) for name in actors.PACKAGES}
    actors.check_versions(ours)
    with pytest.raises(UserError, match=r"^A node of the Ray cluster has torch 1\.0, and this machine "):
        actors.check_versions({**ours, "torch": "1.0"})
