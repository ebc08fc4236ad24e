"""vla-eval's model-server protocol (https://github.com/allenai/vla-evaluation-harness), by its own library.

A WebSocket with msgpack: nothing that comes can execute code. Clients may be several; decisions are made one at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from vla_eval.api import ServerHandle, serve_background
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
    DimSpec,
)

from wmpo.errors import UserError, reason
from wmpo.serving import libero
from wmpo.serving.actor import Actor, as_state, free_port
from wmpo.training.fit import step_seed


@dataclass(frozen=True)
class Convention:
    """How a benchmark's pictures, states and actions differ from the policy's."""

    picture: Callable[[np.ndarray], np.ndarray]
    state: Callable[[np.ndarray], np.ndarray]
    actions: Callable[[np.ndarray], np.ndarray]
    repeat: int
    """Actions of the benchmark in one of the policy."""
    acts: Mapping[str, DimSpec]
    """What an action is made of, for vla-eval to compare; empty where nobody can say."""
    feels: Mapping[str, DimSpec]
    """What a state is made of."""


def as_it_is(array: np.ndarray) -> np.ndarray:
    return array


Name = Literal["plain", "libero"]
CONVENTIONS: dict[Name, Convention] = {
    "plain": Convention(as_it_is, as_it_is, as_it_is, 1, {}, {}),
    "libero": Convention(
        libero.picture, libero.state, libero.actions, libero.REPEAT,
        {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS},
        {"state": STATE_EEF_POS_AA_GRIP},
    ),
}  # fmt: skip


class WmpoServer(PredictModelServer):  # type: ignore[misc]
    """A policy as vla-eval's model server; each session has random numbers of its own."""

    def __init__(self, actor: Actor, convention: Convention, seed: int = 0) -> None:
        super().__init__(chunk_size=actor.chunk * convention.repeat)
        self.actor, self.convention, self.seed = actor, convention, seed
        self._episodes = 0
        self._generators: dict[str, torch.Generator] = {}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_start(config, ctx)
        self._episodes += 1
        self._generators[ctx.session_id] = torch.Generator().manual_seed(step_seed(self.seed, self._episodes))

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_end(result, ctx)
        self._generators.pop(ctx.session_id, None)

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        if (generator := self._generators.get(ctx.session_id)) is None:
            raise UserError("An episode must begin before its first observation.")
        if not isinstance(obs, Mapping):
            raise UserError("The observation is no dictionary.")
        images, state = obs.get("images"), obs.get("states", obs.get("state", ()))
        if not isinstance(images, Mapping) or not all(isinstance(image, np.ndarray) for image in images.values()):
            raise UserError("The observation has no images by the names of cameras.")
        shown = {name: self.convention.picture(image) for name, image in images.items() if image.ndim == 3}
        felt = as_state(state)
        felt = self.convention.state(felt) if len(felt) else felt
        seen = self.actor.observation(shown, felt, str(obs.get("task_description") or ""))
        return {"actions": self.convention.actions(self.actor.decide(seen, generator))}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return dict(self.convention.acts) or {"actions": DimSpec("actions", self.actor.action_dim, "raw")}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        felt = self.convention.feels or {"state": DimSpec("state", max(self.actor.state_dim, 0), "raw")}
        shown = dict.fromkeys(self.actor.cameras.values(), IMAGE_RGB)
        return {**shown, "language": LANGUAGE, **(felt if self.actor.state_dim > 0 else {})}

    def get_observation_params(self) -> dict[str, Any]:
        """What LIBERO must be asked for, since it shows one camera only by itself."""
        if self.convention is not CONVENTIONS["libero"]:
            return {}
        shown = set(self.actor.cameras.values())
        return {"send_wrist_image": libero.CAMERAS["wrist"] in shown, "send_state": self.actor.state_dim != 0}


def _without_traceback(record: logging.LogRecord) -> bool:
    """What a client's message leads to is one sentence, here as for the client, who gets that of a UserError too."""
    if record.exc_info and (error := record.exc_info[1]) is not None:
        told = str(error) if isinstance(error, UserError) else reason(error)
        record.msg, record.args, record.exc_info = "Refused: %s", (told,), None
    return True


def start(actor: Actor, convention: Convention, host: str, port: int, seed: int) -> ServerHandle:
    """A server that runs in a thread of its own until it is closed. Raises UserError where the port is taken."""
    logging.getLogger("vla_eval.model_servers.serve").addFilter(_without_traceback)
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # tracebacks where a client says nothing
    return serve_background(WmpoServer(actor, convention, seed), host=host, port=free_port(host, port))


def serve(actor: Actor, convention: Convention, host: str, port: int, seed: int, tell: Callable[[str], None]) -> None:
    """Until Ctrl-C."""
    with start(actor, convention, host, port, seed) as handle:
        try:
            tell(f"Serving vla-eval at {handle.url} ({actor.about()}); Ctrl-C ends it.")
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
