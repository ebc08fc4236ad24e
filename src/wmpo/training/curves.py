"""Where the numbers of a run can be watched as they come: TensorBoard, Weights & Biases, or trackio."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from wmpo.errors import UserError, optional
from wmpo.io.files import atomic_write
from wmpo.io.plain import JsonObject

PROJECT = "wmpo"
NUMBER = ".curves"  # file of a run with what tells it from others of its name, so that it goes on in the same curves
STEP = "step"


class Curves(Protocol):
    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of a stage; a later stage begins again at a low step."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """In FOLDER/tensorboard."""

    def __init__(self, folder: Path, config: JsonObject) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """At wandb.ai, or with WANDB_MODE=offline in FOLDER/wandb, from where `wandb sync` uploads it."""

    def __init__(self, folder: Path, config: JsonObject) -> None:
        wandb: Any = optional("wandb", "curves wandb needs", "wandb")
        try:
            self.run = wandb.init(
                project=PROJECT, name=folder.name, id=number_of(folder), resume="allow", dir=str(folder),
                config=config, settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except (wandb.Error, OSError) as error:  # nobody is logged in, or nobody answers
            raise UserError(
                f"Weights & Biases can't be reached ({next(iter(str(error).splitlines()), '')}): log in by "
                "`wandb login`, or set the environment variable WANDB_MODE to offline."
            ) from None
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric("*", step_metric=STEP)  # its own count of steps may never fall

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, STEP: step})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """On this machine, in the folder TRACKIO_DIR; `trackio show` shows it."""

    def __init__(self, folder: Path, config: JsonObject) -> None:
        trackio: Any = optional("trackio", "curves trackio needs", "trackio")
        self.run = trackio.init(
            project=PROJECT, name=f"{folder.name}-{number_of(folder)}", resume="allow", config=config, embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


CURVES: dict[str, Callable[[Path, JsonObject], Curves]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def number_of(folder: Path) -> str:
    """8 letters and digits, the same ones whenever the run in a folder goes on."""
    path = folder / NUMBER
    if not path.exists():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
