"""The numbers of one run, in one small JSON file: reports and documentation are made from these files alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.evaluate import Evaluation
from wmpo.io.files import read_json, write_json
from wmpo.io.plain import JsonObject, from_plain, to_plain
from wmpo.io.provenance import Machine, commit, this_machine, versions
from wmpo.report.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval
from wmpo.training.log import read_metrics, read_stages

FORMAT = 2
TIMES = (1.0, 1.5, 2.0)  # horizons within which success is counted: whether a gain is skill, or haste
BASE, IMITATED, CONTROL, FINAL = "base", "imitated", "control", "wmpo"


@dataclass(frozen=True)
class Interactions:
    """How often the real environment was used for one purpose."""

    episodes: int
    steps: int
    """Actions taken; 0 where the environment was only reset."""


@dataclass(frozen=True)
class Stage:
    """What a stage cost, over all sessions that worked on it."""

    seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float = 0.0
    sessions: int = 1


@dataclass(frozen=True)
class PolicyResult:
    """Real evaluation of one policy. Equal `initial_states` make two of them comparable pair by pair."""

    initial_states: list[int]
    success: list[int]  # 0 or 1 per initial state, within the horizon
    finish_step: list[int]  # frame of the first success, even one after the horizon; 0 where there was none
    temperature: float = 0.0
    disruption: str = "none"
    task: list[str] = field(default_factory=list)  # of each initial state; empty where all are of one
    horizon: int = 0
    """In actions."""
    time_limit: int = 0
    """Actions after which an episode without success was ended."""
    events: dict[str, list[int]] = field(default_factory=dict)
    """What the environment counted -> how often, per initial state."""

    @staticmethod
    def of(played: Evaluation, temperature: float, disruption: str = "none") -> PolicyResult:
        """The outcomes of an evaluation, and the conditions that it was made under."""
        names = dict.fromkeys(name for counted in played.events for name in counted)
        return PolicyResult(
            initial_states=played.initial_states,
            success=[int(success) for success in played.success],
            finish_step=played.finish_step,
            temperature=temperature,
            disruption=disruption,
            task=mixed_tasks(played.task),
            horizon=played.horizon,
            time_limit=played.time_limit,
            events={name: [counted.get(name, 0) for counted in played.events] for name in names},
        )

    def curve(self) -> list[tuple[float, float]]:
        """(number of actions, share of the episodes that have succeeded by then), up to the time limit."""
        n = len(self.finish_step)
        return [(t, sum(self.within(t)) / n) for t in range(max(self.time_limit, *self.finish_step, self.horizon) + 1)]

    def recoveries(self, disturbed_only: bool = False) -> list[int]:
        """Of the episodes whose first attempt failed or was disturbed: 0 or 1, success within the horizon."""
        disturbed = self.events.get("disturbances", [0] * len(self.success))
        chosen = [count > 0 for count in disturbed] if disturbed_only else self.first_attempt_failed
        return [hit for hit, failed in zip(self.success, chosen, strict=True) if failed]

    def within(self, steps: float) -> list[int]:
        """0 or 1 per initial state: success within so many actions."""
        return [int(0 < frame <= steps) for frame in self.finish_step]

    @property
    def first_attempt_failed(self) -> list[bool]:
        """Per initial state, by the events "grasps", "drops" and "disturbances", where they are counted: whether the
        object was disturbed, lost or gripped again, or gripped in an episode that failed."""
        none = [0] * len(self.success)
        grasps, drops, disturbed = (self.events.get(name, none) for name in ("grasps", "drops", "disturbances"))
        each = zip(grasps, drops, disturbed, self.success, strict=True)
        return [d > 0 or c > 0 or b > 1 or (b == 1 and not hit) for b, c, d, hit in each]

    def of_task(self, name: str) -> PolicyResult:
        """The part of it that is about one task."""
        rows = [row for row, task in enumerate(self.task) if task == name]
        return replace(
            self,
            initial_states=[self.initial_states[row] for row in rows],
            success=[self.success[row] for row in rows],
            finish_step=[self.finish_step[row] for row in rows],
            task=[],
            events={name: [counts[row] for row in rows] for name, counts in self.events.items()},
        )

    @property
    def rate(self) -> Interval:
        """Success rate with its 95 % Wilson interval."""
        return wilson_interval(sum(self.success), len(self.success))

    @property
    def median_steps(self) -> float:
        """Median first successful frame of the successes within the horizon; NaN without any."""
        steps = [step for step, success in zip(self.finish_step, self.success, strict=True) if success]
        return statistics.median(steps) if steps else float("nan")


@dataclass(frozen=True)
class RewardQuality:
    """The reward model on held-out real episodes."""

    threshold: float
    """As a probability."""
    precision: float
    recall: float
    f1: float
    accuracy: float
    calibration_error: float
    auroc: float
    episodes: int
    successes: int


@dataclass(frozen=True)
class Fidelity:
    """Imagined against real pictures of one camera after the same actions, at one horizon, beside the first picture."""

    frames: int
    psnr: float  # dB, higher is better
    ssim: float  # at most 1, higher is better
    frechet: float  # at least 0, lower is better
    still_psnr: float
    still_ssim: float
    still_frechet: float
    episodes: int
    camera: str = "front"  # older results knew one only
    sharpness: float = float("nan")  # edges beside those of real pictures; below 1 is blurred


@dataclass(frozen=True)
class StateFidelity:
    """Imagined against real proprioceptive state after the same actions, at one horizon, beside the first state."""

    frames: int
    error: list[float]  # per dimension: mean absolute error, in its own unit
    still_error: list[float]
    rms: float  # root mean square over all dimensions, each in standard deviations of the real state
    still_rms: float
    episodes: int


@dataclass(frozen=True)
class Agreement:
    """Verdicts on imagined replays of held-out real episodes against what really happened."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    episodes: int
    successes: int
    """Of them really successful."""


