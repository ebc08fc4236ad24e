"""Files of tensors, and of nothing but tensors: a checkpoint, a part stored apart, a low-rank adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.policies.adapters import Adapter
from wmpo.policies.published import PICKLES
from wmpo.training.checkpoint import WEIGHTS, load_tensors

INDEX = f"{WEIGHTS}.index.json"
PARTS = ("proprio_projector", "action_head")  # stored apart
OTHER_PARTS = {"vision_backbone": "FiLM", "noisy_action_projector": "a diffusion head"}


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
        self.adapter = None if adapter is None else Adapter.read(adapter)
        if self.adapter is not None:
            self.adapter.check(self.files, folder)

    def shape(self, name: str) -> tuple[int, ...]:
        """Known without reading the tensor."""
        return tuple(self.files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name).float()
        return tensor if self.adapter is None else self.adapter.added(name, tensor, self.folder)

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
