"""Frame codecs that learn: a small convolutional autoencoder trained here, and pretrained ones from diffusers.

Both fulfil `wmpo.world_models.codecs.Codec`: uint8 images in, latents of about unit spread out, and back.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.errors import UserError, optional
from wmpo.nn.layers import ResidualBlock
from wmpo.world_models.codecs import shift_image


class Autoencoder(nn.Module):
    """Fulfils `wmpo.world_models.codecs.Codec`; `forward` is the reconstruction loss.

    Latents are centred and scaled per channel to unit spread by running statistics, which are buffers and travel with
    the weights. There is no KL term: the noise in training already asks for smooth latents.
    """

    pixels_per_latent = 1

    def __init__(
        self,
        latent_channels: int = 8,
        downsample: int = 4,
        width: int = 32,
        noise: float = 0.05,
    ) -> None:
        """64x64x3 becomes 16x16x8 with the defaults.

        downsample  a power of two, at least 2
        width       channels at half resolution; twice as many below that
        noise       added to latents of unit spread in training, so that slightly wrong latents still decode well
        """
        super().__init__()
        self.latent_channels, self.downsample, self.noise = latent_channels, downsample, noise
        levels = downsample.bit_length() - 1
        if downsample != 2**levels or levels < 1:
            raise ValueError(f"downsample must be a power of two, at least 2, not {downsample}")
        widths = [width] + [2 * width] * (levels - 1)
        # A patch of 2x2 pixels is one position from the start: full resolution is where convolutions cost most.
        down: list[nn.Module] = [nn.Conv2d(12, widths[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for fine, coarse in pairwise(widths):
            down += [ResidualBlock(fine, fine), nn.Conv2d(fine, coarse, 3, stride=2, padding=1)]
        down += [ResidualBlock(widths[-1], widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], latent_channels, 1)]
        for coarse, fine in pairwise(reversed(widths)):
            up += [ResidualBlock(coarse, coarse), nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1)]
        up += [ResidualBlock(widths[0], widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 12, 3, padding=1)]
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))
        self.observed: Tensor
        self.register_buffer("observed", torch.zeros(()))  # batches seen; a float, so that averages of weights take it

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, c, h, w) float32 of about unit spread."""
        return (self._encode(_unit(images_BCHW)) - self.latent_mean) / self.latent_std

    @torch.no_grad()
    def decode(self, latents_Bchw: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, H, W) uint8."""
        return _uint8(self._decode(latents_Bchw))

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.encoder(F.pixel_unshuffle(pixels, 2))

    def _decode(self, latents: Tensor) -> Tensor:
        """From latents of unit spread."""
        return F.pixel_shuffle(self.decoder(latents * self.latent_std + self.latent_mean), 2)

    def forward(
        self, images_BCHW: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction loss of (B, 3, H, W) uint8 images.

        loss  mean absolute error plus squared error of pixels in [-1, 1].
        psnr  dB of the batch as a whole, higher is better.
        """
        pixels = _unit(images_BCHW)
        raw = self._encode(pixels)
        if self.training:
            self.observed += 1
            # A plain mean at first, so that the starting values are soon forgotten; then the last 50 batches or so.
            self._observe(raw.detach(), rate=1 / self.observed.clamp(max=50))
        latents = (raw - self.latent_mean) / self.latent_std
        if self.training and self.noise > 0:
            latents = latents + self.noise * torch.randn(latents.shape, generator=generator, device=latents.device)
        error = self._decode(latents) - pixels
        loss = error.abs().mean() + error.square().mean()
        with torch.no_grad():
            psnr = 10 * torch.log10(4 / error.square().mean().clamp(min=1e-12))  # pixels span 2
        return loss, {"loss": loss.detach(), "psnr": psnr}

    @torch.no_grad()
    def _observe(self, raw_Bchw: Tensor, rate: float | Tensor) -> None:
        mean = raw_Bchw.mean((0, 2, 3))[:, None, None]
        std = raw_Bchw.std((0, 2, 3), correction=0)[:, None, None].clamp(min=1e-4)
        self.latent_mean.lerp_(mean.to(self.latent_mean), rate)
        self.latent_std.lerp_(std.to(self.latent_std), rate)

    def translate(self, latents_Bchw: Tensor, motion_BN2: Tensor) -> Tensor:
        """Latents shift much as their images do, since the autoencoder is convolutional."""
        return shift_image(latents_Bchw, motion_BN2)


# The config.json of stabilityai/sdxl-vae, as far as sizes go.
SDXL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 1024,
    "scaling_factor": 0.13025,
}  # fmt: skip


class DiffusersCodec(nn.Module):
    """A pretrained AutoencoderKL of diffusers from a local folder, frozen; the paper uses that of SDXL.

    Latents are posterior means times the scale factor in the folder's config (0.13025 for SDXL), shifted where the
    config has a shift. It computes in `dtype`; the weights of SDXL overflow in float16, bfloat16 is safe.
    """

    pixels_per_latent = 1

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """`path`: of the folder. On the device "meta" an empty one stands for SDXL's, to plan with."""
        super().__init__()
        planned = not path and torch.get_default_device().type == "meta"
        self.network: Any = _sdxl() if planned else _pretrained(Path(path), dtype)
        self.network.requires_grad_(False).eval()
        config = self.network.config
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.latent_channels = int(config.latent_channels)
        self.downsample = 2 ** (len(config.block_out_channels) - 1)

    def train(self, mode: bool = True) -> DiffusersCodec:
        """Always in eval mode: it is never trained here."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, c, h, w) float32 of about unit spread."""
        pixels = _unit(images_BCHW).to(self.network.dtype)
        latents = self.network.encode(pixels).latent_dist.mode().float()
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents_Bchw: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, H, W) uint8."""
        latents = (latents_Bchw.float() / self.scale + self.shift).to(self.network.dtype)
        return _uint8(self.network.decode(latents).sample.float())

    def translate(self, latents_Bchw: Tensor, motion_BN2: Tensor) -> Tensor:
        return shift_image(latents_Bchw, motion_BN2)


def _sdxl() -> Any:
    return optional("diffusers", "The diffusers codec needs").AutoencoderKL(**SDXL_VAE)


def _pretrained(folder: Path, dtype: torch.dtype) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not the folder of a diffusers autoencoder: it has no config.json.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no .safetensors weights; wmpo loads no other kind.")
    hub = optional("diffusers", "The diffusers codec needs")
    try:
        # low_cpu_mem_usage would need the accelerate package.
        return hub.AutoencoderKL.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=dtype
        )
    except Exception as error:  # diffusers, safetensors and json each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} can't be loaded as a diffusers AutoencoderKL: {reason}") from error


def _unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _uint8(pixels: Tensor) -> Tensor:
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
