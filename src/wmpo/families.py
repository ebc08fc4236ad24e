"""Which class stands behind a family's name: of an environment, a policy, a world model or a reward model.

A name is a family of this package, an entry point of an installed package, or module:Class. The last is imported only
where a person has named it, in Python or on the command line (`allow`): what a file says is never imported, be it a
class, a module or from a folder (`env.checkout`), nor started (`env.python`), by itself.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from wmpo.config import EnvConfig, PolicyConfig, Recipe, RewardConfig, WorldModelConfig
from wmpo.errors import UserError, named, out_of_memory, reason
from wmpo.io.files import read_json, write_json
from wmpo.io.plain import JsonObject, from_plain, to_plain
from wmpo.protocols import Policy, RewardModel, WorldModel

Config = TypeVar("Config", EnvConfig, PolicyConfig, WorldModelConfig, RewardConfig)
MODEL_CONFIG = "config.json"
RATE = "trained_fps"  # in it, actions a second


@dataclass(frozen=True)
class Plug:
    """One of the four things that a user may bring."""

    words: str
    group: str
    """Of entry points."""
    base: type
    """Of the settings of all families."""
    builtin: Mapping[str, tuple[str, str]]
    """Family, or what a published checkpoint calls itself -> (class, its settings), each module:Name."""


_FLOW_VLA = ("wmpo.policies.flow_vla:FlowVLA", "wmpo.policies.settings:FlowVLASettings")
_OPENVLA = ("wmpo.policies.openvla_oft:OpenVLAOFT", "wmpo.config:PolicyConfig")
PLUGS: Mapping[str, Plug] = {  # by the recipe's fields
    "env": Plug("environment", "wmpo.envs", EnvConfig, {
        "aloha": ("wmpo.envs.aloha.family:Aloha", "wmpo.envs.aloha.settings:AlohaSettings"),
        "gym": ("wmpo.envs.gym.family:Gym", "wmpo.envs.gym.settings:GymSettings"),
        "libero": ("wmpo.envs.libero.family:Libero", "wmpo.envs.libero.settings:LiberoSettings"),
        "metaworld": ("wmpo.envs.metaworld.family:MetaWorld", "wmpo.envs.metaworld.settings:MetaWorldSettings"),
        "mimicgen": ("wmpo.envs.mimicgen.family:MimicGen", "wmpo.envs.mimicgen.settings:MimicGenSettings"),
        "tabletop": ("wmpo.envs.tabletop.family:Tabletop", "wmpo.envs.tabletop.settings:TabletopSettings"),
        "robosuite": ("wmpo.envs.robosuite.family:Robosuite", "wmpo.envs.robosuite.settings:RobosuiteSettings"),
        "recorded": ("wmpo.envs.unreachable:Recorded", "wmpo.config:EnvConfig"),
        "robot": ("wmpo.envs.robot.env:RobotFamily", "wmpo.envs.robot.settings:RobotSettings"),
    }),
    "policy": Plug("policy", "wmpo.policies", PolicyConfig, {
        "minivla": ("wmpo.policies.minivla:MiniVLA", "wmpo.policies.settings:MiniVLASettings"),
        "openvla": _OPENVLA, "openvla_oft": _OPENVLA, "pi0": _FLOW_VLA, "smolvla": _FLOW_VLA,
    }),
    "world_model": Plug("world model", "wmpo.world_models", WorldModelConfig, {
        "video_diffusion": ("wmpo.world_models.video_diffusion:VideoDiffusionModel",
                            "wmpo.world_models.settings:VideoDiffusionSettings"),
    }),
    "reward": Plug("reward model", "wmpo.reward_models", RewardConfig, {
        "conv": ("wmpo.rewards.clip_classifier:ClipClassifier", "wmpo.rewards.settings:ConvSettings"),
        "videomae": ("wmpo.rewards.videomae:VideoMAEClassifier", "wmpo.rewards.settings:VideoMAESettings"),
    }),
}  # fmt: skip
RENAMED = {  # settings of version 0.1, or parts of their names
    "grpo.trust": "grpo.target_kl", "grpo.refill": "grpo.max_resamples",
    "grpo.keep_low": "grpo.min_group_success", "grpo.keep_high": "grpo.max_group_success",
    "grpo.starts": "grpo.n_initial_states", "policy.start": "policy.pretrained",
    "demonstrations.slowest": "demonstrations.min_pace", "reward.dream_share": "reward.imagined_fraction",
    "reward.backbone": "reward.family", "world_model.align_share": "world_model.align_fraction",
    "world_model.body_fit": "world_model.kinematics_fit", "world_model.times": "world_model.training_timesteps",
    "evaluate.watch_every": "evaluate.practice_eval_freq", "evaluate.watch_episodes": "evaluate.practice_eval_episodes",
    "shares": "cpu_shards",
}  # fmt: skip
GONE = {  # likewise, of settings that have no successor -> why
    "held_out": "thresholds are cross-fitted now, on episodes that a classifier has not seen, so none is held out",
}
CLASS = "a class of yours, which no file may name by itself"
MODULE = "a module, which no file may import by itself"
PROGRAM = "a program, which no file may start by itself"
FOLDER = "a folder of code, which no file may import by itself"
_allowed: set[str] = set()


def new_name(setting: str) -> str:
    """What a setting is called now, by its dotted name; itself where it has not been renamed."""
    found = f".{setting}."
    for old, new in RENAMED.items():
        found = found.replace(f".{old}.", f".{new}.")
    return found[1:-1]


def why_gone(setting: str) -> str:
    """Why there is no such setting any more, by its dotted name; empty where it was never there, or still is."""
    return GONE.get(setting.rpartition(".")[2], "")


def allow(name: str) -> None:
    """Let files name this module:Class, module, folder to import from or Python interpreter from now on, in this
    process."""
    _allowed.add(name)


def code_in(part: JsonObject) -> dict[str, str]:
    """What runs code in the settings of a family, given as plain values: name -> what it is."""
    classes, modules = [str(part.get(name) or "") for name in ("family", "robot")], part.get("imports")
    code = {name: CLASS for name in classes if ":" in name}
    code |= {str(name): MODULE for name in modules} if isinstance(modules, list) else {}
    paths = {"python": PROGRAM, "checkout": FOLDER}
    return code | {str(part[name]): what for name, what in paths.items() if part.get(name)}


def family_class(kind: str, family: str) -> Any:
    """The class of a family; `kind` is a key of `PLUGS`. Raises UserError where there is none."""
    return _import(kind, _names(kind, family)[0])


def settings_class(kind: str, family: str) -> Any:
    """The dataclass of a family's settings, without importing the built-in families themselves."""
    own = _names(kind, family)[1]
    if own:
        return _import(kind, own)
    plug, cls = PLUGS[kind], family_class(kind, family)
    settings = getattr(cls, "Settings", plug.base)
    if not (is_dataclass(settings) and issubclass(settings, plug.base)):
        raise UserError(f"{family}.Settings must be a dataclass that extends wmpo.config.{plug.base.__name__}.")
    return settings


