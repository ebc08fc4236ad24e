"""Policies from a folder, on data: those of every family from the command line, and those of another robot refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from episodes_by_hand import make_episode, make_store
from wmpo.cli import main
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import Normalizer
from wmpo.data.stats import vector_stats
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.families import saved_family
from wmpo.first_frames import stored_first_frames
from wmpo.imagination import ImaginedEnv
from wmpo.policies import load_policy, match_actions
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.rewards import build_reward_model
from wmpo.rewards.clip_classifier import ClipClassifier
from wmpo.rewards.settings import ConvSettings
from wmpo.rollout import rollout
from wmpo.types import EnvSpec
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SPEC = EnvSpec({"front": (16, 16)}, 3, 2, 12, 5)
DEVICE = ("--device", "cpu")


class Ranged:
    """A policy as far as its action statistics go."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = torch.as_tensor(low), torch.as_tensor(high)

    def action_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.low, self.high


def refused(policy: Any, actions: np.ndarray) -> str:
    try:
        match_actions(policy, actions, "a policy", "a store")
    except UserError as error:
        return str(error)
    return ""


DICE = np.random.default_rng(0)
ACTIONS = {
    "normal": DICE.normal(0.1, 0.3, 4000),
    "gripper": np.where(DICE.random(4000) < 0.02, 1.0, -1.0),  # closed now and then
    "constant": np.full(4000, 0.4),
    "heavy tails": np.clip(DICE.standard_cauchy(4000) / 100, -1, 1),
    "rare": np.where(DICE.random(4000) < 0.005, 0.9, 0.0),  # so rare that the quantiles don't know of it
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_data_fit_the_statistics_that_were_taken_of_them(kind: str) -> None:
    actions = ACTIONS[kind][:, None].astype(np.float32)
    stats = vector_stats(actions)
    by_quantiles = Ranged(stats["q01"], stats["q99"])
    by_spread = Ranged(stats["mean"] - 3 * stats["std"], stats["mean"] + 3 * stats["std"])
    for policy in (by_quantiles, by_spread):
        assert refused(policy, actions) == "" == refused(policy, 0.9 * actions + 0.01)


def test_other_units_another_gripper_and_another_robot_are_told() -> None:
    actions = np.stack([ACTIONS["normal"], ACTIONS["gripper"]], 1)
    told = refused(Ranged([-0.02, -1.0], [0.02, 1.0]), actions)  # metres in place of shares of the fastest move
    assert "other action statistics than the data's" in told and "dimension 0" in told and "a store" in told
    assert "dimension 1" in refused(Ranged([-0.6, 0.0], [0.8, 1.0]), actions)  # 0 and 1 in place of -1 and 1
    assert refused(Ranged([-0.6, -1.0], [0.8, 1.0]), actions) == ""
    assert refused(object(), actions) == ""  # a policy that tells no range
    share = np.zeros((100, 1))
    share[:25] = 1.0  # 0.5 from 0, the far end of a range that is as wide as it is far
    assert refused(Ranged([-0.5], [0.45]), share) == ""
    share[25] = 1.0
    assert "26% of the actions" in refused(Ranged([-0.5], [0.45]), share)
    assert refused(Ranged([-0.5], [0.55]), share) == ""


@pytest.mark.parametrize("family", ["pi0", "smolvla"])
def test_a_published_flow_policy_imitates_from_the_command_line(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from test_flow_vla import MAKERS, D, S

    assert (SPEC.state_dim, SPEC.action_dim) == (S, D)
    start = MAKERS[family](tmp_path / "start")
    episodes = [make_episode(number, 5, (5,), SPEC, "expert") for number in (0, 1)]
    make_store(tmp_path / "store", episodes, SPEC)
    command = [
        "imitate",
        "--policy.pretrained",
        str(start),
        "--policy.chunk",
        "3",
        "--policy.cameras",
        "front",
        *DEVICE,
    ]
    command += ["--policy.fit.optimizer", "adamw", "--policy.fit.steps", "2", "--policy.fit.batch-size", "2"]
    assert main([*command, "--data", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 0
    base = tmp_path / "out" / "policies" / "base"
    assert saved_family("policy", base, "") == family and load_policy(base).chunk == 3
    assert load_policy(base).config.cameras == ("front",)
    make_store(tmp_path / "far", [make_episode(number, 5, (5,), SPEC, "expert") for number in (8, 9)], SPEC)
    capsys.readouterr()
    assert main([*command, "--data", str(tmp_path / "far"), "--out", str(tmp_path / "other")]) == 2
    assert "other action statistics than the data's" in capsys.readouterr().err


def of_robot(folder: Path, family: str, statistics: Normalizer) -> None:
    """Give a tiny published flow policy the dimensions and statistics of some data."""
    mean, std = (
        (statistics.action_min + statistics.action_max) / 2,
        (statistics.action_max - statistics.action_min) / 6,
    )
    if family == "pi0":
        numbers = {"state_mean": statistics.state_mean, "state_std": statistics.state_std}
        numbers |= {"actions_mean": mean, "actions_std": std}
        told = {name: row.tolist() for name, row in numbers.items()}
        (folder / "processor_config.json").write_text(json.dumps(told))
        return
    config = json.loads((folder / "config.json").read_text())
    config["input_features"]["observation.state"]["shape"] = [len(statistics.state_mean)]
    config["output_features"]["action"]["shape"] = [len(mean)]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"observation.state.mean": statistics.state_mean, "observation.state.std": statistics.state_std}
    tensors |= {"action.mean": mean, "action.std": std}
    for path in folder.glob("policy_*.safetensors"):
        save_file(tensors, path)


@pytest.mark.parametrize("family", ["pi0", "smolvla"])
def test_a_published_flow_policy_practises_from_the_command_line(family: str, tmp_path: Path) -> None:
    """Every command of docs/flow_policies.md, tiny; what was frozen stays, and the rest has learned."""
    pytest.importorskip("transformers")
    from test_flow_vla import MAKERS

    start, data, out = MAKERS[family](tmp_path / "start"), tmp_path / "data", tmp_path / "out"
    base, dream, judge, better = out / "policies" / "base", tmp_path / "dream", tmp_path / "judge", tmp_path / "better"
    env = ["--env.image-size", "32", "--env.workers", "0", "--env.renderer", "rays"]
    store = ["--data", str(data)]
    assert main(["demonstrate", *store, "--demonstrations.episodes", "4", *env]) == 0
    opened = EpisodeStore.open(data)
    of_robot(start, family, Normalizer.from_cache(FrameCache(opened), range(len(opened))))
    tiny = ["--policy.chunk", "2", "--policy.flow.steps", "2", "--policy.fit.optimizer", "adamw"]
    tiny += ["--policy.cameras", "front"]
    fit = ["--policy.fit.steps", "1", "--policy.fit.batch-size", "2"]
    assert main(["imitate", *store, "--out", str(out), "--policy.pretrained", str(start), *tiny, *fit, *DEVICE]) == 0
    collect = ["--collect.episodes", "4", "--collect.temperature", "1"]
    assert main(["collect", "--policy", str(base), *store, *collect, *env, *DEVICE]) == 0
    tiny = ["--world-model.width", "16", "--world-model.depth", "1", "--world-model.kinematics-fit.steps", "20"]
    fit = ["--world-model.fit.steps", "20", "--world-model.fit.batch-size", "2", "--world-model.fit.cpu_shards", "1"]
    assert main(["world-model", *store, "--out", str(dream), "--chunk", "2", *tiny, *fit, *DEVICE]) == 0
    tiny = [
        "--reward.width",
        "8",
        "--reward.clip-length",
        "2",
        "--reward.fit.steps",
        "1",
        "--reward.fit.batch-size",
        "2",
    ]
    with_dream = ["--world-model", str(dream / "model")]
    half = ["--reward.threshold", "half"]
    tiny += half
    assert main(["reward-model", *store, "--out", str(judge), *with_dream, *tiny, *DEVICE]) == 2  # rates need a policy
    tiny += ["--policy", str(base)]
    assert main(["reward-model", *store, "--out", str(judge), *with_dream, *tiny, *DEVICE]) == 0

    undecided(base, dream / "model", judge / "model", data)
    practise = ["practise", "--policy", str(base), *with_dream, "--reward-model", str(judge / "model"), *store]
    practise += ["--out", str(better), "--grpo.iterations", "1", "--grpo.groups", "2", "--grpo.group-size", "8"]
    practise += [
        "--grpo.temperature",
        "1",
        "--grpo.lr",
        "1e-2",
        "--grpo.min-group-success",
        "0.01",
    ]
    assert main([*practise, "--grpo.max-group-success", "0.99", *DEVICE]) == 0
    before, after = load_policy(base), load_policy(better / "policy")
    trained = {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    changed = {name for name, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[name])}
    assert changed and changed <= trained
    after_practice = ["--data", str(tmp_path / "after"), "--round", "2", "--collect.episodes", "4"]
    assert main(["collect", "--policy", str(better / "policy"), *after_practice, *env, *DEVICE]) == 0


def undecided(base: Path, dream: Path, judge: Path, data: Path) -> None:
    """Move the judge's threshold to where half of the episodes succeed that a policy dreams from the first start."""
    store = EpisodeStore.open(data)
    model, first = ClipClassifier.from_pretrained(judge), stored_first_frames(FrameCache(store), [0])[1]
    generator = torch.Generator().manual_seed(0)
    world = VideoDiffusionModel.from_pretrained(dream)
    env = ImaginedEnv(world, model, store.spec, first, [0], generator=generator, stride=2, stop=False)
    rollout(env, load_policy(base), [0] * 16, temperature=1.0, generator=generator)
    model.with_threshold(float(env.best_scores().median())).save_pretrained(judge)


def test_a_published_openvla_oft_imitates_and_practises_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from test_openvla_oft import publish

    data, start, out = tmp_path / "data", publish(tmp_path / "start"), tmp_path / "out"
    env = ["--env.image-size", "32", "--env.workers", "0", "--env.renderer", "rays"]
    assert main(["demonstrate", "--data", str(data), "--demonstrations.episodes", "2", *env]) == 0
    store = EpisodeStore.open(data)
    numbers = Normalizer.from_cache(FrameCache(store), range(len(store)))
    quantiles = {"q01": numbers.action_low.tolist(), "q99": numbers.action_high.tolist()}
    (start / "dataset_statistics.json").write_text(json.dumps({"tabletop": {"action": quantiles}}))
    imitate = ["imitate", "--data", str(data), "--policy.pretrained", str(start), "--policy.chunk", "2", *DEVICE]
    imitate += ["--policy.fit.optimizer", "adamw", "--policy.fit.steps", "2", "--policy.fit.batch-size", "2"]
    assert main([*imitate, "--out", str(out)]) == 0
    base, policy = out / "policies" / "base", load_policy(out / "policies" / "base")
    assert saved_family("policy", base, "") == "openvla_oft"
    assert torch.equal(policy.normalizer.action_low, numbers.action_low)

    world_model = VideoDiffusionSettings(width=16, depth=1)
    VideoDiffusionModel.build(world_model, store.spec, 2).save_pretrained(tmp_path / "dream")
    build_reward_model(ConvSettings(width=8, clip_length=2), store.spec).save_pretrained(tmp_path / "judge")
    practise = [
        "practise",
        "--world-model",
        str(tmp_path / "dream"),
        "--reward-model",
        str(tmp_path / "judge"),
        *DEVICE,
    ]
    practise += ["--data", str(data), "--grpo.iterations", "1", "--grpo.groups", "1", "--grpo.group-size", "2"]
    assert main([*practise, "--policy", str(base), "--out", str(tmp_path / "better")]) == 0
    better = tmp_path / "better" / "policy"
    assert saved_family("policy", better, "") == "openvla_oft"
    assert load_file(better / "model.safetensors").keys() == policy.state_dict().keys()

    quantiles = {name: [0.02 * number for number in row] for name, row in quantiles.items()}
    (start / "dataset_statistics.json").write_text(json.dumps({"metres": {"action": quantiles}}))
    capsys.readouterr()
    assert main([*imitate, "--out", str(tmp_path / "other")]) == 2
    assert "other action statistics than the data's" in capsys.readouterr().err
    for bound in policy.action_range():
        bound.mul_(0.02)
    policy.save_pretrained(tmp_path / "metres")
    assert main([*practise, "--policy", str(tmp_path / "metres"), "--out", str(tmp_path / "another")]) == 2
    assert "other action statistics than the data's" in capsys.readouterr().err


def test_every_family_tells_its_range(tmp_path: Path) -> None:
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), SPEC)
    some = np.array([[-0.5, -0.5], [0.25, 0.25]] * 50)
    policy.set_normalizer(Normalizer.fit(some, np.zeros((100, 3))))
    low, high = policy.action_range()
    lowest = policy.decode_actions(torch.zeros(1, 1, 2, dtype=torch.long)).flatten()
    assert torch.equal(low, lowest) and high.tolist() == [0.25, 0.25]
    pytest.importorskip("transformers")
    from test_flow_vla import ACTION, tiny_pi0

    low, high = load_policy(tiny_pi0(tmp_path)).action_range()
    mean, std = torch.tensor(ACTION)
    torch.testing.assert_close((low + high) / 2, mean)
    torch.testing.assert_close((high - low) / 6, std)
