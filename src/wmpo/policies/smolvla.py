"""SmolVLA (arXiv 2506.01844): transformers' SmolVLM and an action expert, with the interface that `FlowVLA` asks for.

Names of weights are LeRobot's, so that its checkpoints load as they are. In every n-th layer the expert attends to keys
and values of the vision-language model together with its own; in the others to projections of the former alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.io.plain import from_plain
from wmpo.policies.published import Prefix, transformers

ROPE_BASE = 10_000.0  # LeRobot's, whatever the language model's own

Part = Any
"""A network of transformers, whose attributes its types don't tell."""


@dataclass(frozen=True)
class Sizes:
    """LeRobot's settings that make a difference, with its names and defaults."""

    max_state_dim: int = 32
    max_action_dim: int = 32
    chunk_size: int = 50
    resize_imgs_with_padding: tuple[int, int] = (512, 512)
    num_vlm_layers: int = 16
    num_expert_layers: int = -1
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: float = 0.75
    attention_mode: str = "cross_attn"
    min_period: float = 4e-3
    max_period: float = 4.0
    add_image_special_tokens: bool = False
    adapt_to_pi_aloha: bool = False
    num_steps: int = 10
    load_vlm_weights: bool = False
    patch_positions: Literal["exact", "shifted"] = "exact"
    """Ours, see `wmpo.policies.settings.FlowVLASettings`."""

    @classmethod
    def of(cls, described: Mapping[str, object], where: str) -> Sizes:
        """Those among other settings. Raises UserError for values of a wrong type."""
        return from_plain(cls, {name: described[name] for name in vars(cls()) if name in described}, where)


