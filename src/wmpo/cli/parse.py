"""Options from the command line, by tyro; what is wrong with them is told in one sentence."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from wmpo.errors import UserError

Options = TypeVar("Options")


def parse(options: type[Options], args: Sequence[str], prog: str, default: Options | None = None) -> Options:
    """`options` filled from `args`. `--help` prints every field and raises SystemExit(0)."""
    complaint = io.StringIO()
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=list(args), prog=prog, **more)  # type: ignore[call-overload]
    except SystemExit as end:
        if end.code in (0, None):
            sys.stderr.write(complaint.getvalue())
            raise
        raise UserError(f"{sentence(complaint.getvalue())} See {prog} --help.") from None


def sentence(box: str) -> str:
    """The first paragraph inside the box that tyro draws around a complaint."""
    words: list[str] = []
    for line in box.splitlines():
        inside = line.strip().strip("│").strip()
        if inside.startswith(("╭", "╰")):
            continue
        if inside.startswith("─"):
            break
        words += inside.split()
    text = " ".join(words) or "The options could not be understood."
    return text if text.endswith(".") else f"{text}."
