"""Which way to a student of few steps: `python -m experiments.students RUN`.

RUN holds a dream that is trained at all noise levels and takes many steps, the teacher, and a reward model: a folder of
`wmpo run`, or of a cell of `few-steps`. Students of each way (`experiments/ways.py`) begin as the teacher is and learn
from RUN's demonstrations and rollouts as alignment does; all of one seed see the same batches, and the teacher's paths
are computed once for all of them. Then each imagines what really happened in the evaluation of RUN's base policy, from
which nothing has learned: single chunks after real frames, and whole episodes after their first frame.

A line of the results is a student; one that is there already is not computed again. RUN is only read, but for a cache
of decoded frames beside its episodes.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from experiments.held_out import HeldOut
from experiments.labels import mean
from experiments.statistics import mean_over_seeds
from experiments.store import add_line, read_lines
from experiments.tables import table, verdict
from experiments.ways import OURS, WAYS, AlongPath, Paths, in_steps, student_of
from experiments.writable import check_writable
from wmpo.batches import cat
from wmpo.cli.parse import program
from wmpo.config import FitConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import VideoBatch, VideoClips
from wmpo.errors import UserError
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.opening import load_recipe, open_stage
from wmpo.report.statistics import Interval
from wmpo.run import Run, is_shown, tried_until
from wmpo.training.checkpoint import digest_of
from wmpo.training.fit import Learner, step_seed
from wmpo.training.parallel import use_one_thread
from wmpo.world_models import load_world_model
from wmpo.world_models.unet import UNet
from wmpo.world_models.video_diffusion import VideoDiffusionModel

Plain = dict[str, Any]
TEACHER, STORED = "teacher", "stored"
LABELS = {way: label for way, (label, _) in WAYS.items()} | {
    TEACHER: "the teacher itself",
    STORED: "the student that came with the run",
}

NEEDED = ("teacher", "episodes", "way", "steps", "replay_psnr")  # what each line has


@dataclass(frozen=True)
class Options:
    """Compare ways to a student that imagines in fewer steps than its teacher."""

    run: tyro.conf.Positional[Path]
    """A run or cell whose dream is trained at all noise levels; its denoiser is the teacher."""
    steps: tuple[int, ...] = (1, 2)
    """Of the students: divisors of the teacher's, from which it is a power of two."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the students' batches and noise."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Which of the ways."""
    updates: int = 100
    """Steps of training of each student."""
    batch_size: int = 16
    """Clips of two chunks per step."""
    episodes: int = 128
    """Held-out episodes to imagine."""
    out: Path = Path("experiments/results/students.jsonl")
    """Where results are added."""

    def execute(self) -> int:
        use_one_thread()
        self.check()
        recipe = load_recipe(self.run)
        teacher, stored = self.teacher()
        total = teacher.config.settings.sampling_steps
        held_out = HeldOut.of(self.run, recipe, teacher, self.episodes)
        about: Plain = {"teacher": digest_of(teacher.denoiser), "episodes": len(held_out.episodes)}
        lines = read_lines(self.out, *NEEDED)

        def missing(name: Plain) -> bool:
            return not any(name.items() <= line.items() for line in lines)

        def keep(name: Plain, model: VideoDiffusionModel, seconds: Plain) -> None:
            found = held_out.measured(model)
            line = {**found, **seconds, "commit": commit(), "machine": to_plain(this_machine())}
            add_line(self.out, name, line)
            print(f"{name}: {statistics.fmean(found['replay_psnr']):.2f} dB", flush=True)

        for steps in dict.fromkeys((*self.steps, total)):
            if missing(name := {**about, "way": TEACHER, "steps": steps}):
                keep(name, in_steps(teacher, steps), {})
        if stored is not None:
            name = {**about, "way": STORED, "steps": stored.config.settings.student_steps}
            if missing(name):
                keep(name, stored, {})
        usual = teacher.config.settings.distil
        warmup = min(usual.warmup, self.updates // 6)  # the same share of the training as usual
        fit = replace(
            usual, steps=self.updates, batch_size=self.batch_size, cpu_shards=1, accumulate=1, warmup=warmup
        )  # fmt: skip
        for seed in self.seeds:
            names = [
                {**about, "way": way, "steps": steps, "seed": seed, "updates": self.updates, "batch": self.batch_size}
                for steps in self.steps
                for way in self.ways
            ]
            names = [name for name in names if missing(name)]
            if names:
                with (
                    TemporaryDirectory() as work,
                    open_stage(replace(recipe, device="cpu"), Path(work), self.run / "episodes", quiet=True) as run,
                ):
                    found = trained(teacher, names, fit, seed, batches(run, teacher, self.batch_size, seed))
                for name, (model, seconds) in zip(names, found, strict=True):
                    keep(name, model, seconds)
        return 0

    def check(self) -> None:
        """Before minutes of work, not after them."""
        check_writable(self.out.parent)
        for name, value, least in (
            ("updates", self.updates, 1), ("batch-size", self.batch_size, 2), ("episodes", self.episodes, 2)
        ):  # fmt: skip
            if value < least:
                raise UserError(f"--{name} is {value}; it must be at least {least}.")
        if min(self.seeds, default=0) < 0:
            raise UserError(f"Seeds must be 0 or more, not {min(self.seeds)}.")
        for way in self.ways:
            if way not in WAYS:
                raise UserError(f"There is no way {way!r}: choose from {', '.join(WAYS)}.")

    def teacher(self) -> tuple[VideoDiffusionModel, VideoDiffusionModel | None]:
        """RUN's denoiser without a student; and with its student, where it has one. Raises UserError where it isn't one
        that can teach."""
        model = load_world_model(self.run / "world_model-1")
        if not isinstance(model, VideoDiffusionModel) or not isinstance(model.denoiser, UNet):
            raise UserError(f"The dream of {self.run} is no video_diffusion with a U-Net, on which ways are compared.")
        settings = model.config.settings
        if settings.training_timesteps != "all" or settings.objective != "flow":
            raise UserError(
                f"The dream of {self.run} can't teach: it needs world_model.training_timesteps all and objective flow."
            )
        for steps in self.steps:
            if steps < 1 or settings.sampling_steps not in [steps * 2**i for i in range(10)]:
                raise UserError(
                    f"--steps {steps}: the teacher's {settings.sampling_steps} steps must be 1, 2, 4, 8, ... times it."
                )
        return student_of(model, 0).eval(), model if model.student is not None else None


def batches(run: Run, model: VideoDiffusionModel, size: int, seed: int) -> Callable[[int], VideoBatch]:
    """Step -> clips of demonstrations and of the policy's own rollouts, mixed as alignment mixes them."""
    cache, settings = FrameCache(run.store), run.recipe.world_model
    tried = run.episodes(tried_until(1))
    n = round(size * settings.align_fraction) if tried else 0
    parts = [
        (VideoClips(cache, episodes, model.context, model.chunk, settings.shift, chunks=2), count, step_seed(seed, i))
        for i, (episodes, count) in enumerate(
            ((tried, n), (run.episodes(lambda record: is_shown(run, record)), size - n))
        )
        if count
    ]
    return lambda step: cat([clips.sample(count, own, step) for clips, count, own in parts])


def trained(
    teacher: VideoDiffusionModel,
    names: Sequence[Plain],
    fit: FitConfig,
    seed: int,
    sample: Callable[[int], VideoBatch],
) -> list[tuple[VideoDiffusionModel, Plain]]:
    """Students with these names, which take each batch together, and the seconds of this process that each took."""
    paths = Paths()
    modules = [WAYS[name["way"]][1](teacher, name["steps"], paths) for name in names]
    learners = [Learner(module.train(), fit, torch.device("cpu"), seed) for module in modules]
    own = [0.0] * len(names)
    for step in range(fit.steps):
        batch = sample(step)
        for i, learner in enumerate(learners):
            began = time.process_time() - paths.seconds
            learner.step(batch, step)
            own[i] += time.process_time() - paths.seconds - began
        if (step + 1) % 10 == 0:
            print(f"seed {seed}: step {step + 1} of {fit.steps}", file=sys.stderr, flush=True)
    found = []
    for module, learner, seconds in zip(modules, learners, own, strict=True):
        if learner.average:
            module.load_state_dict(learner.average)
        taught = paths.seconds if isinstance(module, AlongPath) else 0.0
        seconds_of = {"cpu_seconds": round(seconds + taught, 2), "of_the_teacher": round(taught, 2)}
        found.append((module.model.eval(), seconds_of))
    return found


# The page


def students_tables(lines: Sequence[Plain]) -> str:
    """For experiments/docs/students.md: what each way comes to, then each beside the product's."""
    if not lines:
        return "Nothing has been measured yet."
    return f"{figures(lines)}\n\n{differences(lines)}"


def groups(lines: Sequence[Plain]) -> dict[tuple[str, int, str], list[Plain]]:
    """(way, steps, how long it was trained) -> its seeds; by steps, then in the order of `LABELS`."""
    found: dict[tuple[str, int, str], list[Plain]] = {}
    order = [*LABELS]
    for line in sorted(lines, key=lambda line: (line["steps"], order.index(line["way"]), line.get("seed", 0))):
        trained = f"{line['updates']} x {line['batch']}" if "updates" in line else "–"
        found.setdefault((line["way"], line["steps"], trained), []).append(line)
    return found


def figures(lines: Sequence[Plain]) -> str:
    rows = []
    for (way, steps, trained), own in groups(lines).items():
        means = [
            mean([statistics.fmean(line[name]) for line in own], 2)
            for name in ("chunk_psnr", "like_teacher_psnr", "replay_psnr", "end_psnr")
        ]
        if way == TEACHER and steps == max(line["steps"] for line in lines):
            means[1] = "–"  # it is itself
        rows.append([
            LABELS[way], str(steps), trained, str(len(own)), *means,
            mean([100 * line["motion_explained"] for line in own], 1),
            mean([line["end_sharpness"] for line in own], 2),
            mean([line["f1"] for line in own], 2),
            mean([line["cpu_seconds"] for line in own if "cpu_seconds" in line]),
            mean([line["of_the_teacher"] for line in own if "of_the_teacher" in line]),
        ])  # fmt: skip
    head = ("way", "steps", "updates x clips", "seeds", "a chunk, dB", "like the teacher's, dB", "whole episode, dB",
            "its end, dB", "motion explained, %", "sharpness at the end", "F1 of verdicts", "training, CPU s",
            "of that the teacher")  # fmt: skip
    return table(head, rows)


def differences(lines: Sequence[Plain]) -> str:
    found, rows = groups(lines), []
    for (way, steps, trained), own in found.items():
        ours = {line["seed"]: line for line in found.get((OURS, steps, trained), [])}
        pairs = [(line, ours[line["seed"]]) for line in own if line.get("seed") in ours]
        if way == OURS or not pairs:
            continue
        cells, sure = [], []
        for name in ("chunk_psnr", "replay_psnr", "like_teacher_psnr"):
            between, seeds = difference(pairs, name)
            cells.append(f"{decibels(between.value)} ({decibels(between.low)} to {decibels(between.high)}); "
                         f"{', '.join(map(decibels, seeds))}")  # fmt: skip
            alike = len({math.copysign(1, value) for value in seeds}) == 1
            sure.append(verdict(between) if alike else "no")
        rows.append([LABELS[way], str(steps), str(len(pairs)), *cells, "; ".join(sure)])
    head = ("minus the product's", "steps", "seeds", "a chunk, dB; by seed", "whole episode, dB; by seed",
            "like the teacher's, dB; by seed", "better beyond chance: chunk; episode; like the teacher's")  # fmt: skip
    return table(head, rows)


def difference(pairs: Sequence[tuple[Plain, Plain]], name: str) -> tuple[Interval, list[float]]:
    """Over held-out episodes, of means over seeds, with a 95 % interval; and the mean of each seed."""
    each = np.array([np.subtract(line[name], ours[name]) for line, ours in pairs])  # (seeds, episodes)
    return mean_over_seeds(each.mean(0)), each.mean(1).tolist()


def decibels(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def main(args: Sequence[str] | None = None) -> int:
    return program(Options, Options.execute, "python -m experiments.students", args)


if __name__ == "__main__":
    sys.exit(main())
