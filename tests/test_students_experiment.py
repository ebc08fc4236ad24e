"""The experiment on ways to a student of few steps: what each teaches, what is measured, and the table of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from episodes_by_hand import SPEC, make_episode, make_store
from experiments import students
from experiments.held_out import HeldOut
from experiments.pages import RESULTS
from experiments.store import read_lines
from experiments.ways import OURS, WAYS, Consistency, Paths, Shortcut, in_steps, student_of
from test_distillation import two_chunks
from test_video_diffusion import SMALL, build
from wmpo.config import FitConfig
from wmpo.families import completed, save_model
from wmpo.io.files import write_json
from wmpo.io.plain import to_plain
from wmpo.losses import flow
from wmpo.recipes import RECIPES
from wmpo.rewards import build_reward_model
from wmpo.world_models import load_world_model
from wmpo.world_models.distillation import Distillation
from wmpo.world_models.memory import Memory
from wmpo.world_models.video_diffusion import VideoDiffusionModel

MANY = replace(SMALL, training_timesteps="all", sampling_steps=8, precision="float32")
ALONG = [way for way in WAYS if way not in ("frames-own", "tuned")]


@pytest.fixture(scope="module")
def straight() -> VideoDiffusionModel:
    """Untrained, a teacher says the same of any noise: its paths are straight."""
    return build(MANY)


@pytest.fixture(scope="module")
def curved() -> VideoDiffusionModel:
    model, generator = build(MANY), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def way(name: str, teacher: VideoDiffusionModel, steps: int) -> Distillation:
    module = WAYS[name][1](teacher, steps, Paths())
    assert isinstance(module, Distillation)
    return module


@torch.no_grad()
def error_after_reality(module: Distillation) -> float:
    """The loss where the student goes on from real frames, too."""
    seen, _, action = module.memories(two_chunks(0), torch.Generator().manual_seed(0))
    module.memories = lambda batch, generator: (seen, seen, action)  # type: ignore[method-assign]
    return float(module(two_chunks(0), torch.Generator().manual_seed(1))[0])


@torch.no_grad()
def shift(model: VideoDiffusionModel, much: float) -> None:
    """Let every estimate of the student differ by so much."""
    assert model.student is not None
    model.student.out.bias.view(4, -1)[:, : model.latent[0]] += much  # type: ignore[union-attr, operator]


@torch.no_grad()
def given(module: Distillation) -> tuple[Memory, Tensor, Tensor]:
    seen, _, action = module.memories(two_chunks(0), torch.Generator().manual_seed(0))
    noise = torch.randn(len(action), 4, *module.model.latent, generator=torch.Generator().manual_seed(2))
    return seen, action, noise


@torch.no_grad()
def said(module: Distillation, denoiser: torch.nn.Module | None, x_t: Tensor, t_B: Tensor) -> Tensor:
    seen, action, _ = given(module)
    return module.model.predict(x_t, t_B, module.going_on(seen, action, denoiser))  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ALONG)
def test_on_straight_paths_nothing_is_left_to_learn(straight: VideoDiffusionModel, name: str, steps: int) -> None:
    module = way(name, straight, steps)
    assert error_after_reality(module) < 1e-9
    shift(module.model, 0.1)
    assert error_after_reality(module) > 1e-3


@pytest.mark.parametrize("name", ALONG)
def test_on_curved_paths_only_as_many_steps_are_as_good(curved: VideoDiffusionModel, name: str) -> None:
    assert error_after_reality(way(name, curved, 8)) < 1e-9 < 1e-5 < error_after_reality(way(name, curved, 1))


@pytest.mark.parametrize("steps", [1, 2])
def test_consistency_is_anchored_at_the_end_of_each_piece(straight: VideoDiffusionModel, steps: int) -> None:
    module = way("consistency-own", straight, steps)
    shift(module.model, 0.1)
    seen, action, noise = given(module)
    with torch.no_grad():
        x_t, t_B, target = module.lesson(seen, action, noise, torch.Generator().manual_seed(0))
    data = said(module, straight.denoiser, x_t, t_B)
    last = (8 * t_B).long() % (8 // steps) == 8 // steps - 1
    assert last.any() and not last.all() and isinstance(module, Consistency)
    torch.testing.assert_close(target[last], data[last], rtol=0, atol=1e-4)  # there the teacher alone decides
    assert ((target - data)[~last] > 0.01).all()  # elsewhere what the student says of the next point
    if steps == 1:
        torch.testing.assert_close(target[~last], data[~last] + 0.1, rtol=0, atol=1e-4)


def test_two_halves_make_a_shortcut(curved: VideoDiffusionModel) -> None:
    module = way("shortcut-own", curved, 2)
    assert isinstance(module, Shortcut) and module.levels == 3
    seen, action, noise = given(module)
    path = module.path(seen, action, noise)
    rows = torch.arange(16)
    with torch.no_grad():
        module.shorter += torch.tensor([[1.0], [2.0]])  # two steps of half the length say so
    for level in range(3):
        levels = torch.full((16,), level)
        with torch.no_grad():
            x_t, t_B, target = module.halves(seen, action, noise, levels, torch.Generator().manual_seed(0))
        taken = 4 >> level
        place = (8 * t_B).long()
        assert set(place.tolist()) <= set(range(0, 8, taken)) and torch.equal(x_t, path[place, rows])
        if level == 2:  # one step of the teacher's
            expected = said(module, curved.denoiser, x_t, t_B)
        else:
            known = module.stepping(module.going_on(seen, action, module.model.student), levels + 1)  # type: ignore[arg-type]
            x, t = x_t, t_B
            for _ in range(2):
                with torch.no_grad():
                    x = x + taken / 16 * flow.velocity_from_data(module.model.predict(x, t, known), x, t)
                t = t + taken / 16
            expected = flow.data_from_step(x_t, x, t_B, t)
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-4)


def test_the_student_knows_how_long_its_step_is(curved: VideoDiffusionModel) -> None:
    module = way("shortcut-own", curved, 2)
    assert isinstance(module, Shortcut) and module.model.student is not None
    seen, action, noise = given(module)
    with torch.no_grad():
        module.shorter += torch.tensor([[1.0], [2.0]])
        known = module.going_on(seen, action, module.model.student)
        usual, *others = (
            module.model.predict(noise, torch.zeros(16), module.stepping(known, torch.full((16,), level)))
            for level in range(3)
        )
    assert torch.equal(usual, said(module, module.model.student, noise, torch.zeros(16)))  # as it imagines
    assert all((other - usual).abs().max() > 1e-4 for other in others) and not torch.equal(*others)
    module(two_chunks(0), torch.Generator().manual_seed(0))[0].backward()
    assert module.shorter.grad is not None and (module.shorter.grad.abs().sum(1) > 0).all()


def test_paths_are_computed_once(curved: VideoDiffusionModel) -> None:
    paths = Paths()
    losses = []
    for name in ALONG:
        module = WAYS[name][1](curved, 2, paths)
        module(two_chunks(0), torch.Generator().manual_seed(4))
        losses.append(id(paths.points))
    assert len(set(losses)) == 1  # all ways meet the same noise
    module(two_chunks(0), torch.Generator().manual_seed(5))
    assert id(paths.points) != losses[0]


def test_without_a_teacher_the_future_is_the_target(straight: VideoDiffusionModel) -> None:
    module, data = way("frames-own", straight, 1), two_chunks(0)
    module.model.kinematics.requires_grad_(False)
    with torch.no_grad():
        _, own, action = module.memories(data, torch.Generator().manual_seed(0))
        future = straight.encode({"front": torch.cat([data.future["front"][1::2, :4], data.future["front"][::2, 4:]])})
        known = module.going_on(own, action, module.model.student)  # type: ignore[arg-type]
        estimate = module.model.predict(torch.zeros_like(future), torch.zeros(16), known)
        loss, _ = module(data, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (estimate - future).square().mean())
    tuned = WAYS["tuned"][1](straight, 4, Paths())
    assert tuned.model.student is None and tuned.model.config.settings.sampling_steps == 4
    assert tuned(data, torch.Generator())[0].isfinite()


# The script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind, of no skill."""
    folder = tmp_path_factory.mktemp("students") / "run"
    shown = [make_episode(n, 10, (9, 10), source="expert") for n in range(3)]
    tried = [make_episode(n, 9, source="round-1") for n in range(3, 6)]
    make_store(folder / "episodes", shown + tried)
    make_store(folder / "evaluation", [make_episode(n, 9, (8,) if n == 7 else (), source="base") for n in (8, 7, 6)])
    distil = FitConfig(optimizer="muon", lr=1e-3, ema=0.9)
    settings = replace(MANY, sampling_steps=4, student_steps=2, distil=distil)
    smoke = RECIPES["smoke"]
    recipe = completed(replace(smoke, device="cpu", world_model=settings))
    write_json(folder / "recipe.json", to_plain(recipe))
    torch.manual_seed(0)
    model = VideoDiffusionModel.build(settings, SPEC, 2)
    save_model("world_model", "video_diffusion", model, folder / "world_model-1", SPEC.fps)
    save_model("reward", "conv", build_reward_model(recipe.reward, SPEC), folder / "reward_model-1", SPEC.fps)
    return folder


