"""The robot's kinematics: without a state its pose is the sum of its actions, with one it follows a learned law; and
what moves with it in the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wmpo.data.clips import VideoBatch
from wmpo.data.normalizer import Normalizer
from wmpo.world_models.kinematics import Kinematics


def set_state(model: Kinematics, mean: list[float], std: list[float]) -> None:
    model.normalizer.state_mean.copy_(torch.tensor(mean))
    model.normalizer.state_std.copy_(torch.tensor(std))


def test_without_a_state_the_pose_is_the_sum_of_the_actions() -> None:
    model = Kinematics(0, 2, ("front",))
    travel = torch.tensor([[1.0, 2.0]])
    pose = model.pose(torch.zeros(1, 0), travel)
    assert model.pose_dim == 2 and torch.equal(pose, travel) and model.step is None
    poses = model.follow(pose, torch.tensor([[[1.0, 0.0], [0.5, -1.0], [0.0, 3.0]]]))
    assert poses.tolist() == [[[2, 2], [2.5, 1], [2.5, 4]]]
    assert model.state(poses).shape == (1, 3, 0)


def test_sums_of_actions_have_the_scale_of_the_data_and_leave_positions_out() -> None:
    model = Kinematics(0, 4, ("front",))
    # A gripper in percent, a joint in degrees, one that never comes near 0, and one that stays where it is.
    low, high = torch.tensor([0.0, -90.0, 170.0, 5.0]), torch.tensor([100.0, 90.0, 180.0, 5.0])
    actions = torch.stack([low, high, (low + high) / 2]).numpy()
    model.normalizer.load_state_dict(Normalizer.fit(actions, np.zeros((1, 0))).state_dict())
    chunk = torch.tensor([[[100.0, 45.0, 175.0, 5.0], [100.0, 90.0, 180.0, 5.0]]])
    poses = model.follow(torch.zeros(1, 4), chunk)
    torch.testing.assert_close(poses, torch.tensor([[[2.0, 0.5, 0, 0], [4.0, 1.5, 0, 0]]]), rtol=0.03, atol=1e-6)
    torch.testing.assert_close(model.pose(torch.zeros(1, 0), chunk.sum(1)), poses[:, -1])


def test_poses_are_states_of_unit_spread_and_back() -> None:
    model = Kinematics(3, 2, ("front",))
    set_state(model, [100.0, 0.0, 7.0], [20.0, 0.5, 1.0])
    state = torch.tensor([[120.0, -1.0, 7.0]])
    pose = model.pose(state, torch.ones(1, 2))
    assert model.pose_dim == 3 and pose.tolist() == [[1, -2, 0]]
    assert torch.equal(model.state(pose), state)
    # Untrained, nothing moves.
    assert torch.equal(model.follow(pose, torch.randn(1, 4, 2)), pose[:, None].expand(-1, 4, -1))


def blank(size: int, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Context, first frame and future in which there is nothing to see."""
    shapes = ((size, 1, 3, 8, 8), (size, 3, 8, 8), (size, steps, 3, 8, 8))
    context, first, future = ({"front": torch.zeros(shape, dtype=torch.uint8)} for shape in shapes)
    return context, first, future


MATRIX = torch.tensor([[30.0, 0.0], [0.0, -0.4]])  # what an action does to the state, in units of the data
DECAY = torch.tensor([0.9, 1.0])  # the first number falls back to 100, whatever is done
MEAN, STD = torch.tensor([100.0, 0.0]), torch.tensor([40.0, 0.6])


def law(seed: int, size: int, steps: int) -> VideoBatch:
    """States and the actions that led there, with blank pictures."""
    generator = torch.Generator().manual_seed(seed)
    states = [MEAN + STD * torch.randn(size, 2, generator=generator)]
    action = 2 * torch.rand(size, steps, 2, generator=generator) - 1
    for k in range(steps):
        states.append(MEAN + DECAY * (states[-1] - MEAN) + action[:, k] @ MATRIX.T)
    return VideoBatch(*blank(size, steps), action, torch.stack(states, 1), states[0], torch.zeros(size, 2))


