"""Direct preference optimisation of whole episodes (DPO, arXiv 2305.18290, eq. 7), against a frozen reference.

Shapes: N pairs of a chosen and a rejected episode of M chunks of K actions of U units (see `wmpo.types`).

How likely an episode is, is a product over its decisions and over what the environment answered. The environment's
part is the same under policy and reference, so it cancels, and what is left are the log-probabilities of the decisions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_sum(log_prob_NMKU: Tensor, mask_NMK: Tensor) -> Tensor:
    """(N,) log-probability of each episode's decisions up to its finish step; what lies beyond may hold anything."""
    if log_prob_NMKU.shape[:-1] != mask_NMK.shape:
        raise ValueError(
            f"log_prob {tuple(log_prob_NMKU.shape)} and mask {tuple(mask_NMK.shape)} do not fit: "
            "expected (N, M, K, U) and (N, M, K)"
        )
    # where, not a product: NaN times 0 is NaN.
    kept = torch.where(mask_NMK.bool()[..., None], log_prob_NMKU.float(), torch.zeros((), device=log_prob_NMKU.device))
    return kept.flatten(1).sum(1)


def preference_loss(
    chosen_N: Tensor, rejected_N: Tensor, reference_chosen_N: Tensor, reference_rejected_N: Tensor, beta: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The DPO loss of N pairs of episode log-probabilities, to be minimised.

    margin = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))
    loss   = mean of -log sigmoid(beta margin)

    beta weighs how far the policy may move from the reference: the smaller, the farther.

    Metrics:
    preferred  share in [0, 1] of the pairs with a margin above 0; of a policy that equals its reference 0.
    margin     mean margin, in nats.
    drift      mean of log pi(chosen) - log ref(chosen), in nats: DPO may make what was chosen less likely too.
    """
    drift_N = chosen_N - reference_chosen_N.detach()
    margin_N = drift_N - (rejected_N - reference_rejected_N.detach())
    loss = -F.logsigmoid(beta * margin_N).mean()
    metrics = {
        "preferred": (margin_N > 0).float().mean(),
        "margin": margin_N.mean(),
        "drift": drift_N.mean(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
