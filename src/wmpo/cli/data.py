"""`wmpo data check`, `import`, `label` and `export`: episodes that others have recorded, or will train on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from wmpo.errors import UserError, require_between
from wmpo.importing.conversion import Choices


@dataclass(frozen=True)
class DataCheckCommand:
    """What a data set of yours holds, what is missing, and what it can be used for.

    It may be a folder in LeRobot's format v2.0, v2.1 or v3.0, an HDF5 file in the layout of robomimic, or an episode
    store. All numbers are read; of videos, only the heads are.
    """

    path: tyro.conf.Positional[Path]
    """The folder, or the file."""

    def execute(self) -> None:
        from wmpo.importing.description import advice, describe
        from wmpo.importing.opening import open_source

        source = open_source(self.path)
        for line in describe(source) + advice(source.facts):
            print(line)


@dataclass(frozen=True, kw_only=True)
class DataImportCommand(Choices):
    """An episode store from a data set of yours, which is only read. The same command continues an import that was
    stopped. Give both paths before the options.

    wmpo data import my_recordings data/cups --cameras front wrist --image-size 96 128 --fps 10 --success all
    """

    path: tyro.conf.Positional[Path]
    """Folder or file of the data set, see `wmpo data check`."""
    out: tyro.conf.Positional[Path]
    """Folder of the episode store, made when it is whole."""
    codec: Literal["lossless", "lossy"] = "lossless"
    """How videos are stored: bit for bit, or as ordinary H.264, several times smaller, for big pictures of even
    sides."""

    def execute(self) -> None:
        from rich.console import Console

        from wmpo.data.cache import decoded_bytes
        from wmpo.data.video import LOSSLESS, lossy
        from wmpo.importing.conversion import plan_import
        from wmpo.importing.opening import open_source
        from wmpo.importing.store import import_store
        from wmpo.training.log import ProgressBar

        plan, began = plan_import(open_source(self.path), self), time.monotonic()
        for line in plan.meaning():
            print(line)
        bar = ProgressBar("import", len(plan), Console(), None)
        store = import_store(plan, self.out, LOSSLESS if self.codec == "lossless" else lossy(), bar)
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        print(f"{self.out}: {size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s; decoded frames will take "
              f"{decoded_bytes(store) / 1e9:.2f} GB beside them")  # fmt: skip
        for line in store.summary().lines():
            print(f"{self.out}: {line}")


@dataclass(frozen=True)
class DataLabelCommand:
    """Say which episodes of a store succeed, or say it anew. Videos are not touched, nor are episodes that a file
    leaves out."""

    store: tyro.conf.Positional[Path]
    """Folder of the episode store."""
    success: str
    """A file that ends in .csv, with the columns episode_index, success (1 or 0) and maybe frame, the first that shows
    it; or all, or none."""
    success_frames: int = 5
    """So many frames at the end show success, where no frame says when it was reached."""

    def execute(self) -> None:
        from wmpo.data.store import EpisodeStore
        from wmpo.importing.success import by_rule, relabel
        from wmpo.opening import owner_of

        require_between("--success-frames", self.success_frames, 1, 1_000_000)
        store = EpisodeStore.open(self.store)
        if owner := owner_of(self.store):
            raise UserError(
                f"{self.store} can't be labelled anew: {owner} belongs to a run, whose results follow from it; label a "
                "copy."
            )
        relabel(store, by_rule(self.success, len(store)), self.success_frames)
        for line in store.summary().lines():
            print(f"{self.store}: {line}")


@dataclass(frozen=True)
class DataExportCommand:
    """A plain LeRobot data set from an episode store, for LeRobot's trainers: without the row of each last frame,
    which has no action, and with what an imitator should do as the action. Videos are not encoded again."""

    store: tyro.conf.Positional[Path]
    """Folder of the episode store."""
    out: tyro.conf.Positional[Path]
    """The folder to make."""
    episodes: Literal["all", "successes", "expert"] = "all"
    """Which: all, those that succeed, or those of the demonstrator that succeed."""

    def execute(self) -> None:
        from wmpo.data.plain import export_plain
        from wmpo.data.store import EpisodeStore

        store = EpisodeStore.open(self.store)
        chosen = [
            record
            for record in store.records()
            if self.episodes == "all" or (record.succeeded and self.episodes in ("successes", record.source))
        ]
        export_plain(store, [record.index for record in chosen], self.out)
        print(f"{self.out}: {len(chosen)} episodes, {sum(record.length for record in chosen)} frames")