class SmolVLANetwork(nn.Module):
    """SmolVLM and the action expert; `settings` are LeRobot's, with the config of the SmolVLM under "vlm"."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__()
        library = transformers()
        self.sizes = sizes = Sizes.of(settings, "SmolVLA")
        config = library.SmolVLMConfig.from_dict(settings["vlm"])
        text = config.text_config
        if sizes.num_vlm_layers > 0:
            text.num_hidden_layers = min(text.num_hidden_layers, sizes.num_vlm_layers)
        inner = copy.deepcopy(text)
        inner.hidden_size = int(text.hidden_size * sizes.expert_width_multiplier)
        inner.intermediate_size = 256 * math.ceil(int(4 * int(2 * inner.hidden_size / 3)) / 256)
        self.heads, self.key_heads, self.head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        expert = library.AutoModel.from_config(inner)
        expert.embed_tokens = None  # the expert meets no words
        own = sizes.self_attn_every_n_layers
        self.crosses = [
            "cross" in sizes.attention_mode and not (own > 0 and i % own == 0) for i in range(len(expert.layers))
        ]
        for layer, cross in zip(expert.layers, self.crosses, strict=True):
            if cross:
                size = self.key_heads * self.head_dim
                layer.self_attn.k_proj = nn.Linear(size, size, bias=inner.attention_bias)
                layer.self_attn.v_proj = nn.Linear(size, size, bias=inner.attention_bias)
        both: Part = nn.Module()
        both.vlm, both.lm_expert = nn.Module(), expert
        both.vlm.model = library.SmolVLMModel(config)
        both.vlm.requires_grad_(False)
        self.vlm_with_expert = both
        self.begin: tuple[int, ...] = ()
        self.image_size = sizes.resize_imgs_with_padding[0]
        self.state_width, self.action_width = sizes.max_state_dim, sizes.max_action_dim
        self.width: int = inner.hidden_size
        self.state_proj = nn.Linear(self.state_width, text.hidden_size)
        self.action_in_proj = nn.Linear(self.action_width, self.width)
        self.action_out_proj = nn.Linear(self.width, self.action_width)
        self.action_time_mlp_in = nn.Linear(2 * self.width, self.width)
        self.action_time_mlp_out = nn.Linear(self.width, self.width)

    def pixels(self, image_BCHW: Tensor) -> Tensor:
        """Black above and left where a picture isn't square."""
        size, (height, width) = self.image_size, image_BCHW.shape[-2:]
        ratio = max(width / size, height / size)
        shape = int(height / ratio), int(width / ratio)  # rounded as by LeRobot
        image = F.interpolate(image_BCHW.float() / 255, size=shape, mode="bilinear", align_corners=False)
        return 2 * F.pad(image, (size - image.shape[-1], 0, size - image.shape[-2], 0)) - 1

    def prefix(self, images_BVCHW: Tensor, tokens_BL: Tensor, mask_BL: Tensor, state: Tensor) -> Prefix:
        """Keys and values of pictures, words and state in every layer, and which of them are no padding."""
        vlm = self.vlm_with_expert.vlm.model
        B = len(tokens_BL)
        seen = vlm.connector(_patches(vlm.vision_model, images_BVCHW.flatten(0, 1), self.sizes.patch_positions))
        seen = seen.unflatten(0, (B, -1)).flatten(1, 2)  # (B, V * tokens per picture, width)
        words = vlm.text_model.embed_tokens(tokens_BL)
        scale = math.sqrt(words.shape[-1])
        x = torch.cat([seen * scale, words * scale, self.state_proj(state)[:, None]], 1)
        one = mask_BL.new_ones(B, 1)
        mask_BP = torch.cat([one.expand(-1, seen.shape[1]), mask_BL, one], 1)
        last = torch.arange(x.shape[1], device=x.device) == x.shape[1] - 1
        sees_BPP = mask_BP[:, None] & ~(last & ~last[:, None])  # only the state sees the state
        places = mask_BP.long().cumsum(-1) - 1
        memory = []
        for layer in vlm.text_model.layers:
            query, key, value = self._project(layer, x, places)
            memory.append((key, value))
            x = _block(layer, x, self._attend(query, key, value, sees_BPP))
        return memory, mask_BP

    def velocity(self, prefix: Prefix, x: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """(velocity (B, K, action_width), features (B, K, width)) at noisy actions x; time 1 is noise."""
        memory, mask_BP = prefix
        B, K = x.shape[:2]
        time = self._waves(time_B)[:, None].expand(-1, K, -1)
        h = self.action_time_mlp_in(torch.cat([self.action_in_proj(x), time], -1))
        h = self.action_time_mlp_out(F.silu(h))
        sees_past = mask_BP[:, None].expand(-1, K, -1)
        sees_own = torch.ones(K, K, dtype=torch.bool, device=x.device).tril().expand(B, -1, -1)
        places = torch.arange(K, device=x.device).expand(B, -1)
        for layer, cross, (key, value) in zip(self.vlm_with_expert.lm_expert.layers, self.crosses, memory, strict=True):
            if cross:
                query = self._rotated(layer.self_attn.q_proj(layer.input_layernorm(h)), places)
                key = layer.self_attn.k_proj(key.flatten(2)).view_as(key)
                value = layer.self_attn.v_proj(value.flatten(2)).view_as(value)
                found = self._attend(query, key, value, sees_past)
            else:
                query, own_key, own_value = self._project(layer, h, places + mask_BP.sum(-1, keepdim=True))
                key, value = torch.cat([key, own_key], 1), torch.cat([value, own_value], 1)
                found = self._attend(query, key, value, torch.cat([sees_past, sees_own], -1))
            h = _block(layer, h, found)
        h = self.vlm_with_expert.lm_expert.norm(h)
        return self.action_out_proj(h), h

    def _project(self, layer: Part, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = layer.input_layernorm(x)
        attention = layer.self_attn
        value = attention.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return self._rotated(attention.q_proj(x), places), self._rotated(attention.k_proj(x), places), value

    def _rotated(self, x: Tensor, places_BL: Tensor) -> Tensor:
        """(B, L, heads * head_dim) with its places turned in (arXiv 2104.09864), as (B, L, heads, head_dim)."""
        half = self.head_dim // 2
        rate = ROPE_BASE ** (-torch.arange(half, device=x.device) / half)
        angle = places_BL[..., None, None] * rate
        a, b = x.unflatten(-1, (-1, self.head_dim)).split(half, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, sees_BQP: Tensor) -> Tensor:
        """(B, Q, heads * head_dim) for queries (B, Q, heads, head_dim) and fewer heads of keys and values."""
        times = self.heads // self.key_heads
        key, value = (part.repeat_interleave(times, 2).transpose(1, 2) for part in (key, value))
        found = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=sees_BQP[:, None])
        return found.transpose(1, 2).flatten(2)

    def _waves(self, time_B: Tensor) -> Tensor:
        shortest, longest = self.sizes.min_period, self.sizes.max_period
        place = torch.linspace(0, 1, self.width // 2, dtype=torch.float64, device=time_B.device)
        angle = 2 * math.pi * time_B.double()[:, None] / (shortest * (longest / shortest) ** place)
        return torch.cat([angle.sin(), angle.cos()], 1).to(time_B.dtype)


def _patches(tower: Part, images_BCHW: Tensor, positions: str) -> Tensor:
    """(B, patches, width) features of whole pictures: the tower without the look at which patches are padding."""
    own = tower.embeddings
    embeds = own.patch_embedding(images_BCHW)
    at = patch_places(embeds.shape[-1], own.num_patches_per_side, positions).to(embeds.device)
    embeds = embeds.flatten(2).mT + own.position_embedding(at[:, None] * own.num_patches_per_side + at).flatten(0, 1)
    return tower.post_layernorm(tower.encoder(inputs_embeds=embeds).last_hidden_state)


def patch_places(side: int, known: int, positions: str) -> Tensor:
    """(side,) which of the `known` places in a row, or column, each of `side` patches takes.

    Version 4 of transformers multiplies by 1 - 1e-6 first: in float32, every patch but one falls short of its place.
    """
    at = torch.arange(side) / side * (1 - 1e-6 if positions == "shifted" else 1)
    return torch.bucketize(at, torch.arange(1 / known, 1.0, 1 / known), right=True)


def _block(layer: Part, x: Tensor, found: Tensor) -> Tensor:
    x = x + layer.self_attn.o_proj(found)
    return x + layer.mlp(layer.post_attention_layernorm(x))
