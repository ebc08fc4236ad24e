"""Weights and optimiser state as safetensors, settings as JSON. Nothing is pickled, nothing is half written."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from wmpo.errors import UserError, reason
from wmpo.io.files import atomic_path, read_json, write_json
from wmpo.io.plain import JsonObject, from_plain, to_plain
from wmpo.protocols import Trainable, WorldModel
from wmpo.types import EnvSpec

Config = TypeVar("Config")
SomeTensor = TypeVar("SomeTensor", bound=Tensor)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGE, MANY = 2**26, 20_000  # numbers in a parameter, and parameters, that any network may have; see `opening`


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """As safetensors does, whose file only its owner may read, but with the rights that any new file gets here."""
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(rights)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object] | None = None) -> None:
    """Replace the file at `path` by `tensors`, with `facts` (JSON values) in its header."""
    seen: set[tuple[int, int]] = set()
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = (tensor.data_ptr(), tensor.numel())
        # safetensors refuses memory that two names share (tied weights), so the second name gets its own copy
        stored[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    try:
        with atomic_path(Path(path)) as temporary:
            write_tensors(stored, temporary, metadata={"facts": json.dumps(to_plain(dict(facts or {})))})
    except (SafetensorError, OSError) as error:  # safetensors has an error of its own for a full disk
        raise UserError(f"{path} can't be written ({first_line(error)}); what was there before is kept.") from None


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], JsonObject]:
    """(tensors, facts) as `save_tensors` stored them."""
    with opened(Path(path), device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    return tensors, facts if isinstance(facts, dict) else {}


def load_rows(paths: Sequence[Path], rows: Mapping[str, range], advice: str = "") -> dict[str, Tensor]:
    """Tensors that lie in several files, some rows of each in every one; of those in `rows` only these are read.
    `advice`: see `opened`."""
    parts: dict[str, list[Tensor]] = {}
    before: Counter[str] = Counter()
    for path in paths:
        with opened(path, advice=advice) as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                here = range(before[name], before[name] + piece.get_shape()[0])
                asked = rows.get(name, here)
                begin, end = (min(max(place, here.start), here.stop) for place in (asked.start, asked.stop))
                parts.setdefault(name, []).append(piece[begin - here.start : end - here.start])
                before[name] = here.stop
    return {name: torch.cat(some) for name, some in parts.items()}


@contextmanager
def opened(path: Path, device: torch.device | str = "cpu", advice: str = "") -> Iterator[Any]:
    """A safetensors file, to read from. Raises UserError for what is none; `advice`: what is to be done then."""
    try:
        with path.open("rb"):
            pass  # whether it is there and may be read, which safetensors doesn't say
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        how = advice or "train first, or give the folder of a finished run"
        raise UserError(f"{path} does not exist; {how}.") from None
    except OSError as error:
        how = f"; {advice}" if advice else ""
        raise UserError(f"{path} can't be read: {error.strerror or first_line(error)}{how}.") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        reason, how = first_line(error), advice or "delete it and run again"
        raise UserError(f"{path} is truncated or no safetensors file ({reason}); {how}.") from None


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def digest_of(module: Trainable | WorldModel) -> str:
    """What tells one set of weights from another: 16 hexadecimal digits from their names, kinds, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def digest_of_numbers(numbers: Sequence[int]) -> str:
    """The same for whole numbers, such as those of initial states."""
    return hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest()[:16]


def digest_of_values(values: Mapping[str, object]) -> str:
    """The same for JSON values."""
    return hashlib.sha256(json.dumps(to_plain(values), sort_keys=True).encode()).hexdigest()[:16]


