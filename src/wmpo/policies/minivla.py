"""MiniVLA: images + instruction (+ state) -> K x D actions, on a network small enough for a laptop's CPU.

Two heads. tokens: OpenVLA-OFT's discrete head; every one of the K*D tokens is read off the same fused features in one
pass, each as a categorical over `bins` bins of [-1, 1], normalised. flow: the actions are denoised together, as in pi0.
Pictures of another size than the network's, and of cameras that differ, are padded or stretched to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import DIMENSIONS, STATE_DIMENSIONS, Between
from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError
from wmpo.losses.flow_policy import flow_matching_loss, path_log_prob, sample_path
from wmpo.nn.layers import Film, Resize, common_size, modulate, stack_cameras
from wmpo.nn.text import sentence_encoder
from wmpo.policies.flow_head import FlowHead
from wmpo.policies.settings import FlowConfig, MiniVLASettings
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import Decision, EnvSpec, Observation

if TYPE_CHECKING:
    from wmpo.data.clips import ImitationBatch

TEXT_WIDTH = 64
SMALLEST = 4  # pixels: the stem's stride
KEYPOINTS = 32
SHARPNESS = 8.0  # so that attention picks out spots from the first step on, rather than averaging the image
LABEL_SMOOTHING_BINS = 1.0  # neighbouring bins are nearly right: soft labels teach their order
DRAWS = 4  # noise levels that flow matching draws for each frame of a batch


@dataclass(frozen=True)
class MiniVLAConfig:
    """What a saved MiniVLA needs to be built again."""

    cameras: tuple[str, ...]
    canvas: tuple[int, int]  # (height, width) that pictures of every camera are brought to
    state_dim: Annotated[int, STATE_DIMENSIONS]
    action_dim: Annotated[int, DIMENSIONS]
    chunk: Annotated[int, Between(1, 1024)]
    bins: Annotated[int, Between(2, 65536)]
    width: Annotated[int, Between(4, 65536)]
    hidden: Annotated[int, Between(1, 65536)]
    head: Literal["tokens", "flow"] = "tokens"
    flow: FlowConfig = field(default_factory=FlowConfig)
    sentences: Literal["small", "minilm"] = "small"
    resize: Resize = "pad"


class MiniVLA(nn.Module):
    """Fulfils `wmpo.protocols.Policy`; `forward` is the imitation loss."""

    centers: Tensor
    grid: Tensor

    def __init__(self, config: MiniVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk = config.chunk
        height, width = config.canvas
        c = config.width
        self.text = sentence_encoder(config.sentences, TEXT_WIDTH)
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
        self.head: nn.Linear | FlowHead
        if config.head == "tokens":
            self.head = nn.Linear(config.hidden, config.chunk * config.action_dim * config.bins)
        else:
            self.head = FlowHead(config.hidden, config.chunk, config.action_dim, config.flow.noise == "learned")
        self.register_buffer("centers", torch.linspace(-1, 1, config.bins))
        self.bins = config.bins if config.head == "tokens" else 0
        self.normalizer = Normalizer(config.action_dim, config.state_dim)

    @classmethod
    def build(cls, config: MiniVLASettings, spec: EnvSpec) -> MiniVLA:
        canvas = common_size(spec.cameras, config.image_size)
        if min(canvas) < SMALLEST:
            raise UserError(
                f"MiniVLA needs pictures of {SMALLEST}x{SMALLEST} pixels or more, and the cameras give "
                f"{canvas[0]}x{canvas[1]}: set policy.image_size, to which they are enlarged."
            )
        return cls(
            MiniVLAConfig(
                cameras=tuple(spec.cameras),
                canvas=canvas,
                state_dim=spec.state_dim,
                action_dim=spec.action_dim,
                chunk=config.chunk,
                bins=config.bins,
                width=config.width,
                hidden=config.hidden,
                head=config.head,
                flow=config.flow,
                sentences=config.sentences,
                resize=config.resize,
            )
        )

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over what actions and states mean in the data that it will imitate."""
        self.normalizer.load_state_dict(normalizer.state_dict())

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest action that its tokens can choose, (D,) each."""
        return self.normalizer.action_low, self.normalizer.action_high

    def features(self, observation: Observation) -> Tensor:
        """(B, hidden), which the head turns into actions."""
        cfg = self.config
        images = stack_cameras(observation.images, cfg.cameras, cfg.canvas, cfg.resize)
        text = self.text(observation.instruction)
        x = F.silu(self.stem(images))
        x = F.silu(modulate(self.norm1(self.conv1(x)), self.film1(text)))
        x = F.silu(modulate(self.norm2(self.conv2(x)), self.film2(text)))
        attention = F.softmax(SHARPNESS * self.look(x).flatten(2), dim=-1)  # (B, KEYPOINTS, H/4 * W/4)
        points = (attention @ self.grid).flatten(1)
        state = self.normalizer.normalize_state(observation.state)
        return self.fuse(torch.cat([points, self.gist(x), text, state], dim=1))

    def logits(self, observation: Observation) -> Tensor:
        """(B, K, D, bins) unnormalised log-probabilities of the token head."""
        cfg = self.config
        return self.head(self.features(observation)).unflatten(1, (cfg.chunk, cfg.action_dim, cfg.bins))

    # Policy

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """The decision lies on the observation's device, wherever the policy itself computes.

        With the flow head the trace is the path from noise to actions, (B, steps + 1, K, D), and log-probabilities have
        a unit for each step in each dimension, U = steps * D. Temperature 0 adds no noise on the way.
        """
        there = observation.state.device
        if isinstance(self.head, FlowHead):
            cfg = self.config
            size = (len(observation), cfg.flow.steps + 1, cfg.chunk, cfg.action_dim)
            noise = torch.randn(size, generator=generator, device=there).to(self.centers.device)
            field = self.head.field(self.features(observation.to(noise.device)))
            path, log_prob = sample_path(field, noise, temperature * cfg.flow.level)
            return Decision(self.from_unit(path[:, -1]).to(there), path.to(there), log_prob.to(there))
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
        if isinstance(self.head, FlowHead):
            field = self.head.field(self.features(observation))
            return path_log_prob(field, trace, temperature * self.config.flow.level)
        log_probs = F.log_softmax(self.logits(observation) / temperature, dim=-1)
        return log_probs.gather(-1, trace.unsqueeze(-1)).squeeze(-1)

    def decode_actions(self, tokens_BKD: Tensor) -> Tensor:
        """Bin centres, as actions."""
        return self.from_unit(self.centers[tokens_BKD])

    def from_unit(self, unit_BKD: Tensor) -> Tensor:
        """Normalised actions in their own units; what goes beyond all that was demonstrated stops there."""
        return self.normalizer.limit_action(self.normalizer.unnormalize_action(unit_BKD))

    # Imitation

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy to soft bins, averaged over valid tokens; or flow matching."""
        unit = self.normalizer.normalize_action(batch.action)  # (B, K, D)
        if isinstance(self.head, FlowHead):
            return self._flow_loss(self.head, batch, unit, generator)
        logits = self.logits(batch.observation)
        distance = (unit.clamp(-1, 1).unsqueeze(-1) - self.centers) * (self.config.bins - 1) / 2  # in bins
        target = F.softmax(-0.5 * (distance / LABEL_SMOOTHING_BINS).square(), dim=-1)
        cross_entropy = -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean(-1)  # (B, K)
        mask = batch.mask.float()
        loss = (cross_entropy * mask).sum() / mask.sum()
        with torch.no_grad():
            error = (self.centers[logits.argmax(-1)] - unit).abs().mean(-1)
            metrics = {"loss": loss.detach(), "action_error": (error * mask).sum() / mask.sum()}
        return loss, metrics

    def _flow_loss(
        self, head: FlowHead, batch: ImitationBatch, unit: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """At several of the sampler's times for each frame, since the head costs little beside the image encoder."""
        steps, device = self.config.flow.steps, unit.device
        features, mask_BK = self.features(batch.observation), batch.mask.float()
        many = unit.repeat(DRAWS, 1, 1)
        noise = torch.randn(many.shape, generator=generator, device=device)
        t_B = torch.randint(steps, (len(many),), generator=generator, device=device) / steps
        loss = flow_matching_loss(head.field(features.repeat(DRAWS, 1)), many, noise, t_B, mask_BK.repeat(DRAWS, 1))
        with torch.no_grad():
            start = noise[: len(unit), None].expand(-1, steps + 1, -1, -1)
            error = (sample_path(head.field(features), start, 0.0)[0][:, -1] - unit).abs().mean(-1)
            metrics = {"loss": loss.detach(), "action_error": (error * mask_BK).sum() / mask_BK.sum()}
        return loss, metrics

    # Files

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> MiniVLA:
        policy = cls(load_config(folder, MiniVLAConfig))
        load_module(folder, policy)
        return policy.eval()
