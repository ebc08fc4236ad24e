"""Settings of the built-in world model; light, so that --help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from wmpo.config import FREE, Between, FitConfig, WorldModelConfig
from wmpo.errors import UserError, require_compiler, require_multiple, require_package


@dataclass(frozen=True)
class VideoDiffusionSettings(WorldModelConfig):
    """An action-conditioned video diffusion model."""

    backbone: Literal["unet", "transformer"] = "unet"
    """The denoiser: a convolutional U-Net (small machines) or the paper's space-time transformer."""
    codec: Literal["pixels", "autoencoder", "diffusers"] = "pixels"
    """What is denoised: pixels in patches, latents of a small autoencoder trained here, or those of a diffusers
    AutoencoderKL from a local folder. [paper: SDXL VAE]"""
    codec_path: str = ""
    """Folder of the diffusers autoencoder."""
    codec_downsample: Literal[2, 4, 8, 16] = 4
    """Pixels of the small autoencoder that one position of its latents stands for, in each direction; it gets twice as
    many channels as this number."""
    codec_width: Annotated[int, Between(1, 4096)] = 32
    """Channels of the small autoencoder at half resolution."""
    codec_rows: Annotated[int, Between(0, 1000000), FREE] = 0
    """Frames that are encoded or decoded at once; 0: all. Fewer take less memory."""
    codec_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=600, batch_size=32, lr=2e-3))
    """Training of the small autoencoder."""
    cache_latents: bool = True
    """With an autoencoder, and pictures that aren't moved (`shift` 0), training sees latents that are computed once and
    kept on disk, in half precision, beside the decoded frames. Else each frame is encoded in each step that shows
    it."""
    image_size: tuple[int, int] | None = None
    """Height and width in which cameras are imagined: each is scaled to them, and back. None: each keeps its pixels;
    smaller ones are filled up to the largest height and width by repeating their edge."""
    context: Annotated[int, Between(1, 256)] = 2
    """c: frames of history given to the denoiser. [paper 4]"""
    anchor: bool = True
    """Also give it the episode's first frame. [paper: no]"""
    motion_prior: bool = True
    """Let the U-Net composite each pixel of a frame from the last frame, the first one, or one of them warped with the
    robot, by a learned linear map from its motion to image motion. [paper: no]"""
    action_conditioning: Literal["frame", "chunk"] = "frame"
    """frame: each frame is modulated by its own action; chunk: all frames by the whole chunk. [paper: frame]"""
    objective: Literal["flow", "epsilon"] = "flow"
    """flow: rectified flow; epsilon: noise prediction. [paper epsilon, code flow]"""
    context_noise: Annotated[float, Between(0, 1)] = 0.015
    """Diffusion time whose noise perturbs the context in training, 0.05 being step 50 of 1000; its embedding is kept at
    sampling. [paper 0.05, code 0.015]"""
    training_timesteps: Literal["sampler", "all"] = "sampler"
    """Noise levels met in training. sampler: only those of the sampling steps, which saves a small model most of its
    work; all: logit-normal (flow) or uniform (epsilon). [paper: all]"""
    sampling_steps: Annotated[int, Between(1, 1000)] = 1
    """Euler steps per imagined chunk. [code 30]"""
    student_steps: Annotated[int, Between(0, 1000)] = 0
    """Euler steps per chunk of a student, distilled from the denoiser, that imagines in its place; 0: no student.
    Fewer than `sampling_steps`, those of its teacher, and a divisor of them. [paper: no]"""
    distil: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=300, batch_size=32, cpu_shards=2, lr=1e-3, ema=0.98)
    )
    """Training of the student, after pretraining and again after alignment."""
    imagined_rows: Annotated[int, Between(0, 1000000), FREE] = 0
    """Videos that are denoised at once; 0: all on a GPU, as many as lie in the caches of a CPU. Fewer take less memory,
    and end as they would together, but for rounding."""
    compile: Annotated[bool, FREE] = False
    """The denoiser that imagines is compiled (torch.compile), anew in each process: a minute or more, which a C++
    compiler must be there for; then a U-Net is faster on a CPU, and ends as it would have, but for rounding. Training
    stays as it is."""
    cuda_graphs: Annotated[bool, FREE] = False
    """On a GPU what the compiled denoiser launches is recorded once, and launched as one: a small network then waits
    less for Python, and takes more memory. Needs `compile`; does nothing on a CPU. Not tested on a GPU."""
    width: Annotated[int, Between(1, 16384)] = 32
    """Channels of the U-Net's fine level (the coarse one has four times as many), or width of the transformer."""
    depth: Annotated[int, Between(1, 256)] = 4
    """Residual blocks of the U-Net's coarse level, or pairs of blocks of the transformer."""
    heads: Annotated[int, Between(1, 256)] = 4
    """Attention heads of the transformer."""
    checkpointing: Annotated[bool, FREE] = False
    """Training keeps what comes into each of the transformer's blocks and computes the block again for its gradient: a
    third more arithmetic, a small part of the memory, the same gradients."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the denoiser; its weights are float32 either way. auto: bfloat16 where the machine has units for it
    (a GPU of 2020 or later, a CPU with AMX), which changes the last digits from machine to machine."""
    kinematics_fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=300, batch_size=32, lr=5e-3, warmup=20)
    )
    """Training of the few weights that know how the robot's state, and the picture with it, answers to actions."""
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=600, batch_size=32, cpu_shards=2, lr=2e-3, ema=0.995)
    )
    """Pretraining on the demonstrations."""
    align: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=500, batch_size=32, cpu_shards=2, lr=1e-3, ema=0.995)
    )
    """Policy behaviour alignment: training on the policy's own rollouts, failures included, and demonstrations."""

    def check_machine(self) -> None:
        if self.compile:
            require_compiler("world_model.compile is on")

    def check(self) -> None:
        if self.image_size is not None and not all(8 <= side <= 4096 for side in self.image_size):
            raise UserError(f"world_model.image_size is {self.image_size}; both sides must be from 8 to 4096 pixels.")
        if self.cuda_graphs and not self.compile:
            raise UserError("world_model.cuda_graphs needs world_model.compile, which is off.")
        for name in ("fit", "align", "distil"):  # those of the denoiser, which would go by its own setting
            if (asked := getattr(self, name).precision) != "float32":
                raise UserError(
                    f"world_model.{name}.precision is {asked}: set world_model.precision, the denoiser's, in its place."
                )
        unet = self.backbone == "unet"
        require_multiple("world_model.width", self.width, 8 if unet else math.lcm(4, 2 * self.heads))
        taught, teacher = self.student_steps, self.sampling_steps
        if taught and (taught == teacher or teacher % taught):
            raise UserError(
                f"world_model.student_steps is {taught}; it must be less than world_model.sampling_steps, {teacher}, "
                "the steps of its teacher, and divide them."
            )
        if self.student_steps and self.objective != "flow":
            raise UserError("world_model.student_steps needs world_model.objective flow, not epsilon.")
        if self.checkpointing and unet:
            raise UserError(
                "world_model.checkpointing is for the transformer: set world_model.backbone transformer too."
            )
        for name in ("cpu_shards", "accumulate"):
            if (parts := getattr(self.codec_fit, name)) > 1:
                raise UserError(
                    f"world_model.codec_fit.{name} is {parts}; it must be 1, since the autoencoder measures whole "
                    "batches."
                )
        if self.codec == "diffusers":
            require_package("world_model.codec is diffusers", "diffusers", "hub")
            if not (Path(self.codec_path) / "config.json").is_file():
                raise UserError(
                    f"world_model.codec is diffusers, but world_model.codec_path, {self.codec_path!r}, is no folder "
                    "with the config.json and weights of an AutoencoderKL: download one, the SDXL VAE for example."
                )
