"""`wmpo plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from wmpo.cli.run import parse_with_recipe
from wmpo.config import Recipe
from wmpo.errors import require_between

if TYPE_CHECKING:
    from rich.table import Table

    from wmpo.cli.planning import Need

COLUMNS = 7  # numbers of GPUs that a table has room for


def figure(value: float, digits: int) -> str:
    """With so many digits after the point, but none of a thousand and more: tables of large recipes must fit the 80
    columns of a log file, or a batch job, else rich cuts their numbers short."""
    return f"{value:,.{0 if value >= 1000 else digits}f}"


@dataclass(frozen=True)
class PlanCommand:
    """How much memory, arithmetic and time each stage of a recipe will take, found without running it; status 1 if one
    doesn't fit."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    gpu_memory: float = 24.0
    """What there is, in GB (10^9 bytes): of the GPU, or of the machine where there is none."""
    tflops: float = 0.0
    """Speed that the device holds in such work, in TFLOP/s (10^12 operations per second). A GPU may reach 40 % of what
    its maker promises for the precision, if networks are large. 0: the speed of large matrix products in float32 here,
    measured, which bounds the time from below."""
    gpus: int = 1
    """Also say how long it takes with 2, 4 ... so many GPUs, a process each, and what each holds where they share
    weights and the optimiser's state, as with fit.fsdp (docs/cluster.md)."""
    link: float = 25.0
    """GB (10^9 bytes) in a second that go from one GPU to the next: 25 over PCIe, 200 or more over NVLink, 12 over
    Ethernet of 100 Gbit/s."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> PlanCommand:
        return parse_with_recipe(cls, args, "plan")

    def execute(self) -> int:
        import torch
        from rich.console import Console
        from rich.table import Table

        from wmpo.cli.machine import matmul_gflops
        from wmpo.cli.planning import fitting, plan
        from wmpo.envs import make_env
        from wmpo.opening import pick_device
        from wmpo.policies.settings import MiniVLASettings
        from wmpo.policies.sizes import is_sketched
        from wmpo.recipes.checks import check_recipe
        from wmpo.run import check_horizon
        from wmpo.world_models.settings import VideoDiffusionSettings

        require_between("--gpu-memory", self.gpu_memory, 1e-3, 1e9)
        require_between("--tflops", self.tflops, 0, 1e9)
        require_between("--gpus", self.gpus, 1, 65536)
        require_between("--link", self.link, 1e-3, 1e6)
        sketched = is_sketched(self.recipe.policy)
        world = self.recipe.world_model
        # what is only planned needs no folder with weights
        checked = replace(self.recipe, policy=MiniVLASettings()) if sketched else self.recipe
        sdxl = False
        if isinstance(world, VideoDiffusionSettings) and world.codec == "diffusers" and not world.codec_path:
            sdxl, checked = True, replace(checked, world_model=replace(world, codec="autoencoder"))
        check_recipe(checked)
        # Where a speed is given, the recipe's device may be another machine's.
        device = None if self.tflops else pick_device(self.recipe.device)
        env = make_env(replace(self.recipe.env, workers=0))
        spec = env.spec
        env.close()
        check_horizon(self.recipe.policy.chunk, spec)
        with Console(stderr=True).status("Going through a step of each stage, a minute for large networks"):
            needs = plan(self.recipe, spec)
        tflops = self.tflops if device is None else matmul_gflops(torch.float32, device=device) / 1000

        verdicts = {need.stage: fitting(need, 1e9 * self.gpu_memory, self.gpus) for need in needs}
        memory = Table(title=f"{self.recipe.name}: memory per stage, in GB", title_justify="left")
        memory.add_column("stage", no_wrap=True)
        for head in ("weights", "training", "activations", "in all"):
            memory.add_column(head, justify="right", no_wrap=True)
        memory.add_column(f"{self.gpu_memory:g} GB", overflow="fold")  # advice may take several lines
        time = Table(title=f"{self.recipe.name}: arithmetic, and hours at {tflops:.3g} TFLOP/s", title_justify="left")
        time.add_column("stage", no_wrap=True)
        for head in ("parameters", "TFLOP\na step", "steps", "PFLOP\nin all", "hours"):
            time.add_column(head, justify="right", no_wrap=True)
        for need in needs:
            sizes = [f"{size / 1e9:.3f}" for size in (need.weights, need.training, need.activations, need.total)]
            memory.add_row(need.stage, *sizes, verdicts[need.stage])
            work = (figure(need.flop / 1e12, 3), f"{need.steps:,.0f}", figure(need.steps * need.flop / 1e15, 3))
            time.add_row(need.stage, f"{figure(need.parameters / 1e6, 2)} M", *work, figure(need.hours(tflops), 2))
        console = Console()
        console.print(memory)
        console.print("training: gradients and the optimiser's state; in all: with a margin for what allocators waste.")
        if self.gpus > 1:
            sharing = [need for need in needs if need.shared]
            console.print(self.by_gpus("GB in all, with fsdp,", sharing, lambda need, n: need.total_of(n) / 1e9))
        console.print(time)
        console.print("steps: each part of a batch (accumulate, shards) is one.")
        if sketched:
            console.print(
                f"policy.pretrained is empty: a {self.recipe.policy.family} of its published size is planned."
            )
        if sdxl:
            console.print("world_model.codec_path is empty: the autoencoder of SDXL is planned.")
        if self.gpus > 1:
            console.print(self.by_gpus("hours", needs, lambda need, n: need.hours(tflops, n, self.link), summed=True))
        hours = sum(need.hours(tflops) for need in needs)
        console.print(f"{hours:,.2f} hours in all, for arithmetic alone: small networks take several times as long.")
        episodes = self.recipe.grpo.groups * self.recipe.grpo.group_size
        console.print(f"Imagined in an iteration: {episodes} episodes, up to {episodes * spec.horizon:,} frames.")
        return int(set(verdicts.values()) != {"fits"})

    def by_gpus(
        self, what: str, needs: Sequence[Need], number: Callable[[Need, int], float], summed: bool = False
    ) -> Table:
        """A figure of each stage, by the number of GPUs: tables below one another, of as many columns as have room."""
        from rich.table import Table

        counts = sorted({self.gpus, *(2**power for power in range(self.gpus.bit_length()))})
        title = f"{self.recipe.name}: {what} by the number of GPUs"
        tables = Table.grid()
        for begin in range(0, len(counts), COLUMNS):
            some = counts[begin : begin + COLUMNS]
            table = Table(title=None if begin else title, title_justify="left")
            table.add_column("stage", no_wrap=True)
            for gpus in some:
                table.add_column(str(gpus), justify="right", overflow="fold")
            rows = {need.stage: [number(need, gpus) for gpus in some] for need in needs}
            if summed:
                rows["in all"] = [sum(figures) for figures in zip(*rows.values(), strict=True)]
            for stage, figures in rows.items():
                table.add_row(stage, *(figure(value, 1) for value in figures))
            tables.add_row(table)
        return tables
