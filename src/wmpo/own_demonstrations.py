"""Demonstrations that a user brings along, for an environment with or without a scripted expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wmpo.data.compatibility import content, difference
from wmpo.data.initial_states import split_of
from wmpo.data.layout import INFO
from wmpo.data.records import initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.run import Run, is_demonstration
from wmpo.types import EnvSpec

STAGE = "demonstrations"


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
    if kept := [numbers[i] for i in chosen if numbers[i] >= 0 and split_of(numbers[i]) not in ("demonstrate", "other")]:
        raise UserError(
            f"demonstrations.data is {folder}, where an episode begins from initial state {kept[0]}, which is kept "
            f"for split {split_of(kept[0])!r}: bring demonstrations from other ones."
        )
    return store.with_cameras(tuple(spec.cameras)), chosen


def take_demonstrations(run: Run) -> None:
    """Copy an expert's episodes, all of those in `demonstrations.data`, into the run, which then needs that folder no
    more. Raises UserError as `suited` does."""
    folder = Path(run.recipe.demonstrations.data)
    if (count := taken(run)) and (run.folder / "result.json").exists():
        return None  # there is nothing to do but the report, whatever has become of the folder
    if count and not (folder / INFO).exists():
        return run.log.info(f"demonstrations.data, {folder}, is gone; its {count} demonstrations are in the run")
    store, chosen = suited(folder, run.store.spec)
    records = store.records()
    numbers, horizon = initial_states_of(records), run.env.spec.horizon
    run.same_inputs(STAGE, {"data": content(store), "episodes": len(chosen)})
    if longer := sum(records[i].length > horizon for i in chosen):
        run.log.info(
            f"WARNING: {longer} of the {len(chosen)} demonstrations have more than the {horizon} actions of an episode "
            "of this environment: a policy that is as slow as they are runs out of time"
        )
    with run.log.stage(STAGE), run.log.progress(STAGE, len(chosen)) as bar:
        done = len(run.store.select(source="expert"))
        bar.skip(done)
        for i, episode in zip(chosen[done:], store.each(chosen[done:]), strict=True):
            run.store.append([replace(episode, initial_state=max(numbers[i], -1))])
            bar.update(1)


def taken(run: Run) -> int:
    """How many demonstrations the run has of a user's; 0 where some are missing, or none has been asked for."""
    inputs, count = run.inputs_of(STAGE), len(run.store.select(source="expert"))
    return count if inputs.get("episodes") == count else 0
