"""The preference loss against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.baselines.dpo import masked_sum, preference_loss


def test_episodes_end_where_their_mask_does() -> None:
    # Two episodes of 2 chunks x 2 actions x 2 units; the first counts three actions, the second one.
    log_prob = torch.tensor([
        [[[-1.0, -2.0], [-3.0, -4.0]], [[-5.0, -6.0], [math.nan, math.nan]]],
        [[[-0.5, -0.25], [math.nan, 7.0]], [[math.inf, 1.0], [2.0, 3.0]]],
    ])  # fmt: skip
    mask = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]], dtype=torch.bool)
    assert masked_sum(log_prob, mask).tolist() == [-21.0, -0.75]
    with pytest.raises(ValueError, match="do not fit"):
        masked_sum(log_prob, mask[:, :1])


def test_masked_entries_get_no_gradient() -> None:
    log_prob = torch.zeros(1, 1, 2, 1, requires_grad=True)
    masked_sum(log_prob, torch.tensor([[[True, False]]])).sum().backward()
    assert log_prob.grad is not None and log_prob.grad.flatten().tolist() == [1.0, 0.0]


def test_loss_by_hand() -> None:
    # Pair 0: moved +1 on the chosen and -2 on the rejected, margin 3. Pair 1: -1 and +1, margin -2.
    chosen, reference_chosen = torch.tensor([-9.0, -5.0]), torch.tensor([-10.0, -4.0])
    rejected, reference_rejected = torch.tensor([-8.0, -6.0]), torch.tensor([-6.0, -7.0])
    loss, metrics = preference_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
    by_hand = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.0))) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert metrics["preferred"].item() == 0.5
    assert metrics["margin"].item() == 0.5
    assert metrics["drift"].item() == 0.0


def test_reference_itself_loses_log_two_and_is_pulled_apart() -> None:
    chosen = torch.tensor([-3.0], requires_grad=True)
    rejected = torch.tensor([-4.0], requires_grad=True)
    loss, metrics = preference_loss(chosen, rejected, chosen, rejected, beta=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["preferred"].item() == 0
    # d/dx -log sigmoid(beta x) at 0 is -beta / 2; the reference gets none.
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-0.1)
    assert rejected.grad is not None and rejected.grad.item() == pytest.approx(0.1)


def test_only_the_sum_over_the_environment_free_part_matters() -> None:
    """What the environment adds to both policy and reference cancels."""
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    shift = torch.arange(5.0)
    plain, _ = preference_loss(*values)
    moved, _ = preference_loss(values[0] + shift, values[1] - shift, values[2] + shift, values[3] - shift)
    torch.testing.assert_close(plain, moved)