def _names(kind: str, family: str) -> tuple[str, str]:
    plug = PLUGS[kind]
    if ":" in family:
        if not is_dotted(family):
            raise UserError(
                f"{family!r} is no name of a class: give it as module:Class, as Python imports it from where you are, "
                "without a path."
            )
        require_allowed({family: CLASS})
        return family, ""
    installed = {entry.name: (entry.value, "") for entry in entry_points(group=plug.group)}
    return named(f"{plug.words} family", family, {**installed, **plug.builtin})


def require_allowed(code: Mapping[str, str]) -> None:
    """Raise UserError that names all of these, as of `code_in`, that a person hasn't named."""
    if names := [name for name in code if name not in _allowed]:
        each, options = ", ".join(map(repr, names)), " ".join(f"--allow {shlex.quote(name)}" for name in names)
        each, them = (f"Each of {each}", "them") if len(names) > 1 else (each, "it")
        raise UserError(f"{each} is {code[names[0]]}: add {options} if you trust {them}.")


def is_dotted(name: str) -> bool:
    """Whether Python could import this, module or module:Class."""
    return all(part.isidentifier() for part in name.replace(":", ".", 1).split("."))


def _import(kind: str, path: str) -> Any:
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    if path in _allowed and here not in sys.path:
        sys.path.append(here)  # last: a file here never takes the place of an installed package
    with of_yours(f"The {PLUGS[kind].words} {path} can't be imported"):
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    return found


