"""What stands for the real environment where only its shape is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from wmpo.config import EnvConfig
from wmpo.errors import UserError
from wmpo.types import EnvSpec, Observation, Outcome


class Recorded:
    """The family of a run on recorded episodes alone. Nobody can build it: its episodes are all that is left of it."""

    @classmethod
    def build(cls, settings: EnvConfig, disruption: str = "none") -> NoReturn:
        raise UserError(
            "This needs a real environment, but there are only recorded episodes: name one by --env options, or use "
            "`wmpo run data`, which needs none."
        )


@dataclass
class Unreachable:
    """Fulfils `wmpo.protocols.Env`, as far as that goes."""

    spec: EnvSpec

    def reset(self, initial_states: Sequence[int]) -> Observation:
        raise UserError("This stage has no real environment.")

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        raise UserError("This stage has no real environment.")

    def close(self) -> None:
        """Nothing to close."""
