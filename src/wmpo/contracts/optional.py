"""Does an environment keep what it promises beyond the least?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wmpo.contracts.behaviour import CHUNK, complains, equal, row_of, some_actions
from wmpo.data.checks import check_episode
from wmpo.protocols import CountsEvents, Demonstrates, Env, NamesTasks, Restorable

OPTIONAL = {"demonstrate": Demonstrates, "get_state": Restorable, "tasks": NamesTasks, "events": CountsEvents}
LEAST = 3  # episodes at once: a robot, which plays fewer, is asked for the least only


def tried(env: Env) -> str:
    """Which optional methods `check_optional` tries, in words."""
    return ", ".join(
        f"{name}: {('tried' if env.spec.max_batch >= LEAST else 'not tried') if isinstance(env, kind) else 'absent'}"
        for name, kind in OPTIONAL.items()
    )


def check_optional(env: Env, initial_states: Sequence[int], seed: int) -> list[str]:
    """Complaints about the optional methods of an environment that keeps the rest of its contract."""
    if env.spec.max_batch < LEAST:
        return []
    complaints = _demonstrations(env, initial_states[0], seed) + _states(env, initial_states, seed)
    return complaints + _names(env, initial_states)


@complains
def _demonstrations(env: Env, initial_state: int, seed: int) -> list[str]:
    if not isinstance(env, Demonstrates):
        return []
    shown = list(env.demonstrate([initial_state], 0.2, seed, 0.5))
    if len(shown) != 1:
        return [f"demonstrate gives {len(shown)} episodes for one initial-state number."]
    check_episode(shown[0], env.spec, "The episode of demonstrate")
    if shown[0].initial_state != initial_state:
        return [f"demonstrate gives an episode of {shown[0].initial_state} for the initial state {initial_state}."]
    return []


@complains
def _states(env: Env, initial_states: Sequence[int], seed: int) -> list[str]:
    if not isinstance(env, Restorable):
        return []
    rows = list(range(len(initial_states)))
    actions = some_actions(env.spec, len(rows), 2 * CHUNK, torch.Generator().manual_seed(seed))
    seen = env.reset(initial_states)
    now = env.step(rows, actions[:, :CHUNK]).last(seen.instruction)
    saved = env.get_state(rows)
    later = env.step(rows, actions[:, CHUNK:])
    if not equal(now[rows[::-1]], env.reset_to(saved[::-1])):  # in other rows: nothing may depend on who plays on
        return ["An episode that is restored does not look as it did when get_state was called."]
    again = env.step(rows, actions.flip(0)[:, CHUNK:])
    if not all(equal(row_of(later, row), row_of(again, rows[-1] - row)) for row in rows):
        return ["After an episode is restored, the same actions lead to different frames, states or successes."]
    return []


@complains
def _names(env: Env, initial_states: Sequence[int]) -> list[str]:
    complaints = []
    if isinstance(env, NamesTasks):
        strange = {env.task_of(number) for number in initial_states} - set(env.tasks)
        complaints += [f"task_of names {name!r}, which is none of tasks." for name in sorted(strange)]
    if isinstance(env, CountsEvents):
        env.reset(initial_states)
        if len(env.events) != len(initial_states):
            complaints.append(f"events has {len(env.events)} entries for {len(initial_states)} episodes.")
    return complaints
