"""Low-rank adaptation (arXiv 2106.09685) by peft: frozen weights, plus a trained product of two thin matrices."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import nn

from wmpo.errors import optional

ALPHA = 16
"""The product is scaled by min(rank, ALPHA) / rank, as in OpenVLA's fine-tuning."""
LEARNED, FROZEN = ".lora_", ".base_layer"  # in the names of the changes, and of the weights that they are added to


def peft() -> ModuleType:
    """The package, imported where it is used."""
    return optional("peft", "Low-rank changes (lora_rank) need")


def adapt(module: nn.Module, parts: Sequence[str], rank: int) -> None:
    """Give each linear layer in these parts a change of low rank, zero at first, and freeze all else in `module`."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    config = peft().LoraConfig(
        r=rank,
        lora_alpha=min(rank, ALPHA),
        init_lora_weights="gaussian",
        target_modules=[name for name in linear if name.startswith(tuple(f"{part}." for part in parts))],
    )
    peft().inject_adapter_in_model(config, module)


def merge(module: nn.Module) -> None:
    """Fold the changes into the weights, all of which are trained from then on."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())
    module.requires_grad_(True)
