"""A robot, simulated in real time behind the cable that a real one would be on: its rate, its limits, what stops it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.coin import Hand
from tests.robot_program import settings
from wmpo.cli import main
from wmpo.config import Recipe, RewardConfig
from wmpo.contracts import check_env
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.robot.lerobot_bridge import LeRobotArm
from wmpo.envs.robot.settings import RobotSettings
from wmpo.errors import UserError
from wmpo.evaluate import evaluate_blind, shuffled
from wmpo.families import allow, recipe_from_plain
from wmpo.io.plain import to_plain
from wmpo.rewards import build_reward_model
from wmpo.rollout import rollout
from wmpo.types import EnvSpec

ROOT = Path(__file__).resolve().parents[1]
PERIOD = 1 / 20  # s, of ShakyRobot
KILLS = int(os.environ.get("WMPO_TEST_KILLS", "2"))


def events(log: Path, *kinds: str) -> list[list[Any]]:
    """[time, event, values ...] of a robot's log."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in found if event[1] in (kinds or event)]


def play(log: Path, *options: str, numbers: tuple[int, ...] = (0,), **more: object) -> tuple[Any, list[Any]]:
    """The environment, closed, and the episodes played in it."""
    with closing(make_env(settings(log, *options, **more))) as env:
        played = [
            rollout(env, Hand(), [number], temperature=1.0, generator=torch.Generator().manual_seed(number),
                    record="hand", horizon=12).episodes[0]
            for number in numbers
        ]  # fmt: skip
    return env, played


def test_rate_is_held_and_every_command_is_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env, played = play(tmp_path / "log", "speed=4", numbers=(0, 1))
    periods = np.array(env.rate.periods)
    assert len(periods) == 2 * 11
    assert np.median(periods) == pytest.approx(PERIOD, rel=0.1)
    assert "22 periods" in capsys.readouterr().err
    sent = np.array([event[2:] for event in events(tmp_path / "log", "act")], np.float32)
    assert np.array_equal(sent, np.concatenate([episode.actions for episode in played]))  # what was done is recorded
    for episode in played:
        steps = np.diff(episode.actions, axis=0, prepend=np.zeros((1, 4), np.float32))
        assert np.abs(steps).max() == pytest.approx(4 * PERIOD, abs=1e-6)
        assert int(episode.meta["limited_actions"]) >= 11
    assert np.abs(sent).max() <= 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [("unplug=4", "the cable is out"), ("hang=4", "an observation was more than 0.3 s late"), ("drop=4", "s old")],
)
def test_a_fault_stops_the_robot(tmp_path: Path, fault: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=said):
        play(tmp_path / "log", fault, watchdog=0.3)
    *_, stop = events(tmp_path / "log", "stop")
    assert not [event for event in events(tmp_path / "log", "act") if event[0] > stop[0]]
    if fault == "hang=4":
        hang = next(event for event in events(tmp_path / "log", "hang"))
        first = next(event for event in events(tmp_path / "log", "stop") if event[0] > hang[0])
        assert first[0] - hang[0] < 0.3 + 2 * PERIOD
    assert time.monotonic() - began < 60


WRONG = {
    "fact=fps value=0": "its fps is 0, not a whole number",
    "fact=fps value=29.97": "its fps is 29.97, not a whole number",
    'fact=fps value="30"': "its fps is '30', not a whole number",
    "fact=horizon value=inf": "its horizon is inf, not a whole number",
    "fact=action_dim value=1000000000": "its action_dim is 1000000000, not a whole number",
    "fact=cameras value=[1,2]": "its cameras are [1, 2], not {name: (height, width)}",
    'fact=cameras value={"front":[16.5,16]}': "its height of camera front is 16.5, not a whole number",
    "fact=action_low value=[-1,-1]": "action_low is [-1, -1], not 4 finite numbers",
    "fact=max_speed value=nan": "max_speed is nan, not 4 finite numbers",
    "fact=home value=nan": "home is nan, not 4 finite numbers",
    "fact=home value=[1,2]": "home is [1, 2], not 4 finite numbers",
    "answer=position value=[0,0]": "position is [0, 0], not 4 finite numbers",
    "answer=observe value=null": "observe gives None, not a dictionary",
    "answer=observe value=raise": r"RuntimeError: two lines (shaky_robot.py, line ",
    "answer=camera": "observe gives no picture of camera front",
    "answer=state value=[1,null,3,4]": "state is [1, None, 3, 4], not ",
    "answer=time value=nan": "an observation was nan s old",
    "answer=time value=now": "s old by time.monotonic()",
    "answer=succeeded value=null": "succeeded gives None, not True or False",
    "answer=succeeded value=nan": "succeeded gives nan, not True or False",
    "answer=succeeded value=hang": "the verdict was more than 0.5 s late",
}


