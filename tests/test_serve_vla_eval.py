"""A policy as vla-eval's model server: its own client and its own harness get what the policy decides."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmpo.data.initial_states import initial_states
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.policies import build_policy, load_policy
from wmpo.policies.settings import FlowConfig, MiniVLASettings
from wmpo.rollout import rollout
from wmpo.serving import libero
from wmpo.serving.actor import Actor
from wmpo.types import EnvSpec, Observation

pytest.importorskip("vla_eval")

import anyio
from vla_eval import api
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.rotation import quat_to_axisangle
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec

from wmpo.serving.vla_eval import CONVENTIONS, WmpoServer, start

SPEC = EnvSpec({"front": (24, 24), "wrist": (24, 24)}, state_dim=9, action_dim=7, horizon=64, fps=5)
SMALL = {"chunk": 4, "width": 8, "hidden": 16}
TASK = "pick up the bowl"


def saved(folder: Path, spec: EnvSpec, **settings: Any) -> Path:
    torch.manual_seed(0)
    build_policy(MiniVLASettings(**SMALL, **settings), spec).save_pretrained(folder)
    return folder


@asynccontextmanager
async def connected(actor: Actor, convention: Any = "plain", seed: int = 0) -> AsyncIterator[Connection]:
    with start(actor, CONVENTIONS[convention], "127.0.0.1", 0, seed) as handle:
        async with Connection(handle.url, timeout=20) as connection:
            await connection.start_episode({"task": {"name": TASK}})
            yield connection


def libero_observation(count: int) -> dict[str, Any]:
    """As vla-eval's LIBERO shows it."""
    rng = np.random.default_rng(count)
    images = {name: rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    quaternion = np.array([0.99, 0.1, -0.05, 0.02 * (count - 1)])
    turn = quat_to_axisangle(quaternion / np.linalg.norm(quaternion))
    states = np.concatenate([rng.normal(size=3), turn, [0.03, -0.03]])
    return {"images": images, "task_description": TASK, "states": states}


def ours(seen: dict[str, Any], count: int) -> Observation:
    """The same, as `--env.family libero` shows it."""
    names = {"front": "agentview", "wrist": "wrist"}
    images = {
        own: torch.from_numpy(seen["images"][name][:, ::-1].copy()).permute(2, 0, 1)[None]
        for own, name in names.items()
    }
    quaternion = np.array([0.99, 0.1, -0.05, 0.02 * (count - 1)])
    states = seen["states"]
    state = np.concatenate([states[:3], quaternion / np.linalg.norm(quaternion), states[6:]]).astype(np.float32)
    return Observation(images, torch.from_numpy(state)[None], (TASK,))


def test_every_step_of_libero_gets_the_action_of_the_policy(tmp_path: Path) -> None:
    """Also where the quaternion's last number is below 0, which vla-eval turns around."""
    policy = load_policy(saved(tmp_path, SPEC))
    actor = Actor(policy, tmp_path, ["front=agentview", "wrist=wrist"])

    async def play() -> None:
        async with connected(actor, "libero") as connection:
            for decision in range(3):
                seen = libero_observation(decision)
                expected = policy.act(ours(seen, decision), temperature=0.0, generator=torch.Generator()).chunk[0]
                for step in range(16):  # each of four actions lasts for four steps of the controller
                    action = await connection.act(seen if step == 0 else libero_observation(99))
                    assert np.array_equal(action["actions"], expected[step // 4].numpy())

    anyio.run(play)


def test_a_state_of_libero_is_turned_back() -> None:
    for quaternion in ([1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, 0.5, 0.5]):
        theirs = np.concatenate([[1, 2, 3], quat_to_axisangle(np.array(quaternion)), [4, 5]])
        assert np.allclose(libero.state(theirs), [1, 2, 3, *quaternion, 4, 5], atol=1e-6)
    flat = libero.state(np.array([1, 2, 3, 0, 0, 0, 4, 5]))
    assert np.allclose(np.abs(flat), [1, 2, 3, 0, 0, 0, 1, 4, 5])


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    actor = Actor(load_policy(saved(tmp_path, SPEC)), tmp_path, ["front=agentview"])

    async def ask(convention: str) -> dict[str, Any]:
        async with connected(actor, convention) as connection:
            return dict(connection.server_info)

    found = anyio.run(ask, "libero")
    assert found["observation_params"] == {"send_wrist_image": True, "send_state": True}
    assert found["action_spec"].keys() == {"position", "rotation", "gripper"}
    assert found["observation_spec"].keys() == {"agentview", "wrist", "language", "state"}
    found = anyio.run(ask, "plain")
    assert "observation_params" not in found
    assert found["action_spec"]["actions"]["dims"] == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"images": {"agentview": np.zeros((8, 8, 3), np.uint8)}},
            "no camera 'wrist'.*only agentview.*--cameras wrist=",
        ),
        ({"images": None}, "no images"),
        ({"images": {"agentview": "x"}}, "no images"),
        ({"states": None}, "trained with 9 state numbers, but 0 came"),
        ({"states": np.zeros(7)}, "8 numbers, not 7"),
        ({"states": np.full(8, np.nan)}, "NaN"),
        ({"states": np.zeros((2, 4))}, "shape"),
        ({"states": ["a"] * 8}, "The state is no list of numbers"),
        ({"states": {"x": 1}}, "The state is no list of numbers"),
        ({"states": [[1], [2, 3]]}, "The state is no list of numbers"),
        ({"task_description": ""}, "names no task"),
    ],
)
def test_an_observation_that_lacks_something_is_one_sentence_to_the_client(
    change: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    actor = Actor(load_policy(saved(tmp_path, SPEC)), tmp_path, ["front=agentview"])
    good = libero_observation(0)
    bad = {name: value for name, value in {**good, **change}.items() if value is not None}

    async def play() -> None:
        async with connected(actor, "libero") as connection:
            with pytest.raises(RuntimeError, match=words):
                await connection.act(bad)
            assert (await connection.act(good))["actions"].shape == (7,)  # and goes on

    with caplog.at_level(logging.ERROR):
        anyio.run(play)
    [record] = [record for record in caplog.records if "Refused" in record.getMessage()]
    assert record.exc_info is None


@pytest.mark.parametrize("message", ["hello", b"", b"\xff\xff", b"\x03", b"\x91" * 100_000, b"\x81\xa4type\xa4nope"])
def test_what_is_no_message_is_one_line_and_the_server_goes_on(
    message: str | bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from websockets.asyncio.client import connect

    actor = Actor(load_policy(saved(tmp_path, SPEC)), tmp_path, ["front=agentview"])

    async def play() -> None:
        with start(actor, CONVENTIONS["libero"], "127.0.0.1", 0, 0) as handle:
            async with connect(handle.url) as line:
                await line.send(message)
                with anyio.move_on_after(2), contextlib.suppress(Exception):  # of a line that it closes
                    await line.recv()
            async with Connection(handle.url, timeout=20) as connection:
                await connection.start_episode({"task": {"name": TASK}})
                assert (await connection.act(libero_observation(0)))["actions"].shape == (7,)

    with caplog.at_level(logging.WARNING):
        anyio.run(play)
    assert not [record for record in caplog.records if record.exc_info]


def test_random_numbers_follow_from_the_seed_and_the_episode(tmp_path: Path) -> None:
    folder = saved(tmp_path, SPEC, head="flow", flow=FlowConfig(steps=4))

    async def play(seed: int) -> list[np.ndarray]:
        actor, found = Actor(load_policy(folder), folder, ["front=agentview"], temperature=1.0), []
        async with connected(actor, "libero", seed) as connection:
            for _ in range(2):
                found.append((await connection.act(libero_observation(0)))["actions"])
                await connection.start_episode({"task": {"name": TASK}})
        return found

    one, again, other = anyio.run(play, 0), anyio.run(play, 0), anyio.run(play, 1)
    assert np.array_equal(one, again)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], other[0])


