"""The parts of the documentation that are made from the code: `python -m docs.generate` writes them anew.

Explanations are the docstrings below the fields, where `--help` takes them from too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from wmpo.cli import COMMANDS
from wmpo.cli.parse import program
from wmpo.errors import UserError
from wmpo.families import PLUGS, settings_class
from wmpo.io.files import atomic_write
from wmpo.io.plain import free
from wmpo.recipes import RECIPES
from wmpo.training.metrics import METRICS

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
PAPER = re.compile(r"\s*\[((?:paper|code)[^\]]*)\]")


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the docstring below it, in one line; inherited fields included."""
    found: dict[str, str] = {}
    for owner in reversed([one for one in cls.__mro__ if is_dataclass(one)]):
        tree = ast.parse(inspect.getsource(importlib.import_module(owner.__module__)))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__name__)
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = " ".join(value.value.split())
    return found


def default_of(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


Setting = tuple[Any, str, str]  # default, value in the paper or its code, explanation


def settings() -> dict[str, Setting]:
    """Dotted name -> setting, of the default families, then of what other families have besides."""
    recipe = RECIPES["push"]
    found = settings_of(recipe)
    for kind, plug in PLUGS.items():
        for family in plug.builtin:
            own = settings_of(settings_class(kind, family)(), f"{kind}.")
            found |= {name: setting for name, setting in own.items() if name not in found}
    return found


def settings_of(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Those of nested dataclasses."""
    docs, unbound = field_docs(type(config)), free(config)
    found: dict[str, Setting] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= settings_of(value, f"{prefix}{field.name}.")
        else:
            text = docs.get(field.name, "") + " A run may go on with another value." * (field.name in unbound)
            match = PAPER.search(text)
            found[f"{prefix}{field.name}"] = (value, match[1] if match else "", PAPER.sub("", text))
    return found


def settings_table() -> str:
    rows = [(f"`{name}`", shown(value), cell(paper), cell(text)) for name, (value, paper, text) in settings().items()]
    lines = ["| setting | default | paper or its code | what it is |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cli_page() -> str:
    """`docs/cli.md`."""
    parts = [
        "# The commands",
        "This page is generated from the commands' own `--help`. Settings named by a section, such as `--grpo.*`, are\n"
        "listed in [settings.md](settings.md).",
    ]
    for name, command in COMMANDS.items():
        options = getattr(importlib.import_module(f"wmpo.cli.{command.module}"), command.name)
        docs = field_docs(options)
        parts += [f"## wmpo {name}", inspect.cleandoc(options.__doc__ or "")]
        hints = get_type_hints(options)
        rows = [option_row(field, docs, hints[field.name]) for field in fields(options)]
        if rows:
            parts.append("\n".join(["| option | default | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def metrics_page() -> str:
    """`docs/metrics.md`."""
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in METRICS.items())
    return with_generated(DOCS / "metrics.md", f"| metric | meaning |\n|---|---|\n{rows}")


def option_row(field: Field[Any], docs: dict[str, str], hint: Any) -> str:
    positional = "Positional" in str(field.type) or field.name == "recipe"
    name = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
    default = default_of(field)
    if field.name == "recipe":
        return "| `RECIPE` | must be given | One of `wmpo recipes`; every setting of it is an option. |"
    if is_dataclass(default) or is_dataclass(hint):
        text = cell(docs.get(field.name, "")) or "The settings of this section."
        return f"| `{name}.*` | see [settings.md](settings.md) | {text} |"
    given = "must be given" if default is MISSING else shown(default)
    return f"| `{name}` | {given} | {cell(docs.get(field.name, ''))} |"


def shown(value: Any) -> str:
    """A default, as a reader would write it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_generated(page: Path, text: str) -> str:
    """What the page says, with `text` between its two marks. Raises UserError where they aren't there once each."""
    written = page.read_text(encoding="utf-8")
    if (written.count(BEGIN), written.count(END)) != (1, 1) or written.index(END) < written.index(BEGIN):
        raise UserError(f"{page} must hold {BEGIN} and, below it, {END}, once each: restore them by hand.")
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def pages() -> dict[Path, str]:
    """Page -> its text."""
    return {
        DOCS / "metrics.md": metrics_page(),
        DOCS / "cli.md": cli_page(),
        DOCS / "settings.md": with_generated(DOCS / "settings.md", settings_table()),
    }


@dataclass(frozen=True)
class WriteAnew:
    """Write the generated parts of the documentation anew. There are no options."""


def write(made: Callable[[], dict[Path, str]], prog: str) -> int:
    """The exit status of a program that writes pages anew."""

    def execute(_: WriteAnew) -> None:
        for page, text in made().items():
            atomic_write(page, text)

    return program(WriteAnew, execute, prog)


if __name__ == "__main__":
    sys.exit(write(pages, "python -m docs.generate"))
