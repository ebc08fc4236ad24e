"""Who says which frames show success: a column, a CSV file, a rule, or nobody."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo.data.records import BY, PROBABILITY, is_unlabelled, labelled_by
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.importing.source import Facts, Source
from wmpo.io.files import is_stream

COLUMNS = ("episode_index", "success", "frame")
WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
RULES = ("all", "none")


@dataclass(frozen=True)
class Verdict:
    """Of one episode."""

    succeeded: bool
    first: int | None = None
    """The first frame that shows it; None: the last few do."""

    def frames(self, count: int, last: int, where: str) -> np.ndarray:
        """(count,) bool: success from `first` on, or on the last so many frames."""
        if self.first is not None and self.first >= count:
            raise UserError(f"{where} succeeds from frame {self.first} on, but has frames 0 to {count - 1}.")
        begin = max(count - last, 0) if self.first is None else self.first
        return (np.arange(count) >= begin) & self.succeeded


def read_csv(path: Path, episodes: int) -> dict[int, Verdict]:
    """Episode -> verdict from a table with the columns episode_index, success and, where it is known, frame; others are
    read over. Raises UserError where it is anything else, or names an episode beyond the last."""
    if is_stream(path):
        raise UserError(f"The labels {path} are no file but a pipe or a device: write them into one.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            head = [name.strip().lower() for name in next(lines, [])]
            rows = [(lines.line_num, values) for values in lines if any(value.strip() for value in values)]
    except OSError as error:
        raise UserError(f"The labels {path} can't be read: {error.strerror}.") from None
    except (ValueError, csv.Error):
        raise UserError(f"The labels {path} are no table of comma-separated values in UTF-8.") from None
    _check_head(head, path)
    found: dict[int, Verdict] = {}
    for line, values in rows:
        if any(value.strip() for value in values[len(head) :]):
            raise UserError(
                f"{path}, line {line}: {len(values)} values stand below a first line that names {len(head)}."
            )
        row = dict(zip(head, values, strict=False))
        number, word, frame = (row.get(name, "").strip() for name in COLUMNS)
        if not (number.isascii() and number.isdigit() and len(number) < 10) or word.lower() not in WORDS:
            raise UserError(
                f"{path}, line {line}: give an episode_index and 1 or 0 for success, below a first line "
                "episode_index,success,frame of which the last may be left out."
            )
        if frame and not (frame.isascii() and frame.isdigit() and len(frame) < 10 and WORDS[word.lower()]):
            raise UserError(
                f"{path}, line {line}: frame is the number of the first frame that shows success, or empty."
            )
        if int(number) >= episodes or int(number) in found:
            why = "twice" if int(number) in found else f"but there are {episodes}, from 0 on"
            raise UserError(f"{path}, line {line}: episode {int(number)} is named {why}.")
        found[int(number)] = Verdict(WORDS[word.lower()], int(frame) if frame else None)
    if not found:
        raise UserError(f"{path} holds no labels: the first line names episode_index,success, the others give them.")
    return found


def _check_head(names: Sequence[str], path: Path) -> None:
    """Raise UserError where the first line names a column of ours twice, or the last one by another name, which would
    be read over."""
    for name in names:
        if name in COLUMNS and names.count(name) > 1:
            raise UserError(f"{path}, line 1: the column {name} is named twice.")
        near = name.endswith("_frame") or difflib.get_close_matches(name, ["frame"], cutoff=0.75)
        if near and set(names) >= {*COLUMNS[:2]} and "frame" not in names:
            raise UserError(f"{path}, line 1: there is a column {name[:100]!r}; did you mean frame?")


def by_rule(rule: str, episodes: int) -> dict[int, Verdict]:
    """`rule` is one of RULES, or the path of a CSV file."""
    if rule in RULES:
        return dict.fromkeys(range(episodes), Verdict(rule == "all"))
    if rule.lower().endswith(".csv"):
        return read_csv(Path(rule), episodes)
    raise UserError(f"{rule!r} is no way to label: give a file that ends in .csv, all, none or model.")


def relabel(store: EpisodeStore, verdicts: Mapping[int, Verdict], last: int = 1) -> None:
    """Say of some episodes of a store whether they succeed; all at once, or nothing where anything is wrong."""
    records = store.records()
    store.relabel({n: verdict.frames(records[n].length + 1, last, f"Episode {n}") for n, verdict in verdicts.items()})


@dataclass(frozen=True)
class Judge:
    """Says for each episode which of its frames show success."""

    column: str = ""
    threshold: float = 0.0
    verdicts: Mapping[int, Verdict] | None = None
    last: int = 1

    def __call__(self, source: Source, episode: int, stride: int) -> np.ndarray | None:
        """(frames,) bool; None where nobody knows. `last` counts frames of which each stands for `stride`."""
        about = source.facts.episodes[episode]
        if self.verdicts is not None:
            verdict = self.verdicts.get(episode)
            last = (self.last - 1) * stride + 1
            return None if verdict is None else verdict.frames(about.frames, last, f"Episode {episode}")
        if not self.column or (is_unlabelled(about.meta) and self.column == source.facts.success):
            return None
        values = source.columns(episode, [self.column])[self.column][:, 0] > self.threshold
        if not (self.column.startswith("next.") or self.column in ("rewards", "dones")):
            return values[: about.frames]
        success = np.zeros(about.frames, bool)  # each row speaks of the frame that follows
        success[1:] = values[: about.frames - 1]
        success[-1] |= values[-1]  # what follows the last frame was not recorded: that frame comes nearest
        return success

    def by(self, facts: Facts, meta: Mapping[str, str]) -> dict[str, str]:
        """Who says so, as facts of an episode; a column that is known to say it is as good as it was."""
        if self.verdicts is not None:
            return labelled_by({})
        return {key: meta[key] for key in (BY, PROBABILITY) if key in meta and self.column == facts.success}


def judge_of(facts: Facts, success: str, threshold: float, last: int) -> Judge:
    """`success` is the name of a column, a CSV file, one of RULES, or empty: the column that is known to say it."""
    column = success or facts.success
    if success in RULES or success.lower().endswith(".csv"):
        verdicts = by_rule(success, len(facts.episodes))
        for number, verdict in verdicts.items():
            verdict.frames(facts.episodes[number].frames, last, f"Episode {number}")  # or it is told after long work
        return Judge(verdicts=verdicts, last=last)
    if column and (column not in facts.columns or facts.columns[column].size != 1):
        raise UserError(
            f"There is no column {column!r} of single numbers to tell success by: there are "
            f"{', '.join(candidates(facts)) or 'none'}; or give a .csv file, all or none."
        )
    return Judge(column, threshold)


def candidates(facts: Facts) -> Sequence[str]:
    """Columns of single numbers, which may say what succeeded."""
    return [name for name, column in facts.columns.items() if column.size == 1]
