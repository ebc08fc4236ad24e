"""The networks of OpenVLA-OFT, from transformers' modules: two vision towers, projectors, a Llama, and the L1 head.

Names inside follow the published checkpoints where the modules are ours, and transformers where they are its own.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from wmpo.errors import optional
from wmpo.policies.openvla_oft.config import LanguageConfig, TowerConfig


def transformers() -> ModuleType:
    """The package, imported where it is used."""
    return optional("transformers", "The OpenVLA-OFT policy needs")


def dino(config: TowerConfig) -> nn.Module:
    """DINOv2 with registers, without its last layer and norm."""
    hub = transformers()
    tower = hub.Dinov2WithRegistersModel(
        hub.Dinov2WithRegistersConfig(
            image_size=config.image_size,
            patch_size=config.patch,
            hidden_size=config.width,
            mlp_ratio=config.hidden // config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_register_tokens=config.registers,
        )
    )
    tower.layernorm = nn.Identity()
    tower.embeddings.mask_token = None  # for pretraining only
    return tower


def siglip(config: TowerConfig) -> nn.Module:
    """SigLIP's vision tower, without its last layer, norm and head. Its GELU is exact, as where it was trained on."""
    hub = transformers()
    tower = hub.SiglipVisionModel(
        hub.SiglipVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            hidden_act="gelu",
            vision_use_head=False,
        )
    )
    tower.post_layernorm = nn.Identity()
    return tower


def patches(tower: nn.Module, pixels_BCHW: Tensor, prefix: int) -> Tensor:
    """(B, patches, width) features of the last computed layer, without the `prefix` tokens before the patches."""
    return tower(pixels_BCHW).last_hidden_state[:, prefix:]


def llama(config: LanguageConfig) -> nn.Module:
    hub = transformers()
    return hub.LlamaForCausalLM(
        hub.LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.positions,
            use_cache=False,
        )
    )


class Projector(nn.Module):
    """Image features (B, P, vision width) to tokens (B, P, language width)."""

    def __init__(self, vision: int, language: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, language)
        self.fc3 = nn.Linear(language, language)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


class ProprioProjector(nn.Module):
    """States (B, S) to tokens (B, language width)."""

    def __init__(self, state_dim: int, language: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, language)
        self.fc2 = nn.Linear(language, language)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ResidualMLP(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class RegressionMLP(nn.Module):
    """The D tokens of an action, side by side, to its D numbers: (B, K, D * width) to (B, K, D)."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(action_dim * width)
        self.fc1 = nn.Linear(action_dim * width, width)
        self.mlp_resnet_blocks = nn.ModuleList([ResidualMLP(width), ResidualMLP(width)])
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class RegressionHead(nn.Module):
    """Continuous actions, trained with an L1 loss; `model` is what published checkpoints call it."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.model = RegressionMLP(action_dim, width)

    def forward(self, hidden_BKDW: Tensor) -> Tensor:
        """(B, K, D) normalised actions of the hidden states of the action tokens."""
        return self.model(hidden_BKDW.flatten(2))
