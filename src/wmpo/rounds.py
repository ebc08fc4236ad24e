"""Several rounds: which policy a round begins with, and when practice ends before the last one."""

from __future__ import annotations

from wmpo.policies import load_policy
from wmpo.protocols import Policy
from wmpo.report.results import BASE
from wmpo.report.statistics import fisher_exact
from wmpo.run import Run


def fell(run: Run, turn: int) -> bool:
    """Whether the rollouts of a round succeed less often than those of the round before, beyond chance (5 %, one
    side): what the round before has made of the policy is then worse than what it began with."""
    table = []
    for source in (f"round-{turn - 1}", f"round-{turn}"):
        succeeded = [record.succeeded for record in run.store.records() if record.source == source]
        table.append([sum(succeeded), len(succeeded) - sum(succeeded)])
    p_value = fisher_exact(table)
    if p_value < 0.05:
        rates = [f"{hits / (hits + misses):.1%}" for hits, misses in table]
        run.log.info(f"Rollouts of round {turn} succeed in {rates[1]}, those before in {rates[0]}: practice did harm")
    return p_value < 0.05


def begin_round(run: Run, policy: Policy, turn: int) -> Policy:
    """What a round makes better: the policy of the round before, or the base again."""
    again = turn > 1 and run.recipe.rounds_from_base
    return load_policy(run.folder / "policies" / BASE).to(run.device) if again else policy


def policy_before(run: Run, turn: int) -> Policy:
    """The policy that practice began with in the round before."""
    return load_policy(run.folder / "policies" / (f"wmpo-{turn - 2}" if turn > 2 else BASE)).to(run.device)
