"""The paper's denoiser: a video diffusion transformer in the manner of OpenSora's STDiT, controlled frame by frame.

The sequence is [first frame] + c context frames + K noisy frames. Blocks come in pairs: a spatial block, whose
attention stays inside each frame, and a temporal block, whose attention follows one position through time, causally.
Causal attention and times of its own make the past independent of what is being denoised: its keys and values are
computed once (`remember`) and serve all denoising steps of a chunk. In training, where a chunk is denoised once, past
and chunk go through the blocks together, so that each is gone through once, too (`Ahead`).
adaLN coefficients of frame i come from its diffusion time and the action that leads to it. As in STDiT they are
computed once and shared by all blocks of a kind, each of which adds a learned table of its own.

F frames of the sequence, P patches of a frame, E width; the other letters as in `wmpo.types`.

Departures from the paper:
1. Text cross-attention is left out, as in its code.
2. SiLU instead of tanh-GELU in the MLPs: many times faster on CPUs in bfloat16, and no worse.
3. The episode's first frame may be part of the sequence (`anchor`).
4. Times are those of `wmpo.losses.flow`: 0 is noise and 1 is data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wmpo.nn.layers import zero_init

TIME_FEATURES = 256
SHORT = 64  # keys of a sequence


def time_features(t: Tensor) -> Tensor:
    """(...) in [0, 1] -> (..., 256) cosines and sines, with the frequencies that DiT uses for 1000 steps."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = 1000 * t.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def grid_position(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width): fixed sines and cosines, of the row in one half and of the column in the other."""
    frequency = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    row = torch.arange(rows)[:, None, None] * frequency
    column = torch.arange(columns)[None, :, None] * frequency
    parts = [row.sin(), row.cos(), column.sin(), column.cos()]
    return torch.cat([part.expand(rows, columns, -1) for part in parts], -1).flatten(0, 1)


