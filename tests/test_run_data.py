"""`wmpo run data`: the loop on recorded episodes alone, from folders to a report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wmpo.algorithm import model_the_world
from wmpo.cli import main
from wmpo.cli.run_data import RunDataCommand
from wmpo.config import PolicyConfig
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import Normalizer
from wmpo.data.records import UNLABELLED
from wmpo.data.store import EpisodeStore
from wmpo.envs.unreachable import Unreachable
from wmpo.errors import UserError
from wmpo.families import save_model
from wmpo.importing.success import by_rule, relabel
from wmpo.io.files import read_json, write_json
from wmpo.opening import load_recipe, open_run
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.recordings import Part, began_alone, check_split, given_policy, open_parts, split, take_in
from wmpo.report.recorded import Measure, beyond
from wmpo.report.results import Imagined, Recorded, RunResult
from wmpo.report.words import warnings
from wmpo.run import Run
from wmpo.training.checkpoint import digest_of
from wmpo.training.log import read_metrics
from wmpo.types import EnvSpec, Episode

SPEC = EnvSpec(cameras={"front": (16, 16)}, state_dim=1, action_dim=2, horizon=12, fps=5)
TINY = [
    "--device", "cpu", "--policy.width", "8", "--policy.hidden", "16", "--policy.fit.steps", "10",
    "--policy.fit.batch-size", "8", "--world-model.width", "8", "--world-model.depth", "1", "--world-model.fit.steps",
    "8", "--world-model.fit.batch-size", "8", "--world-model.align.steps", "4", "--world-model.align.batch-size", "8",
    "--world-model.kinematics-fit.steps", "8", "--world-model.kinematics-fit.batch-size", "8", "--reward.width", "8",
    "--reward.fit.steps", "12", "--reward.fit.batch-size", "16", "--reward.fit.lr", "3e-3", "--grpo.iterations", "2",
    "--grpo.groups", "2", "--grpo.group-size", "4", "--grpo.keyframes", "4", "--grpo.min-group-success", "0.01",
    "--grpo.max-group-success", "0.99",
]  # fmt: skip
HALF = ("--reward.threshold", "half")  # so that practice has something to tell apart, whatever so little has learned


def slide(number: int, succeeds: bool, spec: EnvSpec = SPEC, length: int = 8) -> Episode:
    """A bar slides to the right; where it arrives, it lights up, and the episode succeeds."""
    rng = np.random.default_rng(number)
    speed = (1.0 if succeeds else 0.4) / length + rng.uniform(0, 0.01)
    place = np.arange(length + 1, dtype=np.float32)[:, None] * speed
    success = np.arange(length + 1) >= (length - 1 if succeeds else length + 1)
    images = {}
    for name, (height, width) in spec.cameras.items():
        images[name] = rng.integers(0, 30, (length + 1, height, width, 3), dtype=np.uint8)
        for frame, column in enumerate((place[:, 0] * (width - 2)).astype(int)):
            images[name][frame, :, min(column, width - 2) : column + 2] = 255 if success[frame] else 120
    actions = np.concatenate([np.full((length, 1), speed), rng.normal(0, 0.01, (length, spec.action_dim - 1))], 1)
    return Episode(images, np.repeat(place, spec.state_dim, 1), actions.astype(np.float32), success, "slide", -1,
                   "slide", "expert")  # fmt: skip


def store(root: Path, hits: int, misses: int = 0, source: str = "expert", seed: int = 0, **of: object) -> Path:
    spec = replace(SPEC, **{name: of.pop(name) for name in list(of) if hasattr(SPEC, name)})  # type: ignore[arg-type]
    made = [slide(seed + i, i < hits, spec, **of) for i in range(hits + misses)]  # type: ignore[arg-type]
    EpisodeStore.create(root, spec).append([replace(episode, source=source) for episode in made])
    return root


def run(*args: object) -> int:
    return main(["run", "data", *map(str, args), *TINY])


def hold(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run came about."""
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("policies/*/model.safetensors")}
    return weights | {"recorded": json.dumps(read_json(folder / "result.json")["recorded"]).encode()}


