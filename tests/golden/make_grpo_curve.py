"""One tiny GRPO run, iteration by iteration: `python tests/golden/make_grpo_curve.py` writes grpo_curve.json anew.

Only a change that is meant to alter the numbers of GRPO may do that, and its commit says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wmpo.config import GRPOConfig
from wmpo.grpo import advantages, play_groups, practise
from wmpo.training.log import RunLog, read_metrics
from wmpo.types import Decision, EnvSpec, Observation, Outcome

CURVE = Path(__file__).with_name("grpo_curve.json")
METRICS = ("success", "loss", "groups_kept", "clip_fraction", "approx_kl", "grad_norm", "finish_step", "distance")
CONFIG = GRPOConfig(
    iterations=12, groups=6, group_size=6, lr=0.05, warmup=3, minibatches=3, micro_batch=16, max_resamples=1,
    clip_low=0.1, clip_high=0.15, temperature=1.0, freeze=(), ema=0.8, target_kl=50.0,
)  # fmt: skip
STATES = list(range(10))


class Walk:
    """Chunks of two steps left or right; success at 2 for even initial states, at -2 for odd ones, within 8 steps."""

    spec = EnvSpec({"front": (2, 2)}, 1, 1, 8, 1)

    def reset(self, initial_states: Sequence[int]) -> Observation:
        self.goal = torch.tensor([2 - 4 * (number % 2) for number in initial_states])
        self.at, self.time = torch.zeros_like(self.goal), torch.zeros_like(self.goal)
        self.images = ((self.goal > 0) * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return Observation(
            {"front": self.images.clone()}, self.at.float()[:, None], ("walk",) * len(self.goal)
        )  # fmt: skip

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        rows = list(rows)
        path = self.at[rows, None] + (2 * chunk_AKD[..., 0] - 1).cumsum(1)  # (A, K)
        self.at[rows], self.time[rows] = path[:, -1].long(), self.time[rows] + chunk_AKD.shape[1]
        success = path == self.goal[rows, None]
        images = self.images[rows, None].expand(-1, path.shape[1], -1, -1, -1)
        return Outcome({"front": images}, path[..., None].float(), success, success.any(1) | (self.time[rows] >= 8))

    def close(self) -> None: ...


class Walker(nn.Module):
    """Two tokens for each step, by a linear network of picture and place."""

    chunk = 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def log_probs(self, observation: Observation) -> Tensor:
        seen = observation.images["front"][:, 0, 0, :1].float() / 127.5 - 1
        return self.linear(torch.cat([seen, observation.state], 1)).view(-1, 2, 2).log_softmax(-1)

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        log_probs = self.log_probs(observation)
        tokens = torch.multinomial(log_probs.exp().flatten(0, 1), 1, generator=generator).view(-1, 2, 1)
        return Decision(tokens.float(), tokens, log_probs.gather(-1, tokens))

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        return self.log_probs(observation).gather(-1, trace)


def first_advantages() -> Tensor:
    """(E,) those of a first iteration: without any that differs from 0 a curve would prove nothing."""
    generator = torch.Generator().manual_seed(0)
    policy: Any = Walker()
    groups = play_groups(Walk(), policy, STATES, CONFIG, generator=generator, temperature=1.0)
    return advantages(groups, CONFIG, generator)


def curve(folder: Path) -> dict[str, list[float]]:
    """Metric -> its value in each iteration."""
    policy: Any = Walker()
    with RunLog(folder, quiet=True) as log:
        practise(
            Walk(), policy, STATES, CONFIG, seed=3, generator=torch.Generator(), folder=folder, name="golden", log=log
        )
    found = read_metrics(folder)
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    return {key: [value for _, value in found[f"golden/{key}"]] for key in METRICS} | {"weights": weights.tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = curve(Path(place))
    rows = ",\n".join(f' "{key}": {json.dumps([round(value, 7) for value in values])}' for key, values in found.items())
    CURVE.write_text(f"{{\n{rows}\n}}\n")
