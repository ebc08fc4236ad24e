"""What the vision towers see: images of any size, resized, centre-cropped and normalised as in training.

The reference does this with TensorFlow and PIL, one image at a time; here each step is a matrix product over rows and
one over columns, equal to it within rounding. Departure: the reference also stores each image as a JPEG in between,
whose artefacts are left out.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

REACH = {"lanczos": 3, "bicubic": 2}  # of the kernels, in pixels


def prepare(image_BCHW: Tensor, size: int, kernel: str, crop: float) -> Tensor:
    """(B, C, H, W) uint8 to (B, C, size, size) uint8; `crop` is the area of the centre crop, 1 for none."""
    if image_BCHW.shape[-2:] != (size, size):
        image_BCHW = resize(image_BCHW, size, kernel)
    return centre_crop(image_BCHW, crop) if crop < 1 else image_BCHW


def resize(image_BCHW: Tensor, size: int, kernel: str = "lanczos") -> Tensor:
    """To (B, C, size, size), uint8 to uint8. The kernel widens where images shrink, as in TensorFlow and PIL."""
    rows, columns = (_kernel(length, size, kernel) for length in image_BCHW.shape[-2:])
    return _weigh(image_BCHW, rows, columns).round().clamp(0, 255).to(torch.uint8)


def centre_crop(image_BCHW: Tensor, area: float) -> Tensor:
    """The central `area` (a share) of images, enlarged to their own size: uint8 to uint8.

    Linear between pixels, corners on corners, as `tf.image.crop_and_resize`; then 255.5 / 255 times as bright and
    rounded down, as `tf.image.convert_image_dtype`.
    """
    rows, columns = (_linear(length, 1 - area**0.5) for length in image_BCHW.shape[-2:])
    return (_weigh(image_BCHW, rows, columns) * (255.5 / 255)).floor().clamp(0, 255).to(torch.uint8)


def normalise(image_BCHW: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 to float32, by the mean and the standard deviation, (C,) each, of values in [0, 1]."""
    return (image_BCHW.float() / 255 - mean[:, None, None]) / std[:, None, None]


def _weigh(image_BCHW: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """float32, whatever the networks compute in: new rows and columns as weighted sums of the image's."""
    device = image_BCHW.device
    autocast = torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
        return rows.to(device) @ image_BCHW.float() @ columns.to(device).T


@lru_cache(maxsize=16)
def _kernel(length: int, size: int, kernel: str) -> Tensor:
    """(size, length) weights of the pixels around each new pixel's centre."""
    scale, reach = length / size, REACH[kernel]
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale - 0.5
    x = ((torch.arange(length) - centre[:, None]) / max(scale, 1.0)).abs().clamp(max=reach)
    if kernel == "lanczos":
        weight = torch.sinc(x) * torch.sinc(x / reach)
    else:  # Keys' cubic with a = -1/2
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, far)
    return (weight / weight.sum(1, keepdim=True)).float()


@lru_cache(maxsize=16)
def _linear(length: int, margin: float) -> Tensor:
    """(length, length) weights of the two pixels on either side, leaving out half of `margin` (a share) at each end."""
    place = torch.linspace(margin / 2, 1 - margin / 2, length, dtype=torch.float64) * (length - 1)
    return (1 - (torch.arange(length) - place[:, None]).abs()).clamp(min=0).float()
