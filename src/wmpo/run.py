"""Where a run lives and what it may use; which of its episodes are which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from wmpo.batches import Batch
from wmpo.config import FitConfig, Recipe
from wmpo.data.clips import VideoClips
from wmpo.data.initial_states import initial_states
from wmpo.data.latents import encode_once
from wmpo.data.records import EpisodeRecord, initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.envs import task_names
from wmpo.errors import UserError
from wmpo.families import save_model
from wmpo.io.files import read_json, write_json
from wmpo.io.plain import JsonObject, differences, numbers_of, to_plain
from wmpo.protocols import Env, Policy, RewardModel, TrainingStage, WorldModel
from wmpo.training import ranks
from wmpo.training.checkpoint import WEIGHTS
from wmpo.training.fit import Network, fit, step_seed
from wmpo.training.log import RunLog
from wmpo.types import EnvSpec

P = ParamSpec("P")
T = TypeVar("T")
DONE = "dream.png"  # which a run writes last


class Purpose(IntEnum):
    """What random numbers are for: each purpose has a stream of its own."""

    DEMONSTRATE = 0
    IMITATE = 1
    COLLECT = 2
    WORLD_MODEL = 3
    ALIGN = 4
    REWARD = 6
    PRACTISE = 7
    EVALUATE = 8
    EVALUATE_IN_PRACTICE = 9
    MEASURE_REPLAY = 10
    MEASURE_IMAGINED = 11
    KEYFRAMES = 13
    REPLAY = 14
    THRESHOLD = 16
    HELD_OUT = 17
    LABEL = 18
    DPO = 21
    SELF_IMITATION = 22
    ONLINE_GRPO = 23


def once(work: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """What meets the real environment or writes files, and so is one process's: of several, rank 0 does it, on its own;
    the others wait, and get its result and the episodes that it stored."""

    @wraps(work)
    def by_first(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result = ranks.first(lambda: work(run, *args, **kwargs))
        if ranks.rank() > 0:
            run.store.refresh()
            run.evaluation.refresh()
        return result

    return by_first


@dataclass
class Run:
    """Where a run lives and what it may use."""

    recipe: Recipe
    folder: Path
    log: RunLog
    device: torch.device
    env: Env  # the real environment
    store: EpisodeStore  # what is learned from
    evaluation: EpisodeStore  # what is only measured on

    def seed(self, *purpose: int) -> int:
        return step_seed(self.recipe.seed, *purpose)

    @once
    def initial_states(self, split: str, n: int, turn: int = 0) -> list[int]:
        """The first n initial states of a split; to collect and practise, only those of `collect.task`."""
        chosen, count = self.recipe.collect.task.split("+"), n
        found = initial_states(split, self.recipe.seed, count, turn)
        if chosen == [""] or split not in ("collect", "practise"):
            return found
        name_of = task_names(self.env)
        while len(found := [initial_state for initial_state in found if name_of(initial_state) in chosen]) < n:
            count *= 2
            found = initial_states(split, self.recipe.seed, count, turn)
        return found[:n]

    def fit(
        self,
        module: Network,
        sample: Callable[[int], Batch],
        config: FitConfig,
        name: str,
        seed: int,
        depends: Mapping[str, object] | None = None,
    ) -> Network:
        """Train in this run's folder, on its device; see `wmpo.training.fit`."""
        return fit(
            module, sample, config, folder=self.folder, name=name, log=self.log, device=self.device, seed=seed,
            depends=depends,
        )  # fmt: skip

    def shown_to(self, stage: TrainingStage, clips: VideoClips, name: str) -> VideoClips:
        """Clips as a stage of training takes them, which goes by this name: latents of their frames, where it has an
        encoder. Once it has ended none are needed."""
        clips = clips.lasting(stage.chunks)
        if stage.encoder is None:
            return clips

        def tell(missing: int) -> None:
            self.log.info(f"{name}: {missing} frames are encoded, once")

        stage.module.to(self.device)
        fitted = ranks.first((self.folder / name / WEIGHTS).exists)
        latents = {} if fitted else encode_once(clips.cache, clips.episodes, stage.encoder, tell)
        return clips.encoded(latents, stage.encoder.encoder_digest())

    @once
    def save(self, kind: str, family: str, model: Policy | WorldModel | RewardModel, folder: Path) -> None:
        """Write a model, see `wmpo.families.save_model`."""
        save_model(kind, family, model, folder, self.store.spec.fps)

    @once
    def same_inputs(self, stage: str, inputs: Mapping[str, object]) -> None:
        """Keep what the result of a stage follows from. Raises UserError where there is a result of something else."""
        path = self.folder / "inputs" / f"{stage}.json"
        if not path.exists():
            write_json(path, to_plain(inputs))
            return
        for was, now in differences(self.inputs_of(stage), to_plain(inputs)).values():
            raise UserError(
                f"{self.folder} has begun {stage} with {was}, not {now}: give the same to continue, or another folder."
            )

    def inputs_of(self, stage: str) -> JsonObject:
        """What `same_inputs` has kept; nothing where the stage has not begun."""
        path = self.folder / "inputs" / f"{stage}.json"
        kept = read_json(path) if path.exists() else {}
        return kept if isinstance(kept, dict) else {}

    def same_env(self) -> None:
        """All episodes of a folder are of one environment, with the same settings. Raises UserError otherwise."""
        settings = {name: value for name, value in numbers_of(self.recipe.env).items() if name != "renderer"}
        self.same_inputs("episodes", {"env": settings})

    def episodes(self, wanted: Callable[[EpisodeRecord], bool]) -> list[int]:
        """Indices of stored episodes, by source and initial state, whatever the order in which they ended."""
        records = list(self.store.records())
        order = {source: place for place, source in enumerate(dict.fromkeys(record.source for record in records))}
        chosen = [i for i, record in enumerate(records) if wanted(record)]
        numbers = initial_states_of(records)
        return sorted(chosen, key=lambda i: (order[records[i].source], numbers[i]))


def check_horizon(chunk: int, spec: EnvSpec) -> None:
    """Raise UserError where a policy would decide beyond the end of every episode."""
    if chunk > spec.horizon:
        raise UserError(
            f"policy.chunk is {chunk}, but episodes of this environment have at most {spec.horizon} actions: choose a "
            "shorter chunk."
        )


def is_demonstration(record: EpisodeRecord) -> bool:
    """Whether it is worth imitating; where nobody has said if it succeeds, an expert is taken to have done so."""
    return record.source == "expert" and (record.succeeded or record.unlabelled)


def is_rollout(record: EpisodeRecord) -> bool:
    return record.source.startswith("round-")


def tried_until(turn: int) -> Callable[[EpisodeRecord], bool]:
    """Whether a record is that of a rollout which this round may learn from: none of a later one, so that a round ends
    as it did when it is gone through again."""
    return lambda record: is_rollout(record) and round_of(record) <= turn


def round_of(record: EpisodeRecord) -> int:
    return int(record.source.removeprefix("round-"))


def is_shown(run: Run, record: EpisodeRecord) -> bool:
    """Whether dream and reward model learn from this attempt of an expert."""
    return is_demonstration(record) or (record.source == "expert" and run.recipe.demonstrations.failures)
