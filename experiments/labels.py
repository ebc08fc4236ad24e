"""What labels by a model are worth: `python -m experiments.labels STORE --judged-on STORE`.

The labels of a store of rollouts, which are known, are hidden but for k of them, drawn at random; a model labels the
rest, as `wmpo data label --success model` does, and what it says is compared with the truth. Then as many as were known
are told truly as well, those that the model doubts most; random ones in their place are the next larger k, since draws
are nested. Last, a reward model learns from the k labels alone, and from all, and judges episodes held out.

STORE is made by `wmpo demonstrate`, `wmpo imitate` and `wmpo collect`, see docs/first_run.md. A line of the results is
a draw; one that is there already is not computed again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from experiments.store import add_line, read_lines
from experiments.tables import table
from experiments.writable import check_writable
from wmpo.cli.parse import program
from wmpo.config import Recipe
from wmpo.data.records import UNLABELLED, without_label
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.families import completed
from wmpo.io.plain import to_plain
from wmpo.io.provenance import commit, this_machine
from wmpo.labelling import keep, label_rest
from wmpo.losses.verdicts import auroc, precision_recall_f1
from wmpo.opening import open_stage
from wmpo.report.measure import score_video
from wmpo.success import SuccessData, learn_success
from wmpo.training.parallel import use_one_thread

Plain = dict[str, Any]
NEEDED = ("seed", "k", "steps", "first")  # what each line has


@dataclass(frozen=True)
class Options:
    """How right the labels of a model are, and what a reward model gains by them."""

    store: tyro.conf.Positional[Path]
    """Rollouts whose labels are true; it is only read."""
    judged_on: Path
    """Others of the same policy, on which reward models are judged."""
    known: tuple[int, ...] = (10, 20, 40, 80)
    """How many labels are given."""
    again: tuple[int, ...] = (10, 20)
    """Of these, after which as many doubtful ones more are given."""
    judges: tuple[int, ...] = (20, 80)
    """Of these, with which reward models are made."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the draw, and of the models' weights and batches."""
    steps: int = 400
    """Of training each classifier (reward.fit.steps)."""
    out: Path = Path("experiments/results/labels.jsonl")
    """Where results are added."""

    def execute(self) -> None:
        use_one_thread()
        truth = [*EpisodeStore.open(self.store)]
        judged_on = EpisodeStore.open(self.judged_on)
        self.check(len(truth))
        lines = read_lines(self.out, *NEEDED)
        with TemporaryDirectory() as folder:
            hidden = Path(folder, "hidden")
            EpisodeStore.create(hidden, EpisodeStore.open(self.store).spec).append(
                [replace(episode, success=np.zeros_like(episode.success),
                         meta={**without_label(episode.meta), **UNLABELLED}) for episode in truth]
            )  # fmt: skip
            success = [episode.success for episode in truth]
            for seed in self.seeds:
                order = np.random.default_rng(seed).permutation(len(truth)).tolist()
                for k in self.known:
                    name = {"seed": seed, "k": k, "steps": self.steps}
                    if any(name.items() <= line.items() for line in lines):
                        continue
                    drawn = Draw(hidden, success, judged_on, self.steps, seed, Path(folder))
                    found = drawn.measured(order[:k], k in self.again, k in self.judges)
                    add_line(self.out, name, found)
                    print(json.dumps({**name, **found}), flush=True)

    def check(self, episodes: int) -> None:
        """Before minutes of work, not after them."""
        check_writable(self.out.parent)
        for option, values, least in (
            ("known", self.known, 1), ("seeds", self.seeds, 0), ("steps", (self.steps,), 1)
        ):  # fmt: skip
            if min(values, default=least) < least:
                raise UserError(f"--{option} has {min(values)}; it must be at least {least}.")
        if max(self.known, default=0) > episodes:
            raise UserError(f"--known has {max(self.known)}, but {self.store} holds {episodes} episodes.")


