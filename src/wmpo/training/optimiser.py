"""The optimiser of supervised training: which parameters it decays, its learning rate, the running mean of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wmpo.config import FitConfig
from wmpo.nn.muon import Muon, is_matrix
from wmpo.protocols import Trainable
from wmpo.training.fsdp import local

BETAS = (0.9, 0.99)
QUANTITIES = ("exp_avg", "exp_avg_sq", "momentum")  # of a parameter's shape, that an optimiser may keep of it


def make_optimizer(module: Trainable, config: FitConfig, device: torch.device) -> torch.optim.AdamW:
    """Decays matrices and kernels, but neither biases nor norms."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    matrices = [parameter for parameter in trained if kind is Muon and is_matrix(parameter)]
    taken = set(matrices)
    rest = [parameter for parameter in trained if parameter not in taken]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": config.weight_decay, "matrix": True},
        {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")  # on a CPU the unfused one can cost more than the backward pass
    return kind([group for group in groups if group["params"]], lr=config.lr, betas=BETAS, fused=fused)


def learning_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up to `config.lr`, then a cosine down to a tenth of it at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def move_average(average: dict[str, Tensor], module: Trainable, decay: float, step: int) -> None:
    """Let the running mean of the weights follow them by one step."""
    # early on a short memory, else the random initial weights would weigh for 1 / (1 - decay) steps
    decay = min(decay, (1 + step) / (10 + step))
    own = module.state_dict()
    moving = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([local(average[name]) for name in moving], [local(own[name]) for name in moving], 1 - decay)
    for name, tensor in average.items():
        if not tensor.is_floating_point():
            tensor.copy_(own[name])
