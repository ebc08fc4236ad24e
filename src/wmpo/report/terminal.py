"""The result of a run as a table in the terminal."""

from __future__ import annotations

from rich.table import Table

from wmpo.report.words import number, points, policy_name, span
from wmpo.results import RunResult


def terminal_table(result: RunResult) -> Table:
    """Real success of every policy; print it with rich."""
    summary = result.summary()
    table = Table(title=f"Real success: {result.task}, seed {result.seed}", title_justify="left")
    table.add_column("policy")
    for column in ("success", "95 % interval", "gain in points", "steps to success"):
        table.add_column(column, justify="right")
    for name, policy in result.policies.items():
        rate, gain = summary.rates[name], summary.gains.get(name)
        table.add_row(
            policy_name(name),
            f"{100 * rate.value:.1f} % of {len(policy.starts)}",
            f"{span(rate)} %",
            points(gain.difference) if gain else "–",
            number(policy.steps_to_success),
        )
    return table
