"""An episode store from a plan: made beside its place, and put there when it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Protocol

from wmpo.data import layout
from wmpo.data.store import EpisodeStore
from wmpo.data.video import Codec
from wmpo.errors import UserError
from wmpo.importing.conversion import Choices, Plan
from wmpo.importing.in_place import films_of, lay_films, take_in_place
from wmpo.io.files import file_lock, read_json, require_vacant, write_json
from wmpo.io.plain import JsonObject, to_plain

ABOUT = "import.json"
"""In the store: what it was made from, and how."""


class Progress(Protocol):
    """Is told of episodes that are done: those of an earlier call, then each of this one."""

    def skip(self, done: int) -> None: ...

    def update(self, advance: int = 1) -> None: ...


def import_store(plan: Plan, out: Path, codec: Codec, progress: Progress) -> EpisodeStore:
    """The store in `out`, which is there already where the same import has made it.

    What a stop leaves in a folder beside `out` is gone on with; where anything differs, it is begun again.
    """
    about = provenance(plan, codec)
    if _made_so(out, about):
        return EpisodeStore.open(out)
    if out.resolve().is_relative_to(plan.source.path.resolve()):
        raise UserError(f"{out} lies in the data set itself, where nothing is written: choose another folder.")
    require_vacant(out)
    plan.check()
    taken = take_in_place(plan, codec)
    partial = out.with_name(f".{out.name}.importing")
    if partial.is_symlink():
        raise UserError(f"{partial} is a link to another folder, where nothing is written: remove it.")
    partial.mkdir(parents=True, exist_ok=True)
    lock = partial / ".importing.lock"
    with _alone(lock, out):
        if (out / ABOUT).is_file():  # another process has just made it
            lock.unlink(missing_ok=True)  # it may have gone along
            with suppress(OSError):
                partial.rmdir()
            return import_store(plan, out, codec, progress)
        if not _made_so(partial, about):
            for path in partial.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != lock:
                    path.unlink()
            write_json(partial / ABOUT, about)
        if not (partial / layout.INFO).exists():
            try:
                lay_films(partial, taken, plan.choices.copy)
            except OSError as error:
                raise UserError(f"The videos can't be copied to {out}: {error.strerror}.") from error
            EpisodeStore.create(partial, plan.spec, codec, {camera: one.films for camera, one in taken.items()})
        store = EpisodeStore.open_or_create(partial, plan.spec, codec)
        progress.skip(len(store))
        for number in range(len(store), len(plan)):
            films = films_of(taken, number) if store.in_place else {}  # an earlier version has begun without
            store.append([plan.episode(number, films)], [films])
            progress.update(1)
        os.replace(partial, out)
        (out / lock.name).unlink()
    return EpisodeStore.open(out)


def _made_so(folder: Path, about: JsonObject) -> bool:
    """Whether the store there was made so. Choices that an earlier version didn't have were as they are by default."""
    kept = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else None
    if isinstance(kept, dict) and isinstance(kept.get("choices"), dict):
        kept["choices"] = to_plain(Choices()) | kept["choices"]
    return bool(kept == about)


@contextmanager
def _alone(lock: Path, out: Path) -> Iterator[None]:
    try:
        with file_lock(lock, wait=False):
            yield
    except BlockingIOError:
        raise UserError(f"Another process is at work in {out}: wait for it, or choose another folder.") from None


def provenance(plan: Plan, codec: Codec) -> JsonObject:
    """Plain values that differ where the store would."""
    found = hashlib.sha256()
    for path in plan.source.files():
        status = path.stat()
        found.update(repr((str(path.relative_to(plan.source.path)), status.st_size, status.st_mtime_ns)).encode())
    labels = {str(n): to_plain(verdict) for n, verdict in (plan.judge.verdicts or {}).items()}
    choices = {one.name: to_plain(getattr(plan.choices, one.name)) for one in fields(Choices)}
    return {
        "source": str(plan.source.path.resolve()), "format": plan.source.facts.format, "files": found.hexdigest(),
        "choices": choices, "labels": labels, "codec": to_plain(codec),
    }  # fmt: skip