def load_weights(module: Trainable, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy `tensors` into the module; names and shapes must match exactly."""
    own = module.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise UserError(f"{where} lacks {len(missing)} weights of {type(module).__name__}, first {missing[0]!r}.")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{where} has {len(surplus)} weights that {type(module).__name__} lacks, first {surplus[0]!r}.")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, but {type(module).__name__} needs {tuple(tensor.shape)}"
            raise UserError(f"{where}: {name!r} has shape {shapes}; it was trained with other settings.")
        if not tensors[name].isfinite().all():
            raise UserError(f"{where}: {name!r} holds NaN or infinite weights; they are of no use, so train again.")
    module.load_state_dict(dict(tensors))


def save_module(folder: Path, module: nn.Module, config: object) -> None:
    """Write `config.json` (of the dataclass `config`) and `model.safetensors`.

    A module that says its `family` (see `wmpo.families`) is opened as one of it.
    """
    described = {
        **({"family": module.family} if hasattr(module, "family") else {}),
        "module": type(module).__name__,
        "config_type": type(config).__name__,
        "config": to_plain(config),
    }
    write_json(Path(folder) / CONFIG, described)
    save_tensors(Path(folder) / WEIGHTS, module.state_dict(), {"module": described["module"]})


def load_config(folder: Path, config_type: type[Config]) -> Config:
    """The config that `save_module` wrote; the first step of loading a module."""
    path = Path(folder) / CONFIG
    described = read_json(path)
    if not isinstance(described, dict) or not {"config_type", "config"} <= described.keys():
        raise UserError(f"{path} is not the description of a wmpo module.")
    if described["config_type"] != config_type.__name__:
        found, wanted = described["config_type"], config_type.__name__
        raise UserError(f"{folder} holds another architecture: its settings are {found}, not {wanted}.")
    return from_plain(config_type, described["config"], str(path))


def load_module(folder: Path, module: nn.Module) -> nn.Module:
    """Fill `module` with the weights in `folder`; the second step of loading a module."""
    path = Path(folder) / WEIGHTS
    tensors, facts = load_tensors(path)
    if facts.get("module", type(module).__name__) != type(module).__name__:
        raise UserError(f"{folder} holds another architecture: a {facts['module']}, not a {type(module).__name__}.")
    load_weights(module, tensors, path)
    return module


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """While a saved network is built: its config.json may ask for no more than the weights beside it can fill.

    Raises UserError for sizes and depths that are impossible, or far beyond those weights, before memory is filled.
    """
    path = Path(folder) / WEIGHTS
    largest, count = LARGE, MANY
    with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        largest, count = max(largest, *map(math.prod, shapes)), max(count, 4 * len(shapes))

    def check(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count -= 1
        if count < 0 or (parameter is not None and parameter.numel() > largest):
            raise UserError(f"{path.with_name(CONFIG)} describes a far larger network than {path} holds weights for.")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        why = reason(error)
        raise UserError(f"{path.with_name(CONFIG)} describes no network that can be built: {why}.") from error
    finally:
        hook.remove()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: "<parameter index>.<quantity>"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, slot in state.items() for key, value in slot.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Put the state of `optimizer_tensors` back; the optimiser must hold the same parameters in the same order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise UserError(f"{where} holds the optimiser of another network: {name!r} has no parameter here.")
        if tensor.ndim and tensor.shape != parameters[int(index)].shape:
            raise UserError(f"{where} holds the optimiser of another network: {name!r} has another shape.")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, SomeTensor]) -> dict[str, SomeTensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below `prefix`, by their names there."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}


def check_fits(model: object, spec: EnvSpec, where: str | Path) -> None:
    """A network, by what its `config` says where it has one, must see and do what `spec` shows and accepts.

    `config.cameras` names the cameras, and may map each to its (height, width), else `config.image_size` is of all.
    Without either, images may have any size; with a `state_dim` of None the network looks at no state.
    """
    config: object = getattr(model, "config", None)
    cameras = getattr(config, "cameras", tuple(spec.cameras)[:1])
    if missing := [name for name in cameras if name not in spec.cameras]:
        setting = getattr(config, "camera_setting", "")  # by which a family maps its own names to others
        hint = f": set {setting} to {missing[0]}=CAMERA, and so for each camera of the policy" if setting else ""
        raise UserError(
            f"{where} looks through the camera {missing[0]!r}, but there is only {', '.join(spec.cameras)}{hint}."
        )
    for name in cameras:
        size = cameras[name] if isinstance(cameras, Mapping) else getattr(config, "image_size", spec.cameras[name])
        if spec.cameras[name] != tuple(size):
            made, given = "x".join(map(str, size)), "x".join(map(str, spec.cameras[name]))
            raise UserError(f"{where} was trained on images of {made} pixels, but camera {name!r} gives {given}.")
    for field, unit in (("action_dim", "action"), ("state_dim", "state")):
        wanted, given = getattr(config, field, getattr(spec, field)), getattr(spec, field)
        if wanted not in (given, None):
            raise UserError(f"{where} was trained with {wanted} {unit} dimensions, but here there are {given}.")
