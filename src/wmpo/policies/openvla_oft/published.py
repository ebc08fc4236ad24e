"""Checkpoints in the layout of OpenVLA's authors: what is where, and what is refused.

    config.json                       sizes of the language model; which vision towers
    model-00001-of-00003.safetensors  ... and model.safetensors.index.json; or one model.safetensors
    dataset_statistics.json           quantiles of actions and states, by data set
    tokenizer.json                    the Llama's
    preprocessor_config.json          means and deviations of pixels (optional)
    proprio_projector.safetensors     where the policy sees the robot's state
    action_head.safetensors           where it regresses actions instead of choosing tokens

Where an adapter is given, statistics and the last two are what its fine-tuning made: they lie in the adapter's folder
or in the one around it, and nothing of that kind is taken from the base's.

Only tensors and JSON are read. The authors store the last two as pickles (`proprio_projector--50000_checkpoint.pt`),
which can run code when opened: convert them once, as docs/openvla_oft.md shows.

The vision towers have timm's names there and transformers' names here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.io.plain import from_plain
from wmpo.policies.openvla_oft import lora, statistics
from wmpo.policies.openvla_oft.config import BINS, LanguageConfig, OpenVLAOFTConfig, TowerConfig
from wmpo.policies.openvla_oft.prompt import Prompt
from wmpo.policies.openvla_oft.shards import PARTS, Shards, part, refuse_pickles
from wmpo.policies.published import Republished
from wmpo.training.checkpoint import CONFIG

if TYPE_CHECKING:
    from wmpo.policies.openvla_oft.policy import OpenVLAOFT, Options

TOWERS = {"dino": "vision_backbone.featurizer", "siglip": "vision_backbone.fused_featurizer"}
BACKBONE, HEADS = "dinosiglip-vit-so-224px", 16  # attention heads, which no file tells; both towers have as many
TIMM = [  # (transformers' name of a tower's part, timm's)
    (r"^embeddings\.patch_embedding(s\.projection)?\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding(s|\.weight)$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.(attention|self_attn)\.([qkv])_proj\.", r".attn.qkv.\2."),
    (r"\.(attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.scale_factor"),
]
COMPUTED = r".*\.rotary_emb\.inv_freq"  # stored by some versions of transformers, computed by all
TEXT = {
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "positions": "max_position_embeddings",
}


def load(
    cls: type[OpenVLAOFT],
    folder: Path,
    cameras: tuple[str, ...],
    chunk: int,
    data: str | None,
    adapter: Path | None,
    settings: Options,
) -> OpenVLAOFT:
    """The policy `cls(OpenVLAOFTConfig, Prompt)` with the weights in `folder`; arguments as of `from_published`."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no OpenVLA-OFT, since it has no {CONFIG}: give the folder of a checkpoint.")
    described = _described(folder)
    refuse_pickles(folder)
    shards = Shards(folder, adapter)
    tuned = folder if adapter is None else _beside(Path(adapter))
    refuse_pickles(tuned, parts_only=tuned != folder)
    parts = {name: part(tuned, name) for name in PARTS}
    sees_state = bool(parts["proprio_projector"])
    normalizer = statistics.normalizer(tuned, described if tuned == folder else {}, data, sees_state)
    dino, siglip = statistics.pixels(folder)
    config = OpenVLAOFTConfig(
        cameras=cameras,
        state_dim=len(normalizer.state_mean) if sees_state else None,
        action_dim=len(normalizer.action_low),
        chunk=chunk,
        dino=_tower(shards, "dino", *dino),
        siglip=_tower(shards, "siglip", *siglip),
        language=_language(described, folder / CONFIG),
        head="l1" if parts["action_head"] else "tokens",
        origin=str(folder.resolve()),
        tuned="" if tuned == folder else str(tuned.resolve()),
        **settings,
    )
    policy = cls(config, Prompt.load(folder))
    policy.set_normalizer(normalizer)
    _fill(policy, shards, parts)
    return policy


def _beside(adapter: Path) -> Path:
    """The folder with what fine-tuning has stored along with an adapter."""
    for folder in (adapter, adapter.absolute().parent):
        if (folder / statistics.STATISTICS).is_file():
            return folder
    raise UserError(
        f"{adapter.absolute().parent / statistics.STATISTICS} does not exist: without it nobody knows what the actions "
        "of the policy with this adapter mean; copy it from the folder of its fine-tuning, with proprio_projector and "
        "action_head where there are some."
    )


def published_name(own: str) -> tuple[str, int | None]:
    """What one of our weights is called there; for queries, keys and values also which third of it they are."""
    tower, _, rest = own.partition(".")
    if tower not in TOWERS:
        return own, None
    for ours, timm in TIMM:
        rest = re.sub(ours, timm, rest)
    before, fused, after = rest.partition(".qkv.")
    if not fused:
        return f"{TOWERS[tower]}.{rest}", None
    return f"{TOWERS[tower]}.{before}.qkv.{after[2:]}", "qkv".index(after[0])


@torch.no_grad()
def republished(policy: OpenVLAOFT, folder: Path) -> Republished:
    """The weights of a policy without low-rank changes, by the names of the checkpoint in `folder`."""
    described = _described(folder)
    tuned = Path(policy.config.tuned or folder)
    _check_statistics(policy, tuned, {} if policy.config.tuned else described)
    weights: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for own, parameter in policy.named_parameters():
        name, third = published_name(own)
        tensor = parameter.detach()
        if third is not None:
            thirds.setdefault(name, {})[third] = tensor
        elif name.endswith("pos_embed"):
            weights[name] = tensor[:, 1:] if tensor.ndim == 3 else tensor.unsqueeze(0)
        else:
            weights[name] = tensor
    weights |= {name: torch.cat([parts[third] for third in range(3)]) for name, parts in thirds.items()}
    # There the class token has no position to be added to it.
    first, at = f"{TOWERS['dino']}.cls_token", policy.get_parameter("dino.embeddings.position_embeddings")
    weights[first] = weights[first] + at[:, :1]
    apart: dict[str, dict[str, Tensor]] = {}
    for name in list(weights):
        part, _, key = name.partition(".")
        if part in PARTS:
            apart.setdefault(part, {})[key] = weights.pop(name)
    files = {statistics.STATISTICS: tuned / statistics.STATISTICS} if policy.config.tuned else {}
    return Republished(weights, files=files, parts=apart)


