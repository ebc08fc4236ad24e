"""The tabletop simulator: tasks, success, experts, exact restore, renderers and disruptions."""

from __future__ import annotations

import functools
import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wmpo.envs.tabletop import display, experts, gymnasium_id
from wmpo.envs.tabletop.env import TabletopEnv
from wmpo.envs.tabletop.settings import (
    CUBE,
    DISRUPTIONS,
    HOLD,
    LINGER,
    OPENING,
    PEG_HEIGHT,
    REACH,
    RING_INNER,
    RING_OUTER,
    TRAY,
    TRAY_HEIGHT,
    ZONE,
)
from wmpo.envs.tabletop.tasks import HOVER, TASKS, View, initial_layout, task_named, task_of
from wmpo.errors import UserError

STILL = np.array([0, 0, 0, 1], np.float32)


def make(task: str = "push", **settings: object) -> TabletopEnv:
    return TabletopEnv(task, **{"renderer": "rays", "image_size": 32, **settings})  # type: ignore[arg-type]


def play_expert(env: TabletopEnv) -> None:
    """The expert acts until the episode is done, or to the horizon."""
    while not env.lingered and env.counters.frame < env.horizon:
        env.advance(experts.act(env.task, env.view()))


def put(env: TabletopEnv, name: str, xyz: tuple[float, float, float]) -> None:
    """Move an object there, upright and at rest, and the gripper above the middle."""
    address = env._free[name]
    env.data.qpos[address : address + 7] = (*xyz, 1, 0, 0, 0)
    env.data.qpos[env._slides[:3]] = (0, 0, HOVER)
    env.data.qvel[:] = 0


# --- moving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_action_moves_the_gripper_by_four_centimetres(axis: int) -> None:
    env = make()
    env.restart(0)
    before = env.view().grip
    action = STILL.copy()
    action[axis] = -0.5  # towards the middle of the table is always free
    env.advance(action)
    moved = env.view().grip - before
    expected = np.zeros(3)
    expected[axis] = -0.02
    np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_the_gripper_stays_in_reach_and_opens() -> None:
    env = make()
    env.restart(0)
    for _ in range(15):
        env.advance(np.array([1, 1, 1, -1], np.float32))
    view = env.view()
    np.testing.assert_allclose(view.grip, [high for _, high in REACH], atol=1e-3)
    assert view.opening == pytest.approx(OPENING, abs=1e-3)
    np.testing.assert_allclose(env.state(), np.ones(4), atol=0.05)


def test_objects_out_of_reach_do_not_move_at_all() -> None:
    env = make()
    env.restart(0)
    before = env.view().things
    for _ in range(4):
        env.advance(STILL)
    for name, position in env.view().things.items():
        np.testing.assert_array_equal(position, before[name])


def test_sleeping_objects_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> View:
        env = make("place")
        env.restart(5)
        for _ in range(16):
            env.advance(experts.act(env.task, env.view()))
        return env.view()

    asleep = run()
    monkeypatch.setattr(TabletopEnv, "_rests", lambda *_: False)
    awake = run()
    for name in asleep.things:
        np.testing.assert_allclose(asleep.things[name], awake.things[name], atol=2e-3)


# --- initial states -------------------------------------------------------------------------------------------


def test_equal_starts_are_equal_and_different_ones_differ() -> None:
    env, other = make(), make()
    first, _ = env.reset(seed=3)
    second, _ = other.reset(seed=3)
    third, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first["front"], second["front"])
    np.testing.assert_array_equal(first["state"], second["state"])
    assert (first["front"] != third["front"]).any()


def test_push_place_and_stack_share_their_scene() -> None:
    envs = [make(task) for task in ("push", "place", "stack", "push-blue")]
    for env in envs:
        env.restart(11)
    for env in envs[1:]:
        for name, position in envs[0].view().things.items():
            np.testing.assert_allclose(env.view().things[name], position, atol=1e-6)
    assert len({env.reset(seed=0)[1]["instruction"] for env in envs}) == 4


@pytest.mark.parametrize("layout", ["blocks", "ring"])
def test_layouts_keep_things_apart_and_use_the_table(layout: str) -> None:
    drawn = [initial_layout(layout, initial_state, wide=False) for initial_state in range(200)]
    for where in drawn:
        things = [np.array(xy) for name, xy in where.items() if name != "grip"]
        gaps = [np.abs(a - b).max() for i, a in enumerate(things) for b in things[:i]]
        assert min(gaps) > 0.07
    moved = "red" if layout == "blocks" else "ring"
    spread = np.ptp([where[moved] for where in drawn], axis=0)
    assert (spread > 0.18).all()


