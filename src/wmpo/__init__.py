"""Robot policies that improve by practising in imagined video.

    from pathlib import Path

    from wmpo import RECIPES, open_run, optimise

    with open_run(RECIPES["place"], Path("runs/mine")) as run:
        result = optimise(run)

Names below are imported when they are first used: `import wmpo` alone brings neither torch nor a simulator, so that
`wmpo --help` and the processes that simulate stay light.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmpo.algorithm import optimise
    from wmpo.config import Recipe
    from wmpo.contracts import check_env, check_policy, check_reward_model, check_world_model
    from wmpo.errors import UserError
    from wmpo.opening import open_run
    from wmpo.recipes import RECIPES

    __version__: str

__all__ = [
    "RECIPES",
    "Recipe",
    "UserError",
    "__version__",
    "check_env",
    "check_policy",
    "check_reward_model",
    "check_world_model",
    "open_run",
    "optimise",
]

_MODULES = {
    "RECIPES": "recipes", "Recipe": "config", "UserError": "errors", "check_env": "contracts",
    "check_policy": "contracts", "check_reward_model": "contracts", "check_world_model": "contracts",
    "open_run": "opening", "optimise": "algorithm",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("wmpo")
    if name not in _MODULES:
        raise AttributeError(f"module 'wmpo' has no attribute {name!r}")
    return getattr(import_module(f"wmpo.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
