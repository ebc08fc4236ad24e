"""The result of a run as a table in the terminal."""

from __future__ import annotations

from rich.table import Table

from wmpo.report.results import RunResult
from wmpo.report.words import number, points, policy_name, span


def terminal_table(result: RunResult) -> Table:
    """Real success of every policy, and below it of each task where there are several; print it with rich."""
    table = Table(title=f"Real success: {result.task}, seed {result.seed}", title_justify="left")
    table.add_column("policy")
    for column in ("success", "95 % interval", "gain in points", "steps to success"):
        table.add_column(column, justify="right")
    _add_rows(table, result)
    for task in result.tasks:
        table.add_section()
        table.add_row(f"[bold]{task}[/]")
        _add_rows(table, result.of_task(task))
    return table


def _add_rows(table: Table, result: RunResult) -> None:
    gains = result.summary().gains
    for name, policy in result.policies.items():
        rate, gain = policy.rate, gains.get(name)
        table.add_row(
            policy_name(name),
            f"{100 * rate.value:.1f} % of {len(policy.initial_states)}",
            f"{span(rate)} %",
            points(gain.difference) if gain else "–",
            number(policy.steps_to_success),
        )