def _check_statistics(policy: OpenVLAOFT, folder: Path, described: Mapping[str, object]) -> None:
    """A policy keeps the statistics of one of the data sets that its checkpoint knows."""
    sees_state = policy.proprio_projector is not None
    for name in statistics.names(folder, described):
        found = statistics.normalizer(folder, described, name, sees_state)
        if all(torch.equal(row, policy.normalizer.state_dict()[key].cpu()) for key, row in found.state_dict().items()):
            return
    raise UserError(f"{folder} has other statistics than the policy: give the folder that it began from.")


@torch.no_grad()
def _fill(policy: nn.Module, shards: Shards, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy every tensor to where it belongs; none may be missing, left over, or of another shape."""
    folder = shards.folder
    left = {*shards, *(f"{name}.{key}" for name, tensors in parts.items() for key in tensors)}
    for own, parameter in policy.named_parameters():
        if lora.LEARNED in own:
            continue  # low-rank changes that are still to be learned
        name, third = published_name(own.replace(lora.FROZEN, ""))
        owner, _, key = name.partition(".")
        source, key = (parts[owner], key) if owner in parts else (shards, name)
        if key not in source:
            raise UserError(f"{folder} lacks the tensor {name!r}: it is incomplete, or of another architecture.")
        tensor = source[key] if third is None else source[key].chunk(3)[third]
        if name.endswith("pos_embed"):
            tensor = tensor.squeeze(0)
            if parameter.ndim == 3:  # transformers has a position for the class token too
                tensor = torch.cat([torch.zeros_like(tensor[:1]), tensor]).unsqueeze(0)
        if tensor.shape != parameter.shape:
            shapes = f"{tuple(tensor.shape)}, but {tuple(parameter.shape)} is needed"
            raise UserError(f"{folder} is of another architecture: the tensor {name!r} has the shape {shapes}.")
        parameter.copy_(tensor)
        left.discard(name)
    unused = re.compile(f"{COMPUTED}|{_unused(shards)}")
    if surplus := sorted(name for name in left if not unused.fullmatch(name)):
        raise UserError(f"{folder} has tensors that an OpenVLA-OFT does not have, {surplus[0]!r} for one.")


def _unused(shards: Shards) -> str:
    """A pattern of what comes after the features that are taken from the towers: the last layer, norms, a head."""
    last = [(re.escape(tower), _layers(shards, tower) - 1) for tower in TOWERS.values()]
    return "|".join(rf"{tower}\.(norm|fc_norm|attn_pool|blocks\.{layer})\..*" for tower, layer in last)


def _described(folder: Path) -> dict[str, object]:
    described = read_json(folder / CONFIG)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(described, dict) or kind != "openvla":
        raise UserError(f"{folder} holds another architecture: its {CONFIG} says {kind!r}, not 'openvla'.")
    for name, wanted in (("vision_backbone_id", BACKBONE), ("n_action_bins", BINS)):
        if described.get(name, BINS) != wanted:
            raise UserError(f"{folder} has {name} {described.get(name)!r}; only {wanted!r} can be loaded.")
    return described


def _language(described: Mapping[str, object], where: Path) -> LanguageConfig:
    """Sizes of the Llama; what config.json leaves out has the default of transformers, as when it was written."""
    text = described.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", "llama") != "llama":
        raise UserError(f"{where} describes no Llama as its language model.")
    for name in ("rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings"):
        if text.get(name):
            raise UserError(f"{where} asks for a Llama with {name}, which can't be loaded.")
    sizes = {own: text[name] for own, name in TEXT.items() if text.get(name) is not None}
    padding = described.get("pad_to_multiple_of", 64)
    sizes["padding"] = padding
    sizes["vocabulary"] = text.get("vocab_size", 32000 + padding if isinstance(padding, int) else None)
    sizes["kv_heads"] = text.get("num_key_value_heads") or sizes.get("heads", LanguageConfig.heads)
    return from_plain(LanguageConfig, sizes, str(where))


def _layers(shards: Shards, tower: str) -> int:
    """How many layers of a tower are stored."""
    return len({found.group() for name in shards if (found := re.match(rf"{re.escape(tower)}\.blocks\.\d+\.", name))})


def _tower(
    shards: Shards, tower: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> TowerConfig:
    """Sizes of a vision tower, which only its tensors tell."""

    def shape(name: str) -> tuple[int, ...]:
        name = f"{TOWERS[tower]}.{name}"
        if name not in shards:
            raise UserError(f"{shards.folder} lacks the tensor {name!r}: it is incomplete, or of another architecture.")
        return shards.shape(name)

    width, _, patch, _ = shape("patch_embed.proj.weight")
    return TowerConfig(
        image_size=round(shape("pos_embed")[1] ** 0.5) * patch,
        patch=patch,
        width=width,
        hidden=shape("blocks.0.mlp.fc1.weight")[0],
        depth=_layers(shards, TOWERS[tower]) - 1,
        heads=HEADS,
        mean=mean,
        std=std,
        registers=shape("reg_token")[1] if tower == "dino" else 0,
    )
