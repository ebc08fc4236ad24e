"""`wmpo plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from wmpo.commands.run import parse_with_recipe
from wmpo.config import Recipe
from wmpo.errors import UserError


@dataclass(frozen=True)
class Plan:
    """How much memory each stage of a recipe will take, found without running it; status 1 if one doesn't fit."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    gpu_memory: float = 24.0
    """What there is, in GB (10^9 bytes): of the GPU, or of the machine where there is none."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> Plan:
        return parse_with_recipe(cls, args, "plan")

    def execute(self) -> int:
        from rich.console import Console
        from rich.table import Table

        from wmpo.envs import make_env
        from wmpo.plan import fitting, plan
        from wmpo.recipes.checks import check_recipe

        if not self.gpu_memory > 0:
            raise UserError(f"--gpu-memory is {self.gpu_memory}; it must be above 0.")
        check_recipe(self.recipe)
        env = make_env(replace(self.recipe.env, workers=0))
        spec = env.spec
        env.close()
        table = Table(title=f"{self.recipe.name}: memory per stage, in GB", title_justify="left")
        table.add_column("stage", no_wrap=True)
        for head in ("parameters", "weights", "training", "activations", "in all"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column(f"{self.gpu_memory:g} GB")  # advice may take several lines
        needs = plan(self.recipe, spec)
        for need in needs:
            sizes = [gigabytes(size) for size in (need.weights, need.training, need.activations, need.total)]
            table.add_row(need.stage, f"{need.parameters / 1e6:,.2f} M", *sizes, fitting(need, 1e9 * self.gpu_memory))
        console = Console()
        console.print(table)
        console.print("training: gradients and the optimiser's state; in all: with a margin for what allocators waste.")
        episodes = self.recipe.grpo.groups * self.recipe.grpo.group_size
        console.print(f"Imagined in an iteration: {episodes} episodes, up to {episodes * spec.horizon:,} frames.")
        return int(any(need.total > 1e9 * self.gpu_memory for need in needs))


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f}"
