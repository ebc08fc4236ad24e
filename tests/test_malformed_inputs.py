"""Input that makes no sense: one sentence that says what is wrong, exit status 2, nothing lost, nothing half made.

Each row is a command line, what is done to the given files before it, and words of the sentence. Damaged episode stores
are in test_damaged_stores.py.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import math
import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from episodes_by_hand import make_episode
from wmpo.cli import main
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop import display
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.families import RENAMED, recipe_from_plain
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.opening import locked
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.recipes import RECIPES
from wmpo.report.results import PolicyResult, RunResult
from wmpo.rewards.clip_classifier import ClipClassifier
from wmpo.rewards.settings import ConvSettings
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

Damage = Callable[[Path], object]
SECONDS = 30  # within which everything is refused
RUN = "run smoke --out out --device cpu --env.workers 0"
EVALUATE = "evaluate run --episodes 2 --device cpu"
IMITATE = "imitate --data store --out out --device cpu"
DREAM = "world-model --data store --out out --device cpu"
JUDGE = "reward-model --data store --out out --device cpu --world-model world"
PRACTISE = (
    "practise --policy run/policies/base --world-model world --reward-model reward --data store --out out --device cpu"
)
COLLECT = (
    "collect --policy run/policies/base --data out --device cpu --env.image-size 16 --env.renderer rays --env.workers 0"
)
TINY = [
    "--env.image-size", "16", "--env.renderer", "rays", "--env.workers", "0", "--env.no-state",
    "--world-model.width", "8", "--world-model.depth", "1", "--reward.width", "8", "--policy.width", "8",
    "--policy.hidden", "16",
]  # fmt: skip


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has a base policy and an unfinished rest, a finished one, a store, and two models."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("whole")
    settings = to_plain(RECIPES["smoke"])
    settings["device"] = "cpu"
    settings["env"] |= {"image_size": 16, "renderer": "rays", "state": False, "workers": 0}
    recipe = recipe_from_plain(settings, "here")
    env = make_env(recipe.env)
    spec = env.spec
    env.close()
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), spec)
    for folder in ("run/policies/base", "other/base", "finished/policies/base", "finished/policies/wmpo-1"):
        policy.save_pretrained(root / folder)
    for folder in ("run", "finished"):
        write_json(root / folder / "recipe.json", to_plain(recipe))
    result = RunResult.begin(recipe)
    result.policies = {name: PolicyResult([1, 2], [0, 1], [0, 3]) for name in ("base", "wmpo-1")}
    result.save(root / "finished/result.json")
    (root / "finished/dream.png").write_bytes(b"")
    VideoDiffusionModel.build(VideoDiffusionSettings(width=8, depth=1), spec, 4).save_pretrained(root / "world")
    ClipClassifier.build(ConvSettings(width=8), spec).save_pretrained(root / "reward")
    store = EpisodeStore.create(root / "store", spec)
    episodes = [make_episode(n, 8, (8,) if n % 3 else (), spec, "expert" if n < 6 else "round-1") for n in range(12)]
    store.append([replace(episode, actions=episode.actions / 12) for episode in episodes])
    for folder in ("empty", "finished/episodes", "finished/evaluation"):
        EpisodeStore.create(root / folder, spec)
    return root


# What is done to the files


def text(path: str, content: str | bytes) -> Damage:
    def damage(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def field(path: str, *names: str, value: Any) -> Damage:
    """Set a field of a JSON file; NaN and infinity as Python writes them."""

    def damage(root: Path) -> None:
        content = json.loads((root / path).read_text())
        at = content
        for name in names[:-1]:
            at = at[name]
        at[names[-1]] = value
        (root / path).write_text(json.dumps(content))

    return damage


def cut(path: str) -> Damage:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[: (root / path).stat().st_size // 2])


def gone(path: str) -> Damage:
    return lambda root: (root / path).unlink()


def folder_at(path: str) -> Damage:
    def damage(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).mkdir(parents=True)

    return damage


def weights(path: str, value: float) -> Damage:
    """All weights of a saved model become this number."""

    def damage(root: Path) -> None:
        tensors = {
            name: torch.full_like(t, value) if t.is_floating_point() else t
            for name, t in load_file(root / path).items()
        }
        save_file(tensors, root / path)

    return damage


def nothing(root: Path) -> None:
    pass


DEEP, LONG = "[" * 100_000, "7" * 5_000
POLICY, JUDGE_CONFIG, WORLD_CONFIG = "run/policies/base/config.json", "reward/config.json", "world/config.json"
POLICY_WEIGHTS = "run/policies/base/model.safetensors"


class Case(NamedTuple):
    command: str
    words: str
    damage: Damage = nothing


SETTINGS = [  # of `wmpo run smoke`
    ("--grpo.freeze typo", "grpo.freeze"),
    ("--reward.imagined-fraction 2", "reward.imagined_fraction is 2.0; it must be at most 1"),
    ("--rounds 40", "rounds is 40; it must be at most 31"),
    ("--rounds 0", "rounds is 0; it must be at least 1"),
    ("--seed -1", "seed is -1; it must be at least 0"),
    (f"--seed {LONG[:30]}", "seed is 7777"),
    (f"--seed {LONG}", "seed"),
    ("--evaluate.episodes 65537", "evaluate.episodes is 65537; it must be at most 65536"),
    ("--collect.episodes 70000", "collect.episodes is 70000; it must be at most 65536"),
    ("--demonstrations.episodes 65537", "demonstrations.episodes is 65537"),
    ("--grpo.n-initial-states 65537", "grpo.n_initial_states is 65537"),
    ("--evaluate.practice-eval-episodes 65537", "evaluate.practice_eval_episodes is 65537"),
    ("--grpo.groups 1000000000000", "grpo.groups is 1000000000000; it must be at most 65536"),
    ("--grpo.temperature 1e-300", "grpo.temperature is 1e-300; it must be"),
    ("--collect.temperature 1e-300", "collect.temperature is 1e-300"),
    ("--evaluate.temperature 1e-300", "evaluate.temperature is 1e-300"),
    ("--grpo.lr nan", "grpo.lr is nan; it must be a finite number"),
    ("--grpo.clip-high inf", "grpo.clip_high is inf"),
    ("--grpo.min-group-success 0.9 --grpo.max-group-success 0.1", "it must be below grpo.max_group_success"),
    ("--collect.episodes 7 --collect.rollouts-per-state 2", "must be a multiple of collect.rollouts_per_state"),
    ("--collect.episodes -1", "collect.episodes is -1; it must be at least 0"),
    ("--collect.held-out 0.25", "collect.held_out is gone: thresholds are cross-fitted now"),
    ("--evaluate.time-factor 0.5", "evaluate.time_factor is 0.5; it must be at least 1"),
    ("--grpo.epochs 0", "grpo.epochs is 0; it must be at least 1"),
    ("--grpo.kl-coef nan", "grpo.kl_coef is nan; it must be a finite number"),
    ("--grpo.lr-end 2", "grpo.lr_end is 2.0; it must be at most 1"),
    ("--collect.task fly", "collect.task names 'fly'"),
    ("--policy.family zzz", "There is no policy family 'zzz'"),
    ("--env.family zzz", "There is no environment family 'zzz'"),
    ("--world-model.family zzz", "There is no world model family 'zzz'"),
    ("--reward.family zzz", "There is no reward model family 'zzz'"),
    ("--policy.family no.such.module:Class", "can't be imported"),
    ("--policy.family json:NoClass", "can't be imported"),
    ("--policy.family json:JSONDecoder", "The policy json:JSONDecoder can't be built from scratch"),
    ("--env.family json:JSONDecoder", "json:JSONDecoder can't be built"),
    ("--world-model.family json:JSONDecoder", "The world model json:JSONDecoder can't be built"),
    ("--reward.family json:JSONDecoder", "The reward model json:JSONDecoder can't be built"),
    ("--policy.family smolvla", "policy.pretrained"),
    ("--policy.pretrained nowhere", "no config.json"),
    ("--policy.pretrained empty", "no config.json"),
    ("--policy.width 1000000000000", "policy.width is 1000000000000; it must be at most"),
    ("--policy.hidden 1000000000000", "policy.hidden is 1000000000000"),
    ("--policy.bins 1000000000000", "policy.bins is 1000000000000"),
    ("--policy.chunk 1000000000000", "policy.chunk is 1000000000000"),
    ("--policy.width 6", "it must be a multiple of 4"),
    ("--world-model.width 1000000000000", "world_model.width is 1000000000000"),
    ("--world-model.depth 1000000", "world_model.depth is 1000000; it must be at most"),
    ("--world-model.context 1000000000000", "world_model.context is 1000000000000"),
    ("--world-model.image-size 4 4", "both sides must be from 8 to 4096"),
    ("--world-model.codec diffusers", "codec"),
    ("--reward.width 1000000000000", "reward.width is 1000000000000"),
    ("--reward.clip-length 1000000000000", "reward.clip_length is 1000000000000"),
    ("--reward.threshold half --reward.stride 0", "reward.stride is 0; it must be at least 1"),
    ("--policy.fit.steps 0", "policy.fit.steps is 0"),
    ("--policy.fit.batch-size 1000000000000", "policy.fit.batch_size is 1000000000000"),
    ("--policy.fit.optimizer sgd", "adamw"),
    ("--env.image-size 1000000000000", "env.image_size is 1000000000000"),
    ("--env.workers -1", "env.workers is -1"),
    ("--env.timeout 0", "env.timeout is 0.0"),
    ("--env.workers 1 --env.python /no/such/python", "env.python is '/no/such/python', which is no program here"),
    ("--env.workers 1 --env.python /bin/true", "(/bin/true) ended with exit code 0 while it started"),
    ("--env.workers 1 --env.python store", "env.python is 'store', which is no program here"),
    ("--env.cameras front front", "Cameras must be one or more different ones"),
    ("--device meta", "There is no device 'meta'"),
    ("--device cpu:77", "There is no device 'cpu:77'"),
    ("--seed", "Missing value"),
    ("--seed one", "--seed"),
    ("--no-such-option 3", "--no-such-option"),
    ("surplus", "surplus"),
    ("--allow", "--allow needs the name of a class of yours"),
    ("--allow non-sense", "--allow needs the name of a class of yours"),
    ("--out store/meta/info.json", "store/meta/info.json"),
    (f"--out {'x' * 300}", "File name too long"),
]  # fmt: skip

OPTIONS = [  # of the other commands
    Case(f"{EVALUATE} --seed {LONG[:30]}", "--seed is 7777"),
    Case(f"{EVALUATE} --seed -1", "--seed is -1; it must be from 0 to"),
    Case("evaluate run --episodes 65537", "--episodes"),
    Case("evaluate run --episodes 0", "--episodes"),
    Case(f"{EVALUATE} --temperature 1e-300", "--temperature"),
    Case(f"{EVALUATE} --temperature nan", "--temperature"),
    Case(f"{EVALUATE} --temperature -1", "--temperature"),
    Case(f"{EVALUATE} --disruption zzz", "has no disruption 'zzz'"),
    Case(f"{EVALUATE} --policy {'x' * 300}", "File name too long"),
    Case("evaluate run --device meta", "There is no device 'meta'"),
    Case("evaluate run[/b]", "There is no folder run[/b]"),
    Case(f"evaluate {'x' * 300}", "File name too long"),
    Case("evaluate store", "holds no run"),
    Case("evaluate store/meta/info.json", "store/meta/info.json"),
    Case("evaluate", "Missing from wmpo evaluate"),
    Case("report", "Missing from wmpo report"),
    Case("report run", "is not finished"),
    Case("report run[/b]", "There is no folder run[/b]"),
    Case("report empty", "holds no run"),
    Case("plan smoke --world-model.depth 1000000", "world_model.depth is 1000000; it must be at most"),
    Case("plan smoke --gpu-memory nan", "--gpu-memory is nan"),
    Case("plan smoke --gpu-memory inf", "--gpu-memory is inf"),
    Case("plan smoke --tflops inf", "--tflops is inf"),
    Case("plan smoke --tflops -1", "--tflops is -1"),
    Case("plan smoke --policy.family zzz", "There is no policy family 'zzz'"),
    Case("plan zzz", "There is no recipe 'zzz'"),
    Case("check zzz base", "There is no kind of thing to check 'zzz'"),
    Case("check policy zzz", "There is no policy family 'zzz'"),
    Case("check env zzz", "There is no environment family 'zzz'"),
    Case("check policy nowhere/base", "nowhere/base"),
    Case("check policy empty", "config.json"),
    Case("check policy run/policies/base/config.json", "config.json"),
    Case("check data nowhere", "There is no episode store"),
    Case("check data store/meta/info.json", "store/meta/info.json"),
    Case("check world-model video_diffusion --chunk 0", "--chunk"),
    Case("check policy minivla --size 1000000000000 64", "--size"),
    Case("check policy minivla --state-dim 1000000000000", "--state-dim"),
    Case("check policy no.such:Class", "can't be imported"),
    Case("check policy", "Which policy?"),
    Case("demonstrate", "Missing from wmpo demonstrate: --data"),
    Case("demonstrate --data out --seed -1", "seed is -1"),
    Case("demonstrate --data out --env.family zzz", "There is no environment family 'zzz'"),
    Case("demonstrate --data store/meta/info.json --env.workers 0", "store/meta/info.json"),
    Case("imitate --data store", "Missing from wmpo imitate: --out"),
    Case("imitate --out out", "Missing from wmpo imitate: --data"),
    Case(f"{IMITATE} --policy.family zzz", "There is no policy family 'zzz'"),
    Case(f"{IMITATE} --policy.fit.steps many", "--policy.fit.steps"),
    Case("imitate --data empty --out out", "is empty"),
    Case("imitate --data nowhere --out out", "There is no episode store"),
    Case("imitate --data store --out store/meta/info.json", "store/meta/info.json"),
    Case(f"{COLLECT} --round 0", "--round"),
    Case(f"{COLLECT} --round 32", "--round"),
    Case(f"{COLLECT} --collect.episodes 65537", "collect.episodes is 65537"),
    Case("collect --policy nowhere --data out", "nowhere"),
    Case("collect --policy world --data out --device cpu --env.workers 0", "world"),
    Case(f"{DREAM} --chunk 0", "--chunk is 0"),
    Case(f"{DREAM} --held-out 0.25", "held_out is gone"),
    Case(f"{DREAM} --world-model.family zzz", "There is no world model family 'zzz'"),
    Case(f"{DREAM} --world-model.align.steps 3", "does nothing here"),
    Case(f"{DREAM} --world-model.align-fraction 0.2", "does nothing here"),
    Case(f"{DREAM} --align-data nowhere", "There is no episode store"),
    Case(f"{JUDGE} --reward.imagined-fraction 2", "reward.imagined_fraction is 2.0"),
    Case(f"{JUDGE} --held-out 0", "held_out is gone"),
    Case(f"{JUDGE} --temperature nan", "temperature"),
    Case("reward-model --data store --out out --device cpu", "needs a world model: give one, or set it to 0"),
    Case(f"{JUDGE} --reward.threshold rate", "needs a world model and the policy"),
    Case("reward-model --data store --out out --device cpu --policy run/policies/base --reward.imagined-fraction 0 "
         "--reward.threshold rate", "needs a world model and the policy"),
    *(Case(f"{JUDGE} {more} --reward.threshold {kind}", f"{option} does nothing here: {why}")
      for kind in ("f1", "calibrated") for option, more, why in (
          ("--policy", "--policy run/policies/base", f"reward.threshold {kind} needs no policy"),
          ("--temperature", "--temperature 0.25", "there is no --policy to sample from"))),
    Case(JUDGE.replace("--world-model world", "--world-model reward"), "reward"),
    Case(f"{PRACTISE} --stride 0", "stride is 0"),
    Case(f"{PRACTISE} --grpo.freeze typo", "grpo.freeze"),
    Case(f"{PRACTISE} --held-out 0.9", "held_out is gone"),
    Case(f"{PRACTISE} --grpo.n-initial-states 3", "n_initial_states does nothing here"),
    Case(PRACTISE.replace("--data store", "--data empty"), "is empty"),
    Case(PRACTISE.replace("--world-model world", "--world-model reward"), "reward"),
    Case(PRACTISE.replace("--reward-model reward", "--reward-model world"), "world"),
    Case("doctor --folder", "Missing value"),
    Case("doctor surplus", "surplus"),
    Case("tasks surplus", "surplus"),
    Case("recipes --option", "--option"),
    Case("zzz", "There is no command 'zzz'"),
    Case("evaluate run\udcff", "can't be shown"),
    Case("run smoke --out 'out\x1b[2J'", "can't be shown"),
]  # fmt: skip

FILES = [
    *(
        Case("evaluate run", words, text("run/recipe.json", content))
        for content, words in [
            (DEEP, "run/recipe.json is damaged"),
            (f'{{"seed": {LONG}}}', "run/recipe.json is damaged"),
            ("null", "run/recipe.json holds no recipe"),
            ("[]", "run/recipe.json holds no recipe"),
            ("", "run/recipe.json is damaged or incomplete"),
            (b"\xff\xfe", "run/recipe.json is damaged: it is no text in UTF-8"),
            ('{"env": []}', "run/recipe.json: env must be an object"),
            ('{"env": {"family": 3}}', "There is no environment family '3'"),
            ('{"env": {"family": "zzz"}}', "There is no environment family 'zzz'"),
            ('{"policy": {"family": "os:system"}}', "add --allow os:system if you trust it"),
            ('{"env": {"family": "os:system"}}', "add --allow os:system if you trust it"),
            ('{"world_model": {"family": "os:system"}}', "add --allow os:system if you trust it"),
            ('{"reward": {"family": "os:system"}}', "add --allow os:system if you trust it"),
            ('{"seed": "0"}', "seed is '0'; it must be a whole number"),
            ('{"seed": 0.5}', "seed is 0.5; it must be a whole number"),
            ('{"seed": true}', "seed is True; it must be a whole number"),
            ('{"seed": -1}', "seed is -1; it must be at least 0"),
            ('{"seed": null}', "seed is None"),
            ('{"name": 3}', "name is 3; it must be text"),
            ('{"control": "yes"}', "control is 'yes'; it must be true or false"),
            ('{"grpo": 3}', "grpo should hold the fields of GRPOConfig"),
            ('{"grpo": {"lr": "fast"}}', "lr is 'fast'; it must be a number"),
            ('{"grpo": {"lr": NaN}}', "it must be a finite number"),
            ('{"grpo": {"lr": 1e999}}', "it must be a finite number"),
            ('{"grpo": {"ratio": "word"}}', "it must be one of 'chunk', 'token'"),
            ('{"grpo": {"ratio": []}}', "it must be one of 'chunk', 'token'"),
            ('{"grpo": {"freeze": "text"}}', "freeze is 'text'; it must be a list"),
            ('{"grpo": {"freeze": [3]}}', "freeze[0] is 3; it must be text"),
            ('{"grpo": {"groups": 1000000000000}}', "groups is 1000000000000; it must be at most 65536"),
            ('{"world_model": {"image_size": [16]}}', "image_size has 1 items; it must have 2"),
            ('{"policy": {"fit": {"steps": -1}}}', "steps is -1; it must be at least 1"),
            ('{"rounds": 40}', "rounds is 40; it must be at most 31"),
            ('{"policy": {"colour": 3}}', "has a field 'colour' that MiniVLASettings does not know"),
            ('{"later": 3}', "has a field 'later' that Recipe does not know"),
        ]
    ),
    Case("evaluate run", "run/recipe.json is no file", folder_at("run/recipe.json")),
    *(
        Case("run smoke --out finished --device cpu " + " ".join(TINY[:7]), words, damage)
        for damage, words in [
            (text("finished/result.json", DEEP), "result.json is damaged"),
            (text("finished/result.json", f'{{"format": {LONG}}}'), "result.json is damaged"),
            (text("finished/result.json", "null"), "result.json should hold the fields of RunResult"),
            (cut("finished/result.json"), "result.json is damaged or incomplete"),
            (field("finished/result.json", "format", value=9), "has format 9"),
            (field("finished/result.json", "policies", "base", "success", value=[0]), "base needs one outcome"),
            (field("finished/result.json", "policies", "base", "success", value=[0, 7]), "must be 0 or 1"),
            (field("finished/result.json", "policies", value=[]), "policies is []; it must be an object"),
            (field("finished/recipe.json", "seed", value=5), "holds a run with seed = 5, not 0"),
            (text("finished/recipe.json", DEEP), "recipe.json is damaged"),
        ]
    ),
    *(
        Case(EVALUATE, words, damage)
        for damage, words in [
            (text(POLICY, DEEP), "config.json is damaged"),
            (text(POLICY, f'{{"config": {LONG}}}'), "config.json is damaged"),
            (text(POLICY, "null"), "config.json"),
            (text(POLICY, "{}"), "is not the description of a wmpo module"),
            (cut(POLICY), "config.json is damaged or incomplete"),
            (field(POLICY, "family", value="os:system"), "add --allow os:system if you trust it"),
            (field(POLICY, "family", value="zzz"), "There is no policy family 'zzz'"),
            (field(POLICY, "family", value=["minivla"]), "There is no policy family"),
            (field(POLICY, "config_type", value="Other"), "holds another architecture"),
            (field(POLICY, "config", "width", value="wide"), "width is 'wide'; it must be a whole number"),
            (field(POLICY, "config", "width", value=1_000_000_000_000), "width is 1000000000000; it must be"),
            (field(POLICY, "config", "width", value=60_000), "config.json describes"),
            (field(POLICY, "config", "width", value=0), "width is 0; it must be"),
            (field(POLICY, "config", "width", value=-8), "width is -8; it must be"),
            (field(POLICY, "config", "chunk", value=1_000_000_000), "chunk is 1000000000"),
            (field(POLICY, "config", "bins", value=0), "bins is 0"),
            (field(POLICY, "config", "action_dim", value=0), "action_dim is 0"),
            (field(POLICY, "config", "cameras", value={}), "cameras"),
            (field(POLICY, "config", "colour", value=3), "has a field 'colour'"),
            (weights(POLICY_WEIGHTS, math.nan), "NaN or infinite weights"),
            (weights(POLICY_WEIGHTS, math.inf), "NaN or infinite weights"),
            (cut(POLICY_WEIGHTS), "truncated or no safetensors file"),
            (text(POLICY_WEIGHTS, ""), "truncated or no safetensors file"),
            (gone(POLICY_WEIGHTS), "does not exist"),
            (folder_at(POLICY_WEIGHTS), "can't be read"),
        ]
    ),
    *(
        Case(PRACTISE, words, damage)
        for damage, words in [
            (field(JUDGE_CONFIG, "config", "threshold_logit", value=math.nan), "threshold"),
            (field(JUDGE_CONFIG, "config", "threshold_logit", value=math.inf), "threshold"),
            (field(JUDGE_CONFIG, "config", "threshold_logit", value=None), "threshold"),
            (field(JUDGE_CONFIG, "config", "width", value=1_000_000_000_000), "width is 1000000000000"),
            (field(JUDGE_CONFIG, "config", "width", value=60_000), "config.json describes"),
            (field(JUDGE_CONFIG, "config", "clip_length", value=0), "clip_length is 0"),
            (field(JUDGE_CONFIG, "family", value="os:system"), "add --allow os:system"),
            (weights("reward/model.safetensors", math.nan), "NaN or infinite weights"),
            (cut("reward/model.safetensors"), "truncated or no safetensors file"),
            (field(WORLD_CONFIG, "config", "settings", "depth", value=1_000_000), "depth is 1000000"),
            (field(WORLD_CONFIG, "config", "settings", "width", value=16_000), "config.json describes"),
            (field(WORLD_CONFIG, "family", value="os:system"), "add --allow os:system"),
            (weights("world/model.safetensors", math.inf), "NaN or infinite weights"),
            (cut("world/model.safetensors"), "truncated or no safetensors file"),
            (text(WORLD_CONFIG, DEEP), "config.json is damaged"),
        ]
    ),
]  # fmt: skip

RENAMES = [
    *(Case(f"{RUN} --{old.replace('_', '-')} 1", f"{old} is now {new}: use --{new}") for old, new in RENAMED.items()
      if "." in old),
    *(Case("evaluate run", new, text("run/recipe.json", json.dumps({old.split(".")[0]: {old.split(".")[1]: 1}})))
      for old, new in RENAMED.items() if "." in old),
    Case("evaluate run", "had collect.held_out; thresholds are cross-fitted now, on episodes",
         text("run/recipe.json", json.dumps({"collect": {"held_out": 0.25}}))),
]  # fmt: skip

CASES = {
    f"{case.command} {number}" if case.damage is not nothing else case.command[:160]: case
    for number, case in enumerate(
        [*(Case(f"{RUN} {options}", words) for options, words in SETTINGS), *OPTIONS, *FILES, *RENAMES]
    )
}


def digests(root: Path) -> dict[str, str]:
    """Name -> digest of every file below `root`; locks are no content."""
    files = (path for path in root.rglob("*") if path.name != ".lock" and not path.is_dir())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        for path in files
    }


@pytest.fixture
def given(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the whole files, which is the working directory."""
    shutil.copytree(whole, tmp_path / "given")
    monkeypatch.chdir(tmp_path / "given")
    return tmp_path / "given"


