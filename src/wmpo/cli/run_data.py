"""`wmpo run data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from wmpo.cli.dreaming import refuse_unused
from wmpo.config import (
    CollectConfig,
    CurvesKind,
    DemonstrationConfig,
    EnvConfig,
    EvaluateConfig,
    GRPOConfig,
    PolicyConfig,
    Recipe,
    RewardConfig,
    WorldModelConfig,
)
from wmpo.envs import RECORDED
from wmpo.errors import UserError, require_between


@dataclass(frozen=True)
class RunDataCommand:
    """The loop on recorded episodes alone, without an environment: imitate, learn the world and success, practise in
    the dream, and a report of what can be said without trying anything for real. The same command continues it.

    Folders are episode stores, such as `wmpo data import` makes. Once the practised policy has been tried for real, the
    same command with one more --rollouts at its end adds a round.
    """

    demos: tuple[Path, ...]
    """Folders of demonstrations, which the policy imitates; with policy.pretrained, practice begins with that policy as
    it is."""
    rollouts: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Folders of labelled rollouts: of the policy that practice begins with. Given once more, those of the policy that
    came of it, for another round of practice."""
    out: Path | None = None
    """Folder of the run; default runs/data-seedN."""
    hold_out: float = 0.2
    """Share of the successes and of the failures in the folders that nothing learns from; the report rests on them."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(n_initial_states=0, keyframes=128))
    temperature: float = CollectConfig.temperature
    """At which the policy was sampled in the rollouts; only reward.threshold rate and half ask."""
    seed: int = 0
    """One seed gives one result on one machine."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: CurvesKind = "tensorboard"
    """Where the numbers of its trainings are shown: tensorboard, wandb or trackio; they stand in OUT/metrics.jsonl
    anyway."""

    def recipe(self, rounds: int) -> Recipe:
        return Recipe(
            name="data",
            seed=self.seed,
            rounds=rounds,
            control=False,
            device=self.device,
            curves=self.curves,
            env=EnvConfig(family=RECORDED),
            demonstrations=DemonstrationConfig(failures=True),
            policy=self.policy,
            collect=CollectConfig(temperature=self.temperature),
            world_model=self.world_model,
            reward=self.reward,
            grpo=self.grpo,
            evaluate=EvaluateConfig(practice_eval_freq=0),
        )

    def execute(self) -> None:
        from wmpo.cli.run import tell_result
        from wmpo.envs.unreachable import Unreachable
        from wmpo.opening import open_run
        from wmpo.recordings import began_alone, open_parts, optimise_recorded, spec_of
        from wmpo.report.results import RunResult
        from wmpo.run import DONE
        from wmpo.success import chosen_by_rate

        require_between("--hold-out", self.hold_out, 0.01, 0.5)
        if not all(self.rollouts):
            raise UserError("A --rollouts names no folder: give it one, or leave it out.")
        if self.grpo.n_initial_states:
            raise UserError("The setting n_initial_states does nothing here: the data hold the first frames.")
        if self.policy.pretrained:
            refuse_unused(self.policy, "fit", "practice begins with policy.pretrained as it is")
        folder = self.out or Path("runs") / f"data-seed{self.seed}"
        rounds = self.rollouts or ((),)
        if rounds[0] and began_alone(folder):
            rounds = ((), *rounds)
        if chosen_by_rate(self.reward) and not rounds[0]:
            raise UserError(
                f"reward.threshold is {self.reward.threshold}, which needs rollouts of the first round: choose "
                "calibrated."
            )
        parts = open_parts(self.demos, rounds, folder)
        with open_run(self.recipe(len(rounds)), folder, env=Unreachable(spec_of(parts, folder))) as run:
            if (folder / DONE).exists():
                run.log.info(f"{folder} is finished: --rollouts once more, of the policy that practised, adds a round")
                result = RunResult.load(folder / "result.json")
            else:
                run.log.info(f"{folder}: on {run.device}")
                result = optimise_recorded(run, parts, self.hold_out)
            tell_result(run, result)
