"""A policy that acts for a program of others: what it needs of an observation, checked, and what it decides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmpo.errors import UserError, named
from wmpo.nn.layers import resized
from wmpo.protocols import Policy
from wmpo.training.parallel import use_one_thread
from wmpo.types import Observation


class Actor:
    """Makes observations of what a client sends, and decides, one client after another.

    `cameras`: what the policy's cameras are called at the client, each as OWN=THEIRS, or a name that both use; without
    one, names are equal. A policy that names no cameras of its own sees those of `cameras`, in that order.
    """

    def __init__(
        self,
        policy: Policy,
        where: Path,
        cameras: Sequence[str] = (),
        instruction: str = "",
        temperature: float = 0.0,
    ) -> None:
        """`instruction`: what a client that says none gets. Raises UserError where `cameras` don't fit."""
        self.policy, self.instruction, self.temperature = policy, instruction, temperature
        config = getattr(policy, "config", None)
        self.sizes = _sizes(config)
        pairs = [(own, theirs or own) for own, _, theirs in (entry.partition("=") for entry in cameras)]
        if len(dict(pairs)) < len(pairs):
            raise UserError("--cameras names a camera of the policy twice.")
        for own, _ in pairs if self.sizes else ():
            named(f"camera of {where} for --cameras", own, self.sizes)
        if not self.sizes and not pairs:
            raise UserError(f"{where} doesn't say which cameras it looks through: name the client's with --cameras.")
        self.sizes = self.sizes or {own: None for own, _ in pairs}
        self.cameras = {own: dict(pairs).get(own, own) for own in self.sizes}  # the policy's name -> the client's
        state_dim = getattr(config, "state_dim", -1)
        self.state_dim: int = 0 if state_dim is None else state_dim  # -1: as many as come
        self.action_dim: int = getattr(config, "action_dim", 0)  # 0: it doesn't say
        self._busy = threading.Lock()

    @property
    def chunk(self) -> int:
        """K, the actions of a decision."""
        return self.policy.chunk

    def about(self) -> str:
        """What a client must send and gets, in words."""
        state = "any state" if self.state_dim < 0 else f"{self.state_dim} state numbers"
        names = ", ".join(self.cameras.values())
        return f"cameras {names}; {state}; chunks of {self.chunk} actions"

    def check(self, cameras: Collection[str], state_dim: int) -> None:
        """Raise UserError where a client has no such cameras, by its names, or another state."""
        for own, theirs in self.cameras.items():
            if theirs not in cameras:
                raise UserError(
                    f"There is no camera {theirs!r}, which the policy looks through, but only "
                    f"{', '.join(sorted(cameras)) or 'none'}: wmpo serve --cameras {own}=NAME says which one it is."
                )
        if self.state_dim > 0 and state_dim != self.state_dim:
            raise UserError(f"The policy was trained with {self.state_dim} state numbers, but {state_dim} came.")

    def observation(self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str) -> Observation:
        """One frame. `images`: the client's camera -> (H, W, 3) uint8; `state`: (S,), empty where there is none.

        Raises UserError for what the policy can't use.
        """
        self.check(images, len(state))
        if not np.isfinite(state).all():
            raise UserError("The state holds NaN or infinity.")
        if not (instruction or self.instruction):
            raise UserError("The client names no task: give one with wmpo serve --instruction.")
        felt = torch.from_numpy(np.asarray(state[: None if self.state_dim else 0], np.float32))
        shown = {own: self._picture(own, np.asarray(images[theirs])) for own, theirs in self.cameras.items()}
        return Observation(shown, felt[None], (instruction or self.instruction,))

    def _picture(self, own: str, image: np.ndarray) -> Tensor:
        """(1, 3, H, W) uint8, at the size that the policy insists on, if it does."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            kind = f"{image.dtype} of {'x'.join(map(str, image.shape))}"
            raise UserError(f"The camera {self.cameras[own]!r} shows {kind}, not uint8 of height x width x 3.")
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        size = self.sizes[own]
        return picture if size is None else resized(picture, size, "stretch").round().to(torch.uint8)

    def decide(self, observation: Observation, generator: torch.Generator) -> np.ndarray:
        """(K, D) float32, in the units of the data. One decision at a time, from whatever thread."""
        with self._busy:
            use_one_thread()  # as in evaluations, so that decisions are equal to theirs
            decision = self.policy.act(observation, temperature=self.temperature, generator=generator)
        chunk = decision.chunk[0].detach().cpu().numpy().astype(np.float32)
        if not np.isfinite(chunk).all():
            raise UserError("The policy decides on NaN or infinity, which no client gets.")
        return chunk


def _sizes(config: object) -> dict[str, tuple[int, int] | None]:
    """The policy's camera -> (height, width) that its pictures must have, or None; see `check_fits`."""
    cameras = getattr(config, "cameras", ())
    common = getattr(config, "image_size", None)
    if isinstance(cameras, Mapping):
        return {name: (int(size[0]), int(size[1])) for name, size in cameras.items()}
    return {name: None if common is None else (int(common[0]), int(common[1])) for name in cameras}


def as_state(numbers: object) -> np.ndarray:
    """(S,) float32 of whatever a client has sent. Raises UserError where that is no list of numbers."""
    try:
        with np.errstate(over="ignore"):
            state = np.asarray(numbers, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UserError("The state is no list of numbers.") from None
    if state.ndim != 1:
        raise UserError(f"The state has the shape {state.shape}, not that of a list of numbers.")
    return state


def free_port(host: str, port: int) -> int:
    """The port, or one that is free in place of 0. Raises UserError where nothing can listen there."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return int(tried.getsockname()[1])
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"Nothing can be served at {host}:{port} ({error}): choose another --port or --host.") from None