def too_late(*_: object) -> None:
    raise AssertionError(f"not refused within {SECONDS} s")


def refused(args: list[str], given: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command is refused with; what is there stays, and what is new is no result."""
    before = digests(given)
    capsys.readouterr()
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    try:
        assert main(args) == 2
    finally:
        signal.alarm(0)
    complaint = capsys.readouterr().err
    assert complaint.startswith("wmpo: ") and complaint.count("\n") == 1 and "Traceback" not in complaint
    after = digests(given)
    assert {name: after.get(name) for name in before} == before, "what was given is changed"
    new = [name for name in after if name not in before]
    assert not [name for name in new if name.endswith((".safetensors", ".parquet", ".mp4"))], "work was done first"
    assert list(given.parent.iterdir()) == [given], "something was written outside of the given folder"
    return complaint


def test_there_are_enough() -> None:
    assert len(CASES) >= 120
    assert len(CASES) == len([*SETTINGS, *OPTIONS, *FILES, *RENAMES])


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(name: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    case.damage(given)
    assert case.words in refused(shlex.split(case.command), given, capsys)


def test_two_policies_of_one_name(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are evaluated, and neither takes the other's place."""
    assert main([*EVALUATE.split(), "--policy", "base", "other/base", "run/policies/base"]) == 0
    (file,) = (given / "run/evaluations").glob("none-*.json")
    assert list(RunResult.load(file).policies) == ["base", str(given / "other/base")]


@pytest.mark.parametrize("command", [RUN, IMITATE, DREAM, JUDGE, PRACTISE])
def test_two_processes_in_one_folder(command: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(given / "out"):
        assert "Another process is at work in out" in refused(command.split(), given, capsys)


@pytest.mark.parametrize(
    "error",
    [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(errno.ENOSPC, "No space left")],
)
def test_a_full_disk_while_weights_are_written(
    error: Exception, given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("wmpo.training.checkpoint.save_file", fail)
    short = ["--policy.fit.steps", "1", "--policy.width", "8", "--policy.hidden", "16"]
    assert "No space left" in refused([*IMITATE.split(), *short], given, capsys)
    assert not [path for path in given.rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("when", ["wmpo.algorithm.build_policy", "wmpo.training.checkpoint.save_file"])
def test_a_folder_deleted_meanwhile(
    when: str, given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = when.rpartition(".")
    whole = getattr(importlib.import_module(module), name)

    def deleted(*args: object, **named: object) -> object:
        made = whole(*args, **named)
        shutil.rmtree(given / "out", ignore_errors=True)
        return made

    monkeypatch.setattr(when, deleted)
    short = ["--policy.fit.steps", "1", "--policy.width", "8", "--policy.hidden", "16"]
    assert "out" in refused([*IMITATE.split(), *short], given, capsys)


@contextmanager
def seen_by_nobody(
    whole: Path, folders: int, files: int, prepare: Callable[[Path], object] = bool, closed: str = ""
) -> Iterator[Path]:
    """In a copy whose folders and files have these rights, as a user who is not root; yields where it lies.

    `prepare` gets the copy before; the file `closed` nobody may read.
    """
    place = Path(tempfile.mkdtemp())
    user, here = os.geteuid(), Path.cwd()
    try:
        shutil.copytree(whole, place / "given")
        prepare(place / "given")
        for file in [place, *place.rglob("*")]:
            file.chmod(folders if file.is_dir() else files)
        if closed:
            (place / "given" / closed).chmod(0)
        os.chdir(place / "given")
        if not user:
            os.seteuid(65534)
        yield place
    finally:
        os.seteuid(user)
        os.chdir(here)
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("path", "args"),
    [
        ("run/recipe.json", EVALUATE),
        ("run/policies/base/config.json", EVALUATE),
        ("run/policies/base/model.safetensors", EVALUATE),
        ("finished/result.json", f"run smoke --out finished --device cpu {' '.join(TINY[:7])}"),
    ],
)
def test_files_that_may_not_be_read(path: str, args: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing is the permission: nobody is advised to delete the file."""
    with seen_by_nobody(whole, 0o777, 0o666, closed=path):
        capsys.readouterr()
        assert main(args.split()) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and f"{path} can't be read: Permission denied" in complaint
        assert "delete" not in complaint


@pytest.mark.parametrize("args", [f"{RUN} --env.renderer rays", IMITATE, "demonstrate --data out"])
def test_a_folder_that_may_not_be_written(args: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with seen_by_nobody(whole, 0o555, 0o444):
        capsys.readouterr()
        assert main(args.split()) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and "Permission denied" in complaint


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("stages.json", "null"),
        ("stages.json", "[1]"),
        ("stages.json", b"\xff"),
        ("stages.json", DEEP),
        ("stages.json", f'{{"imitate": {{"seconds": {LONG}}}}}'),
        ("stages.json", '{"imitate": 3, "collect": {"seconds": "long"}}'),
        ("metrics.jsonl", "odd"),
        ("metrics.jsonl", b"\xff\n"),
        ("metrics.jsonl", f"{DEEP}\n{LONG}\nnull\n[3]\n{{}}\n"),
        ("metrics.jsonl", '{"step": "one", "x": 1}\n{"step": 1, "x": "two"}\n{"step": 2, "x": {}}\n'),
    ],
)
def test_records_that_are_damaged_spoil_no_report(path: str, content: str | bytes, tmp_path: Path) -> None:
    """They are left out, since the work itself is done."""
    text(path, content)(tmp_path)
    result = RunResult.begin(RECIPES["smoke"])
    result.read_logs(tmp_path)
    result.save(tmp_path / "result.json")
    assert result.curves == {}


def test_files_of_the_working_directory_are_not_imported(given: Path) -> None:
    """Neither by simulator processes nor by the search for a renderer, whatever they are called."""
    for name in ("random", "mujoco", "numpy", "pickle", "struct"):
        (given / f"{name}.py").write_text(f"open({str(given / 'imported')!r}, 'w')")
    env = make_env(TabletopSettings(image_size=16, renderer="rays", workers=1))
    env.reset([0])
    env.close()
    display.egl_works.__wrapped__()
    assert not (given / "imported").exists()
