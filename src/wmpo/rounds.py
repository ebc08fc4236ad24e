"""Several rounds: which policy a round begins with, and when practice ends before the last one.

The rollouts that a round collects measure what the round before has made of the policy.
"""

from __future__ import annotations

from wmpo.policies import load_policy
from wmpo.protocols import Policy
from wmpo.report.results import BASE
from wmpo.report.statistics import fisher_exact
from wmpo.run import Run


def begin_round(run: Run, policy: Policy, turn: int) -> Policy:
    """What a round makes better: the policy of the round before, or the base again."""
    again = turn > 1 and run.recipe.rounds_from_base
    return load_policy(run.folder / "policies" / BASE).to(run.device) if again else policy


def ends(run: Run, turn: int) -> bool:
    """Whether practice is over once the rollouts of round `turn` are there: see `rounds_while`."""
    if run.recipe.rounds_while == "not_worse":
        return fell(run, turn)
    if over := not succeed_more(run, turn, turn - 1):
        tell(run, turn, "practice does no more good that can be told from chance")
    return over


def fell(run: Run, turn: int) -> bool:
    """Whether what the round before has made of the policy is worse, beyond chance, than what it began with."""
    if harm := succeed_more(run, turn - 1, turn):
        tell(run, turn, "practice did harm")
    return harm


def better_of_two(run: Run, policy: Policy, turn: int) -> Policy:
    """`policy`, which has played round `turn`, or the one before it where that one's rollouts succeeded more often."""
    return policy_before(run, turn) if success(run, turn - 1) > success(run, turn) else policy


def policy_before(run: Run, turn: int) -> Policy:
    """The policy that has played the round before `turn`."""
    return load_policy(run.folder / "policies" / (f"wmpo-{turn - 2}" if turn > 2 else BASE)).to(run.device)


def succeed_more(run: Run, turn: int, other: int) -> bool:
    """Whether the rollouts of one round succeed more often than those of another, beyond chance (5 %, one side)."""
    return fisher_exact([counts(run, turn), counts(run, other)]) < 0.05


def tell(run: Run, turn: int, why: str) -> None:
    now, before = success(run, turn), success(run, turn - 1)
    run.log.info(f"Rollouts of round {turn} succeed in {now:.1%}, those before in {before:.1%}: {why}")


def success(run: Run, turn: int) -> float:
    hits, misses = counts(run, turn)
    return hits / max(hits + misses, 1)


def counts(run: Run, turn: int) -> tuple[int, int]:
    """Of a round's rollouts, the successes and the failures."""
    succeeded = [record.succeeded for record in run.store.records() if record.source == f"round-{turn}"]
    return sum(succeeded), len(succeeded) - sum(succeeded)
