"""What `wmpo serve --convention libero` makes of vla-eval's LIBERO, tried without it on observations in its layout."""

from __future__ import annotations

import numpy as np
import pytest

from wmpo.envs.libero.settings import STATE_DIM
from wmpo.errors import UserError
from wmpo.serving import libero


def test_a_picture_is_upright_and_not_mirrored() -> None:
    """A red thing on the left, a blue one above: OpenGL's first row is the lowest, and vla-eval turns that by 180°."""
    upright = np.zeros((6, 8, 3), np.uint8)
    upright[3:, 0] = (255, 0, 0)
    upright[0, 3:] = (0, 0, 255)
    drawn = upright[::-1]
    theirs = np.ascontiguousarray(drawn[::-1, ::-1])
    assert np.array_equal(libero.picture(theirs), upright)


@pytest.mark.parametrize("sign", [1, -1], ids=["w above 0", "w below 0"])
def test_a_state_has_our_order_and_our_sign(sign: int) -> None:
    """The hand points down, turned a little less or more than half a turn, where theirs flips its axis."""
    quaternion = np.array([0.98, 0.15, -0.1, sign * 0.08])
    quaternion /= np.linalg.norm(quaternion)
    x, y, z, w = quaternion * sign  # theirs makes w positive first
    turn = np.array([x, y, z]) / np.sqrt(1 - w * w) * 2 * np.arccos(w)
    ours = libero.state(np.concatenate([[-0.2, 0.01, 1.18], turn, [0.039, -0.038]]))
    assert ours.shape == (STATE_DIM,) and ours.dtype == np.float32
    assert np.allclose(ours, [-0.2, 0.01, 1.18, *quaternion, 0.039, -0.038], atol=1e-6)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_state_of_another_benchmark_is_one_sentence(size: int) -> None:
    with pytest.raises(UserError, match=f"8 numbers, not {size}"):
        libero.state(np.zeros(size))


def test_an_action_lasts_for_four_steps_of_their_controller() -> None:
    chunk = np.arange(21, dtype=np.float32).reshape(3, 7)
    sent = libero.actions(chunk)
    assert sent.shape == (12, 7)
    assert all(np.array_equal(sent[step], chunk[step // 4]) for step in range(12))
