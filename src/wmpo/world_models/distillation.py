"""Few steps from many: a student learns to reach in a few Euler steps what its teacher reaches in many.

Each sample is one point of the teacher's path from noise to data. The student estimates the data there, and should
estimate that of which one of its own, longer steps leads to where the teacher arrives at that time: progressive
distillation (arXiv 2202.00512) of all its steps at once. With one step that is the end of the teacher's path.

Against drift half of each batch begins where the student itself has got to: it goes on from a chunk that it has
imagined, its teacher from the real one, so that what it is taught leads back to reality (as self-forcing does,
arXiv 2506.08009, which compares distributions; here chances are few, and one future is compared with one).

Consistency and shortcuts are beside it in `experiments/ways.py`; experiments/docs/students.md says what each is worth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmpo.data.clips import VideoBatch
from wmpo.data.latents import Encoder
from wmpo.losses import flow
from wmpo.protocols import TrainingStage
from wmpo.world_models.memory import Memory

if TYPE_CHECKING:
    from wmpo.world_models.transformer import SpaceTimeTransformer
    from wmpo.world_models.unet import UNet
    from wmpo.world_models.video_diffusion import Known, VideoDiffusionModel

EARLY, LATE = slice(1, None, 2), slice(0, None, 2)  # of a batch; not halves: alignment sorts clips by who acted


class Distillation(nn.Module):
    """Its loss is that of the model's student, on clips of two chunks."""

    def __init__(self, model: VideoDiffusionModel) -> None:
        super().__init__()
        self.model = model

    def units(self) -> list[nn.Module]:
        return self.model.units()

    def stage(self, encoder: Encoder | None, first: bool) -> TrainingStage:
        """`first`: the student begins as its teacher is; else as it was before."""
        stage = TrainingStage("student", self, self.model.config.settings.distil, encoder, chunks=2)
        return replace(stage, begin=self._begin) if first else stage

    def _begin(self) -> None:
        assert self.model.student is not None
        self.model.student.load_state_dict(self.model.denoiser.state_dict())

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        assert model.student is not None
        generator = generator or torch.default_generator
        with torch.no_grad():
            seen, own, action = self.memories(batch, generator)
            noise = self.noise(action, generator)
            x_t, t_B, target = self.lesson(seen, action, noise, generator)
        return self.loss(x_t, t_B, target, self.going_on(own, action, model.student))

    def lesson(
        self, seen: Memory, action: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A point of the teacher's path, its time (B,), and what the student should estimate there."""
        steps = self.model.config.settings.student_steps
        path = self.path(seen, action, noise)
        points = path[:: (len(path) - 1) // steps]  # (steps + 1, B, K, c, h, w): those where the student asks
        step = torch.randint(steps, (len(noise),), generator=generator, device=generator.device)
        step, rows = step.to(noise.device), torch.arange(len(noise), device=noise.device)
        x_t, x_next = points[step, rows], points[step + 1, rows]
        t_B, t_next_B = step / steps, (step + 1) / steps
        return x_t, t_B, flow.data_from_step(x_t, x_next, t_B, t_next_B)

    def path(self, seen: Memory, action: Tensor, noise: Tensor) -> Tensor:
        """(sampling_steps + 1, B, K, c, h, w): where the teacher goes from this noise."""
        model = self.model
        taught = self.going_on(seen, action, model.denoiser)
        steps = model.config.settings.sampling_steps
        return torch.stack([*flow.euler_path(lambda x, t_B: model.predict(x, t_B, taught), noise, steps)])

    def going_on(self, memory: Memory, action: Tensor, denoiser: UNet | SpaceTimeTransformer) -> Known:
        """What this denoiser's estimates of the chunk after `memory` have in common."""
        with torch.no_grad():
            pose = self.model.kinematics.follow(memory.pose, action)
        return self.model.known(memory, action, pose, denoiser)

    def loss(self, x_t: Tensor, t_B: Tensor, target: Tensor, known: Known) -> tuple[Tensor, dict[str, Tensor]]:
        error_B = (self.model.predict(x_t, t_B, known) - target).square().mean(dim=(1, 2, 3, 4))
        loss = (self.model.loss_weight(t_B) * error_B).mean()
        return loss, {"loss": loss.detach(), "error": error_B.mean().detach()}

    def memories(self, batch: VideoBatch, generator: torch.Generator) -> tuple[Memory, Memory, Tensor]:
        """What the teacher goes on from, what the student does, and the K actions that follow: the first chunk of every
        other clip, the second of the rest, whose first chunk the student has imagined. A clip alone is of the rest."""
        model, K = self.model, self.model.chunk
        first_pose, pose = model.kinematics.poses(batch)
        start = Memory(model.encode(batch.context), model.encode(batch.anchor), pose[:, 0], first_pose)
        past = {name: frames[LATE, :K] for name, frames in batch.future.items()}
        real = start.rows(LATE).then(model.encode(past), pose[LATE, K])
        dreamt = self.dreamt(start.rows(LATE), batch.action[LATE, :K], generator)
        action = torch.cat([batch.action[EARLY, :K], batch.action[LATE, K:]])
        return start.rows(EARLY).beside(real), start.rows(EARLY).beside(dreamt), action

    def dreamt(self, start: Memory, action: Tensor, generator: torch.Generator) -> Memory:
        """Where the student itself gets to."""
        pose = self.model.kinematics.follow(start.pose, action)
        sample = self.model.sample(self.noise(action, generator), start, action, pose)
        return start.then(sample, pose[:, -1])

    def noise(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """(B, K, c, h, w): from which the chunks after these actions, (B, K, D), are imagined."""
        return flow.standard_normal((len(action), self.model.chunk, *self.model.latent), action.device, generator)
