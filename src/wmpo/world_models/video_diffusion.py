"""The world model: p(frames i..i+K | c past frames, K actions), a video diffusion model in the paper's sense.

One training step noises the K future frames, perturbs the context a little (noisy-frame conditioning), and asks the
denoiser for the clean future. One imagined chunk is a few Euler steps from noise.

Departures from the paper, each a setting in `VideoDiffusionSettings`:
1. The network predicts clean frames, put together from frames that it has seen and a change; loss and sampler are those
   of rectified flow (velocity). With one sampling step this is the denoiser's own estimate, which deterministic scenes
   need.
2. The episode's first frame is always in view (`anchor`): without it long videos drift.
3. A frame's modulation sees its action and how the robot's pose changes (`Kinematics`), not its action alone.
4. The proprioceptive state, where there is one, is imagined along with the pictures.
5. A student of fewer steps may imagine in place of the denoiser that taught it (`Distillation`).

States and actions that come in or go out have the units of the data; the networks see them normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmpo.data.clips import VideoBatch
from wmpo.data.normalizer import Normalizer
from wmpo.losses import flow
from wmpo.nn.precision import computing_in
from wmpo.protocols import TrainingStage
from wmpo.training.checkpoint import digest_of, digest_of_values, load_config, load_module, save_module
from wmpo.training.parallel import parallel_map
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.autoencoder import Autoencoder, DiffusersCodec
from wmpo.world_models.cameras import CommonSize
from wmpo.world_models.codecs import PixelCodec
from wmpo.world_models.compiled import Compiled
from wmpo.world_models.distillation import Distillation
from wmpo.world_models.kinematics import Kinematics
from wmpo.world_models.memory import Memory
from wmpo.world_models.networks import CodecTraining, VideoDiffusionConfig, build_codec, build_denoiser
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.transformer import SpaceTimeTransformer
from wmpo.world_models.unet import UNet

CACHED_ROWS = 32  # videos that a CPU imagines at once: what lies in its caches goes twice as fast
CACHED_VALUES = CACHED_ROWS * 3 * 64 * 64  # and the values in a frame of each, so fewer videos where these are large
LARGEST_WEIGHT = 4.0  # velocity weighting 1 / (1 - t)^2 is capped: near the data nothing is left to learn
SMALLEST_WEIGHT = 0.05  # pure noise would weigh nothing in the noise objective, yet sampling begins there


class Known(NamedTuple):
    """Who estimates, what it is given beside the noisy frames of a chunk, and what it may put a frame together from."""

    denoiser: UNet | SpaceTimeTransformer | Compiled
    past: list[Tensor]  # what the denoiser keeps of context and anchor
    last: Tensor  # (B, channels, h, w): the last frame of the context
    conditioning: Tensor  # (B, K, E): actions and poses
    still: list[Tensor]  # each (B, K, channels, h, w): frames that were seen
    warped: list[Tensor]  # the same, moved along with the robot


class Imagined(NamedTuple):
    """K imagined frames of B videos."""

    latents: Tensor  # (B, K, channels, h, w)
    pose: Tensor  # (B, K, P)


class VideoDiffusionModel(nn.Module):
    """Fulfils `wmpo.protocols.WorldModel`; `forward` is the diffusion loss."""

    def __init__(self, config: VideoDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk, self.context = config.chunk, config.settings.context
        settings = config.settings
        self.codec: PixelCodec | Autoencoder | DiffusersCodec = build_codec(settings)
        downsample = self.codec.downsample
        self.cameras = CommonSize(config.cameras, settings.image_size, multiple=2 * downsample)
        height, width = (side // downsample for side in self.cameras.size)
        self.latent = (self.codec.latent_channels * len(config.cameras), height, width)
        self.kinematics = Kinematics(config.state_dim, config.action_dim, tuple(config.cameras))
        self.composites = settings.motion_prior and settings.backbone == "unet"
        self.mask_logits = 0  # per frame: how many numbers say from which source each of its pixels comes
        if self.composites:
            sources = 2 * (1 + int(settings.anchor))
            self.mask_logits = sources * len(config.cameras) * self.codec.pixels_per_latent
        shape = (config, self.latent, self.mask_logits, self.kinematics.pose_dim)
        self.denoiser = build_denoiser(*shape)
        self.student = build_denoiser(*shape) if settings.student_steps else None

    @classmethod
    def build(cls, settings: VideoDiffusionSettings, spec: EnvSpec, chunk: int) -> VideoDiffusionModel:
        config = VideoDiffusionConfig(settings, dict(spec.cameras), chunk, spec.action_dim, spec.state_dim)
        return cls(config)

    # Training

    def training_stages(self, align: bool) -> list[TrainingStage]:
        """Kinematics first, since the rest builds on them; then the autoencoder, if there is one; then the denoiser,
        and its student."""
        settings = self.config.settings
        stages = [TrainingStage("kinematics", self.kinematics, settings.kinematics_fit)]
        if isinstance(self.codec, Autoencoder) and not align:  # the other codecs come ready-made
            stages.append(TrainingStage("autoencoder", CodecTraining(self.codec, self.cameras), settings.codec_fit))
        once = settings.cache_latents and not settings.shift and not isinstance(self.codec, PixelCodec)
        fit = settings.align if align else settings.fit
        encoder = self if once else None
        stages.append(TrainingStage("denoiser", self, fit, encoder))
        if self.student is not None:
            stages.append(Distillation(self).stage(encoder, first=not align))
        return stages

    def units(self) -> list[nn.Module]:
        return [*self.denoiser.blocks, *(self.student.blocks if self.student is not None else ())]

    @property
    def normalizer(self) -> Normalizer:
        return self.kinematics.normalizer

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over how the actions and states of a data set are normalised."""
        self.normalizer.load_state_dict(normalizer.state_dict())

    # Frames and latents

    def encode(self, images: dict[str, Tensor]) -> Tensor:
        """camera -> (..., C, H, W) uint8 becomes (..., channels, h, w), cameras side by side in channels. Numbers that
        aren't uint8 are latents of a camera already."""
        parts = [self.encode_camera(name, images[name]) for name in self.config.cameras]
        return torch.cat(parts, dim=-3)

    def encode_camera(self, camera: str, frames: Tensor) -> Tensor:
        if frames.is_floating_point():
            return frames.float()
        frames = self.cameras.enter(camera, frames)
        latents = in_pieces(self.codec.encode, frames.flatten(0, -4), self.config.settings.codec_rows)
        return latents.unflatten(0, frames.shape[:-3])

    def latent_shape(self, camera: str) -> tuple[int, int, int]:
        return (self.codec.latent_channels, *self.latent[1:])

    def encoder_device(self) -> torch.device:
        return self.kinematics.moves.weight.device

    def encoder_digest(self) -> str:
        own = {name: getattr(self.codec, name) for name in ("scale", "shift", "precision") if hasattr(self.codec, name)}
        sizes = {"own": self.cameras.own, "inner": self.cameras.inner, "size": self.cameras.size}
        return digest_of_values({"codec": digest_of(self.codec), **own, **sizes})

    @torch.no_grad()
    def decode(self, imagined: Imagined) -> tuple[dict[str, Tensor], Tensor]:
        """Frames of each camera, (B, K, C, H, W) uint8, and states (B, K, S)."""
        return self.decode_some(imagined, {name: slice(None) for name in self.config.cameras})

    @torch.no_grad()
    def decode_some(self, imagined: Imagined, frames: Mapping[str, slice]) -> tuple[dict[str, Tensor], Tensor]:
        """The same, of some of the K frames of some cameras."""
        parts = dict(zip(self.config.cameras, imagined.latents.chunk(len(self.config.cameras), dim=2), strict=True))
        images = {}
        for name, some in frames.items():
            shown = parts[name][:, some]
            pixels = in_pieces(self.codec.decode, shown.flatten(0, 1), self.config.settings.codec_rows)
            images[name] = self.cameras.leave(name, pixels.unflatten(0, shown.shape[:2]))
        return images, self.kinematics.state(imagined.pose)

    # Learning

    def known(
        self, memory: Memory, action_BKD: Tensor, pose_BKP: Tensor, denoiser: UNet | SpaceTimeTransformer | Compiled
    ) -> Known:
        """What the estimates of one chunk have in common, however noisy the frames."""
        anchor = memory.anchor if self.config.settings.anchor else None
        last = memory.context[:, -1]
        level_B = torch.full((len(last),), 1 - self.config.settings.context_noise, device=last.device)
        with computing_in(self.config.settings.precision, last.device):
            past = denoiser.remember(memory.context, anchor, level_B)
        since_last = pose_BKP - memory.pose[:, None]
        conditioning = [self.normalizer.normalize_action(action_BKD), since_last]
        if self.config.state_dim:
            conditioning.append(pose_BKP)
        conditioning_BKE = torch.cat(conditioning, dim=-1)
        if not self.composites:
            return Known(denoiser, past, last, conditioning_BKE, [], [])
        with torch.no_grad():
            # sharp pictures of the hand, however long the dream: the first frame is moved only once
            warped = [self.warp(last, since_last)]
            if anchor is not None:
                warped.append(self.warp(anchor, pose_BKP - memory.first_pose[:, None]))
            still = [frame[:, None].expand_as(warped[0]) for frame in (last, anchor) if frame is not None]
        return Known(denoiser, past, last, conditioning_BKE, still, warped)

    def predict(self, noisy: Tensor, t_B: Tensor, known: Known) -> Tensor:
        """The denoiser's estimate of the clean K frames, put together from what it has seen.

        estimate = sum_j weight_j source_j + change: each pixel comes from the last frame, from the first one (what was
        hidden behind something that moved), or from one of them moved along with the robot (`warp`). The weights are a
        softmax over the denoiser's mask logits at each pixel; the change adds what no source shows.
        """
        inputs = torch.cat([noisy, *known.warped], dim=2) if known.warped else noisy
        with computing_in(self.config.settings.precision, inputs.device):
            out = known.denoiser(inputs, t_B, known.past, known.conditioning)
        out = out.float()
        if not self.composites:
            return known.last[:, None] + out
        change, mask_logits = out.split([self.latent[0], self.mask_logits], dim=2)
        sources = torch.stack([*known.still, *known.warped], dim=2)  # (B, K, J, c, h, w)
        # One mask per camera and pixel serves all channels that describe the pixel.
        cameras, pixels = len(self.config.cameras), self.codec.pixels_per_latent
        masks = mask_logits.unflatten(2, (sources.shape[2], cameras, 1, pixels)).softmax(2)
        composite = (masks * sources.unflatten(3, (cameras, -1, pixels))).sum(2)
        return composite.flatten(2, 4) + change

    def warp(self, frame_Bchw: Tensor, change_BKP: Tensor) -> Tensor:
        """(B, K, c, h, w): a frame, moved in each camera as the robot is by a change of pose."""
        motion = self.kinematics.motion(change_BKP)  # (B, K, cameras, 2)
        frames = frame_Bchw.chunk(len(self.config.cameras), dim=1)
        moved = [
            self.codec.translate(frame, self.cameras.scale_motion(name, way))
            for name, frame, way in zip(self.config.cameras, frames, motion.unbind(2), strict=True)
        ]
        return torch.cat(moved, dim=2)

    def add_noise(self, data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        if self.config.settings.objective == "flow":
            return flow.interpolate(data, noise, t_B)
        return flow.diffuse(data, noise, t_B)

    def loss_weight(self, t_B: Tensor) -> Tensor:
        if self.config.settings.objective == "flow":
            return flow.velocity_loss_weight(t_B, LARGEST_WEIGHT)
        signal, noise = flow.signal_and_noise(t_B)
        return (signal / noise).square().clamp(SMALLEST_WEIGHT, LARGEST_WEIGHT)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B,) training times: all that there are, or only those at which the sampler will ask."""
        settings = self.config.settings
        if settings.training_timesteps == "sampler":
            steps = settings.sampling_steps
            return torch.randint(steps, (batch,), generator=generator, device=generator.device) / steps
        if settings.objective == "epsilon":
            return flow.sample_steps(batch, generator)
        return flow.sample_times(batch, generator)

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoiser's loss, on the K future frames only; kinematics and codec stay as they are."""
        with torch.no_grad():
            future = self.encode(batch.future)  # (B, K, channels, h, w)
            context = self.encode(batch.context)
            anchor = self.encode(batch.anchor)
            first_pose, pose = self.kinematics.poses(batch)
            expected = self.kinematics.follow(pose[:, 0], batch.action)
        generator = generator or torch.default_generator
        B = len(future)
        level = torch.full((B,), 1 - self.config.settings.context_noise, device=future.device)
        context = self.add_noise(context, flow.standard_normal(context.shape, context.device, generator), level)
        t_B = self.draw_times(B, generator).to(future.device)
        noise = flow.standard_normal(future.shape, future.device, generator)
        noisy = self.add_noise(future, noise, t_B)
        memory = Memory(context, anchor, pose[:, 0], first_pose)
        estimate = self.predict(noisy, t_B, self.known(memory, batch.action, expected, self.denoiser))
        error_B = (estimate - future).square().mean(dim=(1, 2, 3, 4))
        # Errors of predicted data, weighed so that they equal errors of predicted velocity, or of predicted noise.
        loss = (self.loss_weight(t_B) * error_B).mean()
        with torch.no_grad():
            still = (context[:, -1:] - future).square().mean()
            metrics = {"loss": loss.detach(), "error": error_B.mean(), "error_of_standing_still": still}
        return loss, metrics

    # Imagining

    @torch.no_grad()
    def begin(self, first: Observation) -> Memory:
        """The first frame, repeated c times, is all the history there is."""
        anchor = self.encode(dict(first.images))
        travel = torch.zeros(len(anchor), self.config.action_dim, device=anchor.device)
        pose = self.kinematics.pose(first.state, travel)
        return Memory(anchor[:, None].expand(-1, self.config.settings.context, -1, -1, -1), anchor, pose, pose)

    @torch.no_grad()
    def imagine(self, memory: Memory, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Memory, Imagined]:
        B, device = len(chunk_BKD), memory.anchor.device
        noise = flow.standard_normal((B, self.config.chunk, *self.latent), device, generator)
        cached = min(max(CACHED_VALUES // math.prod(self.latent), 1), CACHED_ROWS)
        at_once = self.config.settings.imagined_rows or max(B, cached)
        at_once = min(at_once, cached) if device.type == "cpu" else at_once
        pose = self.kinematics.follow(memory.pose, chunk_BKD)
        given = [
            (noise[rows], memory.rows(rows), chunk_BKD[rows], pose[rows], len(noise[rows]) == at_once)
            for rows in slices(B, at_once)
        ]
        latents = torch.cat(parallel_map(self.sample, *zip(*given, strict=True), device=device))
        return memory.then(latents, pose[:, -1]), Imagined(latents, pose)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, memory: Memory, chunk_BKD: Tensor, pose_BKP: Tensor, as_usual: bool = False
    ) -> Tensor:
        """(B, K, channels, h, w): the K frames that the sampler finds, from noise of that shape. `as_usual`: of as many
        videos as nearly always, for which alone compiling is worth while."""
        settings = self.config.settings
        denoiser, steps = self.denoiser, settings.sampling_steps
        if self.student is not None:
            denoiser, steps = self.student, settings.student_steps
        compiles = settings.compile and as_usual and noise.device.type != "meta"
        graphs = settings.cuda_graphs and noise.device.type == "cuda"
        known = self.known(memory, chunk_BKD, pose_BKP, Compiled(denoiser, graphs) if compiles else denoiser)
        sampler = flow.euler_sample if settings.objective == "flow" else flow.ddim_sample
        return sampler(lambda noisy, t_B: self.predict(noisy, t_B, known), noise, steps)

    def select(self, memory: Memory, rows: Sequence[int]) -> Memory:
        return memory.rows(torch.as_tensor(rows, dtype=torch.long, device=memory.anchor.device))

    # Files

    def save_pretrained(self, folder: Path) -> None:
        # other machines may not be able to compile
        settings = replace(self.config.settings, compile=False, cuda_graphs=False)
        save_module(folder, self, replace(self.config, settings=settings))

    @classmethod
    def from_pretrained(cls, folder: Path) -> VideoDiffusionModel:
        model = cls(load_config(folder, VideoDiffusionConfig))
        load_module(folder, model)
        return model.eval()


def in_pieces(work: Callable[[Tensor], Tensor], frames: Tensor, rows: int) -> Tensor:
    """`work(frames)`, on so many rows at a time; 0: on all."""
    return torch.cat([work(part) for part in frames.split(rows)]) if 0 < rows < len(frames) else work(frames)


def slices(n: int, size: int) -> list[slice]:
    """0 to n in pieces of at most `size`."""
    return [slice(begin, begin + size) for begin in range(0, n, size)]
