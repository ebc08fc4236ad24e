"""Group relative policy optimisation: advantages, the clipped loss, dynamic sampling.

Shapes: B groups of G rollouts; E = B*G episodes of M chunks of K actions of U units (see `wmpo.types`).

Departures from the textbook, all taken from the paper's setting: no KL penalty by default, no entropy bonus, asymmetric
clipping (DAPO, arXiv 2503.14476), nothing is learned from steps after the task counts as accomplished.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantage(reward_BG: Tensor, kind: Literal["grpo", "dr_grpo", "rloo"] = "grpo", eps: float = 1e-6) -> Tensor:
    """How much better each rollout did than the others of its group: (..., G) rewards -> (..., G), float.

    grpo     (R - mean) / (std + eps), the paper's. std is that of a sample (divided by G-1), as in the paper's code.
    dr_grpo  R - mean, without the division that favours groups of little spread (Dr. GRPO, arXiv 2503.20783).
    rloo     R - mean of the other G-1 rollouts (RLOO, arXiv 2402.14740).

    A group of equal rewards has no signal: its advantages are exactly 0.
    """
    reward_BG = reward_BG.float()
    centred_BG = reward_BG - reward_BG.mean(-1, keepdim=True)
    equal_B1 = reward_BG.amax(-1, keepdim=True) == reward_BG.amin(-1, keepdim=True)
    size = reward_BG.shape[-1]
    if kind == "grpo":
        # max(..., 1): a group of one is a group of equals, and must not divide by 0.
        std_B1 = (centred_BG.square().sum(-1, keepdim=True) / max(size - 1, 1)).sqrt()
        centred_BG = centred_BG / (std_B1 + eps)
    elif kind == "rloo":
        # R_i - mean_{j != i} R_j = (R_i - mean) G / (G-1)
        centred_BG = centred_BG * (size / max(size - 1, 1))
    elif kind != "dr_grpo":
        raise ValueError(f"kind must be grpo, dr_grpo or rloo, not {kind!r}")
    # Rounding in the mean would otherwise leave 1e-8 / eps.
    return torch.where(equal_B1, torch.zeros_like(centred_BG), centred_BG)


def clipped_policy_loss(
    log_prob_EMKU: Tensor,
    old_log_prob_EMKU: Tensor,
    advantage_E: Tensor,
    mask_EMK: Tensor,
    clip_low: float = 0.20,
    clip_high: float = 0.28,
    ratio: Literal["chunk", "token"] = "token",
    per_episode: bool = True,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate loss over E episodes, to be minimised.

    `mask_EMK` is True on the actions up to the finish step; what lies beyond is ignored, whatever it holds.

    ratio = token  r = pi(unit) / pi_old(unit) for every unit (the paper's code); J = M*K*U ratios per episode.
    ratio = chunk  r = pi(chunk) / pi_old(chunk), where the log-probability of a chunk is the sum over its unmasked
                   units (the paper's equation); J = M ratios per episode.

    loss = 1/E sum_e 1/n_e sum_{j unmasked} max(-A_e r_ej, -A_e clip(r_ej, 1 - clip_low, 1 + clip_high))

    with n_e the unmasked ratios of episode e: long episodes weigh as much as short ones. An episode without any
    contributes 0 but counts in E, so that a batch cut into parts gives parts that add up: weigh each by its E.
    per_episode = False divides by J in place of n_e, one constant for all: dividing by its own length would let a long
    failure get away with less per action than a short one (Dr. GRPO, arXiv 2503.20783).

    Metrics, over all unmasked ratios of the batch:
    clip_fraction  share in [0, 1] of ratios whose gradient the clipping cuts off.
    approx_kl      mean of (r - 1) - log r >= 0, in nats: an unbiased estimate of KL(pi_old || pi) per ratio.
    ratio_mean     mean of r; far from 1 means that the batch has gone stale.
    """
    if log_prob_EMKU.shape != old_log_prob_EMKU.shape or log_prob_EMKU.shape[:-1] != mask_EMK.shape:
        raise ValueError(
            f"log_prob {tuple(log_prob_EMKU.shape)}, old_log_prob {tuple(old_log_prob_EMKU.shape)} and "
            f"mask {tuple(mask_EMK.shape)} do not fit: expected (E, M, K, U) twice and (E, M, K)"
        )
    mask_EMK = mask_EMK.bool()
    difference_EMKU = log_prob_EMKU.float() - old_log_prob_EMKU.detach().float()
    # where, not a product: masked entries may hold anything, NaN included.
    difference_EMKU = torch.where(mask_EMK[..., None], difference_EMKU, torch.zeros_like(difference_EMKU))
    if ratio == "token":
        log_ratio_EJ = difference_EMKU.flatten(1)
        mask_EJ = mask_EMK[..., None].expand_as(difference_EMKU).flatten(1)
    elif ratio == "chunk":
        log_ratio_EJ = difference_EMKU.sum((-1, -2))
        mask_EJ = mask_EMK.any(-1)
    else:
        raise ValueError(f"ratio must be chunk or token, not {ratio!r}")

    ratio_EJ = log_ratio_EJ.exp()
    advantage_E1 = advantage_E.detach().float()[:, None]
    free_EJ = -advantage_E1 * ratio_EJ
    clipped_EJ = -advantage_E1 * ratio_EJ.clamp(1 - clip_low, 1 + clip_high)
    weight_EJ = mask_EJ.float()
    length_E = weight_EJ.sum(1).clamp(min=1) if per_episode else float(weight_EJ.shape[1])
    loss_E = (torch.maximum(free_EJ, clipped_EJ) * weight_EJ).sum(1) / length_E

    with torch.no_grad():
        count = weight_EJ.sum().clamp(min=1)
        metrics = {
            "clip_fraction": ((clipped_EJ > free_EJ) * weight_EJ).sum() / count,
            "approx_kl": ((ratio_EJ - 1 - log_ratio_EJ) * weight_EJ).sum() / count,
            "ratio_mean": (ratio_EJ * weight_EJ).sum() / count,
        }
    return loss_E.sum() / max(len(loss_E), 1), {name: value.item() for name, value in metrics.items()}


