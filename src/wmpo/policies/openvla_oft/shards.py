"""Files of tensors, and of nothing but tensors: a checkpoint, a part stored apart, a low-rank adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.policies.published import PICKLES
from wmpo.training.checkpoint import WEIGHTS, load_tensors

INDEX = f"{WEIGHTS}.index.json"
PARTS = ("proprio_projector", "action_head")  # stored apart
OTHER_PARTS = {"vision_backbone": "FiLM", "noisy_action_projector": "a diffusion head"}
SPECIAL = (
    "use_dora", "use_rslora", "use_qalora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save",
    "lora_bias", "alora_invocation_tokens", "layer_replication",
)  # fmt: skip


class Shards(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, read when asked for, as float32; low-rank changes are added then."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.folder = folder
        where = _index(folder)
        self.files: dict[str, safe_open] = {}  # tensor -> the open file that holds it
        for file in sorted(set(where.values())) or [WEIGHTS]:
            opened = _open(folder / file)
            self.files |= dict.fromkeys(opened.keys(), opened)
        if where and (odd := sorted(where.keys() ^ self.files.keys())):
            raise UserError(f"{folder / INDEX} and the files that it names disagree about {odd[0]!r}: copy them again.")
        self.changes, self.replaced = _adapter(adapter) if adapter is not None else ({}, {})
        if unknown := sorted((self.changes.keys() | self.replaced.keys()) - self.files.keys()):
            raise UserError(f"{adapter} changes {unknown[0]!r}, which {folder} does not have: it is for another base.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Known without reading the tensor."""
        return tuple(self.files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name).float()
        stored = self.replaced.get(name, tensor)
        up, down, scale = self.changes.get(name, (None, None, 0.0))
        fits = up is None or down is None or (len(up), *down.shape[1:]) == tuple(tensor.shape)
        if stored.shape != tensor.shape or not fits:
            raise UserError(f"The adapter's change of {name!r} has another shape than that tensor in {self.folder}.")
        if up is None or down is None:
            return stored
        return stored + scale * (up.flatten(1) @ down.flatten(1)).view_as(stored)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def part(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors of a part stored apart, {} where there is none; names may begin with "module.", which training added."""
    path = folder / f"{name}.safetensors"
    tensors = load_tensors(path)[0] if path.is_file() else {}
    return {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}


def refuse_pickles(folder: Path, parts_only: bool = False) -> None:
    """Complain about weights in files that can run code when they are opened, unless they are there as tensors too.

    `parts_only`: only parts that are stored apart are taken from this folder, so that others don't matter.
    """
    for path in sorted(path for path in folder.iterdir() if path.suffix in PICKLES):
        name = path.name.partition("--")[0]
        if parts_only and name not in {*PARTS, *OTHER_PARTS}:
            continue
        if name in OTHER_PARTS:
            raise UserError(f"{path} belongs to an OpenVLA-OFT with {OTHER_PARTS[name]}, which can't be loaded here.")
        twin = f"{name}.safetensors" if name in PARTS else WEIGHTS
        if not (folder / twin).is_file() and not (name not in PARTS and (folder / INDEX).is_file()):
            raise UserError(
                f"{path} is a pickle, which can run code when opened: where you trust it, convert it once to {twin}, "
                "with torch.load(..., weights_only=True) and safetensors.torch.save_file."
            )


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file; {} for a checkpoint of one file."""
    if not (folder / INDEX).is_file():
        return {}
    index = read_json(folder / INDEX)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise UserError(f"{folder / INDEX} does not say which file holds which tensor.")
    return {name: Path(file).name for name, file in where.items()}


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise UserError(f"{path} does not exist: the checkpoint is incomplete.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or holds something else than tensors ({error}): copy it again.") from None


Change = tuple[Tensor, Tensor, float]


def _adapter(folder: Path) -> tuple[dict[str, Change], dict[str, Tensor]]:
    """Low-rank changes in PEFT's layout: weight -> (up, down, scale), to be added as scale * up @ down, kernels of
    convolutions flattened; and whole weights, which PEFT stores beside the changes of an embedding or an lm_head."""
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise UserError(f"{folder} is no LoRA adapter in PEFT's layout.")
    special = [name for name in SPECIAL if config.get(name)]
    if config.get("bias", "none") != "none":
        special.append("bias")
    tensors, _ = load_tensors(folder / "adapter_model.safetensors")
    changes, replaced, known = {}, {}, 0
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"base_model\.model\.(.+)\.lora_B\.weight", name):
            down = tensors.get(name.replace(".lora_B.", ".lora_A."))
            if down is None or not _fit(tensor, down):
                raise UserError(f"{folder} has no lora_A that fits {name!r}.")
            changes[f"{found[1]}.weight"] = (tensor.float(), down.float(), config["lora_alpha"] / tensor.shape[1])
            known += 2
        elif found := re.fullmatch(r"base_model\.model\.((?!.*\.lora_).+?)(\.base_layer)?\.weight", name):
            replaced[f"{found[1]}.weight"] = tensor.float()
            known += 1
    if special or known != len(tensors):
        what = special[0] if special else "tensors besides lora_A, lora_B and whole weights"
        raise UserError(f"{folder} has {what}, which can't be added here: merge it with PEFT, and give the result.")
    return changes, replaced


def _fit(up: Tensor, down: Tensor) -> bool:
    """Of linear layers (out, rank) and (rank, in), of convolutions (out, rank, 1, 1) and (rank, in, height, width)."""
    return up.ndim == down.ndim >= 2 and up.shape[1] == len(down) and up[0, 0].numel() == 1
