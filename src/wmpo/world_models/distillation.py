"""Few steps from many: a student learns to reach in a few Euler steps what its teacher reaches in many.

Each sample is one point of the teacher's path from noise to data. The student estimates the data there, and should
estimate that of which one of its own, longer steps leads to where the teacher arrives at that time: progressive
distillation (arXiv 2202.00512) of all its steps at once. With one step that is the end of the teacher's path.

Against drift half of each batch begins where the student itself has got to: it goes on from a chunk that it has
imagined, its teacher from the real one, so that what it is taught leads back to reality (as self-forcing does,
arXiv 2506.08009, which compares distributions; here chances are few, and one future is compared with one).
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
    from wmpo.world_models.video_diffusion import VideoDiffusionModel


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
        model, settings = self.model, self.model.config.settings
        assert model.student is not None
        generator = generator or torch.default_generator
        with torch.no_grad():
            seen, own, action = self.memories(batch, generator)
            pose = model.kinematics.follow(seen.pose, action)
            noise = flow.standard_normal((len(action), model.chunk, *model.latent), action.device, generator)
            taught = model.known(seen, action, pose, model.denoiser)
            path = flow.euler_path(lambda x, t_B: model.predict(x, t_B, taught), noise, settings.sampling_steps)
            stride = settings.sampling_steps // settings.student_steps
            points = torch.stack([x for n, x in enumerate(path) if n % stride == 0])  # (steps + 1, B, K, c, h, w)
            step = torch.randint(settings.student_steps, (len(noise),), generator=generator, device=generator.device)
            step, rows = step.to(noise.device), torch.arange(len(noise), device=noise.device)
            x_t, x_next = points[step, rows], points[step + 1, rows]
            t_B, t_next_B = step / settings.student_steps, (step + 1) / settings.student_steps
            target = flow.data_from_step(x_t, x_next, t_B, t_next_B)
            pose = model.kinematics.follow(own.pose, action)
        estimate = model.predict(x_t, t_B, model.known(own, action, pose, model.student))
        error_B = (estimate - target).square().mean(dim=(1, 2, 3, 4))
        loss = (model.loss_weight(t_B) * error_B).mean()
        return loss, {"loss": loss.detach(), "error": error_B.mean().detach()}

    def memories(self, batch: VideoBatch, generator: torch.Generator) -> tuple[Memory, Memory, Tensor]:
        """What the teacher goes on from, what the student does, and the K actions that follow: the first chunk of every
        other clip, the second of the rest, whose first chunk the student has imagined. A clip alone is of the rest."""
        model, K = self.model, self.model.chunk
        first_pose, pose = model.kinematics.poses(batch)
        start = Memory(model.encode(batch.context), model.encode(batch.anchor), pose[:, 0], first_pose)
        early, late = slice(1, None, 2), slice(0, None, 2)  # not halves: alignment sorts clips by who acted
        past = {name: frames[late, :K] for name, frames in batch.future.items()}
        real = start.rows(late).then(model.encode(past), pose[late, K])
        taken = batch.action[late, :K]
        follows = model.kinematics.follow(pose[late, 0], taken)
        noise = flow.standard_normal((len(taken), K, *model.latent), taken.device, generator)
        dreamt = start.rows(late).then(model.sample(noise, start.rows(late), taken, follows), follows[:, -1])
        action = torch.cat([batch.action[early, :K], batch.action[late, K:]])
        return start.rows(early).beside(real), start.rows(early).beside(dreamt), action