@pytest.mark.parametrize("options", WRONG)
def test_a_robot_that_answers_wrongly_is_stopped_in_one_sentence(
    options: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    allow("tests.shaky_robot:WrongRobot")
    with pytest.raises(UserError, match=re.escape(WRONG[options])):
        play(tmp_path / "log", *options.split(), robot="tests.shaky_robot:WrongRobot", watchdog=0.5)
    assert (tmp_path / "log").exists() == ("answer=" in options)  # what it says of itself is read before it moves
    assert "Traceback" not in capfd.readouterr().err


def test_a_command_under_way_when_it_is_stopped_is_not_the_last_word(tmp_path: Path) -> None:
    """Nor one that fails after it has been sent, as where two threads meet at one port."""
    allow("tests.shaky_robot:WrongRobot")
    with pytest.raises(UserError, match=r"a command was more than 0\.3 s late"):
        play(tmp_path / "log", "answer=act", robot="tests.shaky_robot:WrongRobot", watchdog=0.3)
    assert [event[1] for event in events(tmp_path / "log", "act", "stop")[-3:]] == ["stop", "act", "stop"]


def test_a_stop_that_hangs_ends_the_process_all_the_same(tmp_path: Path) -> None:
    allow("tests.shaky_robot:WrongRobot")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"ended with status 1, so that nothing could stop it"):
        play(
            tmp_path / "log",
            "answer=stop",
            "value=hang",
            "unplug=5",
            robot="tests.shaky_robot:WrongRobot",
            timeout=60.0,
        )
    assert time.monotonic() - began < 30


def test_frames_that_a_driver_writes_over_each_other_are_kept_apart(tmp_path: Path) -> None:
    allow("tests.shaky_robot:WrongRobot")
    options = ("answer=same memory", "fact=action_low", "value=float32")
    _, [episode] = play(tmp_path / "log", *options, robot="tests.shaky_robot:WrongRobot")
    frames = list(range(1, episode.length + 2))
    assert episode.images["front"][:, 0, 0, 0].tolist() == frames == episode.state[:, 0].tolist()


def test_late_observations_are_counted(tmp_path: Path) -> None:
    env, [episode] = play(tmp_path / "log", "late=4")
    assert int(episode.meta["late_observations"]) == env.rate.counts["late_observations"] == 10  # of 13, from the 4th


