"""A tiny OpenVLA-OFT checkpoint in the published layout, and what it answers.

The answers come from the architecture's description alone: plain torch, timm's names, one observation at a time,
nothing of wmpo or transformers. `tests/test_openvla_oft.py` compares. Write them again only if the checkpoint below
changes: `python tests/golden/make_openvla_oft.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import save_file

K, D, S = 2, 3, 4  # actions of a chunk, numbers of an action, numbers of a state
VISION, HIDDEN, HEADS, LAYERS, REGISTERS, PATCH, GRID = 32, 128, 16, 3, 4, 14, 2
WIDTH, MLP, LLAMA_HEADS, LLAMA_LAYERS, EPS = 32, 48, 4, 2, 1e-5
WORDS = ["<unk>", "<s>", "</s>", "▁", "In", ":", "What", "action", "should", "the", "robot", "take", "to", "?", "Out"]
WORDS += ["push", "red", "cube", "stack", "on", "blue"]
TEXT, BINS, PADDING = 32, 256, 64  # rows of the embedding: words, action tokens, padding
VOCABULARY = TEXT + BINS + PADDING
MEANS = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]
STDS = [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
CONFIG = {
    "model_type": "openvla",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "n_action_bins": BINS,
    "pad_to_multiple_of": PADDING,
    "text_config": {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_attention_heads": LLAMA_HEADS,
        "num_hidden_layers": LLAMA_LAYERS,
        "rms_norm_eps": EPS,
    },
}
STATISTICS = {
    "tiny": {
        "action": {"q01": [-0.5, -0.25, -1.0], "q99": [0.5, 0.75, 1.0], "mask": [True, True, False]},
        "proprio": {"q01": [-1.0, 0.0, -2.0, 0.5], "q99": [1.0, 2.0, 2.0, 1.5]},
    }
}
SENTENCES = ("Push the red cube", "stack the RED cube on the blue cube")
GOLDEN = Path(__file__).with_name("openvla_oft.safetensors")


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, with those that exist but aren't used: the last layers, norms, pooling."""
    found: dict[str, tuple[int, ...]] = {}
    for tower in ("featurizer", "fused_featurizer"):
        at = f"vision_backbone.{tower}"
        found |= {f"{at}.patch_embed.proj.weight": (VISION, 3, PATCH, PATCH), f"{at}.patch_embed.proj.bias": (VISION,)}
        found |= {f"{at}.pos_embed": (1, GRID * GRID, VISION)}
        found |= {f"{at}.norm.weight": (VISION,), f"{at}.norm.bias": (VISION,)}
        if tower == "featurizer":
            found |= {f"{at}.cls_token": (1, 1, VISION), f"{at}.reg_token": (1, REGISTERS, VISION)}
        else:
            found |= {f"{at}.attn_pool.latent": (1, 1, VISION), f"{at}.attn_pool.q.weight": (VISION, VISION)}
        for layer in range(LAYERS):
            block = f"{at}.blocks.{layer}"
            for name, size in (("attn.qkv", (3 * VISION, VISION)), ("attn.proj", (VISION, VISION)),
                               ("mlp.fc1", (HIDDEN, VISION)), ("mlp.fc2", (VISION, HIDDEN)),
                               ("norm1", (VISION,)), ("norm2", (VISION,))):  # fmt: skip
                found |= {f"{block}.{name}.weight": size, f"{block}.{name}.bias": size[:1]}
            if tower == "featurizer":
                found |= {f"{block}.ls1.scale_factor": (VISION,), f"{block}.ls2.scale_factor": (VISION,)}
    for name, size in (("fc1", (8 * VISION, 2 * VISION)), ("fc2", (WIDTH, 8 * VISION)), ("fc3", (WIDTH, WIDTH))):
        found |= {f"projector.{name}.weight": size, f"projector.{name}.bias": size[:1]}
    for layer in range(LLAMA_LAYERS):
        at = f"language_model.model.layers.{layer}"
        found |= {f"{at}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{at}.mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
        found |= {f"{at}.mlp.down_proj.weight": (WIDTH, MLP)}
        found |= {f"{at}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    found |= {"language_model.model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    found |= {"language_model.model.norm.weight": (WIDTH,), "language_model.lm_head.weight": (VOCABULARY, WIDTH)}
    return found


def part_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Tensors of the parts stored apart."""
    proprio = {"fc1.weight": (WIDTH, S), "fc1.bias": (WIDTH,), "fc2.weight": (WIDTH, WIDTH), "fc2.bias": (WIDTH,)}
    head = {"model.layer_norm1.weight": (D * WIDTH,), "model.layer_norm1.bias": (D * WIDTH,)}
    for name, size in (("fc1", (WIDTH, D * WIDTH)), ("layer_norm2", (WIDTH,)), ("fc2", (D, WIDTH))):
        head |= {f"model.{name}.weight": size, f"model.{name}.bias": size[:1]}
    for block in (0, 1):
        for place, size in ((0, (WIDTH,)), (1, (WIDTH, WIDTH))):
            at = f"model.mlp_resnet_blocks.{block}.ffn.{place}"
            head |= {f"{at}.weight": size, f"{at}.bias": size[:1]}
    return {"proprio_projector": proprio, "action_head": head}


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers that depend on the name alone, on every machine; scales are around 1."""
    drawn = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    if ("norm" in name and name.endswith("weight")) or name.endswith("scale_factor"):
        drawn = 1 + 0.3 * drawn
    elif name.startswith("action_head.model.fc2"):
        drawn = 0.05 * drawn
    elif len(shape) >= 2 and "embed_tokens" not in name:
        drawn = 1.5 * drawn / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(drawn.astype(np.float32))


def checkpoint() -> dict[str, torch.Tensor]:
    return {name: numbers(name, shape) for name, shape in shapes().items()}


def parts() -> dict[str, dict[str, torch.Tensor]]:
    return {part: {n: numbers(f"{part}.{n}", s) for n, s in found.items()} for part, found in part_shapes().items()}


def observations() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two cameras, (2, H, W, 3) uint8, of the size that is seen; and states (2, S)."""
    dice = np.random.RandomState(7)
    side = GRID * PATCH
    images = {name: dice.randint(0, 256, (2, side, side, 3)).astype(np.uint8) for name in ("front", "wrist")}
    return images, dice.standard_normal((2, S)).astype(np.float32)


def token_ids(sentence: str) -> list[int]:
    text = f"In: What action should the robot take to {sentence.lower()}?\nOut:"
    return [1, *(WORDS.index(word) for word in re.findall(r"\w+|[^\w\s]+", text)), WORDS.index("▁")]


# The network


def linear(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: dict, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Everything looks at everything: (tokens, width) each, head by head."""
    size = q.shape[1] // heads
    seen = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        seen.append(torch.softmax(q[:, own] @ k[:, own].T / size**0.5, dim=-1) @ v[:, own])
    return torch.cat(seen, dim=1)


def tower(w: dict, at: str, image: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """(patches, VISION) features of the second-to-last block, before any norm."""
    pixels = (torch.from_numpy(image).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    x = []
    for row in range(GRID):
        for column in range(GRID):
            patch = pixels[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].permute(2, 0, 1)
            x.append((w[f"{at}.patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + w[f"{at}.patch_embed.proj.bias"])
    tokens = torch.stack(x) + w[f"{at}.pos_embed"][0]
    prefix = 0
    if f"{at}.cls_token" in w:
        tokens = torch.cat([w[f"{at}.cls_token"][0], w[f"{at}.reg_token"][0], tokens])
        prefix = 1 + REGISTERS
    for layer in range(LAYERS - 1):
        block = f"{at}.blocks.{layer}"
        q, k, v = linear(w, f"{block}.attn.qkv", layer_norm(w, f"{block}.norm1", tokens, 1e-6)).split(VISION, dim=1)
        change = linear(w, f"{block}.attn.proj", attend(q, k, v, HEADS))
        tokens = tokens + change * w.get(f"{block}.ls1.scale_factor", 1.0)
        change = gelu(linear(w, f"{block}.mlp.fc1", layer_norm(w, f"{block}.norm2", tokens, 1e-6)))
        tokens = tokens + linear(w, f"{block}.mlp.fc2", change) * w.get(f"{block}.ls2.scale_factor", 1.0)
    return tokens[prefix:]


def rms_norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w[f"{name}.weight"]


def rotate(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary positions: in each head, number i and number i + size / 2 turn together by position * 10000^(-2i/size)."""
    size = x.shape[1] // heads
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    turned = []
    for head in range(heads):
        a, b = x[:, head * size : (head + 1) * size].chunk(2, dim=1)
        turned += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    return torch.cat(turned, dim=1)


def llama(w: dict, x: torch.Tensor) -> torch.Tensor:
    for layer in range(LLAMA_LAYERS):
        at = f"language_model.model.layers.{layer}"
        h = rms_norm(w, f"{at}.input_layernorm", x)
        q, k, v = (linear(w, f"{at}.self_attn.{name}_proj", h) for name in "qkv")
        seen = attend(rotate(q, LLAMA_HEADS), rotate(k, LLAMA_HEADS), v, LLAMA_HEADS)
        x = x + linear(w, f"{at}.self_attn.o_proj", seen)
        h = rms_norm(w, f"{at}.post_attention_layernorm", x)
        gate = linear(w, f"{at}.mlp.gate_proj", h)
        x = x + linear(w, f"{at}.mlp.down_proj", gate * torch.sigmoid(gate) * linear(w, f"{at}.mlp.up_proj", h))
    return rms_norm(w, "language_model.model.norm", x)


def hidden(w: dict, images: list[np.ndarray], state: np.ndarray, sentence: str) -> torch.Tensor:
    """(K * D, WIDTH): where each action token is predicted, one place before its own."""
    seen = []
    for image in images:
        dino = tower(w, "vision_backbone.featurizer", image, MEANS[0], STDS[0])
        siglip = tower(w, "vision_backbone.fused_featurizer", image, MEANS[1], STDS[1])
        x = gelu(linear(w, "projector.fc1", torch.cat([dino, siglip], dim=1)))
        seen.append(linear(w, "projector.fc3", gelu(linear(w, "projector.fc2", x))))
    stats = STATISTICS["tiny"]["proprio"]
    low, high = torch.tensor(stats["q01"]), torch.tensor(stats["q99"])
    unit = (2 * (torch.from_numpy(state) - low) / (high - low) - 1).clamp(-1, 1)
    seen.append(linear(w, "proprio_projector.fc2", gelu(linear(w, "proprio_projector.fc1", unit)))[None])
    ids = token_ids(sentence)
    words = w["language_model.model.embed_tokens.weight"]
    sequence = [words[ids[:1]], *seen, words[ids[1:]], torch.zeros(K * D, WIDTH), words[[2]]]
    before = sum(map(len, sequence[:-2]))
    return llama(w, torch.cat(sequence))[before - 1 : before - 1 + K * D]


def unnormalised(unit_KD: np.ndarray) -> np.ndarray:
    stats = STATISTICS["tiny"]["action"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    return np.where(stats["mask"], 0.5 * (unit_KD + 1) * (high - low) + low, unit_KD)


def discrete(w: dict, h: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(logits (K, D, BINS) of the action tokens in their order, greedy actions (K, D))."""
    logits = (h @ w["language_model.lm_head.weight"].T)[:, TEXT : TEXT + BINS]
    token = TEXT + logits.argmax(-1).numpy()
    edges = np.linspace(-1, 1, BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    unit = centers[np.clip(TEXT + BINS - token - 1, 0, BINS - 2)]
    return logits.numpy().reshape(K, D, BINS), unnormalised(unit.reshape(K, D))


def continuous(w: dict, h: torch.Tensor) -> np.ndarray:
    """(K, D) actions of the regression head."""
    x = layer_norm(w, "action_head.model.layer_norm1", h.reshape(K, D * WIDTH), 1e-5)
    x = linear(w, "action_head.model.fc1", x).clamp(min=0)
    for block in (0, 1):
        at = f"action_head.model.mlp_resnet_blocks.{block}.ffn"
        x = x + linear(w, f"{at}.1", layer_norm(w, f"{at}.0", x, 1e-5)).clamp(min=0)
    x = linear(w, "action_head.model.fc2", layer_norm(w, "action_head.model.layer_norm2", x, 1e-5))
    return unnormalised(x.numpy())


def main() -> None:
    w = checkpoint() | {f"{part}.{name}": value for part, found in parts().items() for name, value in found.items()}
    images, states = observations()
    answers: dict[str, list[np.ndarray]] = {"logits": [], "actions": [], "regressed": []}
    for row, sentence in enumerate(SENTENCES):
        h = hidden(w, [images[name][row] for name in ("front", "wrist")], states[row], sentence)
        logits, actions = discrete(w, h)
        answers["logits"].append(logits[:, :, ::4])
        answers["actions"].append(actions)
        answers["regressed"].append(continuous(w, h))
    tensors = {name: torch.from_numpy(np.stack(rows).astype(np.float32)) for name, rows in answers.items()}
    save_file(tensors, GOLDEN, metadata={"sentences": json.dumps(SENTENCES)})
    print(GOLDEN.name, GOLDEN.stat().st_size, "bytes;", tensors["logits"].std(), tensors["regressed"].abs().max())


if __name__ == "__main__":
    main()
