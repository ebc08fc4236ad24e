"""The world model: p(frames i..i+K | c past frames, K actions), a video diffusion model in the paper's sense.

One training step noises the K future frames, perturbs the context a little (noisy-frame conditioning), and asks the
denoiser for the clean future. One imagined chunk is a few Euler steps from noise.

Departures from the paper, each a setting in `WorldModelConfig`:
1. The network predicts clean frames, put together from frames that it has seen and a change; loss and sampler are those
   of rectified flow (velocity). With one sampling step this is the denoiser's own estimate, which deterministic scenes
   need.
2. The episode's first frame is always in view (`anchor`): without it long videos drift.
3. A frame's modulation sees its action and the chunk's sum of actions so far, not its action alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import WorldModelConfig
from wmpo.layers import zero_init
from wmpo.objectives import flow
from wmpo.training.checkpoint import load_config, load_module, save_module
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.codecs import PixelCodec, shift_image
from wmpo.world_models.unet import UNet

MOTION_SHARE = 4  # one sample in four is enough for the few weights of the motion prior
MOTION_SCALE = 10.0  # the motion prior has few weights and far to go: let it learn faster than the rest
CACHED_ROWS = 32  # videos that a CPU imagines at once: what lies in its caches goes twice as fast
LARGEST_WEIGHT = 4.0  # velocity weighting 1 / (1 - t)^2 is capped: near the data nothing is left to learn
SMALLEST_WEIGHT = 0.05  # pure noise would weigh nothing in the noise objective, yet sampling begins there


@dataclass(frozen=True)
class FlowWorldModelConfig:
    """What a saved world model needs to be built again."""

    settings: WorldModelConfig
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    chunk: int
    action_dim: int


@dataclass(frozen=True)
class Memory:
    """What the model knows of B videos; stays on the device between chunks."""

    context: Tensor  # (B, c, channels, h, w) latents of the last frames
    anchor: Tensor  # (B, channels, h, w) latent of the first frame

    def rows(self, index: Tensor | slice) -> Memory:
        return Memory(self.context[index], self.anchor[index])


class FlowWorldModel(nn.Module):
    """Fulfils `wmpo.protocols.WorldModel`; `forward` is the diffusion loss."""

    def __init__(self, config: FlowWorldModelConfig) -> None:
        super().__init__()
        self.config = config
        settings = config.settings
        self.codec = build_codec(settings)
        channels, height, width = self.codec.latent_shape(*config.image_size)
        self.latent = (channels * len(config.cameras), height, width)
        self.motion = None
        self.votes = 0  # per frame: how many numbers say where each place of the frame comes from
        if settings.motion_prior and settings.backbone == "unet":
            self.motion = zero_init(nn.Linear(config.action_dim, 2 * len(config.cameras), bias=False))
            self.votes = (2 + int(settings.anchor)) * len(config.cameras) * self.codec.sites
        self.denoiser = build_denoiser(config, self.latent, self.votes)

    @classmethod
    def build(cls, settings: WorldModelConfig, spec: EnvSpec, chunk: int) -> FlowWorldModel:
        sizes = set(spec.cameras.values())
        if len(sizes) != 1:
            raise ValueError(f"the world model needs cameras of one size, not {sorted(sizes)}")
        return cls(FlowWorldModelConfig(settings, tuple(spec.cameras), sizes.pop(), chunk, spec.action_dim))

    # Frames and latents

    def encode(self, images: dict[str, Tensor]) -> Tensor:
        """camera -> (..., C, H, W) uint8 becomes (..., channels, h, w), cameras side by side in channels."""
        parts = []
        for name in self.config.cameras:
            frames = images[name]
            latents = self.codec.encode(frames.flatten(0, -4))
            parts.append(latents.unflatten(0, frames.shape[:-3]))
        return torch.cat(parts, dim=-3)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, K, channels, h, w) -> frames of each camera, and states (none are imagined: S = 0)."""
        flat = latents.flatten(0, 1)
        parts = flat.chunk(len(self.config.cameras), dim=1)
        images = {
            name: self.codec.decode(part).unflatten(0, latents.shape[:2])
            for name, part in zip(self.config.cameras, parts, strict=True)
        }
        return images, torch.zeros(*latents.shape[:2], 0, device=latents.device)

    # Learning

    def predict(self, noisy: Tensor, t_B: Tensor, memory: Memory, action_BKD: Tensor, context_t_B: Tensor) -> Tensor:
        """The denoiser's estimate of the clean K frames, put together from what it has seen.

        estimate = sum_j weight_j source_j + change: each place of a frame comes from the last frame, from the first
        one (what was hidden behind something that moved), or from the last one moved as the actions say (`move`). The
        denoiser chooses, by a softmax at each place, and adds what none of them shows.
        """
        anchor = memory.anchor if self.config.settings.anchor else None
        last = memory.context[:, -1]
        if self.motion is None:
            return last[:, None] + self.denoiser(noisy, t_B, memory.context, anchor, action_BKD, context_t_B)
        with torch.no_grad():
            moved = self.move(last, action_BKD, self.codec.translate)
        seen = torch.cat([noisy, moved], dim=2)
        out = self.denoiser(seen, t_B, memory.context, anchor, action_BKD, context_t_B)
        change, votes = out.split([self.latent[0], self.votes], dim=2)
        still = [frame[:, None].expand_as(moved) for frame in (last, anchor) if frame is not None]
        sources = torch.stack([*still, moved], dim=2)  # (B, K, J, c, h, w)
        # One choice per camera and place serves all channels that describe the place.
        places = (len(self.config.cameras), -1, self.codec.sites)
        weight = votes.unflatten(2, (sources.shape[2], places[0], 1, places[2])).softmax(2)
        chosen = (weight * sources.unflatten(3, places)).sum(2)
        return chosen.flatten(2, 4) + change

    def move(self, last_Bchw: Tensor, action_BKD: Tensor, shift: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(B, K, c, h, w): the last frame, shifted as each prefix of the actions moves things in each camera."""
        assert self.motion is not None
        cameras = len(self.config.cameras)
        motion = MOTION_SCALE * self.motion(action_BKD.cumsum(1)).unflatten(-1, (cameras, 2))  # (B, K, cameras, 2)
        parts = last_Bchw.chunk(cameras, dim=1)
        return torch.cat([shift(part, motion[:, :, n]) for n, part in enumerate(parts)], dim=2)

    def motion_loss(self, memory: Memory, future: Tensor, action_BKD: Tensor) -> Tensor:
        """Teaches the motion prior alone: each place stood still, or came back to light, or moved along.

        Blurred latents are compared too, since they still overlap where the guess is far off.
        """
        losses = []
        for blur, shift in ((3, shift_image), (1, self.codec.translate)):
            last, anchor, true = (
                F.avg_pool2d(x.flatten(0, -4), blur, 1, blur // 2).view(x.shape) if blur > 1 else x
                for x in (memory.context[:, -1], memory.anchor, future)
            )
            guesses = (last[:, None], anchor[:, None], self.move(last, action_BKD, shift))
            losses.append(torch.stack([(guess - true).square().mean(2) for guess in guesses]).amin(0).mean())
        return losses[0] + losses[1]

    def add_noise(self, data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        if self.config.settings.objective == "flow":
            return flow.interpolate(data, noise, t_B)
        return flow.diffuse(data, noise, t_B)

    def loss_weight(self, t_B: Tensor) -> Tensor:
        if self.config.settings.objective == "flow":
            return flow.data_loss_weight(t_B, "velocity", LARGEST_WEIGHT)
        signal, noise = flow.signal_and_noise(t_B)
        return (signal / noise).square().clamp(SMALLEST_WEIGHT, LARGEST_WEIGHT)

    def draw_times(self, batch: int) -> Tensor:
        """(B,) training times: all that there are, or only those at which the sampler will ask."""
        settings = self.config.settings
        if settings.times == "sampler":
            return torch.randint(settings.sampling_steps, (batch,)) / settings.sampling_steps
        if settings.objective == "epsilon":
            return flow.sample_steps(batch, torch.default_generator)
        return flow.sample_times(batch, torch.default_generator)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """`batch`: `wmpo.data.clips.VideoBatch`. The loss is on the K future frames only."""
        with torch.no_grad():
            future = self.encode(batch.future)  # (B, K, channels, h, w)
            context = self.encode(batch.context)
            anchor = self.encode(batch.anchor)
        B = len(future)
        level = torch.full((B,), 1 - self.config.settings.context_noise, device=future.device)
        context = flow.interpolate(context, torch.randn_like(context), level)
        t_B = self.draw_times(B).to(future.device)
        noise = torch.randn_like(future)
        noisy = self.add_noise(future, noise, t_B)
        estimate = self.predict(noisy, t_B, Memory(context, anchor), batch.action, level)
        error_B = (estimate - future).square().mean(dim=(1, 2, 3, 4))
        # Errors of predicted data, weighed so that they equal errors of predicted velocity, or of predicted noise.
        loss = (self.loss_weight(t_B) * error_B).mean()
        if self.motion is not None:
            some = slice(0, max(1, B // MOTION_SHARE))
            loss = loss + self.motion_loss(Memory(context[some], anchor[some]), future[some], batch.action[some])
        with torch.no_grad():
            still = (context[:, -1:] - future).square().mean()
            metrics = {"loss": loss.detach(), "error": error_B.mean(), "error_of_standing_still": still}
        return loss, metrics

    # Imagining

    @torch.no_grad()
    def begin(self, first: Observation) -> Memory:
        """The first frame, repeated c times, is all the history there is."""
        anchor = self.encode(dict(first.images))
        return Memory(anchor[:, None].expand(-1, self.config.settings.context, -1, -1, -1), anchor)

    @torch.no_grad()
    def imagine(self, memory: Memory, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Memory, Tensor]:
        B, device = len(chunk_BKD), memory.anchor.device
        shape = (B, self.config.chunk, *self.latent)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(device)
        at_once = CACHED_ROWS if device.type == "cpu" else B
        latents = torch.cat(
            [self.sample(noise[rows], memory.rows(rows), chunk_BKD[rows]) for rows in slices(B, at_once)]
        )
        context = torch.cat([memory.context, latents], dim=1)[:, -self.config.settings.context :]
        return Memory(context, memory.anchor), latents

    def sample(self, noise: Tensor, memory: Memory, chunk_BKD: Tensor) -> Tensor:
        """(B, K, channels, h, w): the K frames that the sampler finds, from noise of that shape."""
        level = torch.full((len(noise),), 1 - self.config.settings.context_noise, device=noise.device)

        def denoise(noisy: Tensor, t_B: Tensor) -> Tensor:
            return self.predict(noisy, t_B, memory, chunk_BKD, level)

        sampler = flow.euler_sample if self.config.settings.objective == "flow" else flow.ddim_sample
        return sampler(denoise, noise, self.config.settings.sampling_steps)

    def select(self, memory: Memory, rows: Sequence[int]) -> Memory:
        return memory.rows(torch.as_tensor(rows, dtype=torch.long, device=memory.anchor.device))

    # Files

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> FlowWorldModel:
        model = cls(load_config(folder, FlowWorldModelConfig)[0])
        load_module(folder, model)
        return model.eval()


def slices(n: int, size: int) -> list[slice]:
    """0 to n in pieces of at most `size`."""
    return [slice(begin, begin + size) for begin in range(0, n, size)]


def build_codec(settings: WorldModelConfig) -> Any:
    """The frame codec. Its weights, where it has any, don't change while the denoiser learns."""
    if settings.codec == "pixels":
        return PixelCodec()
    from wmpo.world_models.autoencoder import Autoencoder, DiffusersCodec

    codec = Autoencoder() if settings.codec == "autoencoder" else DiffusersCodec(settings.codec_path)
    return codec.requires_grad_(False)


def build_denoiser(config: FlowWorldModelConfig, latent: tuple[int, int, int], votes: int) -> nn.Module:
    """`votes`: channels per frame that choose between sources, beside those that describe it."""
    settings = config.settings
    shared: dict[str, Any] = {
        "latent": latent,
        "context": settings.context,
        "chunk": config.chunk,
        "action_dim": config.action_dim,
        "width": settings.width,
        "depth": settings.depth,
        "anchor": settings.anchor,
        "action_conditioning": settings.action_conditioning,
    }
    if settings.backbone == "unet":
        # With a motion prior each frame comes with a guess of how it might look.
        return UNet(**shared, channels_in=latent[0] * (2 if votes else 1), channels_out=latent[0] + votes)
    from wmpo.world_models.transformer import SpaceTimeTransformer

    return SpaceTimeTransformer(**shared, heads=settings.heads)
