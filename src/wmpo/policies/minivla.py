"""MiniVLA: images + instruction (+ state) -> K x D discrete action tokens, decoded in parallel.

OpenVLA-OFT's discrete head on a network small enough for a laptop's CPU: every one of the K*D tokens is
read off the same fused features in one pass, each as a categorical over `bins` bins of [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import PolicyConfig
from wmpo.layers import Film, modulate, stack_cameras
from wmpo.text import SentenceEncoder
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import Decision, EnvSpec, Observation

TEXT_WIDTH = 64
KEYPOINTS = 32
SHARPNESS = 8.0  # so that attention picks out spots from the first step on, rather than averaging the image
LABEL_SMOOTHING_BINS = 1.0  # neighbouring bins are nearly right: soft labels teach their order


@dataclass(frozen=True)
class MiniVLAConfig:
    """What a saved MiniVLA needs to be built again."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # (height, width) of every camera
    state_dim: int
    action_dim: int
    chunk: int
    bins: int
    width: int
    hidden: int


class MiniVLA(nn.Module):
    """Fulfils `wmpo.protocols.Policy`; `forward` is the imitation loss."""

    action_low: Tensor
    action_high: Tensor
    state_mean: Tensor
    state_std: Tensor
    centers: Tensor
    grid: Tensor

    def __init__(self, config: MiniVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk = config.chunk
        height, width = config.image_size
        c = config.width
        self.text = SentenceEncoder(TEXT_WIDTH)
        self.stem = nn.Conv2d(3 * len(config.cameras), c, kernel_size=8, stride=4, padding=2)
        self.conv1, self.film1 = nn.Conv2d(c, c, 3, padding=1), Film(TEXT_WIDTH, c)
        self.norm1, self.norm2 = nn.GroupNorm(4, c), nn.GroupNorm(4, c)
        self.conv2, self.film2 = nn.Conv2d(c, c, 3, padding=1), Film(TEXT_WIDTH, c)
        # Where things are: the mean position of each channel's attention over the image, finer than a pixel.
        self.look = nn.Conv2d(c, KEYPOINTS, 1)
        rows, columns = torch.linspace(-1, 1, height // 4), torch.linspace(-1, 1, width // 4)
        self.register_buffer("grid", torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1))
        # What is roughly where, for all that is no single point.
        self.gist = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64 * c, 128), nn.SiLU())
        features = 2 * KEYPOINTS + 128 + TEXT_WIDTH + config.state_dim
        self.fuse = nn.Sequential(
            nn.Linear(features, config.hidden),
            nn.LayerNorm(config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
        )
        self.head = nn.Linear(config.hidden, config.chunk * config.action_dim * config.bins)
        self.register_buffer("centers", torch.linspace(-1, 1, config.bins))
        self.register_buffer("action_low", -torch.ones(config.action_dim))
        self.register_buffer("action_high", torch.ones(config.action_dim))
        self.register_buffer("state_mean", torch.zeros(config.state_dim))
        self.register_buffer("state_std", torch.ones(config.state_dim))

    @classmethod
    def build(cls, config: PolicyConfig, spec: EnvSpec) -> MiniVLA:
        sizes = set(spec.cameras.values())
        if len(sizes) != 1:
            raise ValueError(f"MiniVLA needs cameras of one size, not {sorted(sizes)}")
        return cls(
            MiniVLAConfig(
                cameras=tuple(spec.cameras),
                image_size=sizes.pop(),
                state_dim=spec.state_dim,
                action_dim=spec.action_dim,
                chunk=config.chunk,
                bins=config.bins,
                width=config.width,
                hidden=config.hidden,
            )
        )

    def set_statistics(self, action_low: Tensor, action_high: Tensor, state_mean: Tensor, state_std: Tensor) -> None:
        """Actions are mapped to [-1, 1] by their 1 % and 99 % quantiles, (D,) each; states to unit variance, (S,)."""
        self.action_low.copy_(action_low)
        self.action_high.copy_(torch.maximum(action_high, action_low + 1e-3))
        self.state_mean.copy_(state_mean)
        self.state_std.copy_(state_std.clamp(min=1e-3))

    def logits(self, observation: Observation) -> Tensor:
        """(B, K, D, bins) unnormalised log-probabilities."""
        cfg = self.config
        images = stack_cameras(dict(observation.images), cfg.cameras)
        text = self.text(observation.instruction)
        x = F.silu(self.stem(images))
        x = F.silu(modulate(self.norm1(self.conv1(x)), self.film1(text)))
        x = F.silu(modulate(self.norm2(self.conv2(x)), self.film2(text)))
        attention = F.softmax(SHARPNESS * self.look(x).flatten(2), dim=-1)  # (B, KEYPOINTS, H/4 * W/4)
        points = (attention @ self.grid).flatten(1)
        state = (observation.state - self.state_mean) / self.state_std
        return self.head(self.fuse(torch.cat([points, self.gist(x), text, state], dim=1))).unflatten(
            1, (cfg.chunk, cfg.action_dim, cfg.bins)
        )

    # Policy

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """The decision lies on the observation's device, wherever the policy itself computes."""
        there = observation.state.device
        logits = self.logits(observation.to(self.centers.device)).to(there)
        if temperature == 0:
            tokens = logits.argmax(-1)
            log_prob = torch.zeros_like(tokens, dtype=torch.float32)  # the greedy choice is certain
        else:
            log_probs = F.log_softmax(logits / temperature, dim=-1)
            flat = log_probs.exp().flatten(0, -2)
            tokens = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
            log_prob = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        chunk = self.decode_actions(tokens.to(self.centers.device)).to(there)
        return Decision(chunk=chunk, trace=tokens, log_prob=log_prob)

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        log_probs = F.log_softmax(self.logits(observation) / temperature, dim=-1)
        return log_probs.gather(-1, trace.unsqueeze(-1)).squeeze(-1)

    def decode_actions(self, tokens_BKD: Tensor) -> Tensor:
        """Bin centres, mapped back from [-1, 1] to the range of the demonstrated actions."""
        unit = (self.centers[tokens_BKD] + 1) / 2
        return (self.action_low + unit * (self.action_high - self.action_low)).clamp(-1, 1)

    # Imitation

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy to soft bins, averaged over valid tokens. `batch`: `wmpo.data.clips.ImitationBatch`."""
        logits = self.logits(batch.observation)
        unit = 2 * (batch.action - self.action_low) / (self.action_high - self.action_low) - 1  # (B, K, D)
        distance = (unit.clamp(-1, 1).unsqueeze(-1) - self.centers) * (self.config.bins - 1) / 2  # in bins
        target = F.softmax(-0.5 * (distance / LABEL_SMOOTHING_BINS).square(), dim=-1)
        cross_entropy = -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean(-1)  # (B, K)
        mask = batch.mask.float()
        loss = (cross_entropy * mask).sum() / mask.sum()
        with torch.no_grad():
            error = (self.centers[logits.argmax(-1)] - unit).abs().mean(-1)
            metrics = {"loss": loss.detach(), "action_error": (error * mask).sum() / mask.sum()}
        return loss, metrics

    # Files

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> MiniVLA:
        policy = cls(load_config(folder, MiniVLAConfig)[0])
        load_module(folder, policy)
        return policy.eval()
