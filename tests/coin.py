"""The smallest policy that practice can train, and the picture that tells it what to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmpo.data.clips import ImitationBatch
from wmpo.types import Decision, Observation


def pictures(white_B: Tensor) -> Tensor:
    """(B, 3, 2, 2) uint8, white or black."""
    return (white_B * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


class Coin(nn.Module):
    """A linear policy of picture and state over two tokens per action, sampled like a large one."""

    chunk = 2

    def __init__(self, state_dim: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(1 + state_dim, 4)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def log_probs(self, observation: Observation) -> Tensor:
        seen = observation.images["front"][:, 0, 0, :1].float() / 127.5 - 1
        logits = self.linear(torch.cat([seen, observation.state], 1))
        return logits.view(-1, 2, 2).log_softmax(-1)  # (B, K, tokens)

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        log_probs = self.log_probs(observation)
        tokens = torch.multinomial(log_probs.exp().flatten(0, 1), 1, generator=generator).view(-1, 2, 1)
        return Decision(tokens.float(), tokens, log_probs.gather(-1, tokens))

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        return self.log_probs(observation).gather(-1, trace)

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -self.log_probs(batch.observation).gather(-1, batch.action.long()).mean()
        return loss, {"loss": loss.detach()}


class Hand(nn.Module):
    """A policy that moves a gripper at random, each number from -1 to 1."""

    chunk = 4

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        chunk = 2 * torch.rand(len(observation), self.chunk, 4, generator=generator) - 1
        return Decision(chunk, chunk, torch.zeros_like(chunk))
