"""The real pictures from which practice begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo.batches import cat
from wmpo.data.cache import FrameCache
from wmpo.data.records import initial_states_of
from wmpo.run import Purpose, Run, once
from wmpo.types import Observation


@once
def fresh_first_frames(run: Run, n: int, turn: int) -> tuple[list[int], Observation]:
    """(initial-state numbers, what the real environment shows there) of n states; nothing is done there."""
    numbers, size = run.initial_states("practise", n, turn), run.env.spec.max_batch
    return numbers, cat([run.env.reset(numbers[begin : begin + size]) for begin in range(0, n, size)])


def stored_first_frames(cache: FrameCache, episodes: Sequence[int]) -> tuple[list[int], Observation]:
    """(initial-state numbers, first frames) of some stored episodes, one for each different initial state."""
    records, every = cache.store.records(), initial_states_of(cache.store.records())
    index_of = {every[i]: records[i].index for i in reversed(episodes)}
    rows = cache.first[list(index_of.values())]
    return list(index_of), cache.observation(rows)


def keyframes(run: Run, n: int, episodes: Sequence[int], turn: int) -> Observation:
    """Real frames from the middle of stored episodes, before any success; the first one where there is none."""
    cache = FrameCache(run.store)
    rng = np.random.default_rng(run.seed(Purpose.KEYFRAMES, turn))
    rows = []
    for episode in rng.choice(episodes, n):
        frames = cache.first[episode] + np.arange(1, cache.length[episode])
        quiet = frames[~cache.success[frames]]
        rows.append(rng.choice(quiet) if len(quiet) else cache.first[episode])
    return cache.observation(np.array(rows))
