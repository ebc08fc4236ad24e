"""The files of one training: how it goes on after a stop, and why its result can't pass for that of another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.plain import differences, to_plain
from wmpo.protocols import Trainable
from wmpo.training import fsdp, ranks
from wmpo.training.checkpoint import WEIGHTS, load_rows, load_tensors, load_weights, save_tensors

CHECKPOINT = "checkpoint.safetensors"
QUICK = 0.5  # seconds of writing that don't matter
SPARING = 20  # times as long as writing one takes must have gone by before the next


class Checkpoints:
    """`checkpoint.safetensors` in `folder` while a training goes on, `model.safetensors` once it has ended.

    `depends` names all that the weights follow from: settings, seed, digests of inputs. It is stored with both files;
    where they were made from something else, reading them raises a UserError that says what differs. Rank 0 writes;
    the others read what it has written, however many they were then.

    Of tensors that ranks share (`fsdp`), each writes its rows to a file of its own. They count once
    `checkpoint.safetensors`, which comes last, says so. Not by torch.distributed.checkpoint, whose files are described
    by a pickle, or, as safetensors, by nothing that could come last.
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
        ranks.first(self._clean)  # which a kill may have kept it from
        return True

    def load(self, rows: Mapping[str, range] = MappingProxyType({})) -> tuple[dict[str, Tensor], int]:
        """(tensors, steps taken) of the checkpoint; ({}, 0) where there is none. Of the tensors in `rows`, only these
        rows."""
        if not ranks.first(self.checkpoint.exists):
            return {}, 0
        tensors, steps, count = self._read(self.checkpoint)
        own = {name: tensors[name][some.start : some.stop] for name, some in rows.items() if name in tensors}
        anew = f"restore it, or delete {self.checkpoint}, and the same command begins this training anew"
        shared = load_rows(self._shares(steps, count), rows, anew)
        return {**tensors, **own, **shared}, steps

    def is_due(self, seconds: float = 0.0) -> bool:
        """Whether `seconds` have gone by since the last one, and so many that writing takes a small part of them: what
        is large is written less often. Ranks may differ, and must agree."""
        pause = SPARING * self.took if self.took > QUICK else 0.0
        return time.monotonic() - self.written >= max(seconds, pause)

    def save(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        begin = time.monotonic()
        shares = {name: fsdp.local(tensor) for name, tensor in tensors.items() if fsdp.is_shared(tensor)}
        paths = self._shares(steps, ranks.world() if shares else 0)
        if shares:
            self._write(paths[ranks.rank()], shares, steps)

        def count_them() -> None:
            others = {name: tensor for name, tensor in tensors.items() if name not in shares}
            self._write(self.checkpoint, others, steps, len(paths))
            self._remove_shares(but=paths)

        ranks.first(count_them)
        self.written = time.monotonic()
        self.took = self.written - begin

    def finish(self, module: Trainable, steps: int) -> None:
        """Training has ended with these weights."""

        def write() -> None:
            self._write(self.result, module.state_dict(), steps)
            self._clean()

        ranks.first(write)

    def _clean(self) -> None:
        """Remove what only an unfinished training needs."""
        self.checkpoint.unlink(missing_ok=True)
        self._remove_shares()

    def _shares(self, steps: int, count: int) -> list[Path]:
        """The files of ranks, so many, that share tensors."""
        return [self.folder / f"checkpoint-{steps}.{rank + 1}-of-{count}.safetensors" for rank in range(count)]

    def _remove_shares(self, but: Sequence[Path] = ()) -> None:
        for path in set(self.folder.glob("checkpoint-*-of-*.safetensors")).difference(but):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, tensors: Mapping[str, Tensor], steps: int, shares: int = 0) -> None:
        if not self.folder.parent.is_dir():
            raise UserError(f"{self.folder.parent} has been removed while it was in use; run the same command again.")
        save_tensors(path, tensors, {"step": steps, "depends": self.depends} | ({"shares": shares} if shares else {}))

    def _read(self, path: Path) -> tuple[dict[str, Tensor], int, int]:
        """(tensors, steps taken, files of ranks that go with it)."""
        tensors, facts = load_tensors(path)
        old = facts.get("depends")
        if not isinstance(old, dict):
            raise UserError(
                f"{path} doesn't say what it was trained with: use another folder, or delete {self.folder}."
            )
        for was, now in differences(old, self.depends).values():
            raise UserError(f"{self.folder} was trained with {was}, not {now}; use another folder, or delete it.")
        return tensors, int(facts.get("step", 0)), int(facts.get("shares", 0))
