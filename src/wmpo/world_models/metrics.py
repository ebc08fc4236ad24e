"""How close imagined video is to real video. Images are uint8 in [0, 255]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PSNR_CAP = 100.0  # dB; equal images would have infinitely many, which no mean survives


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (..., C, H, W) uint8 images -> (...,) dB, at most 100. Higher is better.

    10 log10(255^2 / mean squared error); an error of one grey level everywhere is 48.1 dB.
    """
    error = (images.float() - reference.float()).square().mean((-3, -2, -1))
    return (10 * torch.log10(255**2 / error.clamp(min=1e-12))).clamp(max=PSNR_CAP)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of (..., C, H, W) uint8 images -> (...,), at most 1.

    The published constants: Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255; mean over
    channels and over all positions where the window fits. On images smaller than 11 pixels the window is cut to the
    largest odd size that fits.
    """
    # By hand: scikit-image would bring heavy dependencies for this one function, and torchmetrics needs torchvision.
    shape = images.shape
    x = images.reshape(-1, 1, *shape[-2:]).float()
    y = reference.reshape(-1, 1, *shape[-2:]).float()
    size = min(11, *shape[-2:])
    size -= 1 - size % 2
    offset = torch.arange(size, device=x.device) - size // 2
    window = torch.exp(-offset.float().square() / (2 * 1.5**2))
    window = window / window.sum()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window[None, None, :, None]), window[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).reshape(*shape[:-3], shape[-3]).mean(-1)


def sharpness(images: Tensor, reference: Tensor) -> float:
    """How strong the edges of (N, C, H, W) uint8 images are beside those of the reference: 1 is as sharp, less is
    blurred. Mean absolute difference of neighbouring pixels, over that of the reference."""

    def edges(frames: Tensor) -> Tensor:
        x = frames.float()
        return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()

    return float(edges(images) / edges(reference).clamp(min=1e-6))


class RandomFeatures(nn.Module):
    """Features of frames from convolutions with fixed random weights, at three scales. Nothing is learned.

    Random convolutions see edges, colours and textures well enough to distinguish sharp from blurred and right from
    wrong layouts; they know nothing of objects. Distances between their features are comparable only within one
    version of this project at one image size, never with published FID or FVD.
    """

    def __init__(self, channels: int = 3, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        wide_in = channels
        for level in range(3):
            layer = nn.Conv2d(wide_in, width * 2**level, 3, stride=2, padding=1)
            # He initialisation keeps the spread of features alike at all scales.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * wide_in)), generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.layers.append(layer)
            wide_in = width * 2**level
        self.requires_grad_(False)

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, 14 * width): mean and standard deviation over space of every channel."""
        x = frames_BCHW.float() / 127.5 - 1
        features = []
        for layer in self.layers:
            x = F.relu(layer(x))
            features += [x.mean((2, 3)), x.flatten(2).std(2, correction=0)]
        return torch.cat(features, 1)


def gaussian_frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Fréchet distance, squared, of two Gaussians: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))."""
    root_a = _symmetric_root(covariance_a.double())
    # (S_a S_b)^(1/2) has the eigenvalues of the root of this symmetric matrix.
    inner = torch.linalg.eigvalsh(root_a @ covariance_b.double() @ root_a).clamp(min=0).sqrt().sum()
    shift = (mean_a.double() - mean_b.double()).square().sum()
    spread = covariance_a.double().trace() + covariance_b.double().trace() - 2 * inner
    return max((shift + spread).item(), 0.0)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@torch.no_grad()
def random_feature_frechet(images: Tensor, reference: Tensor) -> float:
    """Random-feature Fréchet distance of two sets of uint8 frames (N, C, H, W); >= 0.

    Lower is better, 0 for equal sets. The sets needn't be of one size, but only distances computed with the same
    sizes compare, since small sets have a distance from chance alone. See `RandomFeatures` for what it can't see.
    """
    network = RandomFeatures(images.shape[-3]).to(images.device)
    parts = []
    for group in (images, reference):
        if len(group) < 2:
            raise ValueError("a Fréchet distance needs at least two images on each side")
        features_NF = torch.cat([network(part) for part in group.split(32)]).double()
        parts.append((features_NF.mean(0), features_NF.T.cov()))
    return gaussian_frechet(*parts[0], *parts[1])
