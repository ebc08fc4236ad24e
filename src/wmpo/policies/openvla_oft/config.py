"""What a saved OpenVLA-OFT needs to be built again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BINS = 256
"""Action tokens: as many as there are tokens at the end of the vocabulary that mean an action."""


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer, up to the layer whose output is used: the second-to-last."""

    image_size: int
    """Height and width of what it sees, in pixels."""
    patch: int
    """Height and width of a patch, in pixels."""
    width: int
    """Hidden size."""
    hidden: int
    """Width of the MLPs."""
    depth: int
    """Layers that are computed: one less than the whole tower has."""
    heads: int
    """Attention heads."""
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1], subtracted from pixels."""
    std: tuple[float, float, float]
    """Then divided by."""
    registers: int = 0
    """Register tokens beside the class token (DINOv2); SigLIP has neither."""


@dataclass(frozen=True)
class LanguageConfig:
    """The language model, a Llama."""

    vocabulary: int
    """Rows of the embedding, with those that only pad it to a round number."""
    padding: int
    """How many of the rows, at the end, are such padding; the action tokens are the 256 before them."""
    width: int = 4096
    """Hidden size."""
    hidden: int = 11008
    """Width of the MLPs."""
    depth: int = 32
    """Layers."""
    heads: int = 32
    """Attention heads."""
    kv_heads: int = 32
    """Heads of keys and values."""
    norm_eps: float = 1e-6
    """Added to the mean square in norms."""
    rope_theta: float = 10000.0
    """Base of the rotary positions."""
    positions: int = 2048
    """Longest sequence, in tokens."""


@dataclass(frozen=True)
class OpenVLAOFTConfig:
    cameras: tuple[str, ...]
    """Cameras in the order of training: the third-person view first, then those at the wrists."""
    state_dim: int | None
    """S where a token of the robot's state is seen; None: no state is read."""
    action_dim: int
    """D."""
    chunk: int
    """K: actions decided at once. Not part of a checkpoint: 8 for LIBERO and in the paper."""
    dino: TowerConfig
    siglip: TowerConfig
    language: LanguageConfig
    head: Literal["tokens", "l1"] = "tokens"
    """tokens: a distribution over 256 bins for every number of an action; l1: that number, without probabilities."""
    resize: Literal["lanczos", "bicubic"] = "lanczos"
    """How images of another size are resized: as in the data of OpenVLA-OFT, or as by OpenVLA's own image processor."""
    crop: float = 0.9
    """Area of the centre crop that images are enlarged from, after training with random crops; 1: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the networks. Weights are float32 either way: bfloat16 casts them where they are used, so that no
    small step is lost."""
    checkpointing: bool = False
    """Keep only the inputs of transformer layers for the backward pass and compute the rest again: less memory, about a
    third slower."""
    lora_rank: int = 0
    """Rank of the changes to linear layers that are trained in place of the weights (LoRA); 0: all weights are."""
    origin: str = ""
    """The folder of the checkpoint that it began from, to which `wmpo export` goes back."""
    tuned: str = ""
    """The folder that its statistics lay in, where that is another: beside an adapter."""
