"""The one exception that a user should ever see."""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from textwrap import shorten
from traceback import extract_tb
from types import ModuleType
from typing import TypeVar

Value = TypeVar("Value")
COLDEST = 1e-3  # temperature, above 0
LONGEST = 4000  # characters of a sentence


class UserError(Exception):
    """Bad input, told in one sentence: what was wrong, where, and what to do. The command line exits with 2."""

    def __str__(self) -> str:
        """In one line whatever it quotes: names that others chose may hold line ends, or commands to a terminal."""
        text = printable(super().__str__())
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def printable(text: str) -> str:
    """With an escape for each character that can't be shown, line ends among them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def out_of_memory(error: BaseException) -> bool:
    """Of the machine or of its GPU."""
    texts = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def reason(error: BaseException) -> str:
    """What somebody's code has raised, in one line: its kind, its text, and the file and line that it comes from."""
    places = [(frame.filename, frame.lineno or 0) for frame in extract_tb(error.__traceback__)]
    return reason_of(type(error).__name__, str(error), places)


def reason_of(kind: str, text: str, places: Sequence[tuple[str, int]]) -> str:
    """`reason`, of an exception of another process. Lines of this package and of installed ones are not to blame."""
    ours = (f"{Path(__file__).parent}/", "/lib/python", "<frozen")
    own = [(file, line) for file, line in places if not any(part in file for part in ours)]
    what = "it called sys.exit" if kind == "SystemExit" else f"{kind}: {shorten(text, 500)}".removesuffix(": ")
    if not own or re.search(r", line \d+\)$", what):  # a SyntaxError says its place itself
        return what
    return f"{what} ({Path(own[-1][0]).name}, line {own[-1][1]})"


def named(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """known[name], or a UserError that lists what there is and guesses what was meant."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? There are" if close else "there are"
    raise UserError(f"There is no {kind} {name!r}: {hint} {', '.join(known)}.")


def optional(package: str, who_needs: str, extra: str = "hub") -> ModuleType:
    """A package that not everybody installs, imported where it is used; `who_needs` begins the complaint without it."""
    try:
        return __import__(package)
    except ImportError as error:
        raise UserError(f'{who_needs} one more package: pip install "wmpo[{extra}]".') from error


def require_multiple(setting: str, value: int, divisor: int) -> None:
    """Raise UserError unless `value` divides by `divisor`."""
    if value % divisor:
        raise UserError(f"{setting} is {value}; with the other settings it must be a multiple of {divisor}.")


def require_between(setting: str, value: float, least: float, most: float) -> None:
    """Raise UserError unless `value` lies from `least` to `most`; NaN never does."""
    if not least <= value <= most:
        raise UserError(f"{setting} is {value}; it must be from {least:.10g} to {most:.10g}.")


def require_temperature(setting: str, value: float) -> None:
    """Raise UserError unless one can sample at this temperature: logits are divided by it; 0 is the greedy choice."""
    require_between(setting, value, 0, 1000)
    if 0 < value < COLDEST:
        raise UserError(f"{setting} is {value}; it must be 0, for the greedy choice, or at least {COLDEST}.")


def require_package(why: str, package: str, extra: str) -> None:
    """Raise UserError unless an optional package is installed; it isn't imported."""
    if find_spec(package) is None:
        raise UserError(f"{why}, which needs {package}: pip install 'wmpo[{extra}]'.")


def missing_compiler() -> str:
    """What torch.compile would build with and won't find, a C++ compiler or Python's headers; empty where nothing is
    missing."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return f"{compiler}, a C++ compiler" if which(compiler) is None else "" if header.is_file() else str(header)


def require_compiler(why: str) -> None:
    """Raise UserError unless torch.compile will find what it builds with."""
    if missing := missing_compiler():
        raise UserError(f"{why}, which needs {missing}: install it (apt install g++ python3-dev), or turn that off.")
