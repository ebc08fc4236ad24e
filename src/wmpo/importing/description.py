"""What a source holds, in lines for a person: found, usable as, missing, and what would silently go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from wmpo.data.in_place import SUFFIX
from wmpo.data.records import is_unlabelled
from wmpo.importing.source import Facts, Source
from wmpo.importing.success import candidates

GB = 1e9
SLOW = 15  # frames a second from which on a chunk of a few actions is over before anything happens
SMALL = 160 * 160  # pixels that a world model from scratch learns on a CPU or a small GPU
SENTENCES = 5  # that are listed


def describe(source: Source) -> list[str]:
    """Reads all numbers once, and the heads of videos. Raises UserError where something is damaged."""
    facts = source.facts
    source.check([*facts.cameras])
    frames = [about.frames for about in facts.episodes]
    seconds = np.array(frames) / facts.fps
    lines = [
        f"{source.path}: {facts.format}",
        f"episodes  {len(frames)} of {sum(frames)} frames at {facts.fps:g} a second: {seconds.min():.1f} to "
        f"{seconds.max():.1f} s, {np.median(seconds):.1f} s in the middle",
        *(f"camera    {name}: {size[0]}x{size[1]} (height x width)" for name, size in facts.cameras.items()),
        *_videos(source),
        *_columns(source),
        *_sentences(facts),
    ]
    return lines + [f"note      {note}" for note in facts.notes]


def advice(facts: Facts) -> list[str]:
    """What it will be used as, and what to choose so that learning isn't silently bad."""
    column = facts.success
    unknown = not column or all(is_unlabelled(about.meta) for about in facts.episodes)
    lines = ["used as   demonstrations to imitate and video for a world model; rollouts, with --rollouts-of NAME"]
    if unknown:
        names = ", ".join(candidates(facts)) or "none of single numbers"
        lines += [
            "missing   which frames show success: without that there is no reward model, hence no practice. "
            f"--success COLUMN ({names}), --success FILE.csv, --success all or none say it; so does "
            "`wmpo data label` later."
        ]
    else:
        lines += [f"success   by the column {column}: reward models, too"]
    if not facts.action:
        lines += ["missing   the usual action: name its columns by --action"]
    if not facts.state:
        lines += ["missing   the usual state: policies will see pictures alone, unless --state names columns"]
    if len({about.initial_state for about in facts.episodes}) == 1:
        lines += ["missing   numbers of initial states: each episode counts as one of its own"]
    lines += [f"advice    {line}" for line in sizes(facts)]
    return lines


def sizes(facts: Facts) -> Iterator[str]:
    """Advice about rate and size of the pictures."""
    if facts.fps > SLOW:
        fps = round(facts.fps)
        slower = max((fps // n for n in range(1, fps + 1) if fps % n == 0 and fps // n <= 10), default=fps)
        yield (
            f"4 frames, as a clip of the reward model or a chunk of actions has by default, last {4 / facts.fps:.2f} "
            f"s: --fps {slower} makes that {4 / slower:.2f} s"
        )
    frames = sum(about.frames for about in facts.episodes)
    pixels = sum(height * width for height, width in facts.cameras.values())
    if pixels > SMALL:
        big = max(facts.cameras.values())
        small = [max(8, round(side * (SMALL**0.5 / max(big)) / 8) * 8) for side in big]
        yield (
            f"decoded frames will take {3 * frames * pixels / GB:.1f} GB of disk as they are: "
            f"--image-size {small[0]} {small[1]} and --fps divide that; --codec lossy makes the videos smaller"
        )


def _videos(source: Source) -> Iterator[str]:
    """What an import reads in place, or has read so already."""
    if source.facts.fps % 1:  # a store counts in whole frames a second
        return
    shown = (source.film(n, camera) for camera in source.facts.cameras for n in range(len(source.facts.episodes)))
    files = {film[0] for film in shown if film and film[0].suffix.lower() == SUFFIX}
    for own in (True, False):
        some = [path for path in files if path.is_relative_to(source.path.resolve()) is own]
        size = f"videos    {sum(path.stat().st_size for path in some) / 1e6:.1f} MB"
        if some and own:
            yield (
                f"{size}: an import reads them in place, unless --image-size, --fps or --codec lossy makes others of "
                "them; --copy copies them"
            )
        elif some:
            yield f"{size} that are read in place, such as {min(some)}"


def _columns(source: Source) -> Iterator[str]:
    """Each column with the range of its numbers."""
    facts = source.facts
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for episode in range(len(facts.episodes)):
        for name, rows in source.columns(episode, list(facts.columns)).items():
            low[name] = np.minimum(low.get(name, rows.min(0)), rows.min(0))
            high[name] = np.maximum(high.get(name, rows.max(0)), rows.max(0))
    roles = dict.fromkeys(facts.action, "action") | dict.fromkeys(facts.state, "state")
    for name, column in facts.columns.items():
        names = column.names or tuple(map(str, range(column.size)))
        ranges = [f"{n} {a:.3g}..{b:.3g}" for n, a, b in zip(names, low[name], high[name], strict=True)]
        shown = ", ".join(ranges[:16]) + (", ..." if len(ranges) > 16 else "")
        units = _units(low[name], high[name]) if name in roles else ""
        yield f"{roles.get(name, 'column'):9} {name}, {column.size}: {shown}{units}"


def _units(low: np.ndarray, high: np.ndarray) -> str:
    """A guess."""
    widest = float(np.abs([low, high]).max())
    if widest > 7:
        return " (degrees or percent, it seems)"
    return " (radians or metres, it seems)" if widest > 1.01 else " (within 1)"


def _sentences(facts: Facts) -> Iterator[str]:
    counts = Counter(about.instruction for about in facts.episodes)
    for sentence, count in counts.most_common(SENTENCES):
        yield f"sentence  {sentence[:200]!r}: {count} episode{'s' * (count != 1)}"
    if len(counts) > SENTENCES:
        yield f"sentence  ... and {len(counts) - SENTENCES} more"
