"""Can it be trained and saved as the stages do it?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmpo.contracts.behaviour import complains
from wmpo.data.clips import ImitationBatch, RewardBatch, VideoBatch
from wmpo.protocols import Policy, RewardModel, WorldModel
from wmpo.types import EnvSpec, Observation

OF_A_MODULE = (
    "parameters", "named_parameters", "state_dict", "load_state_dict", "to", "train", "eval", "requires_grad_",
)  # fmt: skip


@complains
def check_loss(module: Any, batch: object, what: str) -> list[str]:
    """Complaints about a network as `training.fit` uses it, tried on one batch."""
    for name in OF_A_MODULE:
        if not callable(getattr(module, name, None)):
            return [
                f"{what.capitalize()} has no method {name}: derive it from torch.nn.Module, or it can't be trained."
            ]
    answers = [module(batch, torch.Generator().manual_seed(0)) for _ in range(2)]
    if not isinstance(answers[0], tuple) or len(answers[0]) != 2:
        return [f"{what.capitalize()}, called with a batch and a generator, must answer (loss, metrics)."]
    (loss, metrics), (again, _) = answers
    if not isinstance(loss, Tensor) or loss.ndim:
        return [f"The loss of {what} must be a tensor of a single number."]
    complaints = []
    if not torch.isfinite(loss):
        complaints.append(f"The loss of {what} is {float(loss)} on an ordinary batch.")
    if not loss.requires_grad:
        complaints.append(f"The loss of {what} has no gradient, so that nothing can be learned.")
    if not isinstance(metrics, dict) or not all(isinstance(v, Tensor) and not v.ndim for v in metrics.values()):
        complaints.append(f"The metrics of {what} must be a dict of tensors of a single number each.")
    if float(loss.detach()) != float(again.detach()):
        complaints.append(f"Equal generators give {what} different losses: draw random numbers from the given one.")
    return complaints


@complains
def check_saving(model: Any) -> list[str]:
    """Complaints about save_pretrained and from_pretrained."""
    missing = [name for name in ("save_pretrained", "from_pretrained", "state_dict") if not hasattr(model, name)]
    if missing:
        return [f"It has no {missing[0]}, so that no run can be continued."]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        again = type(model).from_pretrained(Path(folder) / "model").state_dict()
    own = model.state_dict()
    if own.keys() != again.keys() or any(not torch.equal(own[name].cpu(), again[name].cpu()) for name in own):
        return ["from_pretrained gives other weights than save_pretrained was given."]
    return []


def check_imitation(policy: Policy, observation: Observation, action_dim: int) -> list[str]:
    """Complaints about a policy as the stage `imitate` uses it."""
    B, K = len(observation), policy.chunk
    action = torch.rand(B, K, action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return check_loss(policy, ImitationBatch(observation, action, torch.ones(B, K, dtype=torch.bool)), "the policy")


def check_world_model_training(model: WorldModel, spec: EnvSpec) -> list[str]:
    """Complaints about each stage that a world model names."""
    B, K, c = 4, model.chunk, model.context

    def shots(*leading: int) -> dict[str, Tensor]:
        return {name: pictures(size, B, *leading) for name, size in spec.cameras.items()}

    def clips(frames: int) -> VideoBatch:
        action, state = torch.rand(B, frames, spec.action_dim) * 2 - 1, torch.rand(B, 1 + frames, spec.state_dim)
        return VideoBatch(shots(c), shots(), shots(frames), action, state, state[:, 0], action.sum(1))

    complaints = []
    for align in (False, True):
        stages = model.training_stages(align=align)
        if not stages:
            return ["training_stages names no stage, so that nothing is learned."]
        for stage in stages:
            complaints += check_loss(stage.module, clips(stage.chunks * K), f"the stage {stage.name}")
    return complaints


def check_reward_model_training(model: RewardModel, spec: EnvSpec) -> list[str]:
    """Complaints about a reward model as its stage uses it."""
    clips = pictures(next(iter(spec.cameras.values())), 4, model.clip_length)
    batch = RewardBatch(clips, torch.tensor([0.0, 1.0, 0.0, 1.0]), ("do it",) * 4)
    complaints = check_loss(model, batch, "the reward model")
    if model.with_threshold(0.25).threshold != 0.25:
        complaints.append("with_threshold doesn't set the threshold.")
    return complaints


def pictures(size: tuple[int, int], *leading: int) -> Tensor:
    """(..., 3, H, W) uint8 of noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*leading, 3, *size), generator=generator, dtype=torch.uint8)
