"""A batch of tabletop episodes, advanced by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo.envs.simulation import (
    Advance,
    Answer,
    Begin,
    Board,
    Demonstrate,
    Draw,
    Map,
    Save,
    Scripted,
    Simulation,
    share,
)
from wmpo.envs.tabletop import display
from wmpo.envs.tabletop.env import Snapshot
from wmpo.envs.tabletop.settings import ACTION_DIM, FPS, STATE_DIM, TabletopSettings, check
from wmpo.envs.tabletop.tasks import sentence_of, task_of, tasks_named
from wmpo.envs.worker_pool import Pool
from wmpo.errors import UserError
from wmpo.types import EnvSpec, Episode, Observation, Outcome


class VectorEnv:
    """Fulfils `wmpo.protocols.Env` for one task, or several told apart by their sentences.

    Rows of a batch are dealt out to the processes in turn.

    workers = 0 simulates in the calling process. An episode is done 4 frames after success, or at the horizon;
    one that is done inside a chunk still simulates the chunk to its end, so all frames are real.
    """

    def __init__(self, config: TabletopSettings, disruption: str = "none") -> None:
        self._tasks = tasks_named(config.task)
        self.cameras = tuple(config.cameras)
        self.image_size = config.image_size
        self.disruption = check(self.cameras, self.image_size, disruption)
        if not 0 <= config.workers <= 256:
            raise UserError(f"The number of simulator processes must be from 0 to 256, not {config.workers}.")
        self.renderer = display.choose(config.renderer)
        self.spec = EnvSpec(
            cameras=dict.fromkeys(self.cameras, (self.image_size, self.image_size)),
            state_dim=STATE_DIM if config.state else 0,
            action_dim=ACTION_DIM,
            horizon=max(task.horizon for task in self._tasks),
            fps=FPS,
        )
        self.events: list[dict[str, int]] = []
        """Per row: how often the gripper began to touch ("contacts") and to grasp ("grasps") the object."""
        self._rows = 0
        self._memory = np.empty(0, np.uint8)
        self._answer: Any = None
        arguments = (config.task, self.cameras, self.image_size, self.renderer, disruption)
        self._pool: Pool | None = None
        self._local: Simulation | None = None
        if config.workers == 0:
            self._local = Simulation(*arguments)
        else:
            environ = dict(os.environ)
            display.prepare_environment(self.renderer, environ)
            self._pool = Pool(config.workers, "wmpo.envs.simulation:Simulation", arguments, environ)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task.name for task in self._tasks)

    def task_of(self, initial_state: int) -> str:
        return task_of(self._tasks, initial_state).name

    def reset(self, initial_states: Sequence[int]) -> Observation:
        if len(initial_states) == 0:
            raise UserError("A batch needs at least one initial-state number.")
        if any(int(initial_state) < 0 for initial_state in initial_states):
            raise UserError(f"Start numbers must be 0 or more, not {min(initial_states)}.")
        return self._begin([int(initial_state) for initial_state in initial_states])

    def reset_to(self, snapshots: Sequence[Snapshot]) -> Observation:
        """Like `reset`, but each episode continues from a saved state of the same task."""
        if len(snapshots) == 0:
            raise UserError("A batch needs at least one saved state.")
        return self._begin(list(snapshots))

    def _begin(self, origins: Sequence[int | Snapshot]) -> Observation:
        self._rows = count = len(origins)
        self.events = [{} for _ in range(count)]
        images, state, _, _ = self._request(
            range(count), 1, lambda rows, board: Begin(rows, tuple(origins[row] for row in rows), rows, board)
        )
        initial_states = [origin.initial_state if isinstance(origin, Snapshot) else origin for origin in origins]
        sentences = tuple(self._instruction(initial_state) for initial_state in initial_states)
        return Observation({name: frames[:, 0] for name, frames in images.items()}, state[:, 0], sentences)

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        rows = [int(row) for row in rows]
        self._check(rows, chunk_AKD)
        chunk = chunk_AKD.detach().to("cpu", torch.float32).numpy()
        slot = {row: index for index, row in enumerate(rows)}

        def request(mine: tuple[int, ...], board: Board) -> Advance:
            slots = tuple(slot[row] for row in mine)
            return Advance(mine, chunk[list(slots)], slots, board)

        images, state, success, done = self._request(rows, chunk.shape[1], request)
        return Outcome(images, state, success, done)

    def _check(self, rows: list[int], chunk: Tensor) -> None:
        if self._rows == 0:
            raise UserError("Call reset before step.")
        if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= self._rows:
            raise UserError(f"Rows must be different numbers from 0 to {self._rows - 1}, not {rows}.")
        if chunk.ndim != 3 or len(chunk) != len(rows) or chunk.shape[1] == 0 or chunk.shape[2] != ACTION_DIM:
            raise UserError(f"Actions must have the shape ({len(rows)}, K, {ACTION_DIM}), not {tuple(chunk.shape)}.")
        if not torch.isfinite(chunk).all():
            raise UserError("Actions contain NaN or infinity.")
        if chunk.abs().max() > 1 + 1e-6:
            raise UserError(f"Actions must lie in [-1, 1]; the largest magnitude is {float(chunk.abs().max()):.3g}.")

    def get_state(self, rows: Sequence[int]) -> list[Snapshot]:
        """Saved states of some rows, for `reset_to`."""
        found: dict[int, Snapshot] = {}
        worker_rows = self._worker_rows(rows)
        for worker, mine in worker_rows.items():
            self._send(worker, Save(mine))
        for worker, mine in worker_rows.items():
            found |= zip(mine, self._receive(worker), strict=True)
        return [found[int(row)] for row in rows]

    def demonstrate(
        self, initial_states: Sequence[int], noise: float, seed: int, min_pace: float = 1.0
    ) -> list[Episode]:
        """One expert episode per initial-state number, in their order; the batch of `reset` is left as it was."""
        if not np.isfinite(noise) or noise < 0:
            raise UserError(f"The noise of demonstrations must be 0 or more, not {noise}.")
        if not 0 < min_pace <= 1:
            raise UserError(f"The min_pace pace of demonstrations must be above 0 and at most 1, not {min_pace}.")
        requests = [
            Demonstrate(int(initial_state), float(noise), int(seed), float(min_pace))
            for initial_state in initial_states
        ]
        answers = self._pool.map(requests) if self._pool else map(self._simulate, requests)
        return [
            self._episode(initial_state, answer) for initial_state, answer in zip(initial_states, answers, strict=True)
        ]

    def draw_again(self, times: int) -> None:
        """Draw the current frame of all rows `times` times and drop it: what the renderer alone can do."""
        worker_rows = self._worker_rows(range(self._rows))
        for worker, mine in worker_rows.items():
            self._send(worker, Draw(mine, times))
        for worker in worker_rows:
            self._receive(worker)

    def _episode(self, initial_state: int, answer: Scripted) -> Episode:
        return Episode(
            images=answer.images,
            state=answer.state[:, : self.spec.state_dim],
            actions=answer.actions,
            success=answer.success,
            instruction=self._instruction(initial_state),
            initial_state=int(initial_state),
            task=task_of(self._tasks, initial_state).name,
            source="expert",
            meta={"renderer": self.renderer, **answer.meta},
            labels=answer.labels,
        )

    def _instruction(self, initial_state: int) -> str:
        return sentence_of(task_of(self._tasks, initial_state), initial_state, self.disruption == "paraphrase")

    def _simulate(self, request: object) -> Any:
        """Answer a request in this process."""
        if self._local is None:
            raise RuntimeError("The environment is closed.")
        return self._local(request)

    def _worker_rows(self, rows: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Worker -> its rows of these."""
        workers = len(self._pool) if self._pool else 1
        worker_rows: dict[int, tuple[int, ...]] = {}
        for row in rows:
            worker_rows[int(row) % workers] = (*worker_rows.get(int(row) % workers, ()), int(row))
        return worker_rows

    def _send(self, worker: int, request: object) -> None:
        if self._pool:
            self._pool.send(worker, request)
        else:
            self._answer = self._simulate(request)

    def _receive(self, worker: int) -> Any:
        return self._pool.receive(worker) if self._pool else self._answer

    def _request(
        self, rows: Sequence[int], frames: int, make: Callable[[tuple[int, ...], Board], Begin | Advance]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Ask every process for its share; (images (A, K, C, H, W), state (A, K, S), success (A, K), done (A,))."""
        order = {int(row): index for index, row in enumerate(rows)}
        board = self._board(len(rows), frames)
        worker_rows = self._worker_rows(rows)
        for worker, mine in worker_rows.items():
            self._send(worker, make(mine, board))
        state = torch.empty(len(rows), frames, STATE_DIM)
        success = torch.empty(len(rows), frames, dtype=torch.bool)
        done = torch.empty(len(rows), dtype=torch.bool)
        for worker, mine in worker_rows.items():
            answer: Answer = self._receive(worker)
            index = [order[row] for row in mine]
            state[index] = torch.from_numpy(answer.state)
            success[index] = torch.from_numpy(answer.success)
            done[index] = torch.from_numpy(answer.done)
            for row, events in zip(mine, answer.events, strict=True):
                self.events[row] = events
        # A copy, since the next request writes to the same memory.
        images = {name: torch.from_numpy(frames.copy()) for name, frames in board.arrays(self._memory).items()}
        return images, state[..., : self.spec.state_dim], success, done

    def _board(self, slots: int, frames: int) -> Board:
        """Memory for the frames of a request, larger than the last if it must be."""
        board = Board("", slots, frames, self.cameras, self.image_size)
        if board.bytes > len(self._memory):
            board = replace(board, path=share(board.bytes))
            try:
                self._memory = np.memmap(board.path, np.uint8, "r+").view(np.ndarray)
                workers = range(len(self._pool) if self._pool else 1)
                for worker in workers:
                    self._send(worker, Map(board))
                for worker in workers:
                    self._receive(worker)
            finally:
                os.unlink(board.path)  # all have it mapped: nothing is left behind, however this process ends
        return board

    def close(self) -> None:
        """End the processes. Closing twice does no harm."""
        if self._pool:
            self._pool.close()
        self._local = None
        self._rows = 0