def test_a_round_is_added_and_ends_as_if_both_had_been_given_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = store(tmp_path / "demos", 8)
    tries, more = (store(tmp_path / name, 6, 6, "act", seed) for name, seed in (("tries", 50), ("more", 90)))
    out = tmp_path / "run"
    assert run("--demos", demos, "--rollouts", tries, "--out", out, *HALF) == 0
    told = capsys.readouterr().out
    assert "Nothing here was tried for real" in told and "What to do next" in told
    result = RunResult.load(out / "result.json")
    recorded = result.recorded
    assert recorded is not None and not result.policies and not result.gaps
    assert recorded.learned == {"expert": [6, 6], "round-1": [8, 4]}
    assert recorded.held_out == {"expert": [2, 2], "round-1": [4, 2]}
    assert result.agreement is not None and (result.agreement.episodes, result.agreement.successes) == (4, 2)
    assert [len(one.success) for one in recorded.imagined.values()] == [6, 6]
    assert recorded.imagined["base"].kl == pytest.approx(0, abs=1e-5) and recorded.imagined["wmpo-1"].kl > 0
    assert "imagined success, not real" in (out / "report.html").read_text()

    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", out, *HALF) == 0
    both = tmp_path / "both"
    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", both, *HALF) == 0
    assert hold(out) == hold(both) and "policies/wmpo-2/model.safetensors" in hold(out)
    assert "practice-2" in {name.split("/")[0] for name in read_metrics(out)}

    before = hold(out)
    capsys.readouterr()
    assert main(["report", str(out)]) == 0 and hold(out) == before
    assert run("--demos", demos, "--rollouts", tries, "--rollouts", more, "--out", out, *HALF) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())  # wherever the line breaks
    assert run("--demos", demos, "--rollouts", tries, "--out", out, *HALF) == 2  # a round less
    assert "rounds = 2, not 1" in capsys.readouterr().err


