"""One tiny GRPO run, iteration by iteration.

`PYTHONPATH=tests python -m golden.make_grpo_curve` writes grpo_curve.json anew. Only a change that is meant to
alter the numbers of GRPO may do that, and its commit says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coin import Coin, pictures
from wmpo.config import GRPOConfig
from wmpo.grpo import advantages, play_groups, practise
from wmpo.training.log import RunLog, read_metrics
from wmpo.types import EnvSpec, Observation, Outcome

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
        self.images = pictures(self.goal > 0)
        return Observation({"front": self.images.clone()}, self.at.float()[:, None], ("walk",) * len(self.goal))

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        rows = list(rows)
        path = self.at[rows, None] + (2 * chunk_AKD[..., 0] - 1).cumsum(1)  # (A, K)
        self.at[rows], self.time[rows] = path[:, -1].long(), self.time[rows] + chunk_AKD.shape[1]
        success = path == self.goal[rows, None]
        images = self.images[rows, None].expand(-1, path.shape[1], -1, -1, -1)
        return Outcome({"front": images}, path[..., None].float(), success, success.any(1) | (self.time[rows] >= 8))

    def close(self) -> None: ...


def first_advantages() -> Tensor:
    """(E,) those of a first iteration: without any that differs from 0 a curve would prove nothing."""
    generator = torch.Generator().manual_seed(0)
    policy: Any = Coin(state_dim=1)
    groups = play_groups(Walk(), policy, STATES, CONFIG, generator=generator, temperature=1.0)
    return advantages(groups, CONFIG, generator)


def curve(folder: Path) -> dict[str, list[float]]:
    """Metric -> its value in each iteration."""
    policy: Any = Coin(state_dim=1)
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