def options(folder: Path, out: Path) -> list[str]:
    small = ("--updates", "2", "--batch-size", "4", "--episodes", "2", "--seeds", "5", "--out", str(out))
    return [str(folder), *small]


def test_each_student_is_measured_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "students.jsonl"
    assert students.main([*options(folder, out), "--steps", "1", "2", "--ways", OURS, "shortcut-own", "tuned"]) == 0
    lines = read_lines(out)
    assert [(line["way"], line["steps"], line.get("seed")) for line in lines] == [
        ("teacher", 1, None), ("teacher", 2, None), ("teacher", 4, None), ("stored", 2, None),
        (OURS, 1, 5), ("shortcut-own", 1, 5), ("tuned", 1, 5), (OURS, 2, 5), ("shortcut-own", 2, 5), ("tuned", 2, 5),
    ]  # fmt: skip
    assert all(len(line["chunk_psnr"]) == len(line["replay_psnr"]) == line["episodes"] == 2 for line in lines)
    assert lines[2]["like_teacher_psnr"] == [100, 100] and lines[0]["successes"] == 1
    assert lines[4]["of_the_teacher"] > 0 == lines[6]["of_the_teacher"] and lines[4]["commit"]
    for line in lines[4:]:
        assert line["cpu_seconds"] > 0 and line["updates"] == 2
    assert students.main([*options(folder, out), "--steps", "1", "--ways", OURS, "path"]) == 0
    assert read_lines(out)[:-1] == lines  # only what was missing
    assert "path" in capsys.readouterr().out and not (folder / "world_model_student").exists()
    alone = tmp_path / "alone.jsonl"
    assert students.main([*options(folder, alone), "--steps", "2", "--ways", "tuned", OURS]) == 0
    same = {"chunk_psnr", "like_teacher_psnr", "replay_psnr", "motion_explained", "f1"}
    by_name = {line["way"]: {key: line[key] for key in same} for line in read_lines(alone)}
    assert by_name[OURS] == {key: lines[7][key] for key in same}  # whoever learns beside it