def test_demonstrations_alone_a_kill_and_then_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also killed in between: what was taken in, and learned, is not done again."""
    demos, out = store(tmp_path / "demos", 8), tmp_path / "run"
    assert run("--demos", demos, "--out", out) == 0
    told = capsys.readouterr().out
    assert "WARNING: demonstrations alone" in told and "failure was never seen, and imagined" in " ".join(told.split())
    (out / "dream.png").unlink()
    (out / "result.json").unlink()
    (out / "practice-1" / "model.safetensors").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("episodes/data/*/*")}
    assert run("--demos", demos, "--out", out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("episodes/data/*/*")} == before

    tries = store(tmp_path / "tries", 4, 4, "act", 50)  # of the policy that has practised, so for a second round
    assert began_alone(out) and not began_alone(tmp_path / "nowhere")
    with open_run(replace(load_recipe(out), rounds=2), out, quiet=True, env=Unreachable(SPEC)) as opened:
        take_in(opened, open_parts([demos], [[], [tries]], out), 0.2)
        assert [*dict.fromkeys(record.source for record in opened.store.records())] == ["expert", "round-2"]
        model_the_world(opened, 2)
    trained = {name.split("/")[0] for name in read_metrics(out)}
    assert "world_model_kinematics_align-2" in trained and "world_model_kinematics_align-1" not in trained
    assert not (out / "dream.png").exists() and load_recipe(out).rounds == 2
    capsys.readouterr()
    assert main(["report", str(out)]) == 2 and "is not finished" in capsys.readouterr().err


def test_a_given_policy_is_begun_with_as_it_is(tmp_path: Path) -> None:
    demos = store(tmp_path / "demos", 8)
    policy = MiniVLA.build(MiniVLASettings(width=8, hidden=16), SPEC)
    policy.set_normalizer(Normalizer.from_cache(FrameCache(EpisodeStore(demos)), range(8)))
    save_model("policy", "minivla", policy, tmp_path / "policy", SPEC.fps)
    recipe = RunDataCommand((demos,), policy=PolicyConfig(pretrained=str(tmp_path / "policy")), device="cpu").recipe(1)
    parts = open_parts([demos], [[]], tmp_path / "run")
    with open_run(recipe, tmp_path / "run", quiet=True, env=Unreachable(SPEC)) as run:
        take_in(run, parts, 0.2)
        assert digest_of(given_policy(run)) == digest_of(policy)


def opened(folder: Path, spec: EnvSpec = SPEC) -> AbstractContextManager[Run]:
    return open_run(RunDataCommand(()).recipe(1), folder, quiet=True, env=Unreachable(spec))


def parts_of(*stores: tuple[str, Path]) -> list[Part]:
    return [Part(source, [EpisodeStore(path)]) for source, path in stores]


def test_the_split_is_by_initial_state_and_does_not_change_with_later_rounds(tmp_path: Path) -> None:
    """Numbers of initial states are those that both parts share, or unknown; each outcome gives its share."""
    spec, states = SPEC, {"expert": [7, 8, 9, 10, -1, -1, -1, -1], "round-1": [7, 7, 11, 11, 12, 12, 13, 13, 14, 14]}
    for source, numbers in states.items():
        EpisodeStore.create(tmp_path / source, spec).append([
            replace(slide(i, source == "expert" or i % 2 == 0), initial_state=number)
            for i, number in enumerate(numbers)
        ])  # fmt: skip
    parts = parts_of(*((source, tmp_path / source) for source in states))
    with opened(tmp_path / "run", spec) as run:
        both, alone = list(split(run, parts, 0.25)), list(split(run, parts[:1], 0.25))
        other = list(split(replace(run, recipe=replace(run.recipe, seed=1)), parts, 0.25))
        assert alone == both[:1] and other != both
        assert [sum(apart) for apart in both] == [2, 4]
        held = {source: {number for number, apart in zip(states[source], aparts, strict=True) if apart}
                for source, aparts in zip(states, both, strict=True)}  # fmt: skip
        kept = {number for source, aparts in zip(states, both, strict=True)
                for number, apart in zip(states[source], aparts, strict=True) if not apart and number >= 0}  # fmt: skip
        assert not kept & set.union(*held.values())
        take_in(run, parts, 0.25)
        assert [len(run.store), len(run.evaluation)] == [12, 6]
        assert {record.source for record in run.store.records()} == {"expert", "round-1"}


def unlabelled(root: Path, source: str) -> Path:
    made = [replace(slide(70 + i, False), source=source, meta=UNLABELLED) for i in range(4)]
    EpisodeStore.create(root, SPEC).append(made)
    return root


def mixed(root: Path) -> Path:
    made = [replace(slide(80 + i, True), source="expert" if i else "round-1") for i in range(4)]
    EpisodeStore.create(root, SPEC).append(made)
    return root


def lerobot(root: Path) -> Path:
    store(root, 4, seed=60)
    info = read_json(root / "meta" / "info.json")
    del info["wmpo"], info["features"]["label.action"]
    write_json(root / "meta" / "info.json", info)
    return root


def twin(root: Path) -> Path:
    shutil.copytree(root.parent / "tries", root)
    return root


@pytest.mark.parametrize(
    ("made", "args", "words"),
    [
        (None, "--demos", "no demonstrations: name one"),
        (None, "--rollouts tries", "--demos"),
        (None, "--demos nowhere", "There is no episode store in nowhere"),
        (lerobot, "--demos made", "`wmpo data import made OUT`"),
        (lambda root: EpisodeStore.create(root, SPEC).root, "--demos demos --rollouts made", "is empty"),
        (mixed, "--demos made", "holds demonstrations and rollouts (round-1) in one"),
        (lambda root: unlabelled(root, "act"), "--demos demos --rollouts made", "`wmpo data label made`"),
        (lambda root: unlabelled(root, "expert"), "--demos made", "by `wmpo data label` on made"),
        (lambda root: store(root, 0, 5), "--demos made", "none of the 5 demonstrations succeeds"),
        (lambda root: store(root, 3), "--demos made", "3 demonstrations are too few"),
        (None, "--demos demos demos", "holds the episodes of demos again"),
        (twin, "--demos demos --rollouts tries --rollouts made", "holds the episodes of tries again"),
        (lambda root: store(root, 3, 3, "act", 30, fps=10), "--demos demos --rollouts made", "frames a second: 5; but"),
        (lambda root: store(root, 3, 3, "act", 30, action_dim=3), "--demos demos --rollouts made", "action dimensions"),
        (lambda root: store(root, 3, 3, "act", 30, cameras={"top": (16, 16)}), "--demos demos --rollouts made",
         "shows the cameras: front"),
        (lambda root: store(root, 3, 3, "act", 30, length=3), "--demos demos --rollouts made",
         "made: none of the 4 episodes to learn from has the 4 actions of one chunk"),
        (None, "--demos demos --rollouts tries --rollouts", "names no folder"),
        (None, "--demos demos --hold-out 0", "--hold-out is 0.0; it must be from 0.01 to 0.5"),
        (None, "--demos demos --grpo.n-initial-states 3", "n_initial_states does nothing here"),
        (None, "--demos demos --reward.threshold rate", "needs rollouts of the first round"),
        (None, "--demos demos --policy.chunk 50", "policy.chunk is 50"),
        (None, "--demos demos --policy.pretrained nowhere", "nowhere holds no policy"),
        (None, "--demos demos --rollouts tries --out demos", "demos is an episode store"),
        (None, "--demos demos --rollouts tries --out tries/run", "tries/run lies in tries, which is only read"),
    ],
)  # fmt: skip
def test_what_is_refused(
    made: Callable[[Path], Path] | None, args: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    store(Path("demos"), 5)
    store(Path("tries"), 3, 3, "act", 20)
    if made is not None:
        made(Path("made"))
    assert main(["run", "data", *args.split(), "--device", "cpu", *([] if "--out" in args else ["--out", "out"])]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not [*Path("out").glob("episodes/data/*/*")]  # nothing was taken in, let alone learned
    assert len(EpisodeStore.open("demos")) == 5 and not Path("tries/run").exists()


@pytest.mark.parametrize(
    ("hits", "misses", "words"), [(6, 0, "all rollouts succeed"), (0, 6, "no rollout succeeds"), (3, 3, "")]
)
def test_one_kind_of_outcome_is_told_before_training(hits: int, misses: int, words: str, tmp_path: Path) -> None:
    parts = parts_of(("expert", store(tmp_path / "demos", 5)), ("round-1", store(tmp_path / "t", hits, misses, "a", 9)))
    with opened(tmp_path / "run") as run:
        apart = dict(zip(("expert", "round-1"), split(run, parts, 0.2), strict=True))
        lines = list(check_split(run, parts, apart))
    assert [line for line in lines if "WARNING" in line and words in line] == lines[2:] and len(lines) == 2 + bool(
        words
    )


def test_a_folder_that_has_changed_is_no_longer_the_same(tmp_path: Path) -> None:
    parts = parts_of(("expert", store(tmp_path / "demos", 5)))
    with opened(tmp_path / "run") as run:
        take_in(run, parts, 0.2)
        take_in(run, parts, 0.2)
        assert len(run.store) + len(run.evaluation) == 5
        relabel(parts[0].stores[0], by_rule("none", 5))
        with pytest.raises(UserError, match="has begun expert with 1 demos = "):
            take_in(run, parts, 0.2)


def test_what_is_beyond_the_data() -> None:
    """More dreams beyond a limit than chance explains are told; a few are not."""
    recorded = Recorded({"expert": [9, 9], "round-1": [9, 4]}, {}, [0] * 19 + [1])
    told = {}
    for many in (2, 12):
        imagined = Imagined([1] * 20, [1] * many + [0] * (20 - many), 0.3)
        told[many] = warnings(replace(recorded, imagined={"base": imagined, "wmpo-1": imagined}))
    assert told[2] == [] and "12 of its 20 dreams lie" in told[12][0]
    assert beyond(np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 9.0]]), np.array([2.0, 8.0])) == [0, 1, 1]


def test_dreams_of_what_was_recorded_are_near_and_others_far(tmp_path: Path) -> None:
    """By state and actions; and by coarse pictures where there is no state."""
    for dimensions in (1, 0):
        spec = replace(SPEC, state_dim=dimensions)
        root = store(tmp_path / f"{dimensions}", 6, state_dim=dimensions)
        with open_run(
            RunDataCommand(()).recipe(1), tmp_path / f"run{dimensions}", quiet=True, env=Unreachable(spec)
        ) as run:
            take_in(run, parts_of(("expert", root)), 0.2)
            world = SimpleNamespace(chunk=4)
            measure = Measure(run, world, None)  # type: ignore[arg-type]
            near = next(iter(run.store))
            odd = replace(near, actions=near.actions + 1)
            elsewhere = replace(near, state=near.state + 5, images={"front": 255 - near.images["front"]})
            found = measure.far([near, odd, elsewhere])
        assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 1 and found[2] > 1
