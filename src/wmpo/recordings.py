"""The method on recorded episodes alone: demonstrations and rollouts in folders, no environment to reset or step.

The stages are those of `wmpo.algorithm`. What was collected comes from folders, round by round; a part of it is held
out, and nothing but that measures what came of practice (`wmpo.report.recorded`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wmpo.algorithm import (
    imitate,
    imitate_successes,
    model_success,
    model_the_world,
    practise_in_dream,
    save_policy,
)
from wmpo.data.cache import FrameCache
from wmpo.data.compatibility import comparable, content
from wmpo.data.records import EpisodeRecord, initial_states_of
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.policies import build_policy, match_actions
from wmpo.protocols import Policy
from wmpo.report.recorded import measure_recorded
from wmpo.report.results import BASE, RunResult
from wmpo.rounds import begin_round, fell, policy_before
from wmpo.run import Purpose, Run, is_demonstration, once
from wmpo.training.checkpoint import digest_of
from wmpo.types import EnvSpec

LEAST = 4  # demonstrations, of which some are held out


@dataclass(frozen=True)
class Part:
    """What has one source: the demonstrations, or the rollouts of a round."""

    source: str
    stores: Sequence[EpisodeStore]

    @property
    def records(self) -> list[EpisodeRecord]:
        return [record for store in self.stores for record in store.records()]

    def succeeds(self, record: EpisodeRecord) -> bool:
        """Where nobody has said it, a demonstration is taken to."""
        return record.succeeded or (self.source == "expert" and record.unlabelled)

    def __str__(self) -> str:
        return ", ".join(str(store.root) for store in self.stores)


def open_parts(demos: Sequence[Path], rounds: Sequence[Sequence[Path]], folder: Path) -> list[Part]:
    """The demonstrations, then the rollouts of each round, which may have none, for the run in `folder`. Raises
    UserError, in one sentence, for what can't be learned from together, or at all."""
    if not demos:
        raise UserError("There are no demonstrations: name one or more folders with --demos.")
    first = EpisodeStore.open(demos[0])
    sources = ["expert", *(f"round-{turn}" for turn in range(1, len(rounds) + 1))]
    parts = [
        Part(source, [comparable(EpisodeStore.open(path), first) for path in paths])
        for source, paths in zip(sources, (demos, *rounds), strict=True)
    ]
    seen: dict[str, Path] = {}
    for part in parts:
        for store in part.stores:
            check_store(store, part.source)
            if (other := seen.setdefault(content(store), store.root)) is not store.root:
                raise UserError(
                    f"{store.root} holds the episodes of {other} again: give each once, or some would be learned from "
                    "and held out, too."
                )
            if store.root.resolve() in folder.resolve().parents:
                raise UserError(f"{folder} lies in {store.root}, which is only read: choose another folder with --out.")
            if store.root.resolve() in ((folder / name).resolve() for name in ("episodes", "evaluation")):
                raise UserError(f"{store.root} is where the run keeps its episodes: choose another folder with --out.")
    if len(parts[0].records) < LEAST:
        raise UserError(f"{parts[0]}: {len(parts[0].records)} demonstrations are too few: give {LEAST} or more.")
    if not any(parts[0].succeeds(record) for record in parts[0].records):
        raise UserError(
            f"{parts[0]}: none of the {len(parts[0].records)} demonstrations succeeds, so there is nothing to imitate; "
            "say it anew by `wmpo data label` where that is wrong."
        )
    if not any(record.succeeded for part in parts for record in part.records):
        raise UserError(
            f"No episode is labelled a success, so success can't be learned: say which are, by `wmpo data label` on "
            f"{parts[0]}."
        )
    return parts


def check_store(store: EpisodeStore, source: str) -> None:
    """Raise UserError where a folder can't serve as what it is given as."""
    records = store.records()
    if not records:
        raise UserError(f"The episode store in {store.root} is empty: leave it out, or collect episodes first.")
    others = {record.source for record in records} - {"expert"}
    if others and any(record.source == "expert" for record in records):
        raise UserError(
            f"{store.root} holds demonstrations and rollouts ({', '.join(sorted(others))}) in one: put them into "
            "folders of their own, for --demos and --rollouts."
        )
    unknown = sum(record.unlabelled for record in records)
    if unknown and source != "expert":
        raise UserError(
            f"{store.root}: nobody has said of {unknown} of the {len(records)} rollouts whether they succeed: say it "
            f"by `wmpo data label {store.root}`."
        )


def spec_of(parts: Sequence[Part], folder: Path) -> EnvSpec:
    """What the run in `folder` sees and does; its horizon, once it has begun, doesn't grow with further rounds."""
    stores = [store for part in parts for store in part.stores]
    spec = replace(stores[0].spec, horizon=max(store.spec.horizon for store in stores))
    try:
        return replace(spec, horizon=EpisodeStore.open(folder / "episodes").spec.horizon)
    except UserError:  # it hasn't
        return spec


def began_alone(folder: Path) -> bool:
    """Whether the first round of the run in `folder` has practised on demonstrations alone, so that rollouts given now
    are those of the next."""
    return (folder / "policies" / "wmpo-1").is_dir() and not any(
        record.source == "round-1" for record in EpisodeStore.open(folder / "episodes").records()
    )


def optimise_recorded(run: Run, parts: Sequence[Part], held_out: float) -> RunResult:
    """The whole of WMPO, but for what takes an environment. `held_out`: the share of episodes that only measures."""
    if run.recipe.policy.pretrained:
        build_policy(run.recipe.policy, run.env.spec)  # it fits, or is refused before anything is done
    take_in(run, parts, held_out)
    return practise_recorded(run)


