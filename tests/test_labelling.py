"""Labels by a model that learns from a few of a person's: which are right, who gave them, and what comes first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from episodes_by_hand import make_episode, make_store
from wmpo.cli import main
from wmpo.config import Recipe
from wmpo.data.records import UNLABELLED
from wmpo.data.store import EpisodeStore
from wmpo.importing.success import by_rule, relabel
from wmpo.labelling import FOLDS, Labels, folds, keep, success_frames
from wmpo.losses.verdicts import precision_recall_f1
from wmpo.opening import open_stage
from wmpo.success import SuccessData, labelled
from wmpo.types import Episode
from wmpo.web.view import View

FIRST = {n: 3 + n % 4 for n in range(0, 20, 2)}  # every second episode succeeds, and shows it by a bright corner
HAND = 12  # episodes labelled by hand
QUICK = ["--reward.fit.steps", "30", "--reward.fit.warmup", "4", "--reward.fit.lr", "0.01",
         "--reward.fit.batch-size", "8", "--reward.fit.cpu-shards", "1", "--reward.width", "8",
         "--reward.shift", "0", "--device", "cpu"]  # fmt: skip


def lit(number: int) -> Episode:
    """Of which nobody has said yet whether it succeeds."""
    episode = make_episode(number, 8, source="act", initial_state=-1)
    for image in episode.images.values():
        image[:] = image // 4
        if number in FIRST:
            image[FIRST[number] :, :4, :4] = 255
    return replace(episode, meta={**episode.meta, **UNLABELLED})


def by_hand(store: EpisodeStore, episodes: range) -> None:
    store.relabel({n: np.arange(9) >= FIRST.get(n, 9) for n in episodes})


def test_a_model_labels_what_no_person_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", [lit(n) for n in range(20)])
    by_hand(store, range(HAND))
    assert main(["data", "label", str(store.root), "--success", "model", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "12 labelled episodes, 6 successes and 6 failures; 100% of these are told right" in said
    assert "labelled 8 episodes, 4 of them successes" in said and "WARNING: figures from fewer than 10" in said
    assert "20 episodes of act, 50.0% successful, 8 labelled by a model" in said
    again = EpisodeStore.open(store.root)
    assert [row.by for row in again.records()] == ["person"] * HAND + ["model"] * 8
    for row in again.records():
        assert row.succeeded == (row.index in FIRST) and row.meta["renderer"] == "rays"
        assert (row.probability is None) == (row.index < HAND)
        assert row.probability is None or (row.probability > 0.5) == row.succeeded
        if row.succeeded:
            assert abs(int(again.episode(row.index).success.argmax()) - FIRST[row.index]) <= 1
    assert not any(path.name == "stages.json" for path in store.root.rglob("*"))  # it is nobody's run

    # A label by hand takes the place of the model's, and is never touched again.
    relabel(again, by_rule("none", 20))
    assert {row.by for row in again.records()} == {"person"}
    assert main(["data", "label", str(store.root), "--success", "model"]) == 2
    assert "All 20 episodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hand", "given", "said"),
    [
        (range(0), ["--success", "model"], "Of the 0 episodes"),
        (range(1, 12, 2), ["--success", "model"], "0 succeed and 6 fail"),
        (range(0, 3), ["--success", "model"], "a model needs 2 of each"),
        (range(12), ["--success", "none", "--seed", "3"], "--seed does nothing"),
        (range(12), ["--success", "none", "--reward.width", "8"], "--reward does nothing"),
        (range(12), ["--success", "model", "--reward.threshold", "f1"], "threshold does nothing"),
    ],
)
def test_what_is_too_little_is_told_before_the_work(
    hand: range, given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", [lit(n) for n in range(20)])
    by_hand(store, hand)
    before = [row.by for row in store.records()]
    assert main(["data", "label", str(store.root), *given]) == 2
    assert said in capsys.readouterr().err
    assert [row.by for row in EpisodeStore.open(store.root).records()] == before


def test_what_a_person_has_labelled_meanwhile_stays(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [lit(n) for n in range(3)])
    hits = {n: np.ones(9, bool) for n in range(1, 3)}
    labels = Labels(1, 0, precision_recall_f1(torch.ones(1), torch.ones(1)), hits, {1: 0.8, 2: 0.9})
    by_hand(store, range(2))  # 1 fails
    keep(EpisodeStore.open(store.root), labels)
    records = EpisodeStore.open(store.root).records()
    assert [(row.by, row.succeeded) for row in records] == [("person", True), ("person", False), ("model", True)]


def test_each_fold_leaves_both_kinds_and_states_stay_together(tmp_path: Path) -> None:
    numbers = [5, 5, 6, 6, 7, 8, 9, 10]
    store = make_store(tmp_path / "store", [make_episode(n, 8, (8,) if n in (0, 4) else (), initial_state=number)
                                            for n, number in enumerate(numbers)])  # fmt: skip
    dealt = folds(store.records(), "here")
    assert dealt.keys() == set(range(8)) and len(set(dealt.values())) == FOLDS
    assert dealt[0] == dealt[1] and dealt[2] == dealt[3] and dealt[0] != dealt[4]


def test_success_begins_where_the_threshold_is_crossed() -> None:
    assert success_frames(np.array([np.nan, -1.0, 2.0, -3.0]), 1.0).tolist() == [False, False, True, True]
    assert success_frames(np.array([np.nan, -1.0, -3.0, -2.0]), 1.0).tolist() == [False, True, True, True]


def test_a_model_is_no_judge_of_another(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [lit(n) for n in range(8)])
    by_hand(store, range(4))
    store.relabel({n: np.arange(9) >= 5 for n in range(4, 8)}, dict.fromkeys(range(4, 8), 0.9))
    everything = range(8)
    with open_stage(Recipe(device="cpu"), tmp_path / "log", store.root, quiet=True) as run:
        known = labelled(run, SuccessData(everything, everything, everything, everything))
        assert (list(known.seen), list(known.judged)) == ([*everything], [0, 1, 2, 3])


def test_the_page_tells_who_said_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [lit(n) for n in range(3)])
    by_hand(store, range(1))
    store.relabel({1: np.zeros(9, bool)}, {1: 0.31})
    view = View(EpisodeStore.open(store.root), None, torch.device("cpu"))
    rows: Any = view.episodes({})
    assert [(row["by"], row["probability"], row["success"]) for row in rows["rows"]] == [
        ("person", None, True), ("model", 0.31, False), ("unknown", None, None)
    ]  # fmt: skip
    view.label({"index": 1, "success": True, "frame": 4})
    assert EpisodeStore.open(store.root).records()[1].by == "person"
    EpisodeStore.open(store.root).relabel({0: np.zeros(9, bool)})  # somebody else, whose files have other names
    rows = view.episodes({})
    assert [row["success"] for row in rows["rows"]] == [False, True, None]
    EpisodeStore.open(store.root).relabel({0: np.ones(9, bool)})
    found: Any = view.episode({"index": 0})
    assert all(found["success"])