def test_position_disruption_starts_where_training_never_did() -> None:
    for initial_state in range(50):
        where = initial_layout("blocks", initial_state, wide=True)
        assert any(abs(where[cube][0]) > 0.165 or abs(where[cube][1]) > 0.125 for cube in ("red", "blue"))


# --- success --------------------------------------------------------------------------------------------------


def view(task: str, thing: tuple[float, float, float], opening: float = OPENING, grip_z: float = HOVER) -> View:
    """A view with the task's goal at (0.1, 0.05) and its object at the given place relative to that."""
    goal = np.array([0.1, 0.05, CUBE if task == "stack" else 0.0])
    position = np.array([0.1, 0.05, 0.0]) + thing
    names = task_named(task)
    return View(np.array([*position[:2], grip_z]), opening, {names.goal: goal, names.thing: position})


@pytest.mark.parametrize(
    ("task", "thing", "opening", "grip_z", "accomplished"),
    [
        ("push", (0, 0, CUBE), 0.0, HOVER, True),
        ("push", (ZONE - CUBE - 0.001, 0, CUBE), 0.0, HOVER, True),
        ("push", (ZONE - CUBE + 0.001, 0, CUBE), 0.0, HOVER, False),  # sticks out of the zone
        ("push", (0, -ZONE, CUBE), 0.0, HOVER, False),
        ("push", (0, 0, CUBE + 0.02), 0.0, HOVER, False),  # in the air
        ("place", (0, 0, TRAY_HEIGHT + CUBE), OPENING, 0.1, True),
        ("place", (0, 0, TRAY_HEIGHT + CUBE), CUBE, TRAY_HEIGHT + 0.01, False),  # still held
        ("place", (0, 0, CUBE), OPENING, 0.1, False),  # beside or inside, not upon
        ("place", (TRAY - 0.001, 0, TRAY_HEIGHT + CUBE), OPENING, 0.1, True),  # its middle is above the tray
        ("place", (TRAY + 0.001, 0, TRAY_HEIGHT + CUBE), OPENING, 0.1, False),
        ("stack", (0, 0, 3 * CUBE), OPENING, 0.15, True),
        ("stack", (CUBE - 0.001, 0, 3 * CUBE), OPENING, 0.15, True),
        ("stack", (CUBE + 0.001, 0, 3 * CUBE), OPENING, 0.15, False),
        ("insert", (0, 0, 0.0125), OPENING, 0.05, True),
        ("insert", (0, 0, 0.06), OPENING, 0.1, False),  # upon the peg, not around it
    ],
)
def test_success_predicate(
    task: str, thing: tuple[float, float, float], opening: float, grip_z: float, accomplished: bool
) -> None:
    assert task_named(task).accomplished(view(task, thing, opening, grip_z)) is accomplished


def test_success_needs_three_frames_then_lingers_and_is_never_forgotten() -> None:
    env = make()
    env.restart(0)
    zone = env.view().things["zone"]
    put(env, "red", (zone[0], zone[1], CUBE))
    flags, rewards, terminated = [], [], []
    for _ in range(HOLD + LINGER):
        _, reward, done, _, info = env.step(STILL)
        flags.append(info["success"])
        rewards.append(reward)
        terminated.append(done)
    assert flags == [False, False, True, True, True, True, True]
    assert rewards == [0, 0, 1, 0, 0, 0, 0]
    assert terminated == [False] * 6 + [True]
    put(env, "red", (zone[0] + 0.1, zone[1], CUBE))
    _, _, done, _, info = env.step(STILL)
    assert not info["success"] and info["accomplished"] and done


@pytest.mark.parametrize(("task", "horizon"), [("push", 32), ("place", 48), ("stack", 56), ("insert", 120)])
def test_an_episode_is_cut_at_its_horizon_and_can_go_on(task: str, horizon: int) -> None:
    env = make(task)
    env.restart(0)
    ends = [env.step(STILL)[2:4] for _ in range(horizon + 1)]
    assert ends == [(False, False)] * (horizon - 1) + [(False, True)] * 2


