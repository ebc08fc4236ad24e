"""Initial states by number: which number belongs to which split.

Equal numbers mean equal initial states, so splits that share no number share no initial state. A number
has 32 bits, which every simulator accepts as a seed:

    3 bits split | 5 bits round | 8 bits seed | 16 bits index

Numbers of one call are consecutive.
"""

from __future__ import annotations

from wmpo.errors import UserError

SPLITS: tuple[str, ...] = ("demonstrate", "collect", "practise", "evaluate", "watch")
"""Demonstrations; real rollouts of the policy; frames to imagine from; real evaluation; a look while practising."""

ROUND_BITS = 5
SEED_BITS = 8
INDEX_BITS = 16


def initial_states(split: str, seed: int, n: int, round: int = 0) -> list[int]:
    """The first n initial-state numbers of a split, in [0, 2^32).

    Different splits, rounds and seeds never share a number. Asking for more numbers keeps the earlier ones.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
    check_numbers(seed, n, round, f"split '{split}'")
    first = SPLITS.index(split)
    first = (first << ROUND_BITS) + round
    first = (first << SEED_BITS) + seed
    first <<= INDEX_BITS
    return list(range(first, first + n))


def check_numbers(seed: int, n: int, round: int, what: str) -> None:
    """Raise UserError where `seed`, `n` initial states or `round` don't fit into the numbers; `what` asks for them."""
    if not 0 <= seed < 1 << SEED_BITS:
        raise UserError(f"Seed {seed} has no initial states of its own: choose one from 0 to {(1 << SEED_BITS) - 1}.")
    if not 0 <= n <= 1 << INDEX_BITS:
        raise UserError(f"{n} initial states asked of {what}: choose between 0 and {1 << INDEX_BITS}.")
    if not 0 <= round < 1 << ROUND_BITS:
        raise UserError(f"Round {round} has no initial states: rounds go from 0 to {(1 << ROUND_BITS) - 1}.")


def split_of(initial_state: int) -> str:
    """The split that an initial-state number belongs to, "other" for numbers that `initial_states` never gives."""
    code = initial_state >> (ROUND_BITS + SEED_BITS + INDEX_BITS)
    return SPLITS[code] if 0 <= code < len(SPLITS) else "other"
