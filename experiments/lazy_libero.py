"""vla-eval's LIBERO benchmark, drawing only what a policy looks at, for machines without a GPU.

It runs in the harness's Python, which has no wmpo. vla-eval draws both cameras after every step of the controller, but
a server of chunks looks at each K-th observation alone: the others need no pictures.
"""

from typing import Any

import numpy as np
from robosuite.utils.binding_utils import MjSim
from vla_eval.benchmarks.base import StepResult
from vla_eval.benchmarks.libero.benchmark import LIBERO_DUMMY_ACTION, LIBEROBenchmark

_draw = MjSim.render


class LazyLIBERO(LIBEROBenchmark):
    """Drawn are the frames on which a chunk begins."""

    def __init__(self, chunk: int, num_steps_wait: int = 10, **params: Any) -> None:
        """`chunk`: steps of the controller in one of the server. The rest as there; the last wait is taken here."""
        super().__init__(num_steps_wait=num_steps_wait - 1, **params)
        self.chunk, self.steps = chunk, 0

    def reset(self, task: Any) -> Any:
        self.steps = 0
        self._draw_next(False)
        super().reset(task)
        self._draw_next(True)
        return self._env.step(LIBERO_DUMMY_ACTION)[0]

    def step(self, action: Any) -> StepResult:
        self.steps += 1
        self._draw_next(self.steps % self.chunk == 0)
        return super().step(action)

    def make_obs(self, raw_obs: Any, task: Any) -> Any:
        shown = super().make_obs(raw_obs, task)
        if self.steps % self.chunk == 0 and not all(image.any() for image in shown["images"].values()):
            raise RuntimeError("A picture that the policy is to see was not drawn.")
        return shown

    def _draw_next(self, wanted: bool) -> None:
        """Whether robosuite's next reading of a camera draws; it takes one in each step, a little before its end."""
        cameras = {"agentview", *(["robot0_eye_in_hand"] if self.send_wrist_image else [])}

        def render(sim: Any, width: int = 255, height: int = 255, *, camera_name: Any = None, **options: Any) -> Any:
            if wanted and camera_name in cameras:
                return _draw(sim, width=width, height=height, camera_name=camera_name, **options)
            return np.zeros((height, width, 3), np.uint8)

        MjSim.render = render
