"""`wmpo data check`, `import`, `label`, `export` and `rerun`: episodes that others have recorded, or will train on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from wmpo.config import RewardConfig
from wmpo.errors import UserError, printable, require_between
from wmpo.importing.conversion import Choices

if TYPE_CHECKING:
    from wmpo.data.store import EpisodeStore


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
            print(printable(line))


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
    """How videos are stored that can't be read in place: bit for bit, or, then all of them, as ordinary H.264, several
    times smaller, for big pictures of even sides."""

    def execute(self) -> None:
        from rich.console import Console

        from wmpo.data.cache import decoded_bytes
        from wmpo.data.in_place import content, size
        from wmpo.data.video import LOSSLESS, lossy
        from wmpo.importing.conversion import plan_import
        from wmpo.importing.in_place import meaning
        from wmpo.importing.opening import open_source
        from wmpo.importing.store import import_store
        from wmpo.training.log import ProgressBar

        plan, began = plan_import(open_source(self.path), self), time.monotonic()
        codec = LOSSLESS if self.codec == "lossless" else lossy()
        for line in [*plan.meaning(), meaning(plan, codec)]:
            print(printable(line))
        bar = ProgressBar("import", len(plan), Console(), None)
        store = import_store(plan, self.out, codec, bar)
        own, elsewhere = content(self.out)
        print(f"{self.out}: {size(own) / 1e6:.1f} MB in {time.monotonic() - began:.0f} s; decoded frames will take "
              f"{decoded_bytes(store) / 1e9:.2f} GB beside them")  # fmt: skip
        if elsewhere:
            where = os.path.commonpath([path.parent for path in elsewhere])
            print(f"{self.out}: {size(elsewhere) / 1e6:.1f} MB of video are read in place in {where}: keep them there")
        elif store.in_place and not self.copy:
            print(f"{self.out}: no links can be made there, so the videos were copied, as they are")
        for line in store.summary().lines():
            print(f"{self.out}: {line}")


@dataclass(frozen=True)
class DataLabelCommand:
    """Say which episodes of a store succeed, or say it anew. Videos are not touched, nor are episodes that a file
    leaves out.

    With --success model, a reward model learns from the episodes that are labelled, and labels those that no person
    has; `wmpo view` then asks for its doubtful ones first. Repeat it when you have labelled more.
    """

    store: tyro.conf.Positional[Path]
    """Folder of the episode store."""
    success: str
    """A file that ends in .csv, with the columns episode_index, success (1 or 0) and maybe frame, the first that shows
    it; or all, or none; or model."""
    success_frames: int = 5
    """So many frames at the end show success, where no frame says when it was reached."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Of the model that labels."""
    seed: int = 0
    """Of the model's weights and batches."""
    device: str = "auto"
    """What the model is trained on; auto: a GPU where there is one."""

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
        if self.success == "model":
            store = self._by_model()
        else:
            self._refuse_unused()
            relabel(store, by_rule(self.success, len(store)), self.success_frames)
        for line in store.summary().lines():
            print(f"{self.store}: {line}")

    def _by_model(self) -> EpisodeStore:
        """The store, labelled."""
        from tempfile import TemporaryDirectory

        from wmpo.cli.dreaming import refuse_unused
        from wmpo.config import Recipe
        from wmpo.data.store import EpisodeStore
        from wmpo.io.files import require_writable
        from wmpo.labelling import keep, label_rest
        from wmpo.opening import open_stage

        if self.success_frames != type(self).success_frames:
            raise UserError("--success-frames does nothing here: a model says from which frame on success is shown.")
        require_writable(self.store, "can't be labelled")  # before the long work
        for name in ("stride", "threshold", "imagined_fraction"):
            refuse_unused(self.reward, name, "a model that labels sees all frames, real ones alone")
        recipe = Recipe(seed=self.seed, reward=self.reward, device=self.device)
        with TemporaryDirectory() as folder, open_stage(recipe, Path(folder), self.store) as run:
            labels = label_rest(run)
        store = EpisodeStore.open(self.store)  # of which somebody may have labelled some by hand meanwhile
        keep(store, labels)
        for line in labels.lines():
            print(f"{self.store}: {line}")
        print(f"{self.store}: see the doubtful ones first, and label them by hand: wmpo view {self.store}")
        return store

    def _refuse_unused(self) -> None:
        plain = (type(self.reward)(), 0, "auto")
        for option, given, default in zip(
            ("--reward", "--seed", "--device"), (self.reward, self.seed, self.device), plain, strict=True
        ):
            if given != default:
                raise UserError(f"{option} does nothing here: it is for --success model.")


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


@dataclass(frozen=True)
class DataRerunCommand:
    """A recording for the Rerun viewer (rerun.io) from episodes: cameras, states, actions and success along one time
    line, real beside imagined where a run has a world model. Give both paths before the options."""

    path: tyro.conf.Positional[Path]
    """Folder of an episode store, or of a run, of which it takes what was learned from."""
    out: tyro.conf.Positional[Path]
    """The file to make, which ends in .rrd: rerun OUT opens it."""
    episodes: tuple[int, ...] = ()
    """Numbers of the episodes; without any, all."""
    run: Path | None = None
    """Folder of the run whose world model dreams and whose reward model judges; that which the store is in without
    it."""
    dream: bool = True
    """Whether to imagine the same actions, where there is a world model."""
    device: str = "auto"
    """What dreams are computed on; auto: a GPU where there is one."""

    def execute(self) -> None:
        from rich.console import Console

        from wmpo.cli.models import store_and_models
        from wmpo.opening import pick_device
        from wmpo.report.rrd import rerun, write_rrd
        from wmpo.training.log import ProgressBar
        from wmpo.training.parallel import use_one_thread

        if self.out.suffix != ".rrd":
            raise UserError(f"{self.out} has another ending than .rrd, by which the Rerun viewer knows its files.")
        rerun()  # or it is told before models are loaded
        device = pick_device(self.device)
        use_one_thread()
        store, models = store_and_models(self.path, self.run, device)
        chosen = sorted(set(self.episodes)) or [*range(len(store))]
        store.without_pictures(chosen)  # they exist
        bar = ProgressBar("episodes", len(chosen), Console(), None)
        write_rrd(self.out, store, chosen, models if self.dream else None, device, bar)
        print(f"{self.out}: {len(chosen)} episodes, {self.out.stat().st_size / 1e6:.1f} MB; rerun {self.out} opens it")
