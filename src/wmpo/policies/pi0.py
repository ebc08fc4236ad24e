"""pi0 (arXiv 2410.24164): transformers' PaliGemma and action expert, with the interface that `FlowVLA` asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.policies.published import (
    Prefix,
    Published,
    Republished,
    standardizer,
    statistics,
    transformers,
    weight_files,
)
from wmpo.training.checkpoint import CONFIG, WEIGHTS, load_tensors

PROCESSOR = "processor_config.json"


class PI0Network(nn.Module):
    """`PI0ForConditionalGeneration`, its prefix and its expert asked one by one."""

    def __init__(self, settings: dict[str, object]) -> None:
        super().__init__()
        library = transformers()
        config = library.PI0Config.from_dict(settings)
        self.model: Any = library.PI0ForConditionalGeneration(config)
        self.model.model.dit.embed_tokens = None  # the expert meets no words
        self.model.model.vlm.requires_grad_(False)
        vision = config.vlm_config.vision_config
        self.image_size: int = vision.image_size
        self.image_tokens: int = (vision.image_size // vision.patch_size) ** 2
        self.image_token: int = config.vlm_config.image_token_id
        self.begin: tuple[int, ...] = (config.vlm_config.text_config.bos_token_id,)
        self.state_width: int = config.max_state_dim
        self.action_width: int = config.max_action_dim
        self.width: int = config.dit_config.hidden_size

    def pixels(self, image_BCHW: Tensor) -> Tensor:
        """As transformers' processor makes them: bicubic, grey below and right where a picture isn't square."""
        size, (height, width), image = self.image_size, image_BCHW.shape[-2:], image_BCHW.float()
        if height != size or width != size:
            scale = min(size / height, size / width)
            shape = int(height * scale), int(width * scale)  # rounded as there
            image = F.interpolate(image, size=shape, mode="bicubic", antialias=True).round().clamp(0, 255)
        return F.pad(image / 127.5 - 1, (0, size - image.shape[-1], 0, size - image.shape[-2]))

    def prefix(self, images_BVCHW: Tensor, tokens_BL: Tensor, mask_BL: Tensor, state: Tensor) -> Prefix:
        """What the expert attends to: keys and values of pictures and words, and which of them are no padding."""
        B, V = images_BVCHW.shape[:2]
        pictures = tokens_BL.new_full((B, V * self.image_tokens), self.image_token)
        tokens = torch.cat([pictures, tokens_BL], 1)
        mask = torch.cat([torch.ones_like(pictures), mask_BL.long()], 1)
        vlm = self.model.model.vlm
        embeds = self.model.model.embed_prefix(tokens, images_BVCHW, mask.new_ones(B, V).bool())
        cache = vlm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(mask),  # all see all
            use_cache=True,
        ).past_key_values
        return cache, mask, state

    def velocity(self, prefix: Prefix, x: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """(velocity (B, K, action_width), features (B, K, width)) at noisy actions x; time 1 is noise."""
        cache, mask, state = prefix
        length = cache.get_seq_length()
        embeds = self.model.embed_action_time(state, x, time_B)
        hidden = self.model.model(action_embeds=embeds, attention_mask=mask, past_key_values=cache).last_hidden_state
        cache.crop(length - cache.get_seq_length())  # forget these noisy actions
        hidden = hidden[:, -x.shape[1] :]
        return self.model.action_out_proj(hidden), hidden


def normalizer(folder: Path) -> Normalizer:
    """The statistics that the processor keeps."""
    processor = folder / PROCESSOR
    said = read_json(processor) if processor.is_file() else {}
    state, action = (
        statistics(said.get(f"{name}_mean"), said.get(f"{name}_std"), len(said.get(f"{name}_mean") or ()), what, folder)
        for name, what in (("state", "state"), ("actions", "action"))
    )
    return standardizer(state, action)


def published(folder: Path) -> Published:
    """A folder as transformers saves model, processor and tokenizer of pi0."""
    settings = read_json(folder / CONFIG)
    weight_files(folder)  # refuses pickles
    try:
        model, found = transformers().PI0ForConditionalGeneration.from_pretrained(
            str(folder),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and json each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} can't be loaded as a pi0: {reason}") from error
    missing = [name for name in found["missing_keys"] if "dit.embed_tokens" not in name]
    for fault, names in (
        ("lacks", missing),
        ("has, beyond pi0's own,", found["unexpected_keys"]),
        ("has in other shapes", [entry[0] for entry in found["mismatched_keys"]]),
    ):
        if names:
            raise UserError(f"{folder} {fault} {len(names)} weights, first {sorted(names)[0]!r}.")
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if "dit.embed_tokens" not in name}
    return Published(
        network="pi0",
        settings=settings,
        features=(),
        cameras=(),
        chunk=int(model.config.chunk_size),
        steps=int(model.config.num_inference_steps),
        tensors=tensors,
        normalizer=normalizer(folder),
        tokenizer=folder / "tokenizer.json",
    )


def republished(network: PI0Network, chunk: int, steps: int, scratch: Path) -> Republished:
    """As transformers saves it, under names that it chooses; the words of the expert, which it never meets, stay."""
    network.model.save_pretrained(scratch, max_shard_size="1000GB")
    return Republished(
        weights=load_tensors(scratch / WEIGHTS)[0],
        frozen="paligemma_with_expert.paligemma.",
        settings={CONFIG: {"chunk_size": chunk, "num_inference_steps": steps}, PROCESSOR: {"chunk_size": chunk}},
    )