def practise_recorded(run: Run) -> RunResult:
    """What follows once all episodes are in the run's folder."""
    policy = given_policy(run) if run.recipe.policy.pretrained else imitate(run)
    for turn in range(1, run.recipe.rounds + 1):
        if turn > 1 and fell(run, turn):  # what practice made of the policy is worse: begin where it began
            policy = policy_before(run, turn)
        world_model = model_the_world(run, turn)
        reward_model = model_success(run, policy, world_model, turn)
        policy = begin_round(run, policy, turn)
        if not run.recipe.policy.pretrained:  # that one begins as it is
            policy = imitate_successes(run, policy, turn)
        policy = practise_in_dream(
            run, policy, world_model, reward_model, turn, f"practice-{turn}", run.recipe.grpo, f"wmpo-{turn}"
        )
    return measure_recorded(run, world_model, reward_model)


def given_policy(run: Run) -> Policy:
    """`policy.pretrained` as it is: the rollouts are its own."""
    cfg = run.recipe.policy
    policy = build_policy(cfg, run.env.spec).to(run.device)
    match_actions(policy, FrameCache(run.store).labels_of(run.episodes(is_demonstration)), cfg.pretrained, run.folder)
    run.same_inputs(BASE, {"policy": digest_of(policy)})
    save_policy(run, policy, BASE)
    return policy


@once
def take_in(run: Run, parts: Sequence[Part], held_out: float) -> None:
    """Copy the episodes of all parts into the run: those held out into its evaluation, the others to learn from."""
    shares: dict[str, object] = {"held_out": held_out, "seed": run.recipe.seed}
    apart = dict(zip((part.source for part in parts), split(run, parts, held_out), strict=True))
    for line in check_split(run, parts, apart):
        run.log.info(line)
    for part in parts:
        if part.stores or run.store.select(source=part.source):
            given = {f"{place} {store.root.name}": content(store) for place, store in enumerate(part.stores, start=1)}
            run.same_inputs(part.source, shares | given)
    with run.log.stage("take in"), run.log.progress("episodes", sum(len(part.records) for part in parts)) as bar:
        for part in parts:
            away = iter(apart[part.source])
            stores = {False: run.store, True: run.evaluation}
            done = {kind: len(store.select(source=part.source)) for kind, store in stores.items()}
            bar.skip(sum(done.values()))
            for store in part.stores:
                left = {}
                for record, kind in zip(store.records(), away, strict=False):
                    if done[kind]:
                        done[kind] -= 1
                    else:
                        left[record.index] = kind
                numbers = initial_states_of(store.records())
                for (i, kind), episode in zip(left.items(), store.each([*left]), strict=True):
                    stores[kind].append([replace(episode, source=part.source, initial_state=max(numbers[i], -1))])
                    bar.update(1)


def split(run: Run, parts: Sequence[Part], share: float) -> Iterator[list[bool]]:
    """Of each part, whether its episodes are held out: a share of the successes, and of the failures. Episodes of one
    initial state go together, in all parts; what later parts hold changes nothing."""
    known: dict[object, bool] = {}
    for place, part in enumerate(parts):
        rng = np.random.default_rng(run.seed(Purpose.HELD_OUT, place))
        records = part.records
        states = [number for store in part.stores for number in initial_states_of(store.records())]
        keys = [(place, i) if state < 0 else state for i, state in enumerate(states)]
        for outcome in (True, False):
            rows = [i for i, record in enumerate(records) if part.succeeds(record) is outcome]
            wanted = min(max(round(share * len(rows)), 2), len(rows) // 2)
            count = Counter(keys[row] for row in rows)
            held = sum(n for key, n in count.items() if known.get(key))
            for i in rng.permutation(rows):
                if keys[i] not in known:
                    known[keys[i]] = held < wanted
                    held += count[keys[i]] * known[keys[i]]
        yield [known[key] for key in keys]


def check_split(run: Run, parts: Sequence[Part], apart: dict[str, list[bool]]) -> Iterator[str]:
    """What is known beforehand to be poor, in lines for a person. Raises UserError where nothing could be learned, or
    nothing measured."""
    chunk = run.recipe.policy.chunk
    for part in filter(lambda part: part.stores, parts):
        pairs = list(zip(part.records, apart[part.source], strict=True))
        kept, away = ([record for record, one in pairs if one is kind] for kind in (False, True))
        if not kept or max(record.length for record in kept) < chunk:
            raise UserError(
                f"{part}: none of the {len(kept)} episodes to learn from has the {chunk} actions of one chunk: choose "
                "a shorter policy.chunk, or give longer episodes."
            )
        hits = sum(part.succeeds(record) for record in kept)
        yield f"{part}: {hits} successes and {len(kept) - hits} failures to learn from, {len(away)} episodes held out"
    if sum(map(sum, apart.values())) < 2:
        raise UserError(f"{parts[0]}: too few different initial states to hold two episodes out: give more.")
    tried = [record for part in parts[1:] for record in part.records]
    failed = [record for record in parts[0].records if not parts[0].succeeds(record)]
    if not tried and not failed:
        yield (
            "WARNING: demonstrations alone: failure was never seen, so the dream may turn any action into success, and "
            "the reward model take any end for one; add rollouts of the policy"
        )
    elif tried and all(record.succeeded for record in tried):
        yield "WARNING: all rollouts succeed: how this policy fails was never seen, so practice has little to avoid"
    elif tried and not any(record.succeeded for record in tried):
        yield "WARNING: no rollout succeeds: practice may find nothing to tell apart; begin with a better policy"