def test_measures_are_of_what_really_happened(folder: Path) -> None:
    model = load_world_model(folder / "world_model-1")
    assert isinstance(model, VideoDiffusionModel)
    teacher = student_of(model, 0)
    held_out = HeldOut.of(folder, completed(RECIPES["smoke"]), teacher, 3)
    assert [episode.initial_state for episode in held_out.episodes] == sorted(
        episode.initial_state for episode in held_out.episodes
    )
    frames = held_out.moments.future["front"]
    assert frames.shape == (6, 2, 3, 16, 24)
    now = held_out.moments.context["front"][:, -1, 1, 0, 0].long()  # green counts frames, actions count hundredths
    assert torch.equal(frames[:, 0, 1, 0, 0].long(), now + 1) and len(set(now.tolist())) > 1
    number = frames[:, 0, 0, 0, 0]
    torch.testing.assert_close(held_out.moments.action[:, 0, 0], number + now / 100)
    before = torch.stack(
        [sum((n + i / 100 for i in range(t)), torch.zeros(())) for n, t in zip(number, now, strict=True)]
    )
    torch.testing.assert_close(held_out.moments.travel[:, 0], before)
    found = held_out.measured(in_steps(teacher, 4))
    assert found["like_teacher_psnr"] == [100.0] * 3 and found["accuracy"] in (0.0, 0.3333, 0.6667, 1.0)


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Iterator[Path]:
    model = VideoDiffusionModel.build(SMALL, SPEC, 2)
    write_json(tmp_path / "recipe.json", to_plain(completed(RECIPES["smoke"])))
    save_model("world_model", "video_diffusion", model, tmp_path / "world_model-1", SPEC.fps)
    yield tmp_path


