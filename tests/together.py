"""A program for several processes, started by `test_ranks`: it learns a line and a guess, or goes wrong when told to.

torchrun --nproc-per-node 2 tests/together.py FOLDER [as usual | error | kill]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from coin import Coin, pictures
from test_grpo import STARTS, Guess
from test_training_fit import Line, sample
from wmpo.cli import exit_status
from wmpo.config import FitConfig, GRPOConfig
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.grpo import practise
from wmpo.training import ranks, resume
from wmpo.training.fit import fit
from wmpo.training.log import RunLog
from wmpo.types import Observation

FIT = FitConfig(steps=25, warmup=2, lr=0.05, ema=0.9, cpu_shards=2, accumulate=2)
PRACTICE = GRPOConfig(
    iterations=4, groups=8, group_size=6, lr=0.2, warmup=0, minibatches=2, max_resamples=1, temperature=1.0, shards=4,
    kl_coef=0.01,
)  # fmt: skip
TROUBLE = 12


class HalfUsed(Line):
    """Has weights that only some parts of a batch use, and others that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes, self.never = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def forward(self, x_B3: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(x_B3, generator)
        return (loss + self.sometimes if x_B3[0, 0] > 0.5 else loss), metrics


class Shaky(Coin):
    """Its imitation loss depends on random numbers, as those of policies that denoise actions do."""

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(batch, generator)
        return loss * torch.rand((), generator=generator), metrics


def heads(step: int) -> ImitationBatch:
    observation = Observation({"front": pictures(torch.arange(6) % 2)}, torch.zeros(6, 0), ("guess",) * 6)
    return ImitationBatch(observation, torch.ones(6, 2, 1), torch.ones(6, 2, dtype=torch.bool))


def learn_line(folder: Path, log: RunLog, trouble: str = "") -> dict[str, Tensor]:
    def troubled(step: int) -> Tensor:
        if step == TROUBLE and ranks.rank() == 1:
            if trouble == "error":
                raise UserError("The second process has had enough: give it less.")
            if trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return sample(step)

    often = 0.0 if trouble else 20.0
    model = fit(HalfUsed(), troubled, FIT, folder=folder, name="line", log=log, checkpoint_seconds=often)
    return model.state_dict()


def learn_guess(folder: Path, log: RunLog) -> dict[str, Tensor]:
    """In shards; and in one, by a policy that imitates with noise beside, with rewards shuffled, as a control is."""
    whole = replace(PRACTICE, shards=1, shuffle_rewards=True, imitation_coef=0.5)
    found = {}
    for name, policy, cfg in (("guess", Coin(), PRACTICE), ("whole", Shaky(), whole)):
        practise(
            Guess(), policy, STARTS, cfg, seed=5, generator=torch.Generator(), folder=folder, name=name, log=log,
            shown=heads,
        )  # fmt: skip
        found |= {f"{name}/{key}": tensor for key, tensor in policy.state_dict().items()}
    return found


def learn(folder: Path, trouble: str = "") -> dict[str, Tensor]:
    """All that is learned here, by one process or several."""
    torch.set_num_threads(1)
    with RunLog(folder, quiet=True) as log:
        return {**learn_line(folder, log, trouble), **learn_guess(folder, log)}


def refuse(path: Path, *rest: object) -> None:
    raise AssertionError(f"rank {ranks.rank()} writes {path}, which is the first one's to do")


def main() -> int:
    ranks.start()
    folder = Path(sys.argv[1])
    if ranks.rank() > 0:
        resume.save_tensors = refuse
    weights = learn(folder, sys.argv[2])
    every = ranks.gather(weights)
    assert len(every) == ranks.world() == int(os.environ["WORLD_SIZE"])
    for other in every:
        assert all(torch.equal(other[name], weights[name]) for name in weights)
    assert ranks.agree(ranks.rank() == 1, False) == (True, False)
    assert ranks.first(lambda: (os.getpid(), ranks.world())) == (ranks.gather([os.getpid()])[0][0], 1)
    ranks.end()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
