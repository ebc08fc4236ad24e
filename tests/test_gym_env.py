"""The family gym: environments of Gymnasium by id."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.cli import main
from wmpo.config import Recipe
from wmpo.contracts import check_env
from wmpo.envs import make_env
from wmpo.envs.gym.settings import GymSettings
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.families import recipe_from_plain
from wmpo.io.plain import to_plain
from wmpo.protocols import Restorable

TABLETOP = GymSettings(
    id="wmpo/TabletopPush-v0", imports=("wmpo.envs.tabletop",), cameras=("front",), state=("state",), success="success",
    image_size=64, horizon=12, workers=0,
)  # fmt: skip
MODULE = '''
import gymnasium, numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Walk(gymnasium.Env):
    """A dot walks to the right, half as far as the action says; terminates at 3."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = Dict({"eyes": Dict({"left": Box(0, 255, (20, 30), np.uint8)}), "x": Box(-9, 9, (1,))})

    def __init__(self, render_mode=None, discrete=False, info=True):
        self.render_mode, self.info = render_mode, info
        self.action_space = Discrete(2) if discrete else Box(np.array([-1, -np.inf, 0]), np.array([1, np.inf, np.inf]))

    def seen(self):
        eye = np.zeros((20, 30), np.uint8)
        eye[:, ::2] = 255
        return {"eyes": {"left": eye}, "x": np.array([self.x]), "name": np.array(["dot"])}

    def reset(self, *, seed=None, options=None):
        self.x, self.ended = seed % 3 / 10, False
        return self.seen(), {}

    def step(self, action):
        assert not self.ended, "stepped after its end"
        self.x += float(action[0]) / 2
        self.ended = self.x >= 3
        return self.seen(), self.x, self.ended, False, {"far": {"enough": np.bool_(self.x > 1)}} if self.info else {}

    def render(self):
        return np.full((10, 10, 3), 7, np.uint8)


gymnasium.register("Walk-v0", entry_point=Walk)
gymnasium.register("Blind-v0", entry_point=lambda: Walk())
'''


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GymSettings:
    (tmp_path / "walks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "walks", raising=False)
    return GymSettings(
        id="Walk-v0", imports=("walks",), cameras=("eyes.left", "render"), state=("x",), success="far.enough",
        image_size=10, repeat=2, horizon=20, linger=1, workers=0,
    )  # fmt: skip


def test_an_environment_keeps_the_contract_and_is_restored_bit_for_bit() -> None:
    with closing(make_env(TABLETOP)) as env, closing(make_env(TabletopSettings(workers=0))) as ours:
        assert isinstance(env, Restorable) and check_env(env) == []
        for one, two in zip(env.reset([4, 2]).images.values(), ours.reset([4, 2]).images.values(), strict=True):
            assert torch.equal(one, two)


def test_pictures_states_actions_and_ends(walk: GymSettings) -> None:
    with closing(make_env(walk)) as env:
        assert check_env(env) == [] and not isinstance(env, Restorable)
        spec = env.spec
        assert list(spec.cameras) == ["eyes.left", "render"] and spec.fps == 15 and spec.state_dim == 1
        assert (spec.action_low, spec.action_high) == ((-1, -1, 0), (1, 1, 2))
        first = env.reset([1])
        # Stripes that are too fine become grey: they are averaged, not picked from.
        assert abs(first.images["eyes.left"].float() - 128).max() < 40 and first.images["render"].unique().tolist() == [
            7
        ]
        outcome = env.step([0], torch.tensor([[[1.0, 0, 0]] * 4]))
        assert torch.allclose(outcome.state[0, :, 0], torch.tensor([1.1, 2.1, 3.1, 3.1]))  # two steps each, then none
        assert outcome.success[0].tolist() == [True] * 4 and bool(outcome.done[0])
    with closing(make_env(replace(walk, success="reward>=2"))) as env:
        env.reset([0])
        assert env.step([0], torch.ones(1, 3, 3)).success[0].tolist() == [False, True, True]
    with closing(make_env(replace(walk, success="terminated", linger=9))) as env:
        env.reset([0])
        assert env.step([0], torch.ones(1, 4, 3)).success[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": ""}, "give the id of a Gymnasium environment"),
        ({"id": "Wolk-v0"}, "check env.id, install the package"),
        ({"id": "walks:Walk-v0"}, "belongs into env.imports"),
        ({"imports": ("no_such_module",)}, "no_such_module, which is no module here"),
        ({"imports": ("os; ls",)}, "no name of a module"),
        ({"kwargs": "{"}, "env.kwargs is no JSON"),
        ({"kwargs": "[1]"}, "must be a JSON object"),
        ({"kwargs": '{"wheels": 4}'}, "can't be made with env.kwargs"),
        ({"kwargs": '{"discrete": true}'}, "needs a Box of real numbers"),
        ({"kwargs": '{"info": false}'}, "env.success names 'far.enough', but the info has nothing in it"),
        ({"id": "Blind-v0"}, "Blind-v0 has no render_mode"),
        ({"cameras": ("eyes.right",)}, "env.cameras names 'eyes.right', but the observation has eyes, x, name"),
        ({"cameras": ("x",)}, "no picture"),
        ({"cameras": ()}, "env.cameras is empty"),
        ({"state": ("x", "x")}, "must name different keys"),
        ({"state": ("eyes.left.x",)}, "env.state names 'eyes.left.x'"),
        ({"state": ("name",)}, "holds no numbers"),
        ({"success": "far"}, "no truth"),
        ({"success": "reward>=much"}, "env.success is"),
        ({"success": "reward>2"}, "env.success is"),
        ({"instruction": " "}, "env.instruction is empty"),
    ],
)
def test_what_is_missing_is_said(walk: GymSettings, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make_env(replace(walk, **changes))  # type: ignore[arg-type]
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_run_says_where_demonstrations_come_from(
    walk: GymSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--env.family", "gym", "--env.id", "Walk-v0", "--env.imports", "walks", "--env.cameras", "eyes.left",
               "--env.success", "far.enough", "--env.workers", "0"]  # fmt: skip
    assert main(["run", "smoke", *options, "--out", str(tmp_path / "run")]) == 2
    assert "--demonstrations.data STORE" in capsys.readouterr().err


def test_a_file_imports_no_module_by_itself() -> None:
    recipe = to_plain(Recipe(env=replace(TABLETOP, imports=("antigravity",))))
    with pytest.raises(UserError, match="'antigravity' is a module, which no file may import by itself: add --allow"):
        recipe_from_plain(json.loads(json.dumps(recipe)), "recipe.json")


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("gym_pusht", GymSettings(
            id="gym_pusht/PushT-v0", imports=("gym_pusht",), kwargs='{"obs_type": "pixels_agent_pos"}',
            cameras=("pixels",), state=("agent_pos",))),
        ("gymnasium_robotics", GymSettings(
            id="FetchPickAndPlace-v4", imports=("gymnasium_robotics",), kwargs='{"width": 128, "height": 128}',
            state=("observation", "desired_goal"))),
        ("shimmy", GymSettings(
            id="dm_control/cartpole-swingup-v0", imports=("shimmy",), kwargs='{"render_kwargs": {"width": 96}}',
            state=("position", "velocity"), success="reward>=0.8")),
    ],
)  # fmt: skip
def test_environments_of_others(package: str, settings: GymSettings) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    with closing(make_env(replace(settings, workers=1, horizon=6))) as env:
        assert check_env(env) == []
        assert len(np.unique(env.reset([0]).images[next(iter(env.spec.cameras))].numpy())) > 5