def test_it_learns_a_linear_law() -> None:
    torch.manual_seed(0)
    model = Kinematics(2, 2, ("front",))
    set_state(model, MEAN.tolist(), STD.tolist())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 300)
        loss, metrics = model(law(step, 128, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data = law(1000, 256, 8)  # twice as far as in training
    with torch.no_grad():
        guess = model.state(model.follow(model.pose(data.state[:, 0], data.travel), data.action))
    wrong = (guess - data.state[:, 1:]).abs().mean((0, 1))
    assert (wrong < 0.1 * STD).all(), wrong  # in the units of the data
    assert metrics["pose_error"] < 0.01  # of poses of unit spread


def test_the_loss_by_hand() -> None:
    model = Kinematics(1, 1, ("front",))  # untrained: nothing moves
    set_state(model, [10.0], [2.0])
    state = torch.tensor([[[10.0], [12.0], [16.0]]])  # 1 and 3 spreads away from where it was
    context, first, future = blank(1, 2)
    batch = VideoBatch(context, first, future, torch.ones(1, 2, 1), state, state[:, 0], torch.zeros(1, 1))
    assert model(batch)[0].item() == model(batch)[1]["pose_error"].item() == (1 + 9) / 2
    future["front"][:, 1] = 255  # half of the frames are white, which nothing explains: all of it is wrong by 2
    _, metrics = model(batch)
    sharp, edge = 4 / 2, metrics["picture_error"].item() - 4 / 2
    assert 0 < edge < sharp  # the blurred one is less wrong, where the padding is mixed in
    first["front"][:] = 255  # it was there at first, so it may have come back to light
    assert model(batch)[1]["picture_error"].item() == 0


def test_poses_of_a_batch_by_hand() -> None:
    state = torch.tensor([[[1.0], [2.0], [4.0]]])  # now and after two actions, far from the first frame's 7
    action, first_state, travel = torch.tensor([[[1.0], [0.5]]]), torch.tensor([[7.0]]), torch.tensor([[10.0]])
    for state_dim, expected in ((0, [10, 11, 11.5]), (1, [1, 2, 4])):
        model = Kinematics(state_dim, 1, ("front",))
        batch = VideoBatch(*blank(1, 2), action, state[..., :state_dim], first_state[:, :state_dim], travel)
        first, poses = model.poses(batch)
        assert first.tolist() == [[7.0 * state_dim]] and poses[0, :, 0].tolist() == expected


def test_it_learns_what_moves_in_each_picture() -> None:
    torch.manual_seed(0)
    model = Kinematics(0, 2, ("front", "wrist"))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    ways = {
        "front": torch.tensor([0.1, 0.2]),
        "wrist": torch.tensor([-0.2, 0.1]),
    }  # (right, down) half sizes per action
    for step in range(80):
        generator = torch.Generator().manual_seed(step)
        action = 2 * torch.rand(64, 2, 2, generator=generator) - 1
        before = 0.3 * torch.rand(64, 2, generator=generator) - 0.15
        images: list[dict[str, Tensor]] = [{}, {}, {}]
        for name, way in ways.items():
            places = before[:, None] + torch.cat([torch.zeros(64, 1, 2), action.cumsum(1)], 1) * way
            frames = squares(places)
            for kind, frame in zip(images, (frames[:, :1], frames[:, 0], frames[:, 1:]), strict=True):
                kind[name] = frame
        nothing, far = torch.zeros(64, 3, 0), 5 * torch.ones(64, 2)  # where the robot came from doesn't matter
        loss, _ = model(VideoBatch(*images, action, nothing, nothing[:, 0], far))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = model.motion(torch.eye(2)[None])[0].detach()  # (one action at a time, cameras, right and down)
    expected = torch.stack([torch.diag(way) for way in ways.values()], 1)
    torch.testing.assert_close(learned, expected, rtol=0, atol=0.03)


def squares(places_BT2: Tensor) -> Tensor:
    """(B, T, 3, 16, 16) uint8: a soft spot at (right, down) of the centre, in half image sizes."""
    grid = (torch.arange(16.0) + 0.5) / 8 - 1
    right, down = places_BT2[..., 0, None, None], places_BT2[..., 1, None, None]
    spot = torch.exp(-((grid - right) ** 2 + (grid[:, None] - down) ** 2) / 0.06)
    return (255 * spot).to(torch.uint8)[:, :, None].expand(-1, -1, 3, -1, -1)
