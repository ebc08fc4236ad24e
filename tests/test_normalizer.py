"""Every demonstrated action survives its way to a network and back; nothing that hardly varies explodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from episodes_by_hand import make_episode, make_store
from wmpo.data.cache import FrameCache
from wmpo.data.normalizer import MODES, Normalizer
from wmpo.errors import UserError

RNG = np.random.default_rng(0)
N = 4000
FEW = np.arange(N) % 200 == 7  # one step of 200
COLUMNS = {
    "uniform": (RNG.uniform(-1, 1, N), "quantiles"),
    "gaussian": (RNG.normal(0, 0.3, N), "quantiles"),
    "degrees": (RNG.uniform(-90, 90, N), "quantiles"),
    "metres": (RNG.uniform(0, 1e-4, N), "quantiles"),
    "far from 0": (1000 + RNG.normal(0, 1, N), "quantiles"),
    "gripper that seldom closes": (np.where(FEW, 1.0, -1.0), "min_max"),
    "noisy gripper that seldom closes": (np.where(FEW, 1.0, 0.0) + RNG.normal(0, 1e-3, N), "min_max"),
    "gripper that closes half of the time": (np.where(np.arange(N) % 2, 1.0, -1.0), "quantiles"),
    "one pulse": (np.where(np.arange(N) == 5, 1.0, 0.0), "min_max"),
    "one glitch of a sensor": (np.where(np.arange(N) == 5, 1e4, RNG.uniform(-1, 1, N)), "quantiles"),
    "constant": (np.full(N, 0.3), "identity"),
    "constant in degrees": (np.full(N, 90.0), "identity"),
    "zero": (np.zeros(N), "identity"),
}
ACTIONS = np.stack([values for values, _ in COLUMNS.values()], axis=1).astype(np.float32)
NO_STATE = np.zeros((N, 0), np.float32)


@pytest.fixture
def normalizer() -> Normalizer:
    return Normalizer.fit(ACTIONS, NO_STATE)


def test_each_dimension_gets_the_mode_that_loses_nothing(normalizer: Normalizer) -> None:
    modes = {name: MODES[mode] for name, mode in zip(COLUMNS, normalizer.action_mode.tolist(), strict=True)}
    assert modes == {name: mode for name, (_, mode) in COLUMNS.items()}


def test_every_demonstrated_action_comes_back(normalizer: Normalizer) -> None:
    actions = torch.from_numpy(ACTIONS)
    unit = normalizer.normalize_action(actions)
    back = normalizer.unnormalize_action(unit)
    assert unit.dtype == back.dtype == torch.float32
    size = normalizer.action_scale + actions.abs().amax(0)
    assert ((back - actions).abs() <= 4e-7 * size).all()
    assert torch.equal(normalizer.limit_action(actions), actions)


def test_nearly_all_lies_in_the_unit_range_and_grippers_do_wholly(normalizer: Normalizer) -> None:
    unit = normalizer.normalize_action(torch.from_numpy(ACTIONS))
    assert ((unit.abs() <= 1 + 1e-5).float().mean(0) >= 0.979).all()
    for name in ("gripper that seldom closes", "one pulse", "gripper that closes half of the time"):
        column = unit[:, list(COLUMNS).index(name)]
        assert set(column.unique().tolist()) == {-1.0, 1.0}
    for name in ("constant", "constant in degrees", "zero"):
        assert unit[:, list(COLUMNS).index(name)].abs().max() <= 1e-6


def test_quantiles_by_hand() -> None:
    actions = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    normalizer = Normalizer.fit(actions, NO_STATE)
    assert torch.allclose(normalizer.action_low, torch.tensor([0.01]))
    assert torch.allclose(normalizer.action_high, torch.tensor([0.99]))
    assert [bound.item() for bound in normalizer.limits] == [0, 1]
    assert torch.allclose(normalizer.normalize_action(torch.tensor([0.0, 0.5])[:, None]).flatten(),
                          torch.tensor([-0.5 / 0.49, 0.0]), atol=1e-6)  # fmt: skip
    assert normalizer.limit_action(torch.tensor([[3.0]])).item() == 1


def test_a_change_of_units_changes_no_normalised_number() -> None:
    radians = RNG.uniform(-2, 2, (N, 2)).astype(np.float32)
    degrees = np.rad2deg(radians)
    one, other = (Normalizer.fit(values, NO_STATE) for values in (radians, degrees))
    units = [n.normalize_action(torch.from_numpy(v)) for n, v in ((one, radians), (other, degrees))]
    assert torch.allclose(*units, atol=1e-5)


def test_states_have_unit_spread_and_near_constant_ones_do_not_explode() -> None:
    columns = [
        RNG.normal(5, 2, N),  # ordinary
        RNG.uniform(-90, 90, N),  # degrees
        np.full(N, 0.5),  # constant
        np.zeros(N),
        np.full(N, 1e6),
        0.5 + RNG.normal(0, 1e-7, N),  # rounding
        RNG.normal(0, 1e-9, N),
        1e6 + RNG.normal(0, 1, N),  # tiny beside its size
        RNG.normal(0, 1e-4, N),  # noise of a sensor
    ]
    states = np.stack(columns, axis=1).astype(np.float32)
    normalizer = Normalizer.fit(ACTIONS, states)
    unit = normalizer.normalize_state(torch.from_numpy(states))
    assert torch.allclose(unit[:, :2].std(0), torch.ones(2), atol=1e-2)
    assert torch.allclose(unit[:, :2].mean(0), torch.zeros(2), atol=1e-3)
    assert unit.abs().max() < 10
    moved = torch.from_numpy(states).mean(0) + torch.tensor([0, 0, 0.1, 0.1, 1e5, 0.1, 0.1, 1e5, 0.1])
    assert normalizer.normalize_state(moved).abs().max() <= 101
    assert torch.allclose(normalizer.unnormalize_state(unit), torch.from_numpy(states), rtol=1e-6, atol=1e-6)


def test_it_is_saved_with_the_module_that_holds_it_and_keeps_its_precision(normalizer: Normalizer) -> None:
    model = nn.ModuleDict({"normalizer": Normalizer(len(COLUMNS), 0), "body": nn.Linear(2, 2)})
    kept = nn.ModuleDict({"normalizer": normalizer, "body": nn.Linear(2, 2)}).state_dict()
    model.load_state_dict(kept)
    loaded = model.to(torch.bfloat16).get_submodule("normalizer")
    assert isinstance(loaded, Normalizer)
    for name, buffer in normalizer.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer)
    assert loaded.action_low.dtype == torch.float32
    empty = Normalizer(3, 2).to("meta").to_empty(device="cpu")
    assert empty.state_std.device.type == "cpu"


def test_a_new_one_changes_nothing() -> None:
    normalizer, action, state = Normalizer(3, 2), torch.rand(5, 4, 3) * 2 - 1, torch.randn(5, 2)
    assert torch.equal(normalizer.normalize_action(action), action)
    assert torch.equal(normalizer.normalize_state(state), state)


def test_labels_of_the_chosen_episodes_count(tmp_path: Path) -> None:
    """Labels of 101 frames run from 0 to -1; the row that repeats the last one doesn't count."""
    cache = FrameCache(make_store(tmp_path, [make_episode(5, 2), make_episode(0, 101, labels=True)]))
    normalizer = Normalizer.from_cache(cache, [1])
    assert torch.allclose(normalizer.action_low, torch.full((3,), -0.99))
    assert torch.allclose(normalizer.action_high, torch.full((3,), -0.01))
    assert torch.allclose(normalizer.state_mean, torch.full((2,), 0.505))
    assert torch.allclose(normalizer.state_std, torch.full((2,), (102**2 - 1) ** 0.5 / 12**0.5 / 100))
    with pytest.raises(UserError, match="No episodes"):
        Normalizer.from_cache(cache, [])


@pytest.mark.parametrize(
    ("actions", "states", "words"),
    [
        (np.zeros((0, 2)), np.zeros((0, 1)), "no actions in runs/a"),
        (np.full((3, 2), np.nan), np.zeros((3, 1)), "NaN or infinite actions in runs/a"),
        (np.zeros((3, 2)), np.full((3, 1), np.inf), "NaN or infinite states in runs/a"),
        (np.zeros(3), np.zeros((3, 1)), "no actions in runs/a"),
    ],
)
def test_what_cannot_be_fitted(actions: np.ndarray, states: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Normalizer.fit(actions, states, "runs/a")