@contextmanager
def of_yours(what: str) -> Iterator[None]:
    """Say in one sentence, which `what` begins, what a class raises that may be a user's."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise UserError(f"{what}: {reason(error)}.") from error


def build(kind: str, config: EnvConfig | PolicyConfig | WorldModelConfig | RewardConfig, *args: object) -> Any:
    """What the family of these settings builds with `args`. Raises UserError, whatever goes wrong in its code."""
    what = f"The {PLUGS[kind].words} {config.family} can't be built"
    config = complete(kind, config)  # type: ignore[type-var]
    check_buildable(kind, config)
    with nullcontext() if config.family in PLUGS[kind].builtin else of_yours(what):
        built = family_class(kind, config.family).build(config, *args)
    if built is None:
        raise UserError(f"{what}: its method build returns nothing.")
    return built


def check_buildable(kind: str, config: EnvConfig | PolicyConfig | WorldModelConfig | RewardConfig) -> None:
    """Raise UserError where the family of these settings can't be built; a pretrained policy needn't be."""
    if isinstance(config, PolicyConfig) and config.pretrained:
        return
    if kind != "policy" and config.family in PLUGS[kind].builtin:
        return
    cls = family_class(kind, config.family)
    if not callable(getattr(cls, "build", None)):
        hint = "name a folder to begin from, policy.pretrained" if kind == "policy" else "it has no method build"
        if kind == "env" and hasattr(cls, "observe"):
            hint = "name the family class, not the episode class"
        raise UserError(f"The {PLUGS[kind].words} {config.family} can't be built from scratch: {hint}.")


def complete(kind: str, config: Config) -> Config:
    """The settings as those of their family; what the base doesn't know gets the family's defaults."""
    cls = settings_class(kind, config.family)
    if isinstance(config, cls):
        return config
    if type(config) is not PLUGS[kind].base:
        raise UserError(
            f"{kind}.family is {config.family}, but the settings are {type(config).__name__}, not {cls.__name__}."
        )
    return cls(**{field.name: getattr(config, field.name) for field in fields(config)})


def of_family(kind: str, config: Config, family: str) -> Config:
    """The settings of another family, which keeps what both know."""
    if config.family == family:
        return complete(kind, config)
    cls = settings_class(kind, family)
    shared = {field.name for field in fields(cls)} & {field.name for field in fields(PLUGS[kind].base)}
    return cls(**{name: getattr(config, name) for name in shared} | {"family": family})


def completed(recipe: Recipe) -> Recipe:
    """The recipe with the settings of its four families."""
    return _replace(recipe, {kind: complete(kind, getattr(recipe, kind)) for kind in PLUGS})


def _replace(recipe: Recipe, parts: JsonObject) -> Recipe:
    return Recipe(**{field.name: parts.get(field.name, getattr(recipe, field.name)) for field in fields(recipe)})


def _names_in(values: Mapping[str, object], levels: int = 3) -> list[str]:
    """Dotted names of the settings in nested objects; deeper than `levels` there are none."""
    inner = [f"{name}.{rest}" for name, value in values.items() if levels > 1 and isinstance(value, dict)
             for rest in _names_in(value, levels - 1)]  # fmt: skip
    return [*values, *inner]


def recipe_from_plain(data: object, where: str) -> Recipe:
    """A recipe from the values of a JSON file. Raises UserError that names `where` and the setting."""
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no recipe.")
    for name in _names_in(data):
        if why := why_gone(name):
            raise UserError(f"{where} is of an earlier version, which had {name}; {why}: begin a run anew.")
        if new_name(name) != name:
            raise UserError(
                f"{where} is of an earlier version, in which {new_name(name)} was {name}: begin a run anew."
            )
    parts: JsonObject = {}
    rest = dict(data)
    described = [part for kind in PLUGS if isinstance(part := rest.get(kind), dict)]
    require_allowed({name: what for part in described for name, what in code_in(part).items()})
    for kind, plug in PLUGS.items():
        part = rest.pop(kind, {})
        if not isinstance(part, dict):
            raise UserError(f"{where}: {kind} must be an object.")
        family = part.get("family", plug.base().family)
        parts[kind] = from_plain(settings_class(kind, str(family)), part, f"{where}: {kind}")
    base = from_plain(Recipe, {**to_plain(Recipe()), **rest}, where)
    return _replace(base, parts)


def saved_family(kind: str, folder: Path, default: str) -> str:
    """What the config.json of a saved model says; LeRobot and transformers call it type and model_type."""
    path = Path(folder) / MODEL_CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {PLUGS[kind].words}, since it has no {MODEL_CONFIG}: check the path.")
    described = read_json(path)
    if not isinstance(described, dict):
        raise UserError(f"{path} describes no {PLUGS[kind].words}: it holds no JSON object.")
    family = str(described.get("family") or described.get("type") or described.get("model_type") or default)
    for other, plug in PLUGS.items():
        if other != kind and family in plug.builtin:
            raise UserError(f"{folder} holds no {PLUGS[kind].words} but a {plug.words}, {family}: check the path.")
    return family


def family_of(config: PolicyConfig) -> str:
    """The family of the policy that a run begins with."""
    return saved_family("policy", Path(config.pretrained), config.family) if config.pretrained else config.family


def check_free(kind: str, family: str, folder: Path) -> None:
    """Raise UserError where a folder holds a model of another kind or family, which saving one would destroy."""
    if not (Path(folder) / MODEL_CONFIG).exists():
        return
    known, there = PLUGS[kind].builtin, saved_family(kind, folder, family)
    if known.get(there, there) != known.get(family, family):  # some families go by several names
        raise UserError(f"{folder} holds a {PLUGS[kind].words} of family {there}, not {family}: choose another --out.")


def save_model(kind: str, family: str, model: Policy | WorldModel | RewardModel, folder: Path, fps: int) -> None:
    """Save a model so that `saved_family` knows it again, whatever its own `save_pretrained` writes, and `check_rate`
    how many actions a second it has learned from."""
    check_free(kind, family, folder)
    model.save_pretrained(folder)
    path = Path(folder) / MODEL_CONFIG
    described = read_json(path) if path.is_file() else {}
    described = described if isinstance(described, dict) else {}
    if ":" in family or not {"family", "type", "model_type"} & described.keys():
        described["family"] = family
    if not {"type", "model_type"} & described.keys():  # others' layouts, which others read
        described[RATE] = fps
    write_json(path, described)


def check_rate(folder: Path, fps: int) -> None:
    """Raise UserError where the model that `save_model` wrote there has learned from another number of actions a
    second: what it decides would be too fast or too slow."""
    described = read_json(Path(folder) / MODEL_CONFIG)
    learned = described.get(RATE) if isinstance(described, dict) else None
    if learned not in (None, fps):
        raise UserError(
            f"{folder} has learned from {learned} actions a second, but here there are {fps}: choose the same rate, or "
            f'change "{RATE}" in its {MODEL_CONFIG} where that is what you want.'
        )