@dataclass(frozen=True)
class Gap:
    """One policy's success in imagination and in reality."""

    imagined: float
    imagined_episodes: int
    real: float
    real_episodes: int

    @property
    def excess(self) -> float:
        """Imagined minus real success: above 0 the dream flatters the policy."""
        return self.imagined - self.real

    @property
    def variance(self) -> float:
        """Of the excess, as if episodes of both worlds were drawn independently."""
        worlds = (self.imagined, self.imagined_episodes), (self.real, self.real_episodes)
        return sum(rate * (1 - rate) / episodes for rate, episodes in worlds)


@dataclass(frozen=True)
class Imagined:
    """One policy in the dream, from the first frames of held-out episodes. Nothing in it was tried for real."""

    success: list[int]
    """0 or 1 per first frame, as the reward model judges; the policy takes its most likely action."""
    beyond: list[int]
    """0 or 1 likewise: the dream disagrees with another of the same actions more than replays of real episodes do, or
    is further from what was recorded than these."""
    kl: float
    """How far it is from the base policy: nats per chunk, on its own choices at the temperature of practice."""


@dataclass(frozen=True)
class Recorded:
    """A run on recorded episodes alone."""

    learned: dict[str, list[int]]
    """Source (expert, round-1, ...) -> [episodes, those labelled a success] that were learned from."""
    held_out: dict[str, list[int]]
    """The same of those that were held out."""
    replays_beyond: list[int]
    """0 or 1 per held-out episode: its own replay is beyond a limit that 95 % of them keep, see `Imagined.beyond`."""
    imagined: dict[str, Imagined] = field(default_factory=dict)
    """base, wmpo-1, ... -> what became of it in the dream."""


Curve = list[tuple[int, float]]
Result = TypeVar("Result", bound="RunResult")


def times_of(policies: Iterable[PolicyResult]) -> list[float]:
    """Those of TIMES that all of some policies were given."""
    timed = [*policies]
    return [factor for factor in TIMES if all(factor * one.horizon <= one.time_limit for one in timed)]