def test_bad_input_is_one_sentence(folder: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = other / "x.jsonl"
    for args, message in (
        ([*options(folder, out), "--steps", "3"], "--steps 3: the teacher's 4 steps must be"),
        ([*options(folder, out), "--steps", "0"], "--steps 0: the teacher's 4 steps must be"),
        ([*options(folder, out), "--ways", "lcm"], "There is no way 'lcm': choose from path-own, path,"),
        ([*options(folder, out), "--updates", "0"], "--updates is 0; it must be at least 1."),
        (options(other, out), "can't teach: it needs world_model.training_timesteps all"),
        (options(other / "none", out), "There is no folder"),
    ):
        assert students.main(args) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


# The table


def line(way: str, chunk: list[float], replay: list[float], seed: int | None = 0, steps: int = 1) -> dict[str, object]:
    named = {"way": way, "steps": steps, "episodes": 4} | (
        {} if seed is None else {"seed": seed, "updates": 9, "batch": 8}
    )
    took = {} if seed is None else {"cpu_seconds": 20.0 + seed, "of_the_teacher": 0.0 if way == "tuned" else 12.0}
    quality = {"chunk_psnr": chunk, "like_teacher_psnr": chunk, "replay_psnr": replay, "end_psnr": replay}
    return {**named, **quality, "motion_explained": 0.5, "end_sharpness": 1.2, "f1": 0.75, **took}


def test_the_table_sets_each_way_beside_the_products() -> None:
    flat = [20.0, 20, 20, 20]
    lines = [
        line("teacher", flat, flat, None, 8),
        line("tuned", [21.3, 20.9, 20.9, 20.9], [20, 21, 19, 20], 1), line("tuned", [20.9, 21.1, 21.1, 20.9], flat, 0),
        line(OURS, flat, flat, 0), line(OURS, flat, flat, 1),
        line("path", flat, [19.9, 20.0, 19.8, 19.9], 0), line("path", flat, [20.3, 20.2, 20.2, 20.1], 1),
    ]  # fmt: skip
    first, second = students.students_tables(lines).split("\n\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in first.splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        ["path, own frames (the product's)", "1", "9 x 8", "2"],
        ["path, real frames only", "1", "9 x 8", "2"],
        ["teacher trained for as long at these steps", "1", "9 x 8", "2"],
        ["the teacher itself", "8", "–", "1"],
    ]
    assert rows[2][4:] == ["21.00 (21.00 to 21.00)"] * 2 + ["20.00 (20.00 to 20.00)"] * 2 + [
        "50.0 (50.0 to 50.0)", "1.20 (1.20 to 1.20)", "0.75 (0.75 to 0.75)", "20 (20 to 21)", "0 (0 to 0)",
    ]  # fmt: skip
    assert rows[3][4:6] == ["20.00", "–"] and rows[3][-2:] == ["–", "–"]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in second.splitlines()[2:]]
    assert [row[0] for row in rows] == ["path, real frames only", "teacher trained for as long at these steps"]
    assert rows[1][3].startswith("+1.00 (") and rows[1][3].endswith("; +1.00, +1.00")
    assert rows[1][6] == "yes; no; yes"
    assert rows[0][4].endswith("; −0.10, +0.20") and rows[0][6].split("; ")[1] == "no"  # seeds differ in sign


def test_the_page_is_of_the_stored_results() -> None:
    page = (RESULTS.parent / "docs" / "students.md").read_text(encoding="utf-8")
    assert students.students_tables(read_lines(RESULTS / "students.jsonl")) in page