def kl_penalty(log_prob_EMKU: Tensor, reference_EMKU: Tensor, mask_EMK: Tensor) -> Tensor:
    """Mean over unmasked units of an estimate, never negative, of KL(policy || reference) (arXiv 2402.03300, eq. 4).

    r - log r - 1 with r = reference(unit) / policy(unit), on units that the policy, or a recent one, has chosen. Means
    are over the units of an episode, then over the E episodes, as in `clipped_policy_loss`.
    """
    mask_EMKU = mask_EMK.bool()[..., None].expand_as(log_prob_EMKU)
    log_ratio = torch.where(mask_EMKU, reference_EMKU.detach().float() - log_prob_EMKU.float(), 0.0)
    each_E = (log_ratio.exp() - log_ratio - 1).flatten(1).sum(1)
    return (each_E / mask_EMKU.flatten(1).sum(1).clamp(min=1)).sum() / max(len(each_E), 1)


def informative(reward_BG: Tensor, min_group_success: float = 0.1, max_group_success: float = 0.9) -> Tensor:
    """(B,) bool: the groups that dynamic sampling keeps. Their rewards are unequal, with a mean within these bounds.

    0 and 1 drop only the groups that all succeed or all fail (the paper); 0.1 and 0.9 are its code's.
    """
    reward_BG = reward_BG.double()
    mean_B = reward_BG.mean(-1)
    slack = 1e-9  # a mean of 0.1 counts as 0.1, however it was rounded
    unequal_B = reward_BG.amax(-1) > reward_BG.amin(-1)
    return (mean_B >= min_group_success - slack) & (mean_B <= max_group_success + slack) & unequal_B


def shuffle_within_groups(reward_BG: Tensor, generator: torch.Generator) -> Tensor:
    """(B, G): the rewards of each group in random order, so that they don't depend on the rollouts.

    The control for every claim of learning: means, spreads, and the number of informative groups stay the same.
    """
    noise_BG = torch.rand(reward_BG.shape, generator=generator, device=generator.device)
    return reward_BG.gather(-1, noise_BG.argsort(-1).to(reward_BG.device))
