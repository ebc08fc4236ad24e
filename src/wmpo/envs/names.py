"""Names of tasks and cameras in settings of environments: checked, and listed. Needs no simulator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from wmpo.errors import UserError, named


def names_in(task: str, known: Mapping[str, object]) -> list[str]:
    """The tasks in the setting `task`, joined by +. Raises UserError for unknown and repeated ones."""
    names = task.split("+")
    for name in names:
        named("task", name, known)
    if len(set(names)) < len(names):
        raise UserError(f"env.task is {task!r}, which names a task twice: name different ones.")
    return names


def check_cameras(cameras: Sequence[str], known: Collection[str]) -> None:
    """Raises UserError unless these are one or more different ones of those known."""
    if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(known):
        raise UserError(f"Cameras must be one or more different ones of {', '.join(known)}, not {list(cameras)}.")


class Described(Protocol):
    """A task in a table of tasks."""

    @property
    def instruction(self) -> str: ...

    @property
    def horizon(self) -> int: ...


def describe(tasks: Mapping[str, Described]) -> dict[str, str]:
    """Task -> its sentence and horizon, for `wmpo tasks`."""
    return {name: f"{task.instruction}  (at most {task.horizon} actions)" for name, task in tasks.items()}
