"""Loading what a run saved, and making sure that it fits what it is used with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from wmpo.cli.parse import continuing
from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.families import check_rate
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.training.checkpoint import CONFIG, check_fits
from wmpo.types import EnvSpec

if TYPE_CHECKING:
    from wmpo.data.store import EpisodeStore

Model = TypeVar("Model", Policy, WorldModel, RewardModel)


def fitting(load: Callable[[Path], Model], folder: Path, spec: EnvSpec, device: torch.device) -> Model:
    """What `load` finds in a folder. Raises UserError where it is made for another environment than `spec`."""
    model = load(folder).to(device)
    check_fits(model, spec, folder)
    check_rate(folder, spec.fps)
    return model


def check_chunk(world_model: WorldModel, policy: Policy) -> None:
    if world_model.chunk != policy.chunk:
        raise UserError(
            f"The world model imagines {world_model.chunk} frames at a time, but the policy decides {policy.chunk} "
            "actions at once: train one of them with the other's chunk."
        )


def find_policy(folder: Path, name: str) -> tuple[str, Path]:
    """(name, folder) of a policy that a run saved; or any folder that holds one, whose name is its whole path, since
    folders of several runs are called base."""
    policies = folder / "policies"
    place = Path(name) if Path(name).resolve().parent == policies.resolve() else policies / name
    if (place / CONFIG).is_file():
        return place.name, place
    if (Path(name) / CONFIG).is_file():
        return str(Path(name).resolve()), Path(name)
    known = ", ".join(sorted(path.name for path in (folder / "policies").glob("*"))) or "none yet"
    raise UserError(f"There is no policy {name!r} in {folder} (policies: {known}), nor a folder of that name with one.")


def latest(recipe: Recipe, folder: Path) -> list[str]:
    """The base policy and the last one that practised, as far as the run has got."""
    names = ["base", *(f"wmpo-{turn}" for turn in range(recipe.rounds, 0, -1))]
    there = [name for name in names if (folder / "policies" / name / CONFIG).is_file()]
    if not there:
        raise UserError(f"The run in {folder} has no policy yet: continue it with {continuing(recipe, folder)}")
    return there[:2]


def last_models(folder: Path, spec: EnvSpec, device: torch.device) -> tuple[WorldModel, RewardModel] | None:
    """The world model and the reward model of a run's last round that has both."""
    from wmpo.config import ROUNDS
    from wmpo.rewards import load_reward_model
    from wmpo.world_models import load_world_model

    for turn in range(int(ROUNDS.most), 0, -1):
        world, reward = folder / f"world_model-{turn}", folder / f"reward_model-{turn}"
        if (world / CONFIG).is_file() and (reward / CONFIG).is_file():
            found = fitting(load_world_model, world, spec, device), fitting(load_reward_model, reward, spec, device)
            return found
    return None


def store_and_models(
    folder: Path, run: Path | None, device: torch.device
) -> tuple[EpisodeStore, tuple[WorldModel, RewardModel] | None]:
    """The episodes of a store, or of a run, and the models that dream and judge: those of `run`, or of that which the
    store lies in. Raises UserError where `run` has none."""
    from wmpo.data.store import EpisodeStore
    from wmpo.opening import RECIPE

    is_run = (folder / RECIPE).is_file()
    store = EpisodeStore.open(folder / "episodes" if is_run else folder)
    models = last_models(run or (folder if is_run else store.root.absolute().parent), store.spec, device)
    if run and models is None:
        raise UserError(f"{run} holds no world model with a reward model.")
    return store, models