@dataclass
class RunResult:
    """Everything that is known of a run. Absent measurements are empty or None."""

    recipe: JsonObject
    task: str
    seed: int
    commit: str
    versions: dict[str, str]
    machine: Machine
    interactions: dict[str, Interactions] = field(default_factory=dict)
    """Purpose (demonstrations, rollouts, practice resets, evaluation, ...) -> real interaction."""
    stages: dict[str, Stage] = field(default_factory=dict)
    policies: dict[str, PolicyResult] = field(default_factory=dict)
    """base; wmpo, or wmpo-1, wmpo-2 ... over rounds; control; others under any name without a dash."""
    reward: RewardQuality | None = None
    fidelity: list[Fidelity] = field(default_factory=list)
    """Camera by camera, with growing horizons."""
    state_fidelity: list[StateFidelity] = field(default_factory=list)
    """With growing horizons; empty for a policy that feels no state."""
    agreement: Agreement | None = None
    gaps: dict[str, Gap] = field(default_factory=dict)
    """Policy -> its success in imagination and in reality."""
    recorded: Recorded | None = None
    """Of a run that met no real environment."""
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """Practice (practice, or practice-1 ... over rounds; control) -> metric -> (iteration, value)."""
    format: int = FORMAT

    @staticmethod
    def begin(recipe: Recipe) -> RunResult:
        """A result that knows its recipe, code and machine, and no measurement yet."""
        return RunResult(
            recipe=to_plain(recipe),
            task=task_of(recipe),
            seed=recipe.seed,
            commit=commit(),
            versions=versions(),
            machine=this_machine(),
        )

    def read_logs(self, folder: Path) -> None:
        """Take stages, and the curves of every practice, from what the run logged in `folder`."""
        known = ("seconds", "peak_memory_mb", "peak_gpu_memory_mb", "sessions")
        for name, values in read_stages(folder).items():
            if {"seconds", "peak_memory_mb"} <= values.keys():
                numbers = {key: values[key] for key in known if key in values}
                self.stages[name] = Stage(**numbers)  # type: ignore[arg-type]
        metrics = read_metrics(folder)
        for name, points in metrics.items():
            practice, _, metric = name.rpartition("/")
            if f"{practice}/groups_kept" in metrics:  # which only GRPO logs
                self.curves.setdefault(practice, {})[metric] = points

    @property
    def final(self) -> str:
        """Name of the last policy that practised in imagination."""
        names = [name for name in self.policies if name == FINAL or name.startswith(f"{FINAL}-")]
        if not names:
            raise UserError("This result holds no policy that practised in imagination.")
        return names[-1]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the outcomes; empty where there is only one."""
        return sorted({name for policy in self.policies.values() for name in policy.task})

    def of_task(self: Result, name: str) -> Result:
        """The same result with those outcomes only that are about one task."""
        policies = {who: policy.of_task(name) for who, policy in self.policies.items() if name in policy.task}
        return replace(self, policies=policies)

    def summary(self) -> Summary:
        """Rates and paired differences to the base policy, each with a 95 % interval; of each task too."""
        rates = {name: policy.rate for name, policy in self.policies.items()}
        gains = {}
        base = self.policies.get(BASE)
        for name, policy in self.policies.items():
            if name != BASE and base is not None and policy.initial_states == base.initial_states:
                gains[name] = Gain.between(base.success, policy.success)
        return Summary(rates, gains, {name: self.of_task(name).summary() for name in self.tasks})

    def save(self, path: Path) -> None:
        self.check(str(path))
        write_json(path, to_plain(self))

    @staticmethod
    def load(path: Path) -> RunResult:
        """Strict: a file of another format, or with lists of unequal lengths, is refused in one sentence."""
        data = read_json(path)
        if isinstance(data, Mapping) and data.get("format") != FORMAT:
            raise UserError(f"{path} has format {data.get('format')!r}; this version of wmpo reads {FORMAT}.")
        result = from_plain(RunResult, data, str(path), null_is_nan=True)
        result.check(str(path))
        return result

    def check(self, where: str) -> None:
        for name, policy in self.policies.items():
            counts = [*policy.events.values()]
            lengths = {len(each) for each in (policy.initial_states, policy.success, policy.finish_step, *counts)}
            if len(lengths) != 1 or 0 in lengths:
                raise UserError(f"{where}: {name} needs one outcome and one finish step for each initial state.")
            if len(policy.task) not in (0, len(policy.initial_states)):
                raise UserError(f"{where}: {name} needs the task of each initial state, or of none.")
            if not set(policy.success) <= {0, 1}:
                raise UserError(f"{where}: outcomes of {name} must be 0 or 1.")


@dataclass(frozen=True)
class Gain:
    """How much more often one policy succeeds than another, on the same initial states."""

    difference: Interval  # in [-1, 1], with its 95 % interval, see `paired_difference`
    won: int  # states that only the second policy solves
    lost: int  # states that only the first one solves
    p_value: float  # McNemar's exact test

    @staticmethod
    def between(before: Sequence[int], after: Sequence[int]) -> Gain:
        pairs = list(zip(before, after, strict=True))
        return Gain(
            difference=paired_difference(before, after),
            won=sum(b < a for b, a in pairs),
            lost=sum(b > a for b, a in pairs),
            p_value=mcnemar_exact(before, after),
        )


@dataclass(frozen=True)
class Summary:
    rates: dict[str, Interval]
    gains: dict[str, Gain]
    """Policy -> its gain over the base policy; only where both met the same initial states."""
    tasks: dict[str, Summary] = field(default_factory=dict)
    """Task -> the same of its initial states alone; empty where there is only one."""


def task_of(recipe: Recipe) -> str:
    """What results call the task of a recipe: place; libero_spatial-2, where tasks are numbers in a suite."""
    task, suite = str(getattr(recipe.env, "task", recipe.env.family)), getattr(recipe.env, "suite", "")
    return f"{suite}-{task}" if suite else task


def mixed_tasks(task: Sequence[str]) -> list[str]:
    """The task of each initial state, or nothing where all are of one."""
    return list(task) if len(set(task)) > 1 else []
