"""The files of one training: how it goes on after a stop, and why its result can't pass for that of another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.plain import differences, to_plain
from wmpo.protocols import Trainable
from wmpo.training import ranks
from wmpo.training.checkpoint import WEIGHTS, load_tensors, load_weights, save_tensors

CHECKPOINT = "checkpoint.safetensors"
QUICK = 0.5  # seconds of writing that don't matter
SPARING = 20  # times as long as writing one takes must have gone by before the next


class Checkpoints:
    """`checkpoint.safetensors` in `folder` while a training goes on, `model.safetensors` once it has ended.

    `depends` names all that the weights follow from: settings, seed, digests of inputs. It is stored with both files;
    where they were made from something else, reading them raises a UserError that says what differs. Rank 0 writes;
    the others read what it has written, however many they were then.
    """

    def __init__(self, folder: Path, depends: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        self.depends: dict[str, object] = to_plain(depends)
        self.result, self.checkpoint = self.folder / WEIGHTS, self.folder / CHECKPOINT
        self.written, self.took = time.monotonic(), 0.0

    def load_result(self, module: Trainable) -> bool:
        """Fill `module` with the finished weights; False where training hasn't ended."""
        if not ranks.first(self.result.exists):
            return False
        load_weights(module, self._read(self.result)[0], self.result)
        return True

    def load(self) -> tuple[dict[str, Tensor], int]:
        """(tensors, steps taken) of the checkpoint; ({}, 0) where there is none."""
        return self._read(self.checkpoint) if ranks.first(self.checkpoint.exists) else ({}, 0)

    def is_due(self, seconds: float = 0.0) -> bool:
        """Whether `seconds` have gone by since the last one, and so many that writing takes a small part of them: what
        is large is written less often. Ranks may differ, and must agree."""
        pause = SPARING * self.took if self.took > QUICK else 0.0
        return time.monotonic() - self.written >= max(seconds, pause)

    def save(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        begin = time.monotonic()
        ranks.first(lambda: self._write(self.checkpoint, tensors, steps))
        self.written = time.monotonic()
        self.took = self.written - begin

    def finish(self, module: Trainable, steps: int) -> None:
        """Training has ended with these weights."""

        def write() -> None:
            self._write(self.result, module.state_dict(), steps)
            self.checkpoint.unlink(missing_ok=True)

        ranks.first(write)

    def _write(self, path: Path, tensors: Mapping[str, Tensor], steps: int) -> None:
        if not self.folder.parent.is_dir():
            raise UserError(f"{self.folder.parent} has been removed while it was in use; run the same command again.")
        save_tensors(path, tensors, {"step": steps, "depends": self.depends})

    def _read(self, path: Path) -> tuple[dict[str, Tensor], int]:
        tensors, facts = load_tensors(path)
        old = facts.get("depends")
        if not isinstance(old, dict):
            raise UserError(
                f"{path} doesn't say what it was trained with: use another folder, or delete {self.folder}."
            )
        for was, now in differences(old, self.depends).values():
            raise UserError(f"{self.folder} was trained with {was}, not {now}; use another folder, or delete it.")
        return tensors, int(facts.get("step", 0))