@dataclass(frozen=True)
class Draw:
    """One seed's."""

    hidden: Path
    success: Sequence[np.ndarray]
    judged_on: EpisodeStore
    steps: int
    seed: int
    folder: Path

    def measured(self, known: Sequence[int], again: bool, judge: bool) -> Plain:
        began = time.process_time()
        found: Plain = {"episodes": len(self.success), "successes": sum(bool(hits.any()) for hits in self.success)}
        place = self.folder / "labelled"
        found["first"], doubtful = self.labelled(known, place)
        if judge:
            found["model_alone"] = self.judged(place, known)
        if doubtful and judge:
            found["model_all"] = self.judged(place, range(len(self.success)))
        if doubtful and again:
            found["second"], _ = self.labelled([*known, *doubtful[: len(known)]], place)
        found |= {"cpu_seconds": round(time.process_time() - began), "commit": commit()}
        return found | {"machine": to_plain(this_machine())}

    def recipe(self) -> Recipe:
        plain = completed(Recipe()).reward
        reward = replace(plain, imagined_fraction=0.0, fit=replace(plain.fit, steps=self.steps))
        return Recipe(seed=self.seed, reward=reward, device="cpu")

    def labelled(self, known: Sequence[int], place: Path) -> tuple[Plain, list[int]]:
        """How right a model's labels are; which it doubts, most of all first. The labelled store is left in `place`."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.hidden, place)
        store = EpisodeStore.open(place)
        store.relabel({i: self.success[i] for i in known})
        with TemporaryDirectory() as work, open_stage(self.recipe(), Path(work), place, quiet=True) as run:
            try:
                labels = label_rest(run)
            except UserError as error:  # too few of a kind, say
                return {"known": len(known), "refused": str(error).replace(str(place), "STORE")}, []
        keep(store, labels)
        left = sorted(labels.success)
        said = torch.tensor([bool(labels.success[i].any()) for i in left])
        true = torch.tensor([bool(self.success[i].any()) for i in left])
        late = [abs(int(labels.success[i].argmax()) - int(self.success[i].argmax()))
                for i, hit, right in zip(left, said.tolist(), true.tolist(), strict=True) if hit and right]  # fmt: skip
        quality = precision_recall_f1(said, true)
        doubt = {i: min(p, 1 - p) for i, p in labels.probability.items()}
        return {
            "known": len(known),
            "known_successes": labels.successes,
            "told_accuracy": labels.quality.accuracy,
            "told_f1": labels.quality.f1,
            "told_wrong": sum(doubt.values()),
            "wrong": int((said != true).sum()),
            "accuracy": quality.accuracy,
            "f1": quality.f1,
            "frames_off": statistics.median(late) if late else None,
        }, sorted(left, key=lambda i: (-doubt[i], i))

    def judged(self, place: Path, episodes: Sequence[int]) -> Plain:
        """A reward model that learns from these episodes, threshold and all, as `wmpo reward-model` makes it, on
        those held out."""
        with TemporaryDirectory() as work, open_stage(self.recipe(), Path(work), place, quiet=True) as run:
            try:
                model = learn_success(run, SuccessData(episodes, episodes, episodes, []), None, None)
            except UserError as error:
                return {"refused": str(error)}
            threshold = model.threshold
            score, true = [], []
            for episode in self.judged_on:
                scores = score_video(model, next(iter(episode.images.values())), episode.instruction)
                score.append(float(np.nanmax(scores)))
                true.append(episode.succeeded)
        quality = precision_recall_f1(torch.tensor(score) > threshold, torch.tensor(true))
        area = auroc(torch.tensor(score), torch.tensor(true))
        return {"episodes": len(true), "f1": quality.f1, "accuracy": quality.accuracy, "auroc": area}


def labels_table(lines: Sequence[Plain]) -> str:
    """For docs/import.md: means over the draws that weren't refused."""
    first = {
        k: [line["first"] for line in lines if line["k"] == k and "wrong" in line["first"]] for k in known_of(lines)
    }
    rows = []
    for k, found in first.items():
        own = [line for line in lines if line["k"] == k]
        again = [line["second"]["wrong"] for line in own if "wrong" in line.get("second", {})]
        random = [other["wrong"] for other in first.get(2 * k, [])] if again else []
        rows.append([
            str(k), f"{len(found)} of {len(own)}",
            mean([100 * each["accuracy"] for each in found]), mean([100 * each["told_accuracy"] for each in found]),
            mean([each["f1"] for each in found], 2), mean([each["wrong"] for each in found]),
            mean([each["told_wrong"] for each in found]), mean(again), mean(random),
            *(mean([line[name]["f1"] for line in own if "f1" in line.get(name, {})], 2)
              for name in ("model_alone", "model_all")),
        ])  # fmt: skip
    head = ("labels by hand", "draws", "right, %", "right as told, %", "F1", "wrong", "wrong as told",
            "wrong, with as many doubtful ones by hand", "with as many at random",
            "reward model of the hand's labels, F1", "of all, F1")  # fmt: skip
    return table(head, rows)


def known_of(lines: Sequence[Plain]) -> list[int]:
    return sorted({line["k"] for line in lines})


def mean(values: Sequence[float], places: int = 0) -> str:
    """With the least and the greatest."""
    if not values:
        return "–"
    middle, low, high = (f"{value:.{places}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


if __name__ == "__main__":
    sys.exit(program(Options, Options.execute, "python -m experiments.labels"))