@contextmanager
def program(folder: Path, fault: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{ROOT / 'tests'}"}
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.robot_program", str(folder), fault], cwd=ROOT, env=environ, stdin=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def stopped_after(log: Path, moment: float) -> bool:
    return any(event[0] > moment for event in events(log, "stop"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_stops_within_a_period_and_loses_no_episode(tmp_path: Path, number: int) -> None:
    log, finished, delays = tmp_path / "log", 0, list[float]()
    rng = np.random.default_rng(0)
    for _ in range(KILLS):
        with program(tmp_path, "") as running:
            assert running.stdout is not None
            finished = int(running.stdout.readline())
            begun = time.monotonic()
            until(lambda begun=begun: any(event[0] > begun for event in events(log, "act")))  # type: ignore[misc]
            time.sleep(rng.uniform(0, 8 * PERIOD))
            moment = time.monotonic()
            running.send_signal(number)
            until(lambda moment=moment: stopped_after(log, moment), 10)  # type: ignore[misc]
            *_, told = running.stdout.read().split() or [str(finished)]
            finished = int(told)
        stop = next(event[0] for event in events(log, "stop") if event[0] > moment)
        delays.append(stop - moment)
        assert not [event for event in events(log, "act") if event[0] > stop + PERIOD]
        assert len(EpisodeStore.open(tmp_path / "store")) >= finished + 1
    for episode in EpisodeStore.open(tmp_path / "store"):
        assert episode.length == 8
    print(f"stopped after {1000 * np.mean(delays):.0f} ms in the mean, {1000 * max(delays):.0f} at worst")
    cleared = 0.5 if number == signal.SIGKILL else 0  # s until the system has cleared a killed process away
    assert max(delays) < PERIOD + cleared


@pytest.mark.parametrize("fault", ["exception", "stuck"])
def test_a_program_that_fails_or_hangs_stops_the_robot(tmp_path: Path, fault: str) -> None:
    with program(tmp_path, fault) as running:
        assert running.stdout is not None
        running.stdout.readline()
        until(lambda: bool(events(tmp_path / "log", "stop", "act")[-1][1] == "stop"), 30)
        count = len(events(tmp_path / "log", "act"))
        time.sleep(4 * PERIOD)
        assert len(events(tmp_path / "log", "act")) == count


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGQUIT])
def test_keys_of_the_terminal_that_suspend_or_quit_stop_the_robot(tmp_path: Path, number: int) -> None:
    """They reach the driver, too, which would leave the robot at its last command."""
    with program(tmp_path, "") as running:
        assert running.stdout is not None
        running.stdout.readline()
        until(lambda: bool(events(tmp_path / "log", "stop", "act")[-1][1] == "act"))
        moment = time.monotonic()
        os.killpg(running.pid, number)
        until(lambda: stopped_after(tmp_path / "log", moment), 10)
        time.sleep(4 * PERIOD)
        assert events(tmp_path / "log", "stop", "act")[-1][1] == "stop"


def test_a_program_that_is_halted_while_it_is_sent_pictures_stops_the_robot(tmp_path: Path) -> None:
    """They are larger than what the pipe holds, so that the driver waits for it."""
    with program(tmp_path, "large") as running:
        until(lambda: (tmp_path / "log").exists() and bool(events(tmp_path / "log", "act")))
        os.kill(running.pid, signal.SIGSTOP)
        moment = time.monotonic()
        until(lambda: events(tmp_path / "log", "stop", "act")[-1][1] == "stop", 10)
        assert time.monotonic() - moment < 4


def test_a_routine_of_the_robots_own_is_stopped_again_and_again(tmp_path: Path) -> None:
    """It may command the robot as long as the process lives, which is not long; and it doesn't have the last word."""
    log = tmp_path / "log"
    with program(tmp_path, "routine") as running:
        until(lambda: log.exists() and len(events(log, "act")) > 5)
        moment = time.monotonic()
        running.send_signal(signal.SIGINT)
        until(lambda: stopped_after(log, moment), 10)
        until(lambda: events(log)[-1][0] < time.monotonic() - 1, 10)
    after = [event for event in events(log, "act", "stop") if event[0] > moment]
    stops = [event[0] for event in after if event[1] == "stop"]
    assert np.diff(stops).max() < 4 * PERIOD and stops[-1] - moment < 5
    assert len([event for event in after if event[0] > stops[-1]]) <= 1


def test_a_person_resets_judges_and_stops_with_keys(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with program(tmp_path, "person", theirs) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "initial state 0" in line:
                break
        assert not events(tmp_path / "log", "act")  # it waits for the person
        os.write(ours, b"\n")
        until(lambda: bool(events(tmp_path / "log", "act")))
        os.write(ours, b"s")
        for line in running.stderr:
            if "initial state 1" in line:
                break
        [record] = EpisodeStore.open(tmp_path / "store").records()
        assert record.succeeded
        os.write(ours, b"\n")
        before = len(events(tmp_path / "log", "act"))
        until(lambda: len(events(tmp_path / "log", "act")) > before)
        moment = time.monotonic()
        os.write(ours, b" ")
        until(lambda: stopped_after(tmp_path / "log", moment), 10)
        stop = next(event[0] for event in events(tmp_path / "log", "stop") if event[0] > moment)
        assert stop - moment < PERIOD
        assert "stop key" in running.stderr.read()
    os.close(ours)
    os.close(theirs)


def test_success_by_a_reward_model(tmp_path: Path) -> None:
    with closing(make_env(settings(tmp_path / "log"))) as env:
        model = build_reward_model(RewardConfig(), env.spec)
    for threshold, steps in ((-1e9, 4), (1e9, 12)):
        model.with_threshold(threshold).save_pretrained(tmp_path / "model")
        _, [episode] = play(tmp_path / "log", success="reward_model", reward_model=str(tmp_path / "model"))
        assert (episode.length, episode.succeeded) == (steps, steps == 4)


def test_policies_take_turns_unseen_and_go_on_after_a_stop(tmp_path: Path) -> None:
    order = shuffled(["a", "b"], range(40), seed=0)
    assert sorted(order) == sorted((name, number) for name in "ab" for number in range(40))
    assert 8 < sum(name == "a" for name, _ in order[::2]) < 32
    hands = {"a": Hand(), "b": Hand()}
    with closing(make_env(settings(tmp_path / "log"))) as env:
        store = EpisodeStore.create(tmp_path / "store", env.spec)
        done: list[int] = []

        def stop() -> None:
            done.append(len(store))
            if len(done) == 3:
                raise KeyboardInterrupt

        common: dict[str, Any] = {"temperature": 1.0, "seed": 0, "time_factor": 0.25}
        with pytest.raises(KeyboardInterrupt):
            evaluate_blind(env, hands, [0, 1], store, on_episode=stop, **common)  # type: ignore[arg-type]
        assert len(store) == 3
        found = evaluate_blind(env, hands, [0, 1], store, **common)  # type: ignore[arg-type]
    assert [(record.source, record.initial_state) for record in store.records()] == shuffled(["a", "b"], [0, 1], 0)
    assert {name: result.initial_states for name, result in found.items()} == {"a": [0, 1], "b": [0, 1]}


WAVE = ("action_low=-90", "action_high=[90, 60]", "max_speed=[100, 40]", "image_size=[12, 16]", "home=[40, -20]")


def test_lerobot_bridge_in_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "tests")
    allow("arm:Wave")
    config = RobotSettings(
        family="robot", robot="arm:Wave", options=WAVE, reset="routine", success="robot", python=sys.executable
    )
    with pytest.raises(UserError, match="can't say whether it has succeeded"):
        make_env(config)
    spec = EnvSpec({"top": (12, 16)}, state_dim=2, action_dim=2, horizon=8, fps=20)
    build_reward_model(RewardConfig(), spec).with_threshold(1e9).save_pretrained(tmp_path / "model")
    with closing(make_env(replace(config, success="reward_model", reward_model=str(tmp_path / "model")))) as env:
        assert env.spec == replace(spec, max_batch=1)
        seen = env.reset([0])
        assert seen.state.tolist() == [[40, -20]]  # it has gone home
        assert seen.instruction == ("wave",)
        assert (seen.images["top"] == 40).all()
        out = env.step([0], torch.tensor([[[90.0, 90.0], [90.0, 90.0]]]))
        assert out.state.tolist() == [[[45, -18], [50, -16]]]  # 100 and 40 degrees a second, 20 times a second


def test_the_class_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_arm.py").write_text((ROOT / "docs/robot.md").read_text().split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    allow("my_arm:Arm")
    build_reward_model(RewardConfig(), EnvSpec({"front": (96, 128)}, 6, 6, horizon=300, fps=30)).with_threshold(
        1e9
    ).save_pretrained(tmp_path / "model")
    config = RobotSettings(family="robot", robot="my_arm:Arm", reset="routine", success="reward_model")
    with closing(make_env(replace(config, reward_model="model", options=("port=there",)))) as env:
        env.reset([0])
        out = env.step([0], torch.full((1, 3, 6), 100.0))
        assert out.state[0, :, 0].tolist() == [2, 4, 6]  # 60 a second, 30 times a second


def test_real_lerobot_features() -> None:
    pytest.importorskip("lerobot.robots")
    pytest.importorskip("scservo_sdk")  # of its extra feetech, without which it makes no SO-101
    arm = LeRobotArm({"type": "so101_follower", "port": "/dev/null", "id": "none"}, "wave", -1, 1, 1)
    assert arm.motors == arm.numbers and len(arm.motors) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": ("speed",)}, "each must be name=value"),
        ({"options": ("nonsense=1",)}, "can't be used: env.options don't fit it: got an unexpected keyword"),
        ({"options": ("speed=-1",)}, "max_speed above 0"),
        ({"options": ('speed="fast"',)}, "fast"),
        ({"robot": "nobody"}, "there is no robot 'nobody'"),
        ({"robot": "some.where:Hand"}, "--allow some.where:Hand"),
        ({"python": "no/such/python"}, "no program here"),
        ({"reset": "person"}, "no terminal"),
        ({"success": "reward_model"}, "needs both"),
        ({"reward_model": "there"}, "needs both"),
        ({"success": "reward_model", "reward_model": "no/such/folder"}, "no folder"),
    ],
)
def test_bad_settings(tmp_path: Path, change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(UserError, match=re.escape(said)):
        make_env(replace(settings(tmp_path / "log"), **change))


def test_no_file_names_a_robot_of_yours_by_itself() -> None:
    recipe = Recipe(env=RobotSettings(family="robot", robot="some.where:Robot"))
    with pytest.raises(UserError, match=re.escape("--allow some.where:Robot")):
        recipe_from_plain(to_plain(recipe), "recipe.json")


def test_contract_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(make_env(settings(tmp_path / "log"))) as env:
        assert check_env(env) == []
        with pytest.raises(UserError, match="NaN"):
            env.step([0], torch.full((1, 4, 4), torch.nan))
    assert main(["evaluate", str(tmp_path / "none"), "--env.family", "robot"]) == 2
    assert "name the folders of policies" in capsys.readouterr().err