def rotate(x: Tensor, first: int = 0) -> Tensor:
    """Rotary position, counted from `first`, over the second last dimension of (..., F, head width), the width in two
    halves."""
    frames, width = x.shape[-2:]
    frequency = 10_000 ** (-torch.arange(width // 2, device=x.device) / (width // 2))
    angle = torch.arange(first, first + frames, device=x.device)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Ahead(list[Tensor]):
    """Frames, times and actions of the past, as they go into the blocks ahead of a chunk."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """What (..., Q, head width) find in as many keys and values as `mask` (Q, keys) lets each see, all by default;
    `causal`: those up to the own place.

    On a CPU short sequences go by plain products. The kernel that torch has there is made for long ones: its backward
    pass in bfloat16 takes 9 times as long at 64 keys (1.5 times at 256; its forward pass is the faster one from there).
    """
    if q.device.type != "cpu" or k.shape[-2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Self-attention with normalised queries and keys; `temporal` makes it causal, with rotary positions."""

    def __init__(self, width: int, heads: int, temporal: bool) -> None:
        super().__init__()
        self.heads, self.temporal = heads, temporal
        self.qkv = nn.Linear(width, 3 * width)
        self.scale_q = nn.Parameter(torch.ones(width // heads))
        self.scale_k = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width)

    def forward(self, x_BPE: Tensor, past: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """P is the length of a sequence: patches, or frames. Returns what was asked for, and keys and values, which a
        later part of the sequence gets as its `past`."""
        q, k, v = self.qkv(x_BPE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Not nn.RMSNorm: under autocast its float32 weight beside bfloat16 input leaves the fused kernel.
        q = F.rms_norm(q, q.shape[-1:], eps=1e-6) * self.scale_q.to(q.dtype)
        k = F.rms_norm(k, k.shape[-1:], eps=1e-6) * self.scale_k.to(k.dtype)
        earlier = past[0].shape[-2] if past else 0
        if self.temporal:
            q, k = rotate(q, earlier), rotate(k, earlier)
        seen = [k, v]
        mask = None
        if past:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(earlier)
        mixed = attend(q, k, v, mask, causal=self.temporal and not past)
        return self.out(mixed.transpose(1, 2).flatten(2)), seen


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated per frame; the identity as long as the coefficients are 0."""

    def __init__(self, width: int, heads: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.attention = Attention(width, heads, temporal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.table = nn.Parameter(torch.zeros(6 * width))

    def forward(
        self, x_BFPE: Tensor, coefficients_BFE6: Tensor, past: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        B, frames, patches, width = x_BFPE.shape
        coefficients = (coefficients_BFE6 + self.table)[:, :, None].chunk(6, -1)  # each (B, F, 1, E)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = coefficients
        h = F.layer_norm(x_BFPE, (width,), eps=1e-6) * (1 + scale) + shift
        if self.temporal:
            h, seen = self.attention(h.transpose(1, 2).reshape(B * patches, frames, width), past)
            h = h.unflatten(0, (B, patches)).transpose(1, 2)
        else:
            h, seen = self.attention(h.flatten(0, 1))
            h = h.unflatten(0, (B, frames))
        x_BFPE = x_BFPE + gate * h
        h = F.layer_norm(x_BFPE, (width,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
        return x_BFPE + gate_mlp * self.mlp(h), seen


class SpaceTimeTransformer(nn.Module):
    """`depth` pairs of a spatial and a temporal block. Same interface as `wmpo.world_models.unet.UNet`."""

    def __init__(
        self,
        *,
        latent: tuple[int, int, int],  # (c, h, w)
        context: int,
        chunk: int,
        action_dim: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        anchor: bool = True,
        action_conditioning: Literal["frame", "chunk"] = "frame",
        checkpointing: bool = False,
    ) -> None:
        """frame: each frame is modulated by its own action [paper]; chunk: every frame by the whole chunk.

        The action enters the spatial blocks only [code]. checkpointing: what a block holds between forward and backward
        pass is let go and computed again.
        """
        super().__init__()
        channels, height, breadth = latent
        if height % patch or breadth % patch:
            raise ValueError(f"latents of {height}x{breadth} don't divide into patches of {patch}")
        if width % (2 * heads) or width % 4:
            raise ValueError(f"width {width} must be a multiple of 4 and of twice its {heads} heads")
        self.patch, self.anchor, self.context, self.checkpointing = patch, anchor, context, checkpointing
        self.per_frame = action_conditioning == "frame"
        self.embed_patch = nn.Linear(channels * patch**2, width)
        position_PE = grid_position(height // patch, breadth // patch, width)
        self.position_PE: Tensor
        self.register_buffer("position_PE", position_PE, persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        seen = action_dim if self.per_frame else action_dim * chunk
        self.embed_action = nn.Sequential(nn.Linear(seen, width), nn.SiLU(), nn.Linear(width, width))
        self.no_action = nn.Parameter(0.02 * torch.randn(width))
        self.first_frame = nn.Parameter(0.02 * torch.randn(width)) if anchor else None
        self.modulate_space = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 6 * width)))
        self.modulate_time = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 6 * width)))
        self.blocks = nn.ModuleList(Block(width, heads, temporal) for _ in range(depth) for temporal in (False, True))
        self.modulate_out = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 2 * width)))
        self.out = zero_init(nn.Linear(width, channels * patch**2))

    def remember(self, context_Bcchw: Tensor, anchor_Bchw: Tensor | None, context_t_B: Tensor) -> list[Tensor]:
        """What is kept of the past, however often a chunk is denoised: keys and values of each temporal block; with
        gradients, what they come from. context_t in [0, 1]: 0 is noise, 1 is data."""
        B = len(context_Bcchw)
        frames, times = [context_Bcchw], [context_t_B[:, None].expand(B, self.context)]
        actions = [self.no_action.expand(B, self.context, -1)]
        if self.first_frame is not None:
            assert anchor_Bchw is not None
            frames.insert(0, anchor_Bchw[:, None])
            times.insert(0, torch.ones_like(times[0][:, :1]))  # it is a real frame, without noise
            actions.insert(0, self.first_frame.expand(B, 1, -1))
        given = torch.cat(frames, 1), torch.cat(times, 1), torch.cat(actions, 1)
        return Ahead(given) if torch.is_grad_enabled() else self._attend(*given, [])[2]

    def forward(self, noisy_BKchw: Tensor, t_B: Tensor, past: Sequence[Tensor], action_BKD: Tensor) -> Tensor:
        """(B, K, c, h, w): the raw output for the K frames. t in [0, 1]: 0 is noise, 1 is data."""
        B, K = noisy_BKchw.shape[:2]
        if self.per_frame:
            action_BKE = self.embed_action(action_BKD)
        else:
            action_BKE = self.embed_action(action_BKD.flatten(1))[:, None].expand(B, K, -1)
        frames, times, actions = noisy_BKchw, t_B[:, None].expand(B, K), action_BKE
        if isinstance(past, Ahead):
            given = zip(past, (frames, times, actions), strict=True)
            frames, times, actions = (torch.cat(pair, 1) for pair in given)
            past = []
        x, both_BFE, _ = self._attend(frames, times, actions, past)
        x = x[:, -K:]
        shift, scale = self.modulate_out(both_BFE[:, -K:])[:, :, None].chunk(2, -1)
        x = self.out(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        rows = noisy_BKchw.shape[-2] // self.patch
        return F.pixel_shuffle(x.transpose(-1, -2).unflatten(-1, (rows, -1)), self.patch)

    def _attend(
        self, frames_BFchw: Tensor, times_BF: Tensor, action_BFE: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """All blocks, on a part of the sequence that comes after `past`: patches (B, F, P, E), what modulates each
        frame (B, F, E), and keys and values of the temporal blocks."""
        x = F.pixel_unshuffle(frames_BFchw, self.patch).flatten(-2).transpose(-1, -2)  # (B, F, P, c p p)
        x = self.embed_patch(x) + self.position_PE
        time_BFE = self.embed_time(time_features(times_BF).to(x.dtype))
        both_BFE = time_BFE + action_BFE.to(x.dtype)
        space = self.modulate_space(both_BFE)  # (B, F, 6 E)
        time = self.modulate_time(time_BFE)
        seen: list[Tensor] = []
        for block in self.blocks:
            given = (x, time, past[len(seen) : len(seen) + 2]) if block.temporal else (x, space)
            if self.checkpointing and torch.is_grad_enabled():
                x, new = checkpoint(block, *given, use_reentrant=False)
            else:
                x, new = block(*given)
            seen += new if block.temporal else []
        return x, both_BFE, seen
