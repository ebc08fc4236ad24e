"""Ways to a student of few steps that `experiments.students` compares: the product's, and what else there is.

All begin as their teacher is and learn from the same clips, in as many steps. Where one goes on from what it has
imagined itself, its teacher goes on from reality, as in the product. Estimates are compared at points of the teacher's
path from the same noise, so that all see the same points and the path need be computed only once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from wmpo.data.clips import VideoBatch
from wmpo.losses import flow
from wmpo.world_models.distillation import EARLY, LATE, Distillation
from wmpo.world_models.memory import Memory
from wmpo.world_models.unet import UNet
from wmpo.world_models.video_diffusion import Known, VideoDiffusionModel

Points = tuple[Tensor, Tensor, Tensor]  # where the student asks, when (B,), and what it should estimate there


def student_of(teacher: VideoDiffusionModel, steps: int) -> VideoDiffusionModel:
    """The same model with a student of so many steps, which is as the teacher still; 0: the teacher alone."""
    settings = replace(teacher.config.settings, student_steps=steps)
    model = VideoDiffusionModel(replace(teacher.config, settings=settings))
    whole = {name: value for name, value in teacher.state_dict().items() if not name.startswith("student.")}
    model.load_state_dict(whole, strict=False)
    if model.student is not None:
        model.student.load_state_dict(model.denoiser.state_dict())
    return model


def in_steps(teacher: VideoDiffusionModel, steps: int) -> VideoDiffusionModel:
    """The teacher alone, that takes so many steps, and where it is trained asks at these only."""
    model = student_of(teacher, 0)
    settings = replace(model.config.settings, sampling_steps=steps, training_timesteps="sampler")
    model.config = replace(model.config, settings=settings)
    return model


def euler_step(x_t: Tensor, data: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
    """Where an estimate of the data leads from x at t: what `flow.data_from_step` undoes."""
    return torch.lerp(x_t, data, flow.expand(t_next_B - t_B, x_t) / (1 - flow.expand(t_B, x_t)))


class Paths:
    """The teacher's path, computed once for all that go along it from one noise."""

    def __init__(self) -> None:
        self.noise: Tensor | None = None
        self.points = torch.empty(0)
        self.seconds = 0.0  # of this process, spent on paths

    def __call__(self, noise: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if self.noise is None or not torch.equal(noise, self.noise):
            began = time.process_time()
            self.noise, self.points = noise, compute()
            self.seconds += time.process_time() - began
        return self.points


class AlongPath(Distillation):
    """The product's: one longer step leads to where the teacher's path arrives."""

    def __init__(self, model: VideoDiffusionModel, paths: Paths | None = None) -> None:
        super().__init__(model)
        self.paths = paths or Paths()

    def path(self, seen: Memory, action: Tensor, noise: Tensor) -> Tensor:
        compute = super().path
        return self.paths(noise, lambda: compute(seen, action, noise))


class RealFrames(AlongPath):
    """The same, always from real frames."""

    def memories(self, batch: VideoBatch, generator: torch.Generator) -> tuple[Memory, Memory, Tensor]:
        seen, _, action = super().memories(batch, generator)
        return seen, seen, action

    def dreamt(self, start: Memory, action: Tensor, generator: torch.Generator) -> Memory:
        self.noise(action, generator)
        return start  # nobody goes on from it; the noise that follows is that of the others


class Consistency(AlongPath):
    """Consistency distillation (arXiv 2303.01469): a step of the teacher's leads to the next point of its path, where
    the student, as it is, must say the same. With several steps, as many pieces of the path, each consistent in itself
    (arXiv 2403.06807). The student of the comparison has no running mean (arXiv 2310.14189)."""

    def lesson(self, seen: Memory, action: Tensor, noise: Tensor, generator: torch.Generator) -> Points:
        model, steps = self.model, self.model.config.settings.student_steps
        assert model.student is not None
        path = self.path(seen, action, noise)
        total = len(path) - 1
        place = torch.randint(total, (len(noise),), generator=generator, device=generator.device).to(noise.device)
        rows = torch.arange(len(noise), device=noise.device)
        end = (place // (total // steps) + 1) * (total // steps)
        x_t, x_next = path[place, rows], path[place + 1, rows]
        t_B, t_next_B, t_end_B = place / total, (place + 1) / total, end / total
        said = model.predict(x_next, t_next_B, self.going_on(seen, action, model.student))
        arrived = (place + 1 == end).view(-1, 1, 1, 1, 1)  # what it says there leads nowhere
        x_end = torch.where(arrived, x_next, euler_step(x_next, said, t_next_B, t_end_B))
        return x_t, t_B, flow.data_from_step(x_t, x_end, t_B, t_end_B)


class Shortcut(AlongPath):
    """A shortcut model (arXiv 2410.12557): steps of the teacher's length are taught by it, longer ones lead where two
    of the student's own of half the length do.

    The student must know how long its step is. The longest is as the network is; what stands for each shorter one is
    added to the embedding of the context's noise, which is always the same else. So the student is left without a new
    input once it has learned.
    """

    def __init__(self, model: VideoDiffusionModel, paths: Paths | None = None) -> None:
        super().__init__(model, paths)
        settings = model.config.settings
        assert isinstance(model.student, UNet)
        self.levels = (settings.sampling_steps // settings.student_steps).bit_length()  # 1 and its halves
        self.shorter = nn.Parameter(torch.zeros(self.levels - 1, model.student.embedding_width))

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        assert model.student is not None
        generator = generator or torch.default_generator
        with torch.no_grad():
            seen, own, action = self.memories(batch, generator)
            noise = self.noise(action, generator)
            level = torch.randint(self.levels, (len(noise),), generator=generator, device=generator.device)
            level = level.to(noise.device)
            points = self.halves(seen, action, noise, level, generator)
        return self.loss(*points, self.stepping(self.going_on(own, action, model.student), level))

    def halves(self, seen: Memory, action: Tensor, noise: Tensor, level: Tensor, generator: torch.Generator) -> Points:
        """`level`: how often the longest step is halved, (B,)."""
        model = self.model
        assert model.student is not None
        path = self.path(seen, action, noise)
        total = len(path) - 1
        taken = 2 ** (self.levels - 1 - level)  # of the teacher's steps, how many one of the student's stands for
        share = torch.rand(len(noise), generator=generator, device=generator.device).to(noise.device)
        place = (share * (total // taken)).long() * taken
        rows = torch.arange(len(noise), device=noise.device)
        x_t, x_end = path[place, rows], path[place + taken, rows].clone()
        t_B, t_end_B = place / total, (place + taken) / total
        some = taken > 1  # whose target is the student's own
        if some.any():
            known = self.going_on(seen.rows(some), action[some], model.student)
            known = self.stepping(known, level[some] + 1)
            x, middle_B = x_t[some], (t_B[some] + t_end_B[some]) / 2
            for begin_B, end_B in ((t_B[some], middle_B), (middle_B, t_end_B[some])):
                x = euler_step(x, model.predict(x, begin_B, known), begin_B, end_B)
            x_end[some] = x
        return x_t, t_B, flow.data_from_step(x_t, x_end, t_B, t_end_B)

    def stepping(self, known: Known, level: Tensor) -> Known:
        """The student that knows how often its step is halved."""
        features, context_time = known.past
        sizes = nn.functional.pad(self.shorter, (0, 0, 1, 0))  # nothing for the longest
        return known._replace(past=[features, context_time + sizes[level]])


class Frames(Distillation):
    """No teacher: what really follows is the target, of noised real frames; half of the time after frames that it has
    imagined itself."""

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        model, K, steps = self.model, self.model.chunk, self.model.config.settings.student_steps
        assert model.student is not None
        generator = generator or torch.default_generator
        with torch.no_grad():
            _, own, action = self.memories(batch, generator)
            follows = {name: torch.cat([frames[EARLY, :K], frames[LATE, K:]]) for name, frames in batch.future.items()}
            future = model.encode(follows)
            noise = flow.standard_normal(future.shape, future.device, generator)
            step = torch.randint(steps, (len(noise),), generator=generator, device=generator.device)
            t_B = step.to(noise.device) / steps
            x_t = flow.interpolate(future, noise, t_B)
        return self.loss(x_t, t_B, future, self.going_on(own, action, model.student))


class Tuning(nn.Module):
    """Neither teacher nor dreams: the denoiser goes on learning as it has learned, at the levels of noise at which it
    will be asked."""

    def __init__(self, model: VideoDiffusionModel) -> None:
        super().__init__()
        self.model = model

    def units(self) -> list[nn.Module]:
        return self.model.units()

    def forward(self, batch: VideoBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        K = self.model.chunk
        future = {name: frames[:, :K] for name, frames in batch.future.items()}
        return self.model(
            replace(batch, future=future, action=batch.action[:, :K], state=batch.state[:, : K + 1]), generator
        )


Way = Callable[[VideoDiffusionModel, int, Paths], "Distillation | Tuning"]
"""(teacher, steps of the student, paths that are shared) -> what is trained; its `model` then imagines."""
OURS = "path-own"
WAYS: dict[str, tuple[str, Way]] = {
    OURS: ("path, own frames (the product's)", lambda teacher, n, paths: AlongPath(student_of(teacher, n), paths)),
    "path": ("path, real frames only", lambda teacher, n, paths: RealFrames(student_of(teacher, n), paths)),
    "consistency-own": ("consistency, own frames", lambda t, n, paths: Consistency(student_of(t, n), paths)),
    "shortcut-own": ("shortcut, own frames", lambda teacher, n, paths: Shortcut(student_of(teacher, n), paths)),
    "frames-own": ("no teacher, own frames", lambda teacher, n, paths: Frames(student_of(teacher, n))),
    "tuned": ("teacher trained for as long at these steps", lambda teacher, n, paths: Tuning(in_steps(teacher, n))),
}
