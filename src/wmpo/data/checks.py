"""What an episode must be like to be stored."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode


def check_episode(episode: Episode, spec: EnvSpec, who: str) -> None:
    """Say in one sentence why an episode can't be stored."""
    T, D, S = episode.length, spec.action_dim, spec.state_dim
    if T < 1:
        raise UserError(f"{who} has no actions: store episodes of at least one action.")
    if not isinstance(episode.initial_state, Integral) or not -(2**63) <= episode.initial_state < 2**63:
        raise UserError(f"{who} has the initial state {str(episode.initial_state)[:40]}: give a number of 64 bits.")
    texts = {"instruction": episode.instruction, "task": episode.task, "source": episode.source}
    texts |= {f"meta[{key!r}]": value for key, value in episode.meta.items()}
    for name, text in texts.items():
        if not isinstance(text, str) or text != text.encode(errors="replace").decode():
            raise UserError(f"{who} has something else than text in UTF-8 as its {name}.")
    if set(episode.images) != set(spec.cameras):
        raise UserError(f"{who} has the cameras {sorted(episode.images)} where the store has {sorted(spec.cameras)}.")
    for name, (height, width) in spec.cameras.items():
        image = episode.images[name]
        if image.dtype != np.uint8 or image.shape != (T + 1, height, width, 3):
            raise UserError(
                f"{who} has images {image.dtype} {image.shape} from camera '{name}' where the store takes uint8 "
                f"{(T + 1, height, width, 3)}: set the camera to the store's size, or begin a new store."
            )
    vectors = {"actions": (episode.actions, (T, D)), "states": (episode.state, (T + 1, S))}
    if episode.labels is not None:
        vectors["labels"] = (episode.labels, (T, D))
    for name, (values, shape) in vectors.items():
        if values.shape != shape or values.dtype != np.float32:
            raise UserError(f"{who} has {name} {values.dtype} {values.shape} where the store takes float32 {shape}.")
        if not np.isfinite(values).all():
            frame = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise UserError(f"{who} has NaN or infinite {name} at frame {frame}: look for the fault in what made them.")
    if episode.success.shape != (T + 1,) or episode.success.dtype != np.bool_:
        raise UserError(
            f"{who} has success {episode.success.dtype} {episode.success.shape} in place of bool {(T + 1,)}."
        )
