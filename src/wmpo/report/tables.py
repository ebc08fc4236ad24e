"""One table, for every place that shows it: Markdown, a page or the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich import table as rich
from rich.text import Text

from wmpo.report.results import BASE, Imagined, RunResult
from wmpo.report.statistics import paired_difference, wilson_interval
from wmpo.report.words import number, points, policy_name, short_name, span


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Iterable[Sequence[str]]

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.head)} |", "|---" * len(self.head) + "|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])

    def html(self) -> str:
        cells = "".join(f"<th>{escape(text)}</th>" for text in self.head)
        body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in self.rows)
        return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'

    def terminal(self, title: str) -> rich.Table:
        """To be printed with rich."""
        made = rich.Table(title=Text(title), title_justify="left")
        for i, name in enumerate(self.head):
            made.add_column(Text(name), justify="right" if i else "left")
        for row in self.rows:
            made.add_row(*map(Text, row))  # as text: square brackets are no markup
        return made


def success_table(result: RunResult) -> Table:
    """Real success of every policy: over all initial states, then of each task where there are several."""
    head = ("policy", "success", "95 % interval", "gain in points", "won / lost", "steps")
    rows = success_rows(result)
    for task in result.tasks:
        rows += [[task, *[""] * (len(head) - 1)], *success_rows(result.of_task(task))]
    return Table(head, rows)


def success_rows(result: RunResult) -> list[list[str]]:
    rows = []
    gains = result.summary().gains
    for name, policy in result.policies.items():
        rate, gain = policy.rate, gains.get(name)
        rows.append([
            policy_name(name),
            f"{sum(policy.success)} of {len(policy.success)} ({100 * rate.value:.1f} %)",
            f"{span(rate)} %",
            points(gain.difference) if gain else "–",
            f"{gain.won} / {gain.lost}" if gain else "–",
            number(policy.median_steps),
        ])  # fmt: skip
    return rows


def imagined_table(result: RunResult) -> Table:
    """What became of each policy in the dream, of a run on recorded episodes alone."""
    head = ("policy", "imagined success", "95 % interval", "change in points", "KL to the first", "beyond the data")
    return Table(head, imagined_rows(result.recorded.imagined) if result.recorded else [])


def imagined_rows(policies: Mapping[str, Imagined]) -> list[list[str]]:
    rows, base = [], policies[BASE]
    for name, dreamt in policies.items():
        rate = wilson_interval(sum(dreamt.success), len(dreamt.success))
        rows.append([
            short_name(name),
            f"{sum(dreamt.success)} of {len(dreamt.success)} ({100 * rate.value:.1f} %)",
            f"{span(rate)} %",
            "–" if name == BASE else points(paired_difference(base.success, dreamt.success)),
            "–" if name == BASE else f"{dreamt.kl:.2f}",
            f"{sum(dreamt.beyond)} of {len(dreamt.beyond)}",
        ])  # fmt: skip
    return rows


def terminal_table(result: RunResult) -> rich.Table:
    if result.recorded:
        return imagined_table(result).terminal(f"Imagined success, from held-out first frames, seed {result.seed}")
    return success_table(result).terminal(f"Real success: {result.task}, seed {result.seed}")
