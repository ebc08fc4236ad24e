"""What LeRobot itself does with a SmolVLA, as a program for LeRobot's own Python, whose packages clash with ours.

make JOBS: tiny random ones, as LeRobot saves them, each with its SmolVLM in FOLDER/vlm; JOBS are [FOLDER, settings].
tune JOBS: such a one with an adapter, as lerobot-train saves it with --peft; JOBS: [BASE, FOLDER, settings of PEFT].
train JOBS: what two steps of lerobot-train make of one; JOBS are [FOLDER, DATA SET, OUT].
act JOBS: actions of from_pretrained and its processors, for stored observations and noise; JOBS: [FOLDER, SEEN, OUT].
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SIZE = 64  # of pictures inside the network
WORDS = ["[pad]", "[unknown]", "push", "the", "red", "blue", "cube", "\n"]
SPECIAL = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global-img>",
           "end_of_utterance_token": "<end>"}  # fmt: skip


def make_vlm(folder: Path) -> None:
    """A SmolVLM of the usual build, small: its config, its processor, and random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )  # fmt: skip

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unknown]"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[unknown]", pad_token="[pad]", extra_special_tokens=SPECIAL
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)
    text = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": SIZE, "patch_size": 8}  # fmt: skip
    config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=63)
    model = SmolVLMForConditionalGeneration(config)
    shake(model)
    model.save_pretrained(folder)


def shake(model: torch.nn.Module) -> None:
    """Weights so large that every part matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter.shape[-1]) ** 0.5)


def make(folder: Path, chosen: dict[str, Any]) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    torch.manual_seed(0)
    cameras, state, action = chosen.pop("cameras"), chosen.pop("state"), chosen.pop("action")
    make_vlm(folder / "vlm")
    seen = {name: PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in cameras.items()}
    seen["observation.state"] = PolicyFeature(FeatureType.STATE, (state,))
    config = SmolVLAConfig(
        input_features=seen, output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
        resize_imgs_with_padding=(SIZE, SIZE), vlm_model_name=str(folder / "vlm"), num_vlm_layers=2, max_state_dim=6,
        max_action_dim=9, device="cpu", push_to_hub=False, **chosen,
    )  # fmt: skip
    policy = SmolVLAPolicy(config)
    for part in policy.model.children():
        shake(part if isinstance(part, torch.nn.Linear) else part.lm_expert)
    statistics = {
        name: {"mean": torch.randn(size), "std": torch.rand(size) + 0.5, "min": torch.full((size,), -99.0),
               "max": torch.full((size,), 99.0)}
        for name, size in (("observation.state", state), ("action", action))
    }  # fmt: skip
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(folder)


def act(folder: Path, seen: Path, out: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    config = PreTrainedConfig.from_pretrained(folder)
    policy: Any = tuned(config, folder) if config.use_peft else None
    policy = policy or SmolVLAPolicy.from_pretrained(folder, config=config, strict=True)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    with safe_open(seen, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sentences = json.loads(file.metadata()["sentences"])
    noise = tensors.pop("noise")
    batch: dict[str, Any] = {
        name: tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor for name, tensor in tensors.items()
    }
    chunk = after(policy.predict_action_chunk(before({**batch, "task": sentences}), noise=noise))
    save_file({"actions": chunk.contiguous()}, out)


def tune(base: Path, folder: Path, chosen: dict[str, Any]) -> None:
    """As lerobot-train: `wrap_with_peft`, then what its `save_checkpoint` writes."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    torch.manual_seed(0)
    config = PreTrainedConfig.from_pretrained(base)
    config.pretrained_path = base
    policy = SmolVLAPolicy.from_pretrained(base, config=config).wrap_with_peft(peft_cli_overrides=chosen)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.2 * torch.randn(parameter.shape)
    for part in (policy, policy.config, *make_pre_post_processors(config, pretrained_path=str(base))):
        part.save_pretrained(folder)


def tuned(config: Any, folder: Path) -> Any:
    """By LeRobot's loader, which asks for a data set's features."""
    from types import SimpleNamespace

    from lerobot.policies.factory import make_policy

    features: dict[str, Any] = {}
    for name, feature in {**config.input_features, **config.output_features}.items():
        shown = len(feature.shape) == 3
        names = ["channels", "height", "width"] if shown else None
        features[name] = {"dtype": "video" if shown else "float32", "shape": feature.shape, "names": names}
    config.pretrained_path = folder
    return make_policy(config, ds_meta=SimpleNamespace(features=features, stats=None))  # type: ignore[arg-type]


def train(folder: str, data: str, out: str) -> None:
    options = {
        "policy.path": folder, "policy.push_to_hub": "false", "policy.device": "cpu", "dataset.repo_id": "local/plain",
        "dataset.root": data, "dataset.video_backend": "pyav", "output_dir": out, "steps": 2, "batch_size": 2,
        "save_freq": 2, "num_workers": 0, "wandb.enable": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *(f"--{k}={v}" for k, v in options.items())]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if sys.argv[1] == "version":
        print(version("lerobot"))
    for job in json.loads(sys.argv[2]):
        if sys.argv[1] == "make":
            make(Path(job[0]), job[1])
        elif sys.argv[1] == "train":
            train(*job)
        elif sys.argv[1] == "tune":
            tune(Path(job[0]), Path(job[1]), job[2])
        else:
            act(*map(Path, job))