# --- experts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["push", "place", "stack", "insert", "push-blue"])
def test_experts_succeed(task: str) -> None:
    env = make(task)
    succeeded, attempts = 0, 0
    for initial_state in range(10):
        env.restart(initial_state)
        play_expert(env)
        succeeded += env.counters.accomplished_at > 0
        attempts += env.counters.contacts
    assert succeeded >= 9
    assert attempts >= 10  # every episode touched its object


def test_expert_leaves_the_distractor_alone() -> None:
    env = make()
    env.restart(1)
    blue = env.view().things["blue"]
    play_expert(env)
    np.testing.assert_allclose(env.view().things["blue"], blue, atol=1e-3)


def test_noise_has_the_spread_and_memory_it_says() -> None:
    noise = experts.Noise(0.2, np.random.default_rng(0))
    draws = np.array([noise.disturb(np.zeros(4)) for _ in range(4000)])
    np.testing.assert_allclose(draws.std(0), [0.2, 0.2, 0.2, 0.05], rtol=0.08)
    assert np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1] == pytest.approx(0.5, abs=0.06)
    silent = experts.Noise(0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(silent.disturb(np.full(4, 0.3, np.float32)), np.full(4, 0.3, np.float32))


# --- disturbances ---------------------------------------------------------------------------------------------


def disturbed(task: str, initial_state: int, **settings: object) -> TabletopEnv:
    """The expert has acted until just before the action on which the object is disturbed."""
    env = make(task, **settings)
    env.restart(initial_state)
    while True:
        before, action = env.get_state(), experts.act(env.task, env.view())
        env.advance(action)
        if env.counters.disturbed:
            env.set_state(before)
            return env
        assert env.counters.frame < env.horizon


def is_disturbed(env: TabletopEnv, number: int) -> bool:
    """Whether something befalls the object, by the time at which the expert has lifted it."""
    env.restart(number)
    for _ in range(14):
        if env.counters.disturbed or env.view().things[env.task.thing][2] > 0.1:
            break
        env.advance(experts.act(env.task, env.view()))
    return bool(env.counters.disturbed)


@functools.cache
def numbers_with(task: str, disturbance: bool, count: int) -> list[int]:
    """The first initial-state numbers whose episodes are, or are not, disturbed."""
    env = make(task)
    return [*itertools.islice((n for n in itertools.count() if is_disturbed(env, n) == disturbance), count)]


@pytest.mark.parametrize("task", ["place", "stack", "stack-blue"])
def test_half_of_the_episodes_are_disturbed(task: str) -> None:
    env = make(task)
    assert 0.38 < np.mean([is_disturbed(env, number) for number in range(100)]) < 0.62


@pytest.mark.parametrize("task", ["push", "insert"])
def test_other_tasks_are_left_in_peace(task: str) -> None:
    assert numbers_with(task, False, 8) == [*range(8)]


@pytest.mark.parametrize("task", ["place", "stack"])
def test_the_same_number_is_disturbed_in_the_same_way(task: str) -> None:
    number = numbers_with(task, True, 1)[0]
    one, two = disturbed(task, number), disturbed(task, number)
    assert one.counters == two.counters
    action = experts.act(one.task, one.view())
    for env in (one, two):
        env.advance(action)
    assert one.events()["disturbances"] == two.events()["disturbances"] == 1
    np.testing.assert_array_equal(one.data.qpos, two.data.qpos)


def test_a_nudge_moves_the_block_three_to_five_centimetres_to_a_free_place() -> None:
    ways = []
    for number in numbers_with("place", True, 16):
        env = disturbed("place", number)
        before = env.view().things
        env.advance(STILL * [0, 0, 0, -1])  # the hand stays above, open
        after = env.view().things
        ways.append((after["red"] - before["red"])[:2])
        assert 0.029 < np.hypot(*ways[-1]) < 0.051
        assert after["red"][2] == pytest.approx(CUBE, abs=1e-3)  # it still lies on the table
        for name in {*before} - {"red"}:
            np.testing.assert_allclose(after[name], before[name], atol=1e-4)
            reach = {"tray": TRAY, "blue": CUBE}.get(name, 0.0)
            assert np.abs(after["red"] - after[name])[:2].max() > CUBE + reach
        assert (np.abs(after["red"][:2]) < np.array(REACH)[:2, 1] - CUBE).all()
        still = env.view().things["red"]
        for _ in range(3):  # it is nudged once
            env.advance(STILL)
        np.testing.assert_allclose(env.view().things["red"], still, atol=1e-3)
        assert env.events()["disturbances"] == 1
    angles = np.arctan2(*np.transpose(ways))
    assert len(np.unique(np.floor(angles / (np.pi / 2)))) == 4  # in all directions


@pytest.mark.parametrize("place", ["tray", "table", "in the air", "beside the hand"])
def test_a_nudge_waits_for_the_hand_above_a_block_on_the_table(place: str) -> None:
    env = make("place")
    env.restart(numbers_with("place", True, 1)[0])
    free = (0.15, -0.15)
    where = {"tray": (*env.view().things["tray"][:2], TRAY_HEIGHT + CUBE), "in the air": (*free, 0.1)}
    put(env, "red", where.get(place, (*free, CUBE)))
    env.data.qpos[env._slides[:2]] = env.view().things["red"][:2]
    env.data.qpos[env._slides[2]] = 0.06 if place == "beside the hand" else 0.14
    env._refresh()
    env.advance(STILL * [0, 0, 0, -1])
    assert env.events()["disturbances"] == (place == "table")


def test_no_place_no_nudge() -> None:
    env = make("place")
    env.restart(numbers_with("place", True, 1)[0])
    rng = np.random.default_rng(0)
    crowd = {"red": np.zeros(3), **{str(n): np.array([*way, 0]) for n, way in enumerate(0.04 * np.eye(2))}}
    crowd |= {f"-{n}": -place for n, place in crowd.items() if n != "red"}
    view = View(np.array([0, 0, HOVER]), OPENING, crowd)
    assert env._room_beside(crowd["red"], CUBE, view, rng) is None
    assert env._room_beside(crowd["red"], CUBE, View(view.grip, OPENING, {"red": crowd["red"]}), rng) is not None
    corner = np.array([0.185, -0.165, CUBE])
    for _ in range(30):  # the hand can reach wherever it goes
        target = env._room_beside(corner, CUBE, View(view.grip, OPENING, {"red": corner}), rng)
        assert target is not None and (np.abs(target) < np.array(REACH)[:2, 1] - CUBE).all()


def test_a_slip_opens_the_hand_once_on_the_way_up() -> None:
    for number in numbers_with("stack", True, 4):
        env = disturbed("stack", number)
        held = env.view().things["red"]
        assert env.counters.gripping and held[2] > CUBE + 0.01
        closed = np.array([0, 0, 0, 1], np.float32)
        env.advance(closed)  # though it is told to hold
        assert env.view().opening == pytest.approx(OPENING, abs=2e-3) and not env.counters.gripping
        assert env.events()["disturbances"] == env.events()["drops"] == 1
        env.advance(closed)
        assert env.view().things["red"][2] < held[2] - 0.005 or env.view().things["red"][2] < CUBE + 0.002
        for _ in range(2):
            env.advance(closed)
        assert env.view().opening < 0.04  # it obeys again
        env.set_state(disturbed("stack", number).get_state())
        play_expert(env)
        assert env.counters.accomplished_at > 0 and env.events()["grasps"] >= 2  # there is time to try again


def test_what_nobody_holds_does_not_slip() -> None:
    env = make("stack")
    env.restart(numbers_with("stack", True, 1)[0])
    put(env, "red", (0.15, -0.15, 0.1))
    env._refresh()
    for _ in range(2):
        env.advance(STILL)
    assert env.events()["disturbances"] == 0 and env.view().opening < 0.01  # the hand obeys


@pytest.mark.parametrize("task", ["place", "stack"])
def test_restoring_is_exact_across_a_disturbance(task: str) -> None:
    number = numbers_with(task, True, 1)[0]
    env, other = disturbed(task, number), make(task)
    saved, actions = env.get_state(), []

    def step(episode: TabletopEnv, action: np.ndarray) -> np.ndarray:
        return np.append(episode.step(action)[0]["front"], episode.data.qpos.copy())

    first, middle = [], None
    for _ in range(8):
        actions.append(experts.act(env.task, env.view()))
        first.append(step(env, actions[-1]))
        middle = middle or env.get_state()  # right after the disturbance
    assert saved.counters.disturbed == 0 and env.counters.disturbed == 1
    for snapshot, begin in ((saved, 0), (middle, 1)):
        other.restart(number + 1)
        assert snapshot is not None
        other.set_state(snapshot)
        for action, frame in zip(actions[begin:], first[begin:], strict=True):
            np.testing.assert_array_equal(step(other, action), frame)
        assert other.counters == env.counters


def test_events_by_hand() -> None:
    env = make("stack")
    env.restart(numbers_with("stack", False, 1)[0])
    while not env.counters.gripping:
        env.advance(experts.act(env.task, env.view()))
    assert env.events() == {"contacts": 1, "grasps": 1, "drops": 0, "disturbances": 0}
    for _ in range(2):
        env.advance(STILL * [0, 0, 0, -1])  # let go on the table
    assert env.events() == {"contacts": 1, "grasps": 1, "drops": 0, "disturbances": 0}
    while env.view().things["red"][2] < CUBE + 0.02:
        env.advance(experts.act(env.task, env.view()))
    for _ in range(2):
        env.advance(STILL * [0, 0, 0, -1])  # let go in the air
    assert env.events() == {"contacts": 2, "grasps": 2, "drops": 1, "disturbances": 0}
    play_expert(env)
    assert env.events()["grasps"] == 3 and env.events()["drops"] == 1  # what is laid down at the goal is not dropped


# --- saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["push", "insert"])
def test_restoring_continues_bit_for_bit(task: str) -> None:
    env, other = make(task), make(task)
    env.restart(2)
    rng = np.random.default_rng(0)
    noise = experts.Noise(0.2, rng)
    for _ in range(8):  # in contact by then
        env.advance(noise.disturb(experts.act(env.task, env.view())))
    saved = env.get_state()
    actions = [noise.disturb(experts.act(env.task, env.view())) for _ in range(8)]

    def go(episode: TabletopEnv) -> list[np.ndarray]:
        return [np.append(episode.step(action)[0]["front"], episode.data.qpos.copy()) for action in actions]

    first = go(env)
    counters = env.counters
    other.restart(7)
    other.set_state(saved)
    second = go(other)
    assert other.counters == counters
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    env.set_state(saved)
    np.testing.assert_array_equal(go(env)[-1], first[-1])


# --- pictures -------------------------------------------------------------------------------------------------


def pixel(env: TabletopEnv, point: np.ndarray) -> np.ndarray:
    """The colour at which the front camera sees a point, by the pinhole formula."""
    camera = env.model.camera("front").id
    turned = env.data.cam_xmat[camera].reshape(3, 3).T @ (point - env.data.cam_xpos[camera])
    scale = 1 / np.tan(np.radians(env.model.cam_fovy[camera]) / 2) / -turned[2]
    image = env.draw("front")
    size = len(image)
    column, row = (int((1 + sign * turned[axis] * scale) / 2 * size) for axis, sign in ((0, 1), (1, -1)))
    return image[row, column].astype(int)


RENDERERS = ["rays", pytest.param("egl", marks=pytest.mark.skipif(not display.egl_works(), reason="no EGL"))]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_things_are_drawn_where_they_are_in_their_colours(renderer: str) -> None:
    env = make("push", renderer=renderer, image_size=64)
    env.restart(0)
    env.data.qpos[env._slides[:3]] = (0.2, 0.2, 0.15)  # out of the way
    env._refresh()
    things = env.view().things
    red = pixel(env, things["red"] + (0, 0, CUBE))
    blue = pixel(env, things["blue"] + (0, 0, CUBE))
    green = pixel(env, things["zone"])
    yellow = pixel(env, things["tray"] + (0, 0, TRAY_HEIGHT))
    assert red[0] > 150 and max(red[1:]) < 60
    assert blue[2] > 150 and blue[0] < 60
    assert green[1] > 120 and max(green[0], green[2]) < 90
    assert min(yellow[:2]) > 150 and yellow[2] < 90


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_ring_the_peg_and_its_base_are_drawn(renderer: str) -> None:
    env = make("insert", renderer=renderer, image_size=64)
    env.restart(0)
    env.data.qpos[env._slides[:3]] = (0.2, 0.2, 0.15)
    env._refresh()
    things = env.view().things
    orange = pixel(env, things["ring"] + ((RING_INNER + RING_OUTER) / 2, 0, 0.0125))
    purple = pixel(env, things["peg"] + (0, 0, PEG_HEIGHT))
    lilac = pixel(env, things["peg"] + (0.04, -0.04, 0))
    assert orange[0] > 150 and 60 < orange[1] < 160 and orange[2] < 60
    assert purple[2] > 100 and purple[1] < 60
    assert lilac[2] > lilac[1] + 15 > 120


@pytest.mark.skipif(not display.egl_works(), reason="no EGL")
@pytest.mark.parametrize("task", ["place", "insert"])
@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_both_renderers_draw_nearly_the_same(task: str, camera: str) -> None:
    images = []
    for renderer in ("egl", "rays"):
        env = make(task, renderer=renderer, image_size=64, cameras=(camera,))
        images.append(env.reset(seed=1)[0][camera].astype(int))
    difference = np.abs(images[0] - images[1])
    assert np.median(difference) <= 6
    assert (difference.max(2) > 40).mean() < 0.01  # edges
    assert images[0].std() > 20  # and it is not an empty picture


def test_disruptions_change_what_they_say() -> None:
    plain, _ = make().reset(seed=1)
    background, _ = make(disruption="background").reset(seed=1)
    texture, _ = make(disruption="texture").reset(seed=1)
    position, _ = make(disruption="position").reset(seed=1)
    assert (plain["front"] != background["front"]).any(2).mean() > 0.5
    assert 0.01 < (plain["front"] != texture["front"]).any(2).mean() < 0.2
    assert (plain["front"] != position["front"]).any(2).mean() > 0.02
    np.testing.assert_array_equal(plain["state"], background["state"])
    np.testing.assert_array_equal(plain["state"], texture["state"])
    levels = {kind + level for kind in ("position", "background", "texture") for level in ("-mild", "-moderate", "")}
    assert set(DISRUPTIONS) == {"none", "paraphrase", *levels}


@pytest.mark.parametrize("kind", ["background", "texture"])
def test_disruptions_grow_with_their_strength(kind: str) -> None:
    plain, _ = make().reset(seed=1)
    changes = []
    for level in ("-mild", "-moderate", ""):
        seen, _ = make(disruption=kind + level).reset(seed=1)
        changes.append(np.abs(plain["front"].astype(int) - seen["front"].astype(int)).mean())
    assert 0 < changes[0] < changes[1] < changes[2]
    assert changes[0] < 0.35 * changes[2]


def test_positions_are_stretched_by_their_strength() -> None:
    for name, stretched in (("position-mild", 1.02), ("position-moderate", 1.06), ("position", 1.2)):
        env = make(disruption=name)
        beyond = []
        for initial_state in range(30):
            env.restart(initial_state)
            things = env.view().things
            beyond += [np.abs(things[cube][:2] / (0.165, 0.125)).max() for cube in ("red", "blue")]
        farthest = np.array(beyond).reshape(-1, 2).max(1)  # some cube of each
        assert (farthest > 0.999).all() and 0.5 * (stretched + 1) < farthest.max() < stretched + 1e-3


# --- Gymnasium and mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_accepts_every_task(task: str) -> None:
    env = gymnasium.make(gymnasium_id(task), renderer="rays", image_size=16, cameras=("front", "wrist"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(different from the unwrapped version|render_mode|render_fps).*")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_gymnasium_names() -> None:
    assert gymnasium_id("push") == "wmpo/TabletopPush-v0"
    assert gymnasium_id("push-blue") == "wmpo/TabletopPushBlue-v0"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "juggle"}, ["juggle", "push", "insert"]),
        ({"cameras": ("top",)}, ["top", "front", "wrist"]),
        ({"cameras": ()}, ["front, wrist"]),
        ({"image_size": 4}, ["8", "1024", "4"]),
        ({"disruption": "fog"}, ["fog", "texture"]),
        ({"renderer": "vulkan"}, ["vulkan", "rays"]),
    ],
)
def test_mistakes_are_told_in_one_sentence(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_one_environment_for_several_tasks() -> None:
    env = make("place+stack")
    told = {env.reset(seed=initial_state)[1]["instruction"] for initial_state in range(20)}
    assert told == {"place the red cube on the yellow tray", "stack the red cube on the blue cube"}
    assert env.horizon == 56
    env.restart(3)
    first, snapshot = env.task, env.get_state()
    other = next(initial_state for initial_state in range(20) if (env.restart(initial_state), env.task)[1] != first)
    env.restart(other)
    env.set_state(snapshot)
    assert env.task == first
    halves = [
        sum(task_of(env.tasks, initial_state) == first for initial_state in range(begin, 4000, 4)) for begin in range(4)
    ]
    assert all(400 < half < 600 for half in halves)  # whichever numbers are held out, both tasks are among them
    for wrong in ("place+insert", "place+place", "place+fly"):
        with pytest.raises(UserError):
            make(wrong)
