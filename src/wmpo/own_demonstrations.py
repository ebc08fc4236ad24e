"""Demonstrations that a user brings along, for an environment with or without a scripted expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wmpo.data.compatibility import content, difference
from wmpo.data.initial_states import split_of
from wmpo.data.records import initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.run import Run, is_demonstration
from wmpo.types import EnvSpec


def suited(folder: Path, spec: EnvSpec) -> tuple[EpisodeStore, list[int]]:
    """The store in `demonstrations.data`, its cameras in the order of the environment's, and the episodes to take.

    Raises UserError where they don't fit the environment, none succeeds, or evaluation would begin where they begin.
    """
    store = EpisodeStore.open(folder)
    if found := difference("The environment", spec, f"{folder}", store.spec):
        raise UserError(f"{found}: choose the options of --env, or of `wmpo data import`, so that both agree.")
    records = store.records()
    numbers = initial_states_of(records)
    chosen = [record.index for record in records if record.source == "expert"]
    if not any(is_demonstration(records[i]) for i in chosen):
        raise UserError(
            f"demonstrations.data is {folder}, which holds no successful demonstration (an episode of source expert): "
            "see `wmpo data check` and `wmpo data label`."
        )
    if taken := [numbers[i] for i in chosen if numbers[i] >= 0 and split_of(numbers[i]) != "demonstrate"]:
        raise UserError(
            f"demonstrations.data is {folder}, where an episode begins from initial state {taken[0]}, which is kept "
            f"for split {split_of(taken[0])!r}: bring demonstrations from other ones."
        )
    return store.with_cameras(tuple(spec.cameras)), chosen


def take_demonstrations(run: Run) -> None:
    """Copy an expert's episodes, all of those in `demonstrations.data`, into the run."""
    store, chosen = suited(Path(run.recipe.demonstrations.data), run.store.spec)
    numbers = initial_states_of(store.records())
    run.same_inputs("demonstrations", {"data": content(store)})
    with run.log.stage("demonstrations"), run.log.progress("demonstrations", len(chosen)) as bar:
        done = len(run.store.select(source="expert"))
        bar.skip(done)
        for i, episode in zip(chosen[done:], store.each(chosen[done:]), strict=True):
            run.store.append([replace(episode, initial_state=max(numbers[i], -1))])
            bar.update(1)