EPISODES = 3
SETTINGS = TabletopSettings(task="push", image_size=24, workers=0, renderer="rays")


class Tabletop(StepBenchmark):
    """wmpo's own simulator as a benchmark of vla-eval: episode n begins with evaluation's n-th initial state."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.env = make_env(SETTINGS)
        self.numbers = initial_states("evaluate", seed, EPISODES)
        self.success, self.states, self.instruction = False, [0.0], ""

    def cleanup(self) -> None:
        self.env.close()

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": "push", "suite": "tabletop"}]

    def reset(self, task: dict[str, Any]) -> Observation:
        seen = self.env.reset([self.numbers[task["episode_idx"]]])
        self.success, self.states, [self.instruction] = False, [], seen.instruction
        return seen

    def step(self, action: dict[str, Any]) -> StepResult:
        outcome = self.env.step([0], torch.from_numpy(np.array(action["actions"]))[None, None])
        self.success |= bool(outcome.success.any())
        self.states += outcome.state.flatten().tolist()
        return StepResult(outcome.last((self.instruction,)), 0.0, bool(outcome.done[0]), {})

    def make_obs(self, raw_obs: Observation, task: dict[str, Any]) -> dict[str, Any]:
        images = {name: image[0].permute(1, 2, 0).numpy().copy() for name, image in raw_obs.images.items()}
        return {"images": images, "state": raw_obs.state[0].numpy(), "task_description": self.instruction}

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": self.success, "felt": sum(self.states), "last": self.states[-4:]}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": self.env.spec.horizon}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {"actions": DimSpec("actions", 4, "raw")}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {"front": IMAGE_RGB, "wrist": IMAGE_RGB, "language": LANGUAGE, "state": RAW}


def test_its_harness_sees_the_episodes_that_wmpo_evaluates(tmp_path: Path) -> None:
    """The same states at every step, so the same success, too."""
    with closing(make_env(SETTINGS)) as env:
        policy = load_policy(saved(tmp_path, env.spec))
        generator = torch.Generator().manual_seed(0)
        numbers = initial_states("evaluate", 0, EPISODES)
        played = rollout(env, policy, numbers, temperature=0.0, generator=generator, record="it").episodes
    server = WmpoServer(Actor(policy, tmp_path), CONVENTIONS["plain"])
    config = {
        "benchmarks": [{"benchmark": f"{__name__}:Tabletop", "episodes_per_task": EPISODES, "params": {"seed": 0}}]
    }
    [result] = api.evaluate(server, config, docker=False, no_save=True, output_dir=tmp_path / "results")
    found = [episode["metrics"] for task in result["tasks"] for episode in task["episodes"]]
    assert len(found) == EPISODES
    for episode, metrics in zip(played, found, strict=True):
        assert metrics["success"] == episode.succeeded
        assert metrics["last"] == episode.state[-1].tolist()
        assert metrics["felt"] == sum(episode.state[1:].flatten().tolist())
    assert len({metrics["felt"] for metrics in found}) == EPISODES
