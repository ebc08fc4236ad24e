"""A student that needs fewer steps than its teacher, on the videos of `test_video_diffusion`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from episodes_by_hand import SPEC, make_episode, make_store
from test_video_diffusion import SMALL, batch, build, learn
from wmpo.algorithm import align_world_model, pretrain_world_model, video_clips
from wmpo.batches import split
from wmpo.config import FitConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import VideoBatch, VideoClips
from wmpo.errors import UserError
from wmpo.losses import flow
from wmpo.opening import open_run
from wmpo.recipes import RECIPES
from wmpo.world_models.distillation import Distillation
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SETTINGS = replace(SMALL, training_timesteps="all", sampling_steps=4, student_steps=1)


def two_chunks(seed: int) -> VideoBatch:
    return batch(seed, size=16, chunk=8)


@pytest.fixture(scope="module")
def trained() -> VideoDiffusionModel:
    """Teacher and student, one the copy of the other."""
    model = build(replace(SETTINGS, width=16))
    learn(model.kinematics, batch, 60, 5e-3)
    learn(model, batch, 60, 4e-3)
    Distillation(model).stage(None, first=True).begin()
    model.zero_grad()  # whichever test comes first
    return model.eval()


def apart(model: VideoDiffusionModel) -> float:
    """Between the student's frames and the teacher's, from one noise: a mean squared difference."""
    with torch.no_grad():
        seen, own, action = Distillation(model).memories(two_chunks(99), torch.Generator().manual_seed(5))
        noise = torch.randn(len(action), 4, *model.latent, generator=torch.Generator().manual_seed(6))
        student = model.sample(noise, own, action, model.kinematics.follow(own.pose, action))
        known = model.known(seen, action, model.kinematics.follow(seen.pose, action), model.denoiser)
        teacher = flow.euler_sample(lambda x, t_B: model.predict(x, t_B, known), noise, 4)
    return float((student - teacher).square().mean())


def test_a_student_comes_near_its_teacher(trained: VideoDiffusionModel) -> None:
    before, teacher = apart(trained), {k: v.clone() for k, v in trained.denoiser.state_dict().items()}
    assert trained.student is not None
    distillation = Distillation(trained)
    learn(distillation, two_chunks, 60, 1e-3)
    assert apart(trained) < 0.6 * before
    assert all(torch.equal(value, teacher[name]) for name, value in trained.denoiser.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2])
def test_one_longer_step_leads_where_the_teacher_goes(steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, noise = torch.randn(3, 3, generator=generator) / 3, torch.randn(5, 3, generator=generator)
    path = list(flow.euler_path(lambda x, t_B: torch.tanh(x @ weights) + t_B[:, None], noise, 8))
    assert len(path) == 9 and torch.equal(path[0], noise)
    stride = 8 // steps
    for step in range(steps):
        t_B, t_next_B = torch.full((5,), step / steps), torch.full((5,), (step + 1) / steps)
        x_t, x_next = path[step * stride], path[(step + 1) * stride]
        estimate = flow.data_from_step(x_t, x_next, t_B, t_next_B)
        arrived = x_t + (t_next_B - t_B)[:, None] * flow.velocity_from_data(estimate, x_t, t_B)
        torch.testing.assert_close(arrived, x_next)
    torch.testing.assert_close(estimate, path[-1])  # the last step ends on its estimate


def rows_of(data: VideoBatch, count: int) -> VideoBatch:
    return split(data, -(-16 // count))[0]


def test_half_of_a_batch_goes_on_from_the_students_own_frames(trained: VideoDiffusionModel) -> None:
    data = two_chunks(3)
    with torch.no_grad():
        seen, own, action = Distillation(trained).memories(data, torch.Generator().manual_seed(0))
        real = trained.encode({"front": data.future["front"][::2, 2:4]})
    assert torch.equal(seen.context[:8], own.context[:8]) and torch.equal(seen.pose[:8], own.pose[:8])
    torch.testing.assert_close(seen.context[8:], real)
    assert not torch.equal(own.context[8:], real) and (own.context[8:] - real).abs().mean() < 0.3
    assert torch.equal(action, torch.cat([data.action[1::2, :4], data.action[::2, 4:]]))
    for rows in (1, 2, 3):
        loss, _ = Distillation(trained)(rows_of(data, rows), torch.Generator().manual_seed(0))
        assert loss.isfinite()


def test_only_the_student_learns(trained: VideoDiffusionModel) -> None:
    loss, _ = Distillation(trained)(two_chunks(0), torch.Generator().manual_seed(0))
    loss.backward()
    moved = {name.partition(".")[0] for name, parameter in trained.named_parameters() if parameter.grad is not None}
    trained.zero_grad()
    assert moved == {"student"}


def test_the_student_imagines_wherever_it_is_loaded(trained: VideoDiffusionModel, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in trained.student.parameters():  # type: ignore[union-attr]
            parameter.add_(0.01)
    trained.save_pretrained(tmp_path / "model")
    loaded = VideoDiffusionModel.from_pretrained(tmp_path / "model")
    memory, _, action = Distillation(trained).memories(two_chunks(1), torch.Generator())
    for parameter in loaded.denoiser.parameters():
        parameter.data.zero_()  # the teacher has no part in it
    frames = [model.imagine(memory, action, torch.Generator().manual_seed(0))[1].latents for model in (trained, loaded)]
    assert torch.equal(*frames)


def test_in_a_run_it_begins_as_its_teacher_and_is_learned_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [make_episode(n, 6 + n) for n in range(3)])
    few = FitConfig(steps=3, batch_size=4, lr=1e-3)
    settings = replace(SETTINGS, kinematics_fit=few, fit=few, align=few, distil=replace(few, accumulate=2))
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, device="cpu", env=replace(recipe.env, workers=0, renderer="rays"), world_model=settings)
    learned = []
    with open_run(recipe, tmp_path / "run") as run:
        for _ in range(2):  # the second time results are only loaded
            torch.manual_seed(0)
            model = VideoDiffusionModel.build(settings, SPEC, 2)
            clips = VideoClips(FrameCache(store), range(3), model.context, model.chunk)
            pretrain_world_model(run, model, clips)
            assert model.student is not None
            pairs = zip(model.student.parameters(), model.denoiser.parameters(), strict=True)
            assert 0 < max(float((a - b).detach().abs().max()) for a, b in pairs) < 4e-3  # no more than three steps go
            align_world_model(run, model, clips, clips)
            learned.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(tensor, learned[1][name]) for name, tensor in learned[0].items())


def test_episodes_too_short_for_the_student_are_told_before_any_training(tmp_path: Path) -> None:
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, device="cpu", env=replace(recipe.env, workers=0, renderer="rays"), world_model=SETTINGS)
    store = make_store(tmp_path / "store", [make_episode(n, 3) for n in range(3)])
    with open_run(recipe, tmp_path / "run") as run:
        model = VideoDiffusionModel.build(SETTINGS, SPEC, 2)
        with pytest.raises(UserError, match="has the 4 actions of 2 chunks"):
            video_clips(run, FrameCache(store), range(3), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_steps": 3}, "must be less than world_model.sampling_steps, 4"),
        ({"student_steps": 4}, "must be less than world_model.sampling_steps, 4"),
        ({"objective": "epsilon"}, "needs world_model.objective flow"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **changes).check()  # type: ignore[arg-type]
