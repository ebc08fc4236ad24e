"""A policy back in the layout that it was published in, for the programs that it came from.

The published folder is copied, whatever else it holds; only what has been learned takes the place of what was there. So
what wmpo has no use for (an lm_head, the last layer of a vision tower, pipelines, code, a licence) comes along.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.files import atomic_folder, copy_file, read_json, write_json
from wmpo.policies.adapters import ADAPTER, BASE, CHANGES, base_of
from wmpo.policies.published import PICKLES, Republished, Republishes, stored_weights, weight_files
from wmpo.protocols import Policy
from wmpo.training.checkpoint import CONFIG, WEIGHTS, first_line, opening, write_tensors

INDEX = f"{WEIGHTS}.index.json"


def export(policy: Policy, published: Path | None, out: Path) -> str:
    """Write the policy to `out`, a folder that isn't there yet, as the one in `published` is laid out; without that, as
    the one that it began from. Returns what a person should know.

    Raises UserError where the policy has no other layout, or began elsewhere.
    """
    if not isinstance(policy, Republishes):
        raise UserError(
            "Only a SmolVLA, a pi0 or an OpenVLA-OFT has another program to go back to; this policy is wmpo's own."
        )
    origin = published or (Path(policy.origin) if policy.origin else None)
    if origin is None or not (origin / CONFIG).is_file():
        place = f"in {origin} any more" if origin else "known to it"
        raise UserError(f"The folder that the policy began from is not {place}: give it by --published.")
    with atomic_folder(out, origin) as made:
        scratch = made.with_name("scratch")
        scratch.mkdir()
        with opening(origin):
            back = policy.republished(origin, scratch)
        _copy(origin, made)
        _write_weights(back, origin, made)
        for name, path in back.files.items():
            copy_file(path, made / name)
        for name, changes in back.settings.items():
            described = read_json(made / name) if (made / name).is_file() else {}
            write_json(made / name, {**described, **changes})
        for name, tensors in back.parts.items():
            _write_part(name, tensors, origin, made)
    return back.remark


def _copy(origin: Path, made: Path) -> None:
    """All but weights, adapters, pickles, and what is hidden; what only the base of an adapter has comes along."""
    weights = {*weight_files(origin), origin / ADAPTER, origin / CHANGES}
    for place in dict.fromkeys((base_of(origin), origin)):
        for path in _files(place):
            if path not in weights and path.suffix not in PICKLES and (place / BASE) not in path.parents:
                copy_file(path, made / path.relative_to(place))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file():
            yield path


def _write_weights(back: Republished, origin: Path, made: Path) -> None:
    """The files of the weights with the learned ones, in float32; what is as it was stays so to the bit."""
    left, total = set(back.weights), 0
    for path, tensors in stored_weights(origin):
        for name in tensors.keys() & back.weights.keys():
            tensors[name] = _newer(name, tensors[name], back, origin)
        left -= tensors.keys()
        total += sum(tensor.nbytes for tensor in tensors.values())
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {"format": "pt"}
        _save(tensors, made / path.name, about)
    if left:
        raise UserError(f"{origin} lacks {len(left)} weights of the policy, first {min(left)!r}: it began elsewhere.")
    if (made / INDEX).is_file() and isinstance(index := read_json(made / INDEX), dict):
        write_json(made / INDEX, {**index, "metadata": {"total_size": total}})


def _newer(name: str, stored: Tensor, back: Republished, origin: Path) -> Tensor:
    learned = back.weights[name].detach().cpu().float()
    if learned.shape != stored.shape:
        raise UserError(f"{origin} has {name!r} in another shape: the policy began elsewhere.")
    if torch.equal(learned, stored.float()):
        return stored
    if back.frozen and name.startswith(back.frozen):
        raise UserError(f"{origin} has another {name!r}, which was never trained: the policy began elsewhere.")
    return learned.clone(memory_format=torch.contiguous_format)  # two names may share it


def _write_part(name: str, tensors: Mapping[str, Tensor], origin: Path, made: Path) -> None:
    """Stored apart: as tensors, which wmpo reads, and as its authors do, who look for a pickle of this name."""
    own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    _save(own, made / f"{name}.safetensors")
    before = sorted(path.name for path in origin.glob(f"{name}*checkpoint*.pt"))
    pickled = io.BytesIO()  # torch.save says little of a full disk
    torch.save(own, pickled)
    (made / (before[0] if before else f"{name}--wmpo_checkpoint.pt")).write_bytes(pickled.getvalue())


def _save(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    try:
        write_tensors(tensors, path, metadata=about)
    except SafetensorError as error:  # of its own for a full disk
        raise UserError(
            f"{path.name} can't be written ({first_line(error)}): make room, or choose another folder."
        ) from None
