"""Options from the command line, by tyro; what is wrong with them is said in one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields, make_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from wmpo.cli import HelpShown, exit_status
from wmpo.config import Recipe
from wmpo.envs import RECORDED
from wmpo.errors import UserError
from wmpo.families import PLUGS, allow, complete, new_name, of_family, saved_family, why_gone
from wmpo.io.plain import flat, to_plain
from wmpo.recipes import RECIPES

Options = TypeVar("Options")


def parse(options: type[Options], args: Sequence[str], prog: str, default: Options | None = None) -> Options:
    """`options` filled from `args`. `--help` prints every field and raises HelpShown.

    Where an option names another family (--env.family and its like), the settings are those of that family.
    """
    args = [_new_name(arg) for arg in args]
    several = _several_or_none(options)
    for option, value in zip(args, [*args, "--"][1:], strict=True):
        nothing = not value or option.endswith("=") or (option in several and value.startswith("--"))
        if option.startswith("--") and "." not in option and nothing:
            raise UserError(f"{option.rstrip('=')} is empty: give it a value, or leave it away.")
    complaint = io.StringIO()
    if default is None:
        options = with_families(options, args)
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=args, prog=prog, **more)  # type: ignore[call-overload]
    except SystemExit as end:
        if end.code in (0, None):
            sys.stderr.write(complaint.getvalue())
            print(end="", flush=True)  # a full disk is told here
            raise HelpShown(0) from None
        raise UserError(f"{sentence(complaint.getvalue())} See {prog} --help.") from None


def program(
    options: type[Options], run: Callable[[Options], int | None], prog: str, args: Sequence[str] | None = None
) -> int:
    """The exit status of a program beside `wmpo`, which complains as that does. `args`: None for those it was given."""
    return exit_status(lambda: run(parse(options, sys.argv[1:] if args is None else args, prog)) or 0)


def sentence(box: str) -> str:
    """The first paragraph inside the box that tyro draws around a complaint; below its title, where all is ASCII."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        inside = line.strip().strip("│").strip()
        if inside and set(inside) <= set("-─"):
            paragraphs.append([])
        elif not inside.startswith(("╭", "╰")):
            paragraphs[-1] += inside.split()
    chosen = paragraphs[0] if "╭" in box else paragraphs[min(1, len(paragraphs) - 1)]
    text = re.sub(r"\[/?bold\]", "", " ".join(chosen)) or "The options could not be understood."
    return text if text.endswith(".") else f"{text}."


def recipe_with_families(recipe: Recipe, args: Sequence[str]) -> Recipe:
    """The recipe with the settings of the families that `args` name."""
    return replace(recipe, **{kind: _settings(kind, getattr(recipe, kind), args) for kind in PLUGS})


def with_families(options: type[Options], args: Sequence[str]) -> type[Options]:
    """`options` with each field that holds a family's settings narrowed to those of the family that `args` name."""
    hints = get_type_hints(options)
    narrowed: list[Any] = []
    for kind, plug in PLUGS.items():
        if hints.get(kind) is plug.base:
            value = _settings(kind, plug.base(), args)
            narrowed.append((kind, type(value), field(default=value)))
    if not narrowed:
        return options
    return make_dataclass(options.__name__, narrowed, bases=(options,), frozen=True)


def continuing(recipe: Recipe, folder: Path) -> str:
    """The command that goes on with the run of a recipe in a folder."""
    if recipe.env.family == RECORDED:
        return f"the wmpo run data command that began it, with --out {folder}"
    if recipe.name not in RECIPES:
        return f"open_run in Python, as it was begun, or wmpo run with its settings and --out {folder}"
    families = {kind: getattr(recipe, kind).family for kind in PLUGS}
    chosen = [f"--{kind}.family={family}" for kind, family in families.items()]
    begun = to_plain(recipe_with_families(RECIPES[recipe.name], chosen))
    for kind in families:  # of an option that names a family, the settings follow from it
        begun[kind]["family"] = getattr(RECIPES[recipe.name], kind).family
    words = ["wmpo", "run", recipe.name]
    before = flat(begun)
    for name, value in flat(to_plain(recipe)).items():
        if value != before.get(name):
            section, _, own = name.replace("_", "-").rpartition(".")
            option = f"--{section}." if section else "--"
            if isinstance(value, bool):
                words.append(f"{option}{'' if value else 'no-'}{own}")
            else:
                words += [f"{option}{own}", *map(str, value if isinstance(value, list) else [value])]
    words += ["--out", str(folder)]
    if recipe.policy.pretrained and ":" in families["policy"]:  # which the file in that folder names
        words += ["--allow", families["policy"]]
    return shlex.join(words)


def settings_from(kind: str, args: Sequence[str]) -> Any:
    """The default settings of the family that `args` name for this kind."""
    return _settings(kind, PLUGS[kind].base(), args)


def _settings(kind: str, config: Any, args: Sequence[str]) -> Any:
    family = value_of(f"{kind}.family", args)
    if kind == "policy" and (folder := value_of("policy.pretrained", args)):
        family = saved_family("policy", Path(folder), "minivla")
    elif family and ":" in family:
        allow(family)  # a person has named it
    if ":" in (robot := value_of(f"{kind}.robot", args)):
        allow(robot)
    for module in _values_of(f"{kind}.imports", args):
        allow(module)  # likewise
    for path in ("python", "checkout"):
        if named := value_of(f"{kind}.{path}", args):
            allow(named)
    return of_family(kind, config, family) if family else complete(kind, config)


def value_of(name: str, args: Sequence[str]) -> str:
    """The value of an option, "" where it isn't given; both --a b and --a=b, with - or _."""
    for place, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            return value if equals else args[place + 1] if place + 1 < len(args) else ""
    return ""


def _values_of(name: str, args: Sequence[str]) -> list[str]:
    """All values of an option that takes several."""
    first = value_of(name, args)
    rest = args[args.index(first) + 1 :] if first in args else []
    return [first, *takewhile(lambda arg: not arg.startswith("--"), rest)] if first else []


def _several_or_none(options: type[Any]) -> list[str]:
    """The options that take any number of values and have none by default: naming one without a value is a slip, such
    as of a shell variable that is empty. Their command judges those that may be given more than once."""
    plain = [field for field in fields(options) if "UseAppendAction" not in str(field.type)]
    return [f"--{field.name.replace('_', '-')}" for field in plain if field.default == ()]


def _new_name(arg: str) -> str:
    """The argument itself. Raises UserError for a setting that has another name now, or is gone."""
    name = arg.partition("=")[0][2:].replace("-", "_") if arg.startswith("--") else ""
    if why := why_gone(name):
        raise UserError(f"{name} is gone: {why}. Leave it out.")
    if (new := new_name(name)) != name:
        raise UserError(f"{name} is now {new}: use --{new}.")
    return arg
