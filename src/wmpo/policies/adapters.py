"""Low-rank changes to a policy (LoRA, arXiv 2106.09685), in the folder in which PEFT saves them apart from weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.training.checkpoint import CONFIG, load_tensors

ADAPTER, CHANGES = "adapter_config.json", "adapter_model.safetensors"
BASE = "base"  # folder beside them, for what they change
SPECIAL = (
    "use_dora", "use_rslora", "use_qalora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias",
    "alora_invocation_tokens", "layer_replication", "trainable_token_indices",
)  # fmt: skip

Change = tuple[Tensor, Tensor, float]


@dataclass(frozen=True)
class Adapter:
    """What PEFT has learned, by the names of the tensors that it changes."""

    folder: Path
    changes: Mapping[str, Change]
    """Tensor -> (up, down, scale), to be added as scale * up @ down, kernels of convolutions flattened."""
    replaced: Mapping[str, Tensor]
    """Tensor -> what stands in its place: layers that were trained whole (modules_to_save), and what PEFT stores beside
    the changes of an embedding or an lm_head."""

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Raises UserError for what is no LoRA adapter, and for what can't be added here."""
        config = read_json(folder / ADAPTER)
        if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
            raise UserError(f"{folder} is no LoRA adapter in PEFT's layout.")
        special = [name for name in SPECIAL if config.get(name)]
        if config.get("bias", "none") != "none":
            special.append("bias")
        tensors, _ = load_tensors(folder / CHANGES)
        changes, replaced, known = {}, {}, 0
        for name, tensor in tensors.items():
            if found := re.fullmatch(r"base_model\.model\.(.+)\.lora_B\.weight", name):
                down = tensors.get(name.replace(".lora_B.", ".lora_A."))
                if down is None or not _fit(tensor, down):
                    raise UserError(f"{folder} has no lora_A that fits {name!r}.")
                changes[f"{found[1]}.weight"] = (tensor.float(), down.float(), config["lora_alpha"] / tensor.shape[1])
                known += 2
            elif found := re.fullmatch(r"base_model\.model\.((?!.*\.lora_).+?)(?:\.base_layer)?\.(weight|bias)", name):
                replaced[f"{found[1]}.{found[2]}"] = tensor.float()
                known += 1
        if special or known != len(tensors):
            what = special[0] if special else "tensors besides lora_A, lora_B and whole weights"
            raise UserError(f"{folder} has {what}, which can't be added here: merge it with PEFT, and give the result.")
        return cls(folder, changes, replaced)

    def check(self, names: Collection[str], base: Path) -> None:
        """Raise UserError unless the base has all that is changed."""
        if unknown := sorted((self.changes.keys() | self.replaced.keys()) - set(names)):
            raise UserError(
                f"{self.folder} changes {unknown[0]!r}, which {base} does not have: it is for another base."
            )

    def added(self, name: str, tensor: Tensor, base: Path) -> Tensor:
        """The tensor of this name in the base with what was learned, in float32; itself where nothing was."""
        if name not in self.changes and name not in self.replaced:
            return tensor
        stored = self.replaced.get(name, tensor.float())
        up, down, scale = self.changes.get(name, (None, None, 0.0))
        fits = up is None or down is None or (len(up), *down.shape[1:]) == tuple(tensor.shape)
        if stored.shape != tensor.shape or not fits:
            raise UserError(f"The adapter's change of {name!r} has another shape than that tensor in {base}.")
        if up is None or down is None:
            return stored
        return stored + scale * (up.flatten(1) @ down.flatten(1)).view_as(stored)


def base_of(folder: Path) -> Path:
    """Where the weights lie that a folder's adapter changes: in FOLDER/base, or where PEFT has found them; the folder
    itself where it is no adapter."""
    if not (folder / ADAPTER).is_file():
        return folder
    config = read_json(folder / ADAPTER)
    name = str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""
    for place in (folder / BASE, Path(name)):
        if name and (place / CONFIG).is_file():
            return place
    raise UserError(
        f"{folder} is an adapter, which changes the weights of {name or 'a policy that it does not name'}: put the "
        f"folder of that policy into {folder / BASE}."
    )


def _fit(up: Tensor, down: Tensor) -> bool:
    """Of linear layers (out, rank) and (rank, in), of convolutions (out, rank, 1, 1) and (rank, in, height, width)."""
    return up.ndim == down.ndim >= 2 and up.shape[1] == len(down) and up[0, 0].numel() == 1
