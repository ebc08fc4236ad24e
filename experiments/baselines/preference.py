"""DPO on stored episodes: make what led to success likelier than what did not, without playing any more.

A policy's decisions are read back from the actions that an episode holds, so that any stored rollout will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from experiments.baselines.dpo import masked_sum, preference_loss
from wmpo.batches import to_device
from wmpo.data.cache import FrameCache
from wmpo.data.records import EpisodeRecord
from wmpo.errors import UserError
from wmpo.protocols import ChoosesTokens, Policy
from wmpo.types import Observation

ROWS = 512  # decisions per forward pass where no gradient is kept


@dataclass(frozen=True)
class Decisions:
    """All R decisions of N episodes that count, each with where it belongs."""

    observation: Observation  # R frames
    trace: Tensor  # (R, K, D) tokens
    index: Tensor  # (R, 2) episode and chunk
    mask: Tensor  # (N, M, K) bool, actions up to the first success


@dataclass(frozen=True)
class PairBatch:
    """B pairs: episodes 0 to B-1 are chosen, B to 2B-1 rejected, in the same order."""

    decisions: Decisions  # of 2B episodes
    reference: Tensor  # (2B,) log-probabilities under the frozen reference


def tokens_of(policy: Policy, actions_RKD: Tensor) -> Tensor:
    """(R, K, D) tokens that `policy` decodes to these actions. Raises UserError where there are none."""
    if not isinstance(policy, ChoosesTokens) or not policy.bins:
        raise UserError("DPO needs a policy that chooses tokens: stored episodes do not hold how another kind chose.")
    device = next(policy.parameters()).device
    bins = torch.arange(policy.bins, device=device)
    decoded = policy.decode_actions(bins[:, None, None].expand(-1, 1, actions_RKD.shape[-1]))  # (bins, 1, D)
    distance = (actions_RKD.to(device)[..., None] - decoded[:, 0].T).abs()  # (R, K, D, bins)
    nearest, tokens = distance.min(-1)
    if nearest.numel() and float(nearest.max()) > 1e-4:
        raise UserError("These episodes hold actions that the policy can't choose: use rollouts of the policy itself.")
    return tokens


class Rollouts:
    """What a policy decided in stored episodes of its own."""

    def __init__(self, cache: FrameCache, policy: Policy) -> None:
        self.cache, self.policy = cache, policy

    def decisions(self, episodes: Sequence[int]) -> Decisions:
        cache, K = self.cache, self.policy.chunk
        chosen = np.asarray(episodes, dtype=np.int64)
        finish = np.array([self._finish(episode) for episode in chosen])
        chunks = -(-int(finish.max()) // K)
        mask = np.arange(chunks * K).reshape(1, chunks, K) < finish[:, None, None]
        index = np.argwhere(mask.any(-1))
        frames = cache.first[chosen][index[:, 0]] + index[:, 1] * K
        last = (cache.first[chosen] + cache.length[chosen] - 1)[index[:, 0]]  # of an episode that ended inside a chunk
        steps = np.minimum(frames[:, None] + np.arange(K), last[:, None])
        trace = tokens_of(self.policy, torch.from_numpy(np.take(cache.action, steps, axis=0))).cpu()
        return Decisions(cache.observation(frames), trace, torch.from_numpy(index), torch.from_numpy(mask))

    def _finish(self, episode: int) -> int:
        """How many of an episode's actions count: those up to its first success."""
        begin, length = self.cache.first[episode], self.cache.length[episode]
        success = self.cache.success[begin : begin + length + 1]
        return int(success.argmax()) if success.any() else int(length)


def log_probability(policy: Policy, decisions: Decisions, temperature: float, rows: int | None = None) -> Tensor:
    """(N,) log-probability of the decisions of each episode; `rows` at a time, where memory is short."""
    count = len(decisions.trace)
    parts = [range(begin, min(begin + (rows or count), count)) for begin in range(0, count, rows or count)]
    units = torch.cat([
        policy.log_prob(decisions.observation[part], decisions.trace[part.start : part.stop], temperature=temperature)
        for part in parts
    ])  # fmt: skip
    full = units.new_zeros((*decisions.mask.shape, units.shape[-1]))  # (N, M, K, U)
    return masked_sum(full.index_put(tuple(decisions.index.T), units), decisions.mask)


def rivals(records: Sequence[EpisodeRecord], across_states: bool = False) -> dict[int, list[int]]:
    """Successful episode -> the failed ones from its initial state, to prefer it to; those without any are left out.

    DPO's derivation holds for such pairs alone, since the chance of an initial state cancels in them. `across_states`
    pairs a success without rivals with all failures.
    """
    failures: dict[int, list[int]] = {}
    for record in records:
        if not record.succeeded and record.initial_state >= 0:  # below 0 it is unknown
            failures.setdefault(record.initial_state, []).append(record.index)
    everyone = [record.index for record in records if not record.succeeded] if across_states else []
    found = {record.index: failures.get(record.initial_state, everyone) for record in records if record.succeeded}
    return {winner: losers for winner, losers in found.items() if losers}


class PreferencePairs:
    """Batches of pairs, by (seed, step) alone. The reference is the policy as it is when this is made."""

    def __init__(
        self, cache: FrameCache, policy: Policy, rivals: dict[int, list[int]], temperature: float, device: torch.device
    ) -> None:
        self.rollouts = Rollouts(cache, policy)
        self.winners, self.rivals = list(rivals), rivals
        used = sorted({*rivals, *(loser for losers in rivals.values() for loser in losers)})
        self.reference: dict[int, float] = {}
        with torch.no_grad():
            for begin in range(0, len(used), 64):
                some = used[begin : begin + 64]
                decisions = to_device(self.rollouts.decisions(some), device)
                total = log_probability(policy, decisions, temperature, ROWS)
                self.reference |= dict(zip(some, total.tolist(), strict=True))

    def sample(self, batch_size: int, seed: int, step: int) -> PairBatch:
        dice = np.random.default_rng([seed, step])
        chosen = [self.winners[i] for i in dice.integers(len(self.winners), size=batch_size)]
        rejected = [int(dice.choice(self.rivals[winner])) for winner in chosen]
        episodes = chosen + rejected
        reference = torch.tensor([self.reference[episode] for episode in episodes])
        return PairBatch(self.rollouts.decisions(episodes), reference)


class Preference(nn.Module):
    """The policy with the preference loss as its `forward`, for `fit`."""

    def __init__(self, policy: Policy, beta: float, temperature: float) -> None:
        super().__init__()
        self.policy, self.beta, self.temperature = policy, beta, temperature

    def forward(self, batch: PairBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        total = log_probability(self.policy, batch.decisions, self.temperature)
        chosen, rejected = total.chunk(2)
        reference_chosen, reference_rejected = batch.reference.chunk(2)
        return preference_loss(chosen, rejected, reference_chosen, reference_rejected, self.beta)
