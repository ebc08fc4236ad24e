import math

import pytest
import torch

from wmpo.losses.grpo import clipped_policy_loss, group_advantage, informative, kl_penalty, shuffle_within_groups


def test_advantage_of_hand_computed_groups():
    reward = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
    # Sample std of [1, 0, 0, 0]: mean 1/4, squares 9/16 + 3/16 = 3/4, over 3 = 1/4, root 1/2.
    grpo = group_advantage(reward, eps=0)
    torch.testing.assert_close(grpo[0], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    # [1, 1, 0, 0]: squares 4 * 1/4 over 3 = 1/3; 0.5 / sqrt(1/3) = sqrt(3) / 2.
    torch.testing.assert_close(grpo[1], math.sqrt(3) / 2 * torch.tensor([1.0, 1.0, -1.0, -1.0]))
    dr_grpo = group_advantage(reward, kind="dr_grpo")
    torch.testing.assert_close(dr_grpo[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    rloo = group_advantage(reward, kind="rloo")
    torch.testing.assert_close(rloo[0], torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(rloo[1], torch.tensor([2 / 3, 2 / 3, -2 / 3, -2 / 3]))


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("reward", [torch.full((2, 7), 0.1), torch.ones(3, 8), torch.zeros(3, 1)])
def test_equal_groups_have_exactly_no_advantage(kind, reward):
    assert (group_advantage(reward, kind) == 0).all()


def test_advantage_does_not_mix_groups():
    reward = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_advantage(reward)[1], group_advantage(reward[1]))


def one_step(ratio, advantage):
    """Loss, gradient with respect to the log-probability, and metrics of a single token."""
    log_prob = torch.tensor(math.log(ratio)).reshape(1, 1, 1, 1).requires_grad_()
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(log_prob, torch.zeros(1, 1, 1, 1), torch.tensor([advantage]), mask)
    loss.backward()
    assert log_prob.grad is not None
    return loss.item(), log_prob.grad.item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # inside 1 + 0.28
        (1.5, 2.0, -2.56, 0.0),  # clipped above
        (0.5, 2.0, -1.0, -1.0),  # a good action made unlikely is pulled back without limit
        (0.85, -2.0, 1.7, 1.7),  # inside 1 - 0.20
        (0.5, -2.0, 1.6, 0.0),  # clipped below
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_surrogate_by_hand(ratio, advantage, loss, gradient):
    got_loss, got_gradient, metrics = one_step(ratio, advantage)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    assert got_gradient == pytest.approx(gradient, rel=1e-5)
    assert metrics["clip_fraction"] == (gradient == 0)
    assert metrics["ratio_mean"] == pytest.approx(ratio, rel=1e-5)
    assert metrics["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)


def test_masking_and_denominators_by_hand():
    # Two episodes of 2 chunks x 2 actions x 1 unit. Episode 0 finishes after 3 actions, episode 1 after 1.
    ratio = torch.tensor([[[1.1, 1.2], [0.9, 7.0]], [[1.1, 9.0], [9.0, 9.0]]])[..., None]
    mask = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]], dtype=torch.bool)
    advantage = torch.tensor([1.0, -2.0])
    old = torch.randn(2, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    log_prob = ratio.log() + old
    log_prob[~mask] = torch.nan  # what lies beyond the finish step must not matter
    loss, metrics = clipped_policy_loss(log_prob, old, advantage, mask, ratio="token")
    episode_0 = -(1.1 + 1.2 + 0.9) / 3
    episode_1 = 2 * 1.1
    assert loss.item() == pytest.approx((episode_0 + episode_1) / 2, rel=1e-5)
    assert metrics["ratio_mean"] == pytest.approx((1.1 + 1.2 + 0.9 + 1.1) / 4, rel=1e-5)

    # Chunks: 1.1 * 1.2 = 1.32 is clipped to 1.28; 0.9 alone; 1.1 alone; one chunk has no action left.
    loss, metrics = clipped_policy_loss(log_prob, old, advantage, mask, ratio="chunk")
    assert loss.item() == pytest.approx((-(1.28 + 0.9) / 2 + 2 * 1.1) / 2, rel=1e-5)
    assert metrics["clip_fraction"] == pytest.approx(1 / 3)
    assert metrics["ratio_mean"] == pytest.approx((1.32 + 0.9 + 1.1) / 3, rel=1e-5)


def test_one_length_for_all_by_hand():
    # Two episodes of 3 actions; the second one counts only its first. Divided by 3 both, not by 3 and 1.
    ratio = torch.tensor([[[1.1, 1.2, 0.9]], [[1.1, 9.0, 9.0]]])[..., None]
    mask = torch.tensor([[[1, 1, 1]], [[1, 0, 0]]], dtype=torch.bool)
    arguments = (ratio.log(), torch.zeros_like(ratio), torch.tensor([1.0, -2.0]), mask)
    loss, _ = clipped_policy_loss(*arguments, per_episode=False)
    assert loss.item() == pytest.approx((-3.2 / 3 + 2.2 / 3) / 2, rel=1e-5)
    own, _ = clipped_policy_loss(*arguments)
    assert own.item() == pytest.approx((-3.2 / 3 + 2.2) / 2, rel=1e-5)


def test_empty_episode_adds_nothing_but_counts():
    log_prob = torch.zeros(2, 1, 1, 1, requires_grad=True)
    mask = torch.tensor([True, False]).reshape(2, 1, 1)
    loss, _ = clipped_policy_loss(log_prob, torch.zeros(2, 1, 1, 1), torch.tensor([3.0, 5.0]), mask)
    assert loss.item() == pytest.approx(-1.5)
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad[1].item() == 0


def test_empty_batch_is_no_loss():
    empty = torch.zeros(0, 2, 3, 4, requires_grad=True)
    loss, metrics = clipped_policy_loss(empty, empty, group_advantage(torch.zeros(0, 8)).flatten(), empty[..., 0] > 0)
    loss.backward()
    assert loss.item() == 0
    assert metrics == {"clip_fraction": 0, "approx_kl": 0, "ratio_mean": 0}


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_parts_of_a_batch_add_up(ratio):
    generator = torch.Generator().manual_seed(0)
    log_prob, old = 0.3 * torch.randn(2, 6, 3, 2, 4, generator=generator)
    mask = torch.rand(6, 3, 2, generator=generator) < 0.7
    advantage = torch.randn(6, generator=generator)
    whole, _ = clipped_policy_loss(log_prob, old, advantage, mask, ratio=ratio)
    parts = [
        clipped_policy_loss(log_prob[rows], old[rows], advantage[rows], mask[rows], ratio=ratio)[0] * count / 6
        for rows, count in ((slice(0, 2), 2), (slice(2, 6), 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_gradient_at_the_old_policy_is_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    log_prob = torch.randn(4, 2, 3, 2, generator=generator, requires_grad=True)
    advantage = torch.randn(4, generator=generator)
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(log_prob, log_prob, advantage, mask)
    loss.backward()
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad, -advantage.reshape(4, 1, 1, 1).expand(4, 2, 3, 2) / (4 * 12))
    assert metrics == {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_mean": 1.0}


def test_kl_penalty_by_hand():
    """Two episodes of one chunk of two actions; the second action of the first episode doesn't count."""
    log_prob = torch.zeros(2, 1, 2, 1, requires_grad=True)
    reference = torch.tensor([[0.5, -math.inf], [-1.0, 0.0]]).reshape(2, 1, 2, 1)
    mask = torch.tensor([[True, False], [True, True]]).reshape(2, 1, 2)
    penalty = kl_penalty(log_prob, reference, mask)
    first, second = math.exp(0.5) - 1.5, (math.exp(-1) + 0) / 2
    assert penalty.item() == pytest.approx((first + second) / 2)
    penalty.backward()
    # 1 - r, over the units of the episode and over the episodes.
    known = torch.tensor([[1 - math.exp(0.5), 0], [(1 - math.exp(-1)) / 2, 0]]).reshape(2, 1, 2, 1) / 2
    torch.testing.assert_close(log_prob.grad, known)


def test_kl_penalty_is_the_divergence_on_the_policys_own_choices():
    policy, reference = (torch.randn(5, generator=torch.Generator().manual_seed(n)).log_softmax(0) for n in (0, 1))
    known = (policy.exp() * (policy - reference)).sum()
    drawn = policy.exp().multinomial(200_000, replacement=True, generator=torch.Generator().manual_seed(2))
    shape, mask = (len(drawn), 1, 1, 1), torch.ones(len(drawn), 1, 1, dtype=torch.bool)
    penalty = kl_penalty(policy[drawn].reshape(shape), reference[drawn].reshape(shape), mask)
    torch.testing.assert_close(penalty, known, rtol=0.03, atol=0)


def test_kl_penalty_is_never_negative_and_nothing_where_nothing_differs():
    log_prob, reference = torch.randn(2, 6, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(6, 3, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0] = False  # an episode without a choice that counts adds nothing
    assert kl_penalty(log_prob, reference, mask) > 0 == kl_penalty(log_prob, log_prob, mask)
    torch.testing.assert_close(kl_penalty(log_prob, reference, mask) * 6 / 5,
                               kl_penalty(log_prob[1:], reference[1:], mask[1:]))  # fmt: skip
    assert kl_penalty(log_prob[:0], reference[:0], mask[:0]) == 0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        clipped_policy_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2), torch.ones(2, 3, 4))


def test_informative_groups():
    count = torch.tensor([0, 1, 2, 9, 10])
    reward = (torch.arange(10) < count[:, None]).float()
    assert informative(reward, 0.1, 0.9).tolist() == [False, True, True, True, False]
    assert informative(reward, 0.15, 0.85).tolist() == [False, False, True, False, False]
    assert informative(reward, 0.0, 1.0).tolist() == [False, True, True, True, False]
    assert not informative(torch.full((1, 4), 0.5)).any()


def test_shuffling_keeps_groups_and_is_uniform():
    reward = torch.arange(4).expand(6000, 4) + 10 * torch.arange(6000)[:, None]
    shuffled = shuffle_within_groups(reward, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort(-1).values, reward)
    share = ((shuffled[:, :, None] % 10) == torch.arange(4)).float().mean(0)  # place x value
    assert (share - 0.25).abs().max() < 0.03
    again = shuffle_within_groups(reward, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled, again)
