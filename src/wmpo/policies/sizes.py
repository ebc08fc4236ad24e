"""Published policies of their published sizes, with random weights, or none on the device "meta": to plan with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from wmpo.config import PolicyConfig
from wmpo.policies.settings import FlowConfig
from wmpo.protocols import Policy
from wmpo.types import EnvSpec

RANK = 32
GREY = (0.5, 0.5, 0.5)

# The config.json of HuggingFaceTB/SmolVLM2-500M-Video-Instruct, as far as sizes go.
SMOLVLM: dict[str, Any] = {
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "head_dim": 64,
        "num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
    "scale_factor": 4, "image_token_id": 49190,
}  # fmt: skip


def words() -> Tokenizer:
    """It knows what `Prompt` looks for, and reads any sentence as one word."""
    return Tokenizer(WordLevel({"<unk>": 0, "▁": 1, "</s>": 2}, unk_token="<unk>"))


def smolvla(spec: EnvSpec, chunk: int, vlm: dict[str, Any] = SMOLVLM) -> Any:
    return _flow("smolvla", {"vlm": vlm}, spec, chunk)


def pi0(spec: EnvSpec, chunk: int) -> Any:
    import transformers

    return _flow("pi0", transformers.PI0Config().to_dict(), spec, chunk)


def _flow(network: Any, settings: dict[str, Any], spec: EnvSpec, chunk: int) -> Any:
    from wmpo.policies.flow_vla import FlowVLA, FlowVLAConfig

    config = FlowVLAConfig(network, settings, chunk, spec.state_dim, spec.action_dim, FlowConfig(steps=10))
    return FlowVLA(config, words().to_str())


def openvla_oft(spec: EnvSpec, chunk: int, **settings: Any) -> Any:
    """DINOv2 ViT-L/14 with registers and SigLIP SO400M/14, each without its last layer, and Llama 2 7B, where
    `settings` (of `OpenVLAOFTConfig`) name no others."""
    from wmpo.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
    from wmpo.policies.openvla_oft.config import LanguageConfig, TowerConfig
    from wmpo.policies.openvla_oft.prompt import Prompt

    published = {
        "dino": TowerConfig(224, 14, 1024, 4096, 23, 16, GREY, GREY, registers=4),
        "siglip": TowerConfig(224, 14, 1152, 4304, 26, 16, GREY, GREY),
        "language": LanguageConfig(vocabulary=32064, padding=64),
    }
    config = OpenVLAOFTConfig(tuple(spec.cameras), None, spec.action_dim, chunk, **{**published, **settings})
    return OpenVLAOFT(config, Prompt(words(), "here"))


def lean_openvla_oft(spec: EnvSpec, chunk: int) -> Any:
    """With what makes it fit one large GPU, all of it said when it is imported."""
    return openvla_oft(spec, chunk, lora_rank=RANK, checkpointing=True, precision="bfloat16")


SKETCHES: dict[str, Callable[[EnvSpec, int], Any]] = {
    "smolvla": smolvla,
    "pi0": pi0,
    "openvla_oft": lean_openvla_oft,
}


def is_sketched(config: PolicyConfig) -> bool:
    """Whether these settings name a published policy, but no folder that holds one."""
    return config.family in SKETCHES and not config.pretrained


def sketch(config: PolicyConfig, spec: EnvSpec) -> Policy:
    policy: Policy = SKETCHES[config.family](spec, config.chunk).eval()
    return policy
