"""Demonstrations of the user's own, `demonstrations.data`, in place of a scripted expert's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wmpo.algorithm import demonstrations, imitate
from wmpo.cli import main
from wmpo.config import Recipe
from wmpo.data.initial_states import initial_states
from wmpo.data.store import EpisodeStore
from wmpo.envs.unreachable import Unreachable
from wmpo.errors import UserError
from wmpo.opening import open_run
from wmpo.recipes.smoke import SMOKE
from wmpo.training.checkpoint import digest_of

FEW = replace(
    SMOKE,
    env=replace(SMOKE.env, workers=0),
    demonstrations=replace(SMOKE.demonstrations, episodes=3),
    policy=replace(SMOKE.policy, fit=replace(SMOKE.policy.fit, steps=2)),
)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The store of a run with scripted demonstrations, and the digest of the policy that it imitates."""
    folder = tmp_path_factory.mktemp("scripted")
    return folder / "episodes", imitated(FEW, folder)


def imitated(recipe: Recipe, folder: Path) -> str:
    with open_run(recipe, folder, quiet=True) as run:
        demonstrations(run)
        return digest_of(imitate(run))


def own(data: Path) -> Recipe:
    return replace(FEW, demonstrations=replace(FEW.demonstrations, data=str(data)))


def copied(data: Path, to: Path, **changes: object) -> Path:
    """The same episodes, each with other values of some fields."""
    given = EpisodeStore.open(data)
    store = EpisodeStore.create(to, given.spec)
    store.append([replace(given.episode(i), **changes) for i in range(len(given))])  # type: ignore[arg-type]
    return to


def test_the_same_demonstrations_make_the_same_policy(scripted: tuple[Path, str], tmp_path: Path) -> None:
    data, policy = scripted
    assert imitated(own(data), tmp_path / "run") == policy
    copy = EpisodeStore.open(tmp_path / "run" / "episodes")
    assert [record.initial_state for record in copy.records()] == [
        record.initial_state for record in EpisodeStore.open(data).records()
    ]


def test_a_stop_in_the_middle_costs_nothing(
    scripted: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, policy = scripted
    append, kept = EpisodeStore.append, 0

    def stops(store: EpisodeStore, episodes: object) -> None:
        nonlocal kept
        kept += 1
        if kept == 3:
            raise KeyboardInterrupt
        append(store, episodes)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeStore, "append", stops)
    with pytest.raises(KeyboardInterrupt):
        imitated(own(data), tmp_path / "run")
    monkeypatch.undo()
    assert len(EpisodeStore.open(tmp_path / "run" / "episodes")) == 2
    assert imitated(own(data), tmp_path / "run") == policy


def test_once_they_are_in_the_run_their_folder_is_needed_no_more(
    scripted: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where some are missing it is, and where it holds others, that is told."""
    data, moved = copied(scripted[0], tmp_path / "data"), tmp_path / "moved"
    recipe, append = own(data), EpisodeStore.append

    def stops(store: EpisodeStore, episodes: object) -> None:
        if len(store):
            raise KeyboardInterrupt
        append(store, episodes)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeStore, "append", stops)
    with pytest.raises(KeyboardInterrupt):
        imitated(recipe, tmp_path / "run")
    monkeypatch.undo()
    data.rename(moved)
    with pytest.raises(UserError, match="data"):
        imitated(recipe, tmp_path / "run")
    moved.rename(data)
    policy = imitated(recipe, tmp_path / "run")
    data.rename(moved)
    assert imitated(recipe, tmp_path / "run") == policy
    others = EpisodeStore.open(copied(moved, data))
    others.append([others.episode(0)])
    with pytest.raises(UserError, match="has begun demonstrations with data = "):
        imitated(recipe, tmp_path / "run")
    (tmp_path / "run" / "result.json").touch()  # a report is made of what the run has
    assert imitated(recipe, tmp_path / "run") == policy


def test_they_take_the_place_of_an_expert(scripted: tuple[Path, str], tmp_path: Path) -> None:
    """Of initial states that nobody knows, too."""
    unknown = copied(scripted[0], tmp_path / "unknown", initial_state=-1)
    with open_run(own(unknown), tmp_path / "run", quiet=True) as run:
        run.env = Unreachable(run.env.spec)
        demonstrations(run)
        assert {record.initial_state for record in run.store.records()} == {-1} and len(run.store) >= 3


def test_what_is_refused(scripted: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = scripted[0]
    EpisodeStore.create(tmp_path / "empty", EpisodeStore.open(data).spec)
    cases = {
        tmp_path / "nowhere": "nowhere",
        tmp_path / "empty": "holds no successful demonstration",
        copied(data, tmp_path / "rollouts", source="round-1"): "holds no successful demonstration",
    }
    for folder, words in cases.items():
        out = str(tmp_path / f"run-{folder.name}")
        assert main(["run", "smoke", "--env.workers", "0", "--demonstrations.data", str(folder), "--out", out]) == 2
        assert words in capsys.readouterr().err
    small = replace(own(data), env=replace(FEW.env, image_size=16))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"The environment shows the cameras: .*16x16; but .*32x32: choose the options"):
        imitated(small, tmp_path / "run")
    with pytest.raises(UserError, match="leaves no part of the policy to practise"):
        imitated(replace(own(data), grpo=replace(FEW.grpo, freeze=("",))), tmp_path / "run")
    assert imitated(own(data), tmp_path / "run") == scripted[1]  # a mistake has left nothing that binds


def test_nothing_begins_where_evaluation_does(scripted: tuple[Path, str], tmp_path: Path) -> None:
    given = EpisodeStore.open(scripted[0])
    store = EpisodeStore.create(tmp_path / "held-out", given.spec)
    states = [*initial_states("evaluate", 0, 1), *initial_states("demonstrate", 0, 1)]
    store.append([replace(given.episode(i), initial_state=state) for i, state in enumerate(states)])
    other = EpisodeStore.create(tmp_path / "other", given.spec)  # numbers that are of no split
    other.append([replace(given.episode(i), initial_state=2**32 - 1 - i) for i in range(2)])
    imitated(own(other.root), tmp_path / "fine")
    with pytest.raises(UserError, match="which is kept for split 'evaluate': bring demonstrations from other ones"):
        imitated(own(store.root), tmp_path / "run")
