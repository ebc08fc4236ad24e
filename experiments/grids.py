"""Every experiment as a value: what is compared, on which tasks, with how many real rollouts and seeds.

An experiment is a list of cells, `Experiment.cells`. To add one, add a value to `EXPERIMENTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments import aims, answers, tables, trust
from experiments.baselines.methods import BaselineConfig
from experiments.cells import WMPO, Cell, changed, results_file
from experiments.tables import Section
from wmpo.config import FitConfig, GRPOConfig, Recipe
from wmpo.envs.libero.settings import SUITES
from wmpo.errors import named
from wmpo.io.plain import flat, to_plain
from wmpo.recipes import RECIPES
from wmpo.recipes.smoke import SMOKE


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared."""

    label: str
    method: str = WMPO
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings of the recipe -> their values in this arm."""
    at: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """P -> more of them, with so many rollouts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The same for those of the baselines, `BaselineConfig`."""
    settings_at: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """P -> more of these."""
    seeds: tuple[int, ...] = ()
    """These seeds, in place of those of the experiment."""
    budgets: tuple[int, ...] = ()
    """Only with so many rollouts."""
    tasks: tuple[str, ...] = ()
    """Only on these."""
    limited: bool = True
    """Whether it keeps to P real rollouts."""
    dreamt: bool = True
    """Whether its policies are imagined too, where an experiment measures that: not where it would take a dream of
    their own, since their rollouts are not those of the others."""


# The best that `tuning` found, at P = 128 and on two tasks; with more rollouts DPO and filtered BC are set to what
# suited earlier tasks. Their policies aren't imagined: it would take a dream for each of their seeds.
ONLINE = Arm("Online GRPO", "online_grpo", settings={"online.epochs": 4}, dreamt=False)
DPO = Arm(
    "DPO",
    "dpo",
    changes={"collect.rollouts_per_state": 8},
    at={1280: {"collect.rollouts_per_state": 4}},
    settings_at={1280: {"dpo.steps": 600}},
    dreamt=False,
)
FILTERED = Arm(
    "Filtered BC", "filtered_bc", settings={"sft.lr": 1e-4}, settings_at={1280: {"sft.lr": 3e-4}}, dreamt=False
)
# What filtered BC had before that search: on the seeds of the other experiments it gains more.
FASTER = Arm("Filtered BC, lr 0.0003", "filtered_bc", budgets=(128,))
MORE = Arm("More demonstrations", "more_demonstrations", seeds=(0,), budgets=(128,), dreamt=False)
UPPER = Arm(
    "Unlimited GRPO",
    "upper_bound",
    changes={"grpo.lr": 1e-3, "grpo.lr_end": 0.1, "grpo.epochs": 2, "grpo.n_initial_states": 4096},
    settings={"upper_iterations": 120},
    seeds=(0,),
    limited=False,
    dreamt=False,
)
LONGER = {
    1280: {"world_model.align.steps": 1200, "world_model.align_fraction": 0.75}
}  # more rollouts take longer to learn
OURS = Arm("WMPO", at=LONGER)
ALONE = Arm(
    "Practice alone",
    changes={"self_imitation.steps": 0, "grpo.imitation_coef": 0.0, "grpo.lr": 3e-4},
    seeds=(0, 1),
    budgets=(128,),
)
ALONE_FROM_NOTHING = replace(ALONE, seeds=(0,), budgets=(0,), tasks=("place",))
SHUFFLED = Arm(
    "Rewards shuffled",
    changes={"grpo.shuffle_rewards": True},
    seeds=(0, 1),
    budgets=(128,),
    tasks=("place", "stack"),  # on insert the true rewards gain nothing either
)
AT_EQUAL_COST = (OURS, ONLINE, DPO, FILTERED, MORE)
COMPARED = (
    tables.against,
    tables.growth,
    trust.exploitation,
    trust.verdicts,
    tables.dream_quality,
    tables.cost,
)  # what pages of others' worlds show besides
SHORT = {"upper_iterations": GRPOConfig().iterations}  # as practice in imagination
SMOKE_SETTINGS = BaselineConfig(
    online=GRPOConfig(groups=2, group_size=4, ema=0.0),
    dpo=FitConfig(steps=10, batch_size=2, lr=1e-4, warmup=2),
    sft=FitConfig(steps=10, batch_size=16, lr=1e-3, warmup=2),
    upper_iterations=1,
)


def all_levels(steps: int) -> dict[str, Any]:
    """The dream is trained at all noise levels and takes so many sampling steps; where they are many it is compiled,
    which saves some of the hours that practice takes then."""
    compiled = {"world_model.compile": True} if steps > 8 else {}
    return {"world_model.training_timesteps": "all", "world_model.sampling_steps": steps, **compiled}


def online(lr: float, passes: int, **settings: float) -> Arm:
    """Online GRPO at a learning rate, with so many passes over each batch."""
    own = {"lr": lr, "epochs": passes, **settings}
    label = f"Online GRPO, lr {lr:g}, {passes} pass{'es' * (passes > 1)}"
    return Arm(label, "online_grpo", settings={f"online.{name}": value for name, value in own.items()})


def dream_of(recipe: str) -> dict[str, Any]:
    """What the world model of a recipe is set to, where it departs from that of `place`."""
    own, usual = (flat(to_plain(RECIPES[name].world_model)) for name in (recipe, "place"))
    return {f"world_model.{name}": value for name, value in own.items() if value != usual[name]}


@dataclass(frozen=True)
class Experiment:
    title: str
    about: str
    """What is asked, and how it is measured."""
    arms: tuple[Arm, ...]
    sections: tuple[Section, ...]
    """What its page shows."""
    tasks: tuple[str, ...] = ("place", "stack", "insert")
    """All need a grasp and then some precision, as those of the paper do."""
    budgets: tuple[int, ...] = (128,)
    """P, of all rounds together."""
    seeds: tuple[int, ...] = (0, 1, 2)
    seeds_at: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """P -> these seeds, where runs with so many rollouts are long."""
    measures: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the recipes in all arms."""
    also: tuple[str, ...] = ()
    """Experiments whose results count here too, where a cell of the same name is set alike, and as much is measured."""
    first_task_only: bool = False
    """Of tasks joined by +, only the first is tried and practised; the others show what is forgotten."""
    smoke_arms: int = 2
    """How many of the arms its smoke size runs."""

    def files(self, out: Path, name: str) -> list[Path]:
        """Where results are stored under this name, the experiment's own file first; its smoke size has no others."""
        others = () if name.endswith("-smoke") else self.also
        return [results_file(out, one) for one in (name, *others)]

    def cells(self, tasks: Sequence[str] = (), seeds: Sequence[int] = (), smoke: bool = False) -> list[Cell]:
        """All cells; seeds and tasks vary fastest, so that neighbours share little and don't wait for one another."""
        tasks = tasks or self.tasks
        if smoke:
            tasks, seeds = tasks[:1], (seeds or self.seeds)[:1]
        cells = []
        for budget in (SMOKE.collect.episodes,) if smoke else self.budgets:
            for arm in self.arms[: self.smoke_arms] if smoke else self.arms:
                if not budget and arm.method != WMPO:
                    continue  # without rollouts the others leave the base as it is
                if arm.budgets and budget not in arm.budgets and not smoke:
                    continue
                for seed in seeds or arm.seeds or self.seeds_at.get(budget, self.seeds):
                    for task in tasks:
                        if arm.tasks and task not in arm.tasks and not smoke:
                            continue
                        changes = {**self.changes, **arm.changes, **arm.at.get(budget, {}), "seed": seed}
                        recipe = changed(recipe_for(task, smoke), changes)
                        if self.first_task_only and "+" in task:
                            recipe = changed(recipe, {"collect.task": task.partition("+")[0]})
                        if arm.limited and not smoke:
                            recipe = changed(recipe, {"collect.episodes": budget // recipe.rounds})
                        own = {**arm.settings, **arm.settings_at.get(budget, {})}
                        settings = changed(SMOKE_SETTINGS if smoke else BaselineConfig(), own)
                        measures = tuple(m for m in self.measures if arm.dreamt or m != "imagination")
                        cells.append(Cell(arm.label, arm.method, recipe, settings, arm.limited, measures))
        return list({cell.id: cell for cell in cells}.values())  # what has no budget is there once


def recipe_for(task: str, smoke: bool) -> Recipe:
    """A task's recipe without the control; a cell simulates in its own process, since cells run side by side.

    `task` is one of the tabletop, SUITE-NUMBER of LIBERO, as in libero_spatial-2, or one of MetaWorld's.
    """
    suite, _, number = task.rpartition("-")
    theirs = [recipe for recipe in RECIPES.values() if (recipe.env.family, recipe.env.task) == ("metaworld", task)]
    if theirs:
        recipe, own = theirs[0], {}
    elif suite in SUITES:
        recipe, own = RECIPES["libero"], {"suite": suite, "task": number.lstrip("0") or "0"}
        if suite == "libero_object":
            recipe = replace(recipe, demonstrations=replace(recipe.demonstrations, episodes=25))
    else:
        recipe, own = RECIPES.get(task, RECIPES["sentences" if "+" in task else "push"]), {"task": task}
    if smoke:
        elsewhere = recipe.env.family != SMOKE.env.family
        recipe = small_copy(recipe) if elsewhere else SMOKE
    return replace(recipe, control=False, env=replace(recipe.env, workers=0, **own))


def small_copy(recipe: Recipe) -> Recipe:
    """The smoke size of a recipe in others' worlds, whose episodes take longer."""
    few = min(SMOKE.demonstrations.episodes, recipe.demonstrations.episodes)
    return replace(
        SMOKE,
        env=replace(recipe.env, image_size=32),
        demonstrations=replace(SMOKE.demonstrations, episodes=few),
        evaluate=replace(SMOKE.evaluate, episodes=16),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        title="The same real rollouts, spent in different ways",
        about=(
            "Does practising in imagination make more of P real rollouts than other methods do, and of P than of none? "
            "The paper gains +13.5 points over its base at P = 128 and +24.0 at P = 1280, on other tasks and a larger "
            "policy. All methods begin with the same base policy and initial states. WMPO is set to what suited "
            "earlier tasks; the baselines to what `tuning` found best, on another seed, at P = 128; at P = 1280 this "
            "holds for online GRPO only, and DPO and filtered BC have what suited earlier tasks. Filtered BC is shown "
            "with the learning rate that it had before, too, since it gains more on these seeds. At P = 0 dream and "
            "reward model have seen successful demonstrations only. DPO tries each initial state eight times, four at "
            "P = 1280, so that its pairs are of one state. Online GRPO draws its initial states from those that WMPO "
            "imagines from. More demonstrations: the expert tries until P more have succeeded, in place of the "
            "policy's own tries. WMPO first imitates what filtered BC imitates, at the rate 0.0003, then practises in "
            "its dream; practice alone leaves that out, at a third of the learning rate; online GRPO and DPO begin "
            "with the base. Rewards shuffled: as WMPO, but who of a group has succeeded is drawn by lot. Unlimited "
            "GRPO practises in the real environment: for as many iterations as practice alone and at its learning "
            "rate; for 60 at the best of three rates that were tried on place with that very seed; and for 120 with a "
            "rate that falls, two passes and more initial states. It tells what can be learned, and still rises at its "
            "end. With P = 1280 WMPO aligns its dream for longer, and more on the rollouts. That size has one seed, "
            "controls have one or two, so that two cores need about ten hours for all cells."
        ),
        arms=(
            *AT_EQUAL_COST,
            ALONE,
            ALONE_FROM_NOTHING,
            SHUFFLED,
            UPPER,
            replace(UPPER, label="Unlimited GRPO, 60 iterations", changes={"grpo.lr": 1e-3}, settings={}),
            replace(
                UPPER,
                label="Unlimited GRPO, 20 iterations",
                changes={"grpo.lr": 3e-4},
                settings=SHORT,
                tasks=("place",),
            ),
            FASTER,
        ),
        budgets=(128, 0, 1280),
        seeds_at={1280: (0,)},
        measures=("imagination",),
        sections=(
            answers.beside,
            aims.aims,
            tables.success,
            tables.success_against_steps,
            tables.seeds,
            tables.against,
            tables.growth,
            tables.recoveries,
            tables.budget_plot,
            trust.correlation,
            trust.exploitation,
            trust.verdicts,
            trust.doubts,
            tables.dream_quality,
            tables.cost,
        ),
        smoke_arms=6,
    ),
    "table2": Experiment(
        title="Disruptions",
        about=(
            "Which gains survive other positions, backgrounds and textures, none of which any method has seen? Each "
            "comes in several strengths."
        ),
        arms=(OURS, ONLINE, DPO),
        seeds=(0,),
        measures=("disruptions",),
        sections=(answers.under_disruption, tables.disruptions, tables.success),
        smoke_arms=1,
    ),
    "lifelong": Experiment(
        title="Several rounds",
        about=(
            "Does repeating the loop on the improved policy's rollouts go on to help? The same 1280 rollouts at once, "
            "and in four rounds of 320. A round whose rollouts succeed less often than those before, beyond chance, "
            "ends practice with the policy before. While better: one whose rollouts don't succeed more often, beyond "
            "chance, ends it, too, with the better of the two. From the base: each round begins anew with the base and "
            "all rollouts so far. Rounds align the dream as at P = 128, all rollouts at once for longer, and more on "
            "them; the same without that tells what it is worth. Of the policy that knows two tasks only the first is "
            "tried and practised; the second is measured."
        ),
        arms=(
            Arm("WMPO, 4 rounds", changes={"rounds": 4}, tasks=("place", "place+place-blue")),
            Arm(
                "WMPO, rounds while better",
                changes={"rounds": 4, "rounds_while": "better"},
                tasks=("place", "stack"),
            ),
            Arm(
                "WMPO, 4 rounds from the base",
                changes={"rounds": 4, "rounds_from_base": True},
                tasks=("place",),
            ),
            OURS,
            Arm("WMPO, dream aligned as at P = 128", tasks=("place",)),
        ),
        tasks=("place", "stack", "place+place-blue"),
        budgets=(1280,),
        seeds=(0,),
        also=("table1",),
        first_task_only=True,
        sections=(answers.round_by_round, tables.rounds, tables.old_tasks, tables.success, tables.cost),
        smoke_arms=1,
    ),
    "few-steps": Experiment(
        title="How many steps a dream takes",
        about=(
            "By default the dream is trained for the one sampling step that it takes. Trained at all noise levels, as "
            "in the paper, it can take any number. A student learns to reach in a few steps what such a teacher "
            "reaches in eight, half of the time from what it has imagined itself. Which dream is closest to reality, "
            "what does it cost, and what does practising in it gain? On one world: gains of single cells rank nothing. "
            "Cells were computed on several machines, beside more or less other work: their times can't be compared."
        ),
        arms=(
            OURS,
            *(Arm(f"All noise levels, {n} step{'s' * (n > 1)}", changes=all_levels(n)) for n in (1, 2, 4, 8, 30)),
            *(
                Arm(f"Student of 8, {n} step{'s' * (n > 1)}", changes={**all_levels(8), "world_model.student_steps": n})
                for n in (1, 2, 4)
            ),
        ),
        tasks=("place",),
        seeds=(0,),
        measures=("imagination",),
        also=("table1",),
        sections=(answers.beside, tables.success, tables.dream_quality, trust.verdicts, tables.cost),
    ),
    "backbones": Experiment(
        title="The transformer beside the U-Net",
        about=(
            "The default dream is a convolutional U-Net on pixels, put together from frames that it has seen. The "
            "paper's is a transformer on an autoencoder's latents, and nothing else. Here it is small enough to be "
            "trained by two cores within an hour: the recipe `transformer`, whose policy, rollouts, reward model and "
            "practice are those of `place`. Which dream is closest to reality, what does it cost, and what does "
            "practising in it gain? On one world: gains of single cells rank nothing. The transformer's stored cell "
            "computed its autoencoder in bfloat16, which no setting asks for any more: made again, digits will differ."
        ),
        arms=(OURS, Arm("Transformer on latents", changes=dream_of("transformer"))),
        tasks=("place",),
        seeds=(0,),
        measures=("imagination",),
        also=("few-steps", "table1"),
        sections=(
            answers.beside,
            tables.success,
            tables.success_against_steps,
            tables.dream_quality,
            trust.verdicts,
            tables.cost,
        ),
        smoke_arms=1,
    ),
    "tuning": Experiment(
        title="A search for every method",
        about=(
            "Three settings of WMPO, five of online GRPO, five of DPO and two of filtered BC are searched on a seed "
            "that no other experiment uses; WMPO as such was made on these tasks. At P = 128 all other experiments set "
            "online GRPO, DPO and filtered BC to what is best here, but WMPO to lr 0.001, which suited earlier tasks. "
            "The best of several looks better than it is: intervals don't allow for that."
        ),
        arms=(
            *(Arm(f"WMPO, lr {lr:g}", changes={"grpo.lr": lr}) for lr in (3e-4, 1e-3, 2e-3)),
            *(online(lr, passes) for lr, passes in ((3e-4, 2), (1e-3, 1), (1e-3, 2), (1e-3, 4), (2e-3, 2))),
            *(
                Arm(
                    f"DPO, lr {lr:g}, beta {b:g}, {n} tries",
                    "dpo",
                    changes={"collect.rollouts_per_state": n},
                    settings={"dpo.lr": lr, "beta": b},
                )
                for lr, b, n in ((1e-4, 1.0, 4), (3e-4, 1.0, 4), (1e-4, 0.1, 4), (3e-5, 0.1, 4), (1e-4, 1.0, 8))
            ),
            *(Arm(f"Filtered BC, lr {lr:g}", "filtered_bc", settings={"sft.lr": lr}) for lr in (1e-4, 3e-4)),
        ),
        tasks=("place", "stack"),
        seeds=(100,),
        sections=(answers.chosen, tables.success),
        smoke_arms=1,
    ),
    "tuning-more": Experiment(
        title="The same search with ten times the rollouts",
        about=(
            "What suits a method that has 128 rollouts may not suit it with 1280. On a seed that no other experiment "
            "uses."
        ),
        arms=(
            *(online(lr, passes, ema=0.75) for lr, passes in ((3e-4, 2), (1e-3, 1), (1e-3, 2), (1e-3, 4))),
            *(
                Arm(
                    f"DPO, {steps} steps",
                    "dpo",
                    changes={"collect.rollouts_per_state": 4},
                    settings={"dpo.steps": steps},
                )
                for steps in (200, 600)
            ),
        ),
        tasks=("place", "stack"),
        seeds=(100,),
        budgets=(1280,),
        sections=(answers.chosen, tables.success),
        smoke_arms=1,
    ),
    "libero": Experiment(
        title="LIBERO",
        about=(
            "Does practice in imagination gain anything on tasks of LIBERO, on the benchmark's own 50 initial states "
            "of each? The base imitates 12 demonstrations of a scripted expert, 25 where it is to handle objects of "
            "libero_object; it sees 64 pixels of both cameras. Episodes may last more than twice as long as the expert "
            "takes. WMPO first imitates what filtered BC imitates, then practises in its dream. Baselines are set to "
            "what `tuning` found best on two tasks of the tabletop; filtered BC is shown with the learning rate that "
            "it had before, too."
        ),
        arms=(OURS, ONLINE, DPO, FILTERED, FASTER),
        tasks=("libero_spatial-0", "libero_spatial-2", "libero_spatial-4", "libero_object-0", "libero_object-7"),
        budgets=(128, 0),
        seeds=(0,),
        sections=(answers.beside, tables.success, tables.success_against_steps, *COMPARED),
        smoke_arms=1,
    ),
    "metaworld": Experiment(
        title="MetaWorld",
        about=(
            "Does practice in imagination gain anything in MetaWorld, a Sawyer arm, on three of its tasks in which "
            "something is grasped? The base imitates 40, 60 and 12 demonstrations of MetaWorld's own experts; it sees "
            "64 pixels of two cameras. Episodes may last more than twice the median time that the base takes where it "
            "succeeds. WMPO first imitates what filtered BC imitates, then practises in its dream. Baselines are set "
            "to what `tuning` found best on two tasks of the tabletop; filtered BC is shown with the learning rate "
            "that it had before, too."
        ),
        arms=(OURS, ONLINE, DPO, FILTERED, FASTER, replace(SHUFFLED, seeds=(0,), tasks=())),
        tasks=("peg-insert-side-v3", "pick-place-v3", "bin-picking-v3"),
        budgets=(128, 0),
        seeds=(0,),
        sections=(answers.beside, tables.success, tables.success_against_steps, *COMPARED),
        smoke_arms=1,
    ),
}


def experiment_named(name: str) -> Experiment:
    return named("experiment", name, EXPERIMENTS)
