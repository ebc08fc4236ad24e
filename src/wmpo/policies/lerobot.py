"""A SmolVLA in the folder that LeRobot saves it in: config.json, model.safetensors, and the two pipelines around it.

Fine-tuned with PEFT it has adapter_model.safetensors in place of the weights; those of its base are read, and changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.io.plain import JsonObject, to_plain
from wmpo.policies.adapters import base_of
from wmpo.policies.published import Published, Republished, read_weights, standardizer, statistics
from wmpo.policies.smolvla import Sizes, SmolVLANetwork
from wmpo.training.checkpoint import CONFIG, load_tensors

BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
PREFIX = "model."  # of the names of all its weights
UNUSED = "model.vlm_with_expert.vlm.lm_head.weight"
LATER = "pretrained_revision"  # in config.json from LeRobot 0.6 on
EMPTY = "empty_camera_"  # of a camera that LeRobot makes up, all black and attended to by nothing


def published(folder: Path) -> Published:
    """A folder as LeRobot saves a SmolVLA; config.json and tokenizer.json of its SmolVLM lie in FOLDER/vlm, or with its
    base."""
    described = read_json(folder / CONFIG)
    vlm = folder / "vlm"
    if not vlm.is_dir():
        vlm = base_of(folder) / "vlm"
    if not (vlm / CONFIG).is_file():
        name = described.get("vlm_model_name", "its SmolVLM")
        raise UserError(f"{vlm} needs config.json and tokenizer.json of {name}: LeRobot does not save them.")
    cameras, renamed = _cameras(described), _renamed(folder)
    settings = Sizes.of(described, str(folder / CONFIG))
    settings = replace(settings, patch_positions=_positions(settings, later=LATER in described))
    _check(settings, folder)
    tensors = read_weights(folder)
    tensors.pop(UNUSED, None)
    if strange := sorted(name for name in tensors if not name.startswith(PREFIX)):
        raise UserError(f"{folder} has {len(strange)} weights that SmolVLA lacks, first {strange[0]!r}.")
    return Published(
        network="smolvla",
        settings={**to_plain(settings), "vlm": read_json(vlm / CONFIG)},
        features=tuple(_short(name) for name in cameras),
        cameras=tuple(_short(renamed.get(name, name)) for name in cameras),
        chunk=settings.chunk_size,
        steps=settings.num_steps,
        tensors={name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()},
        normalizer=normalizer(folder),
        tokenizer=vlm / "tokenizer.json",
    )


def normalizer(folder: Path) -> Normalizer:
    """The statistics that its pipelines keep."""
    described = read_json(folder / CONFIG)
    before = _stored(folder, BEFORE, "normalizer_processor")
    after = _stored(folder, AFTER, "unnormalizer_processor")
    sizes = [
        described.get(kind, {}).get(name, {}).get("shape", [0])[0]
        for kind, name in (("input_features", "observation.state"), ("output_features", "action"))
    ]
    name = "observation.state"
    state = statistics(before.get(f"{name}.mean"), before.get(f"{name}.std"), sizes[0], "state", folder)
    action = statistics(after.get("action.mean"), after.get("action.std"), sizes[1], "action", folder)
    limits = after.get("action.min"), after.get("action.max")
    known = all(bound is not None and bound.shape == action[0].shape and bound.isfinite().all() for bound in limits)
    return standardizer(state, action, cast(tuple[Tensor, Tensor], limits) if known else None)


def republished(network: SmolVLANetwork, chunk: int, steps: int, told: JsonObject) -> Republished:
    """Under LeRobot's names, so that it decides as here: `chunk` actions in so many steps, and executes them all. One
    that was adapted by PEFT, as its config.json has `told`, goes back whole."""
    here, sizes = network.sizes.patch_positions, {"chunk_size": chunk, "n_action_steps": chunk, "num_steps": steps}
    versions = {"0.5 and later": True} if LATER in told else {"0.4": False, "0.5 and later": True}
    others = [name for name, later in versions.items() if _positions(network.sizes, later) != here]
    remark = f"Patches are numbered {here} here, but not in LeRobot {', '.join(others)}: expect other actions there."
    return Republished(
        weights={f"{PREFIX}{name}": tensor for name, tensor in network.state_dict().items()},
        frozen=f"{PREFIX}vlm_with_expert.vlm.",
        settings={CONFIG: {**sizes, "use_peft": False} if told.get("use_peft") else sizes},
        remark=remark if others else "",
    )


def _positions(sizes: Sizes, later: bool) -> Literal["exact", "shifted"]:
    """As LeRobot 0.4 numbers patches, or a later one. The former falls short in float32; but it loads the weights of a
    SmolVLM in half precision, in which 1 - 1e-6 is 1."""
    return "exact" if later or sizes.load_vlm_weights else "shifted"


def _cameras(described: Mapping[str, object]) -> tuple[str, ...]:
    """Its cameras in LeRobot's order, without those that it makes up."""
    features = described.get("input_features")
    found = features.items() if isinstance(features, dict) else ()
    names = [name for name, feature in found if isinstance(feature, dict) and feature.get("type") == "VISUAL"]
    return tuple(name for name in names if not _short(name).startswith(EMPTY))


def _short(name: str) -> str:
    return name.removeprefix("observation.").removeprefix("images.")


def _renamed(folder: Path) -> dict[str, str]:
    """Camera of the policy -> the data's, where it was trained under other names."""
    names = (_step(folder / BEFORE, "rename_observations_processor") or {}).get("config", {}).get("rename_map", {})
    return {str(own): str(theirs) for theirs, own in names.items()}


def _check(sizes: Sizes, folder: Path) -> None:
    layers = sizes.num_expert_layers
    width, height = sizes.resize_imgs_with_padding
    for wrong, why in (
        (layers > 0 and layers != sizes.num_vlm_layers, f"an expert of {layers} layers, fewer than its SmolVLM's"),
        (width != height, f"pictures of {width}x{height} pixels, which are not square"),
        (sizes.add_image_special_tokens, "special tokens around pictures"),
        (sizes.adapt_to_pi_aloha, "the joints of an Aloha turned into pi's"),
    ):
        if wrong:
            raise UserError(f"{folder} is a SmolVLA with {why}, which wmpo does not know.")


def _stored(folder: Path, pipeline: str, name: str) -> dict[str, Tensor]:
    """The statistics of a step of LeRobot's pipelines; states and actions must be normalised by mean and deviation."""
    step = _step(folder / pipeline, name)
    if step is None:
        raise UserError(f"{folder / pipeline} has no step {name!r}, so that the scale of actions is unknown.")
    modes = step.get("config", {}).get("norm_map", {})
    if other := sorted({modes.get(kind, "IDENTITY") for kind in ("STATE", "ACTION")} - {"MEAN_STD"}):
        raise UserError(f"{folder / pipeline} normalises by {other[0]}; wmpo knows SmolVLAs by MEAN_STD.")
    file = step.get("state_file")
    if file and (not isinstance(file, str) or Path(file).name != file or "\\" in file):
        raise UserError(f"{folder / pipeline} names the state_file {file!r}, which is no file in that folder.")
    return load_tensors(folder / file)[0] if file else {}


def _step(pipeline: Path, name: str) -> JsonObject | None:
    steps = read_json(pipeline).get("steps", [])
    return next((step for step in steps if step.get("registry_name") == name), None)
