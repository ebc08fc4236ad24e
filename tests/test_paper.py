"""The `paper` recipe has the value of every mark [paper ...] beside a setting."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

import pytest

from wmpo.recipes import RECIPES

PAPER = RECIPES["paper"]
G = PAPER.grpo.group_size
WORDS: dict[str, Callable[[Any], bool]] = {  # marks that aren't values
    "no": lambda value: not value,
    "none": lambda value: value == 0,
    "SDXL VAE": lambda value: value == "diffusers",
    "constant": lambda value: value == 1,  # the part of the learning rate that is left at the end
    "above 0": lambda value: 0 < value < 1 / G,  # of G rollouts one success is enough
    "below 1": lambda value: 1 - 1 / G < value < 1,
    "lr 1e-4": lambda value: value.lr == 1e-4,
    "the policy is a language model": lambda value: True,  # MiniVLA stands in its place
}
OURS = (  # have no paper's average
    "policy.fit", "reward.fit", "world_model.kinematics_fit", "world_model.codec_fit", "world_model.distil",
)  # fmt: skip


def texts(cls: type) -> dict[str, str]:
    """Setting -> the text below it, base classes included."""
    found = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def marks(config: Any = PAPER, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted setting, the recipe's value, what the paper has)."""
    for name, text in texts(type(config)).items():
        value = getattr(config, name)
        for mark in re.findall(r"\[paper:? ([^\]]*)\]", text):
            yield prefix + name, value, re.split(r"[,;] code ", mark)[0]
        assert ("[paper" in text) == bool(re.search(r"\[paper:? [^\]]+\]", text)), f"{prefix}{name}: an unreadable mark"
    for name, value in vars(config).items():
        if is_dataclass(value) and prefix + name not in OURS:
            yield from marks(value, f"{prefix}{name}.")


def agrees(value: Any, mark: str) -> bool:
    if mark in WORDS:
        return WORDS[mark](value)
    first = mark.split(", ")[0]  # of several budgets; what follows in other marks is an explanation
    return value == first if isinstance(value, str) else float(value) == float(first)


def test_enough_marks_are_found() -> None:
    names = [name for name, _, _ in marks()]
    assert len(names) == len(set(names)) > 35
    assert {"world_model.fit.ema", "env.state", "reward.depth", "grpo.warmup", "policy.bins"} <= set(names)


@pytest.mark.parametrize(("name", "value", "mark"), marks())
def test_the_recipe_is_the_papers(name: str, value: Any, mark: str) -> None:
    assert agrees(value, mark), f"{name} is {value}, but the paper has {mark}"


@pytest.mark.parametrize(
    ("value", "mark"),
    [
        (2, "1"),
        (True, "no"),
        (0.6, "none"),
        ("rate", "f1, on real clips"),
        (0.0, "above 0"),
        ("sampler", "all"),
        (0.5, "constant"),
    ],
)
def test_a_departure_is_noticed(value: Any, mark: str) -> None:
    assert not agrees(value, mark)
