"""One self-contained HTML page that shows what a run achieved. It loads nothing: send it, keep it, open it anywhere."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from wmpo.io.files import atomic_write
from wmpo.report import sections
from wmpo.report.media import Media
from wmpo.report.results import RunResult
from wmpo.report.words import headline


def write_report(result: RunResult, media: Media, out: Path) -> Path:
    """Write the page to `out` and return its path."""
    name = str(result.recipe.get("name", result.task))
    about = f"wmpo · {name} · task {result.task} · seed {result.seed}"
    body = [
        f"<h1>{escape(about)}</h1>",
        f'<p class="headline">{escape(headline(result))}</p>',
        sections.tiles(result),
        sections.success(result),
        sections.recorded(result),
        sections.pace(result),
        sections.events(result),
        sections.learning(result),
        sections.dreams(media),
        sections.behaviour(media),
        sections.agreement(result),
        sections.reward_model(result, media),
        sections.fidelity(result),
        sections.cost(result),
        sections.settings(result),
    ]
    page = resources.files("wmpo.report").joinpath("page.html").read_text(encoding="utf-8")
    atomic_write(out, Template(page).substitute(title=escape(about), body="\n".join(filter(None, body))))
    return Path(out)
