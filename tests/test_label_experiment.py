"""The experiment on labels by a model: what it hides, what it counts, what it goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from episodes_by_hand import make_episode, make_store
from experiments import labels as experiment
from experiments.store import read_lines
from wmpo.cli.parse import program
from wmpo.labelling import Labels
from wmpo.losses.verdicts import Quality
from wmpo.run import Run

HITS = (1, 3, 4, 8)  # of ten episodes


@pytest.fixture
def options(tmp_path: Path) -> experiment.Options:
    store = make_store(tmp_path / "store", [make_episode(n, 6, (5, 6) if n in HITS else ()) for n in range(10)])
    return experiment.Options(
        store.root, store.root, known=(2, 4), again=(2,), judges=(), seeds=(3,), out=tmp_path / "labels.jsonl"
    )


def says(sure: float, seen: list[set[int]]) -> Callable[[Run], Labels]:
    """A model that takes every second episode for a success, from frame 3 on, and doubts the last ones most."""

    def label_rest(run: Run) -> Labels:
        records = run.store.records()
        known = {record.index for record in records if record.by == "person"}
        assert all(not run.store.episode(i).success.any() for i in set(range(10)) - known)  # the truth is hidden
        seen.append(known)
        labels = Labels(1, 1, Quality(1, 1, 1, 0.5))
        for record in records:
            if record.index not in known:
                hit = record.index % 2 == 0
                labels.success[record.index] = (np.arange(7) >= 3) & hit
                p = sure - 0.01 * record.index
                labels.probability[record.index] = p if hit else 1 - p
        return labels

    return label_rest


def test_what_is_counted(options: experiment.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    monkeypatch.setattr(experiment, "label_rest", says(0.9, seen))
    options.execute()
    two, four = read_lines(options.out)
    order = np.random.default_rng(3).permutation(10).tolist()
    left = sorted(i for i in range(10) if i not in order[:2])
    assert seen == [set(order[:2]), {*order[:2], *left[-2:]}, set(order[:4])]  # the last are the doubtful ones
    wrong = [i for i in left if (i % 2 == 0) != (i in HITS)]
    assert (two["first"]["wrong"], two["second"]["known"], four["k"]) == (len(wrong), 4, 4) and "second" not in four
    assert two["first"]["accuracy"] == pytest.approx(1 - len(wrong) / 8)
    assert two["first"]["told_wrong"] == pytest.approx(sum(0.1 + 0.01 * i for i in left))
    assert two["first"]["frames_off"] == 2 and "model_alone" not in two
    assert two["successes"] == 4 and two["commit"] and two["machine"]["cores"]
    options.execute()  # nothing is left to do
    assert len(seen) == 3 and len(read_lines(options.out)) == 2
    replace(options, seeds=(3, 4), known=(2,), again=()).execute()
    assert [(line["seed"], line["k"]) for line in read_lines(options.out)] == [(3, 2), (3, 4), (4, 2)]


def test_bad_input_is_one_sentence(options: experiment.Options, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(options.store)
    for more, words in (
        (("--known", "2", "11"), "--known has 11, but"),
        (("--known", "-1"), "--known has -1; it must be at least 1."),
        (("--seeds", "-1"), "--seeds has -1; it must be at least 0."),
        (("--steps", "0"), "--steps has 0; it must be at least 1."),
        (("--out", "/proc/none/x.jsonl"), "/proc/none can't be a folder"),
    ):
        args = (store, "--judged-on", store, "--out", str(options.out), *more)
        assert program(experiment.Options, experiment.Options.execute, "labels", args) == 2
        assert words in capsys.readouterr().err
    assert not options.out.exists()


def test_what_is_refused_is_told(options: experiment.Options) -> None:
    replace(options, known=(1,)).execute()
    (line,) = read_lines(options.out)
    assert "Of the 1 episodes of STORE" in line["first"]["refused"]
    assert experiment.labels_table([line]).splitlines()[-1].startswith("| 1 | 0 of 1 | – |")


def test_the_table_sets_doubtful_beside_random() -> None:
    def line(k: int, wrong: int, **more: object) -> dict[str, object]:
        first = {"wrong": wrong, "accuracy": 0.9, "told_accuracy": 0.8, "f1": 0.75, "told_wrong": 7.4}
        return {"seed": 0, "k": k, "first": first, **more}

    lines = [line(20, 18, second={"wrong": 3}, model_alone={"f1": 0.5}, model_all={"f1": 0.62}), line(40, 9)]
    rows = experiment.labels_table(json.loads(json.dumps(lines))).splitlines()
    assert rows[2] == "| 20 | 1 of 1 | 90 | 80 | 0.75 | 18 | 7 | 3 | 9 | 0.50 | 0.62 |"
    assert rows[3] == "| 40 | 1 of 1 | 90 | 80 | 0.75 | 9 | 7 | – | – | – | – |"
