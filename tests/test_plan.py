"""Memory and arithmetic that are planned, against those that are taken or counted by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from wmpo.cli import main, planning
from wmpo.cli.counting import META, Alive, go_through
from wmpo.cli.planning import (
    Need,
    blank,
    fitting,
    gathered,
    images,
    plan,
    training,
    updating,
    world_model_training,
)
from wmpo.config import FitConfig, GRPOConfig, Recipe
from wmpo.errors import UserError
from wmpo.nn.precision import computing_in
from wmpo.policies import load_policy
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.openvla_oft import OpenVLAOFT
from wmpo.policies.settings import FlowVLASettings, MiniVLASettings
from wmpo.recipes import RECIPES
from wmpo.rewards import build_reward_model
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.autoencoder import DiffusersCodec
from wmpo.world_models.video_diffusion import Memory, VideoDiffusionModel

SPEC = EnvSpec({"front": (32, 32)}, 4, 4, 24, 5)


def stages(recipe: Recipe, spec: EnvSpec) -> list[Need]:
    """What is trained or practised, without what only plays or replays."""
    return [need for need in plan(recipe, spec) if need.stage not in ("collect, evaluate", "replay")]


class Square(nn.Module):
    """One matrix, squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)

    def forward(self, batch: torch.Tensor, generator: object = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.linear(batch).square().mean(), {}


def test_by_hand() -> None:
    with torch.device(META):
        module = Square()
    need = training("square", module, blank(1000, 64), FitConfig(optimizer="adamw", ema=0.9), "")
    matrix, rows = 64 * 64 * 4, 1000 * 64 * 4
    assert (need.parameters, need.weights, need.training) == (64 * 64, 2 * matrix, 3 * matrix)
    assert 2 * rows <= need.activations <= 6 * rows  # inputs, outputs, squares, and gradients of them
    few = training("square", module, blank(1, 64), FitConfig(), "")
    assert few.activations <= 6 * 64 * 4 + 8 < matrix  # and nothing of the matrix, of which products see a view
    lean = training("square", module, blank(1000, 64), FitConfig(optimizer="muon"), "")
    assert (lean.weights, lean.training) == (matrix, 2 * matrix)
    held = need.shared / 4 + need.gathered + need.activations  # a quarter of weights, average, gradients and moments
    assert (need.shared, need.gathered) == (5 * matrix, 2 * matrix)  # and all weights and gradients, for a moment
    assert (need.total_of(1), need.total_of(4)) == (need.total, round(planning.MARGIN * held))
    product = 2 * 1000 * 64 * 64
    assert need.flop == 2 * product  # forward, and the gradient of the matrix; none of the input is asked for
    assert (need.steps, need.hours(2.0)) == (1000, 1000 * 2 * product / 2e12 / 3600)


def test_a_batch_has_no_more_parts_than_rows() -> None:
    with torch.device(META):
        module = Square()
    whole, thirds, rows = (
        training("square", module, blank(6, 64), FitConfig(steps=10, accumulate=parts), "") for parts in (1, 3, 1000)
    )
    assert [(need.steps, need.parts) for need in (whole, thirds, rows)] == [(10, 1), (30, 3), (60, 6)]
    assert whole.steps * whole.flop == thirds.steps * thirds.flop == rows.steps * rows.flop


def test_a_training_in_bfloat16_is_planned_as_one() -> None:
    with torch.device(META):
        module = Square()
    full, half = (
        training("square", module, blank(1000, 64), FitConfig(precision=precision), "")
        for precision in ("float32", "bfloat16")
    )
    assert half.activations < full.activations and half.training == full.training


def test_arithmetic_by_hand() -> None:
    """Forward, and twice as much backward where gradients of inputs and of weights are asked for."""
    B, L, W = 3, 10, 16
    with torch.device(META):
        linear, conv = nn.Linear(W, W), nn.Conv1d(W, W, 5, padding=2)
    x = torch.empty(B, L, W, device=META, requires_grad=True)
    cases: list[tuple[Callable[[], torch.Tensor], int, list[nn.Parameter]]] = [
        (lambda: linear(x), 2 * B * L * W * W, list(linear.parameters())),
        (lambda: conv(x.mT), 2 * B * L * W * W * 5, list(conv.parameters())),
        (lambda: scaled_dot_product_attention(x, x, x), 4 * B * L * L * W, []),
    ]

    def both(forward: Callable[[], torch.Tensor], parameters: list[nn.Parameter]) -> None:
        torch.autograd.grad(forward().sum(), [x, *parameters])

    for forward, flop, parameters in cases:
        assert go_through(torch.no_grad(), forward).flop == flop
        assert go_through(torch.enable_grad(), partial(both, forward, parameters)).flop == 3 * flop


def test_steps_of_a_run_by_hand() -> None:
    """Every stage's arithmetic grows as its settings say."""
    recipe = RECIPES["smoke"]
    align = replace(recipe.world_model.align, steps=30, batch_size=2 * recipe.world_model.fit.batch_size)
    recipe = replace(
        recipe, rounds=2, control=True, world_model=replace(recipe.world_model, align=align),
        grpo=replace(recipe.grpo, iterations=5, groups=6, group_size=4, minibatches=2, micro_batch=3),
    )  # fmt: skip
    needs = stages(recipe, SPEC)  # 24 actions in chunks of 4
    world = recipe.world_model  # its kinematics are trained anew in each of the two rounds
    worlds = (3 * world.kinematics_fit.steps, world.fit.steps + 2 * 30 * 2)
    assert [need.stage for need in needs[1:3]] == ["world: kinematics", "world: denoiser"]
    imitation = recipe.policy.fit.steps + 2 * recipe.self_imitation.steps
    fits = (imitation, *worlds, 2 * recipe.reward.fit.steps)
    chunks = 3 * 5 * 6 * recipe.grpo.shards
    assert [need.steps for need in needs] == [*fits, chunks, 3 * 5 * 24 / 3]
    cross_fitted = stages(replace(recipe, reward=replace(recipe.reward, threshold="calibrated")), SPEC)
    assert cross_fitted[3].steps == 3 * needs[3].steps  # one that sees all episodes, and two that see half
    thrice = stages(replace(recipe, grpo=replace(recipe.grpo, epochs=3)), SPEC)
    assert [need.steps for need in thrice[-2:]] == [chunks, 3 * 3 * 5 * 24 / 3]
    once = plan(replace(recipe, reward=replace(recipe.reward, stride=4)), SPEC)[-2].flop  # one clip a chunk, not two
    double = stages(replace(recipe, grpo=replace(recipe.grpo, groups=12)), SPEC)[-2].flop
    assert double == pytest.approx(2 * needs[-2].flop, rel=1e-3)  # but for sentences, each read once
    judge = build_reward_model(recipe.reward, SPEC).to(META)
    with Alive() as alive:
        rows = 24 // recipe.grpo.shards  # of those that are imagined at once
        judge.score(images((32, 32), rows, recipe.reward.clip_length), ("",) * rows)
    assert needs[-2].flop - once == alive.flop > 0
    slow = stages(replace(recipe, world_model=replace(recipe.world_model, sampling_steps=3)), SPEC)[-2].flop
    slower = stages(replace(recipe, world_model=replace(recipe.world_model, sampling_steps=5)), SPEC)[-2].flop
    assert slower - slow == slow - needs[-2].flop > 0


def test_playing_and_replaying_by_hand() -> None:
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, collect=replace(recipe.collect, episodes=40), rounds=1, control=False)
    needs = {need.stage: need for need in plan(recipe, replace(SPEC, max_batch=16))}
    batches = -(-(40 + 2 * 32 * recipe.evaluate.time_factor) // 16)  # rollouts; base and practised policy, evaluated
    assert needs["collect, evaluate"].steps == 6 * batches
    replayed = 40 + 40  # rollouts, and as many demonstrations
    assert needs["replay"].steps * 80 == 6 * replayed
    more = {need.stage: need for need in plan(recipe, replace(SPEC, max_batch=32))}
    assert more["collect, evaluate"].activations > 1.8 * needs["collect, evaluate"].activations


@pytest.mark.parametrize("settings", [
    {"sampling_steps": 5},
    {"sampling_steps": 5, "objective": "epsilon", "training_timesteps": "all", "imagined_rows": 2},
    {"sampling_steps": 8, "student_steps": 4, "backbone": "transformer"},
])  # fmt: skip
def test_of_many_denoising_steps_two_are_gone_through(settings: dict[str, Any]) -> None:
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, world_model=replace(recipe.world_model, **settings))
    needs = {need.stage: need for need in plan(recipe, SPEC)}
    with torch.device(META):
        policy = MiniVLA.build(recipe.policy, SPEC)
        world_model, judge = (
            VideoDiffusionModel.build(recipe.world_model, SPEC, 4),
            build_reward_model(recipe.reward, SPEC),
        )
    rows = recipe.grpo.groups * recipe.grpo.group_size // recipe.grpo.shards
    dream = partial(planning.imagine, policy, world_model, judge, SPEC, rows, recipe.reward.stride)
    whole = go_through(torch.no_grad(), dream, [policy, world_model, judge])
    assert (needs["practise: imagine"].activations, needs["practise: imagine"].flop) == (whole.peak, whole.flop)


def test_hours_of_several_processes_by_hand() -> None:
    need = Need("train", 1, 0, 0, 0, "", flop=10**12, steps=800, parts=8, sent=10**9)
    assert need.hours(1.0) == 800 / 3600
    assert need.hours(1.0, 8, gigabytes=1.0) == pytest.approx((100 + 100 * 2 * 7 / 8) / 3600)
    assert need.hours(1.0, 5, gigabytes=1e9) == pytest.approx(200 / 3600)  # some have two parts
    assert need.hours(1.0, 64, gigabytes=1e9) == pytest.approx(100 / 3600)  # no more of them have work


def test_bfloat16_and_attention_are_counted_as_a_gpu_computes_them() -> None:
    x = torch.empty(2, 4, 1000, 16, device=META, requires_grad=True)
    layer = nn.Linear(16, 16, bias=False, device=META)

    def attend() -> None:
        with computing_in("bfloat16", META):
            assert scaled_dot_product_attention(layer(x), x, x).dtype == torch.bfloat16

    size, pairs = 2 * x.numel(), 2 * 2 * 4 * 1000**2
    taken = go_through(torch.no_grad(), attend)
    assert taken.flop == 2 * x.numel() * 16 + 4 * 2 * 4 * 1000**2 * 16
    assert 3 * size + 2 * size <= taken.peak < pairs / 2  # x as it came, halves of it, what comes out; no pairs

    def twice() -> None:
        with computing_in("bfloat16", META):
            found = checkpoint(lambda given: layer(given).exp(), x, use_reentrant=False)
        torch.autograd.grad(found.sum(), [x])  # outside, where what is computed again must be bfloat16 too

    assert go_through(torch.enable_grad(), twice).flop == 3 * 2 * x.numel() * 16


def test_what_is_let_go_is_not_counted() -> None:
    with Alive() as alive:
        for _ in range(5):
            x = torch.empty(1000, device=META)
            del x
        y = torch.empty(10, device=META)
        y.view(5, 2)
        assert alive.live == 40
        matrix = torch.empty(10, 10, device=META, requires_grad=True)
        saved = (y.view(1, 10) @ matrix).exp()
        total = saved.sum()
        del saved
        assert alive.live == 40 + 400 + 40 + 4  # autograd holds the exponential
        del total
        assert alive.live == 440
    assert alive.peak == 4000


@pytest.mark.parametrize("rows", [16, 64])
def test_planned_activations_are_those_of_a_real_step(rows: int) -> None:
    real = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    images = torch.randn(rows, 3, 64, 64)
    with torch.device(META):
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    with Alive() as alive:
        model(blank(rows, 3, 64, 64)).square().mean().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        real(images).square().mean().backward()
    running, most = 0, 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            running += event.nbytes()
            most = max(most, running)
    assert alive.peak == pytest.approx(most + images.nbytes, rel=0.25)


def test_more_rows_need_more_memory_and_the_advice_fits() -> None:
    recipe = RECIPES["smoke"]
    needs = {need.stage: need for need in stages(recipe, SPEC)}
    assert list(needs) == [
        "imitate", "world: kinematics", "world: denoiser", "reward model", "practise: imagine", "practise: update"
    ]  # fmt: skip
    double = replace(recipe, grpo=replace(recipe.grpo, groups=2 * recipe.grpo.groups))
    imagine, more = needs["practise: imagine"], plan(double, SPEC)[-2]
    assert 1.5 < more.activations / imagine.activations < 2.1
    assert fitting(imagine, imagine.total) == "fits"
    assert fitting(more, (more.total + imagine.total) / 2).startswith("lower grpo.groups to ")
    large = Need("imitate", 10, 10**9, 10**9, 1, "policy.fit.batch_size, policy.width", 1, 1)
    assert fitting(large, 1e9) == "the networks alone are too large: lower policy.width"
    sharing = replace(large, shared=2 * 10**9, gathered=10)
    assert [fitting(sharing, 1e9, processes) for processes in (1, 2, 4)] == [
        fitting(large, 1e9), fitting(large, 1e9), "set its fit.fsdp"
    ]  # fmt: skip
    assert fitting(replace(sharing, fsdp=True), 1e9, 4) == "fits" != fitting(replace(sharing, fsdp=True), 1e9)


def test_two_units_and_the_rest_are_gathered() -> None:
    with torch.device(META):
        module = nn.Sequential(*(nn.Linear(64, 64 * rows, bias=False) for rows in (1, 2, 3, 4)))
    row = 64 * 64 * 4
    assert gathered(module, set()) == 10 * row
    module.units = lambda: [*module[:3]]  # type: ignore[assignment]
    assert gathered(module, {module[0].weight}) == (4 + (1 + 1) + 3) * row  # weights, and the gradients of a unit
    assert gathered(module, {module[0].weight, module[2].weight}) == (4 + 2 + 2 * 3) * row
    assert gathered(module, {module[3].weight}) == (2 * 4 + 2 + 3) * row


def grpo(**settings: int) -> GRPOConfig:
    return GRPOConfig(groups=16, group_size=4, minibatches=2, **settings)  # 32 episodes a step


@pytest.mark.parametrize("head", ["tokens", "flow"])
def test_smaller_micro_batches_need_less_for_an_update(head: Literal["tokens", "flow"]) -> None:
    with torch.device(META):
        policy = MiniVLA.build(MiniVLASettings(width=16, hidden=32, head=head), SPEC).to(META)
    whole, same, half, tiny = (updating(grpo(micro_batch=n), (policy,), SPEC, "n, width") for n in (64, 32, 16, 1))
    trained = 4 * sum(p.numel() for p in policy.parameters())
    assert whole == same and whole.training == 3 * trained  # gradients, and Adam's two moments
    assert half.training == 4 * trained and half.weights == whole.weights  # gradients so far, and new ones
    assert 0.45 < half.activations / whole.activations < 0.55 and tiny.activations < whole.activations / 15
    assert fitting(whole, whole.total - 1).startswith("lower n to ")
    held_to_its_beginning = updating(GRPOConfig(groups=16, group_size=4, minibatches=2, micro_batch=64, kl_coef=0.1),
                                     (policy,), SPEC, "")  # fmt: skip
    assert held_to_its_beginning.weights == whole.weights + trained


def test_a_policy_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    from test_openvla_oft import publish

    published, spec = publish(tmp_path / "published"), replace(SPEC, cameras={"front": (64, 64)})
    quantiles = {"q01": [-1.0] * 4, "q99": [1.0] * 4}
    (published / "dataset_statistics.json").write_text(json.dumps({"place": {"action": quantiles}}))
    OpenVLAOFT.from_published(published, lora_rank=2, chunk=4).save_pretrained(tmp_path / "low-rank")
    whole = OpenVLAOFT.from_published(published)
    weights = sum(p.numel() for p in whole.parameters())
    linear = {name: layer for name, layer in whole.named_modules() if isinstance(layer, nn.Linear)}
    change = sum(2 * sum(layer.weight.shape) for name, layer in linear.items() if "lm_head" not in name)
    fit = FitConfig(optimizer="adamw", batch_size=2)
    for start, parameters, trained in (
        (published, weights, weights),
        (tmp_path / "low-rank", weights + change, change),
    ):
        policy = FlowVLASettings(pretrained=str(start), chunk=4, fit=fit)
        needs = plan(replace(RECIPES["smoke"], policy=policy, grpo=grpo(micro_batch=32)), spec)
        imitate, update = needs[0], needs[-1]
        assert (imitate.parameters, imitate.training, update.training) == (parameters, 12 * trained, 12 * trained)
        assert 4 * parameters <= imitate.weights < 4 * parameters + 4000  # and some buffers
        assert update.activations > imitate.activations > 0
        assert fitting(imitate, imitate.weights).endswith("too large: lower what is trained (lora_rank)")
    options = [
        "--policy.pretrained",
        str(published),
        "--policy.chunk",
        "4",
        "--env.renderer",
        "rays",
        "--gpu-memory",
        "24",
    ]
    assert main(["plan", "place", *options, "--grpo.micro-batch", "1"]) == 0
    assert f"{weights / 1e6:.2f} M" in capsys.readouterr().out


def test_sdxls_autoencoder_is_planned_without_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    with torch.device(META):
        assert sum(p.numel() for p in DiffusersCodec("").parameters()) == 83_653_863  # those of its published weights
    with pytest.raises(UserError, match="has no config"):
        DiffusersCodec("")  # with numbers there must be a folder
    options = ["--env.renderer", "rays", "--world-model.codec", "diffusers", "--env.image-size", "64"]
    main(["plan", "smoke", *options])
    assert "world_model.codec_path is empty: the autoencoder of SDXL is planned." in capsys.readouterr().out
    assert main(["plan", "smoke", *options, "--world-model.codec-path", "none-such"]) == 2


@pytest.mark.parametrize("family", ["pi0", "smolvla"])
def test_flow_policies_from_folders(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from test_flow_vla import MAKERS

    start, fit = str(MAKERS[family](tmp_path)), FitConfig(batch_size=2)
    policy = FlowVLASettings(pretrained=start, cameras=("front",), fit=fit)
    recipe, spec = replace(RECIPES["smoke"], policy=policy), EnvSpec({"front": (16, 16)}, 3, 2, 8, 5)
    imitate, *_, imagine, update = plan(recipe, spec)
    trained = sum(p.numel() for p in load_policy(tmp_path).parameters() if p.requires_grad)
    assert 0 < trained < imitate.parameters and imitate.training == 3 * 4 * trained == update.training
    fewer = replace(recipe, policy=replace(policy, flow=replace(policy.flow, steps=9)))  # it says 10 itself
    assert plan(fewer, spec)[-2].flop < imagine.flop


class Choosy(VideoDiffusionModel):
    """Looks at the numbers of its first frames."""

    def begin(self, first: Observation) -> Memory:
        assert first.images["front"].max() >= 0
        return super().begin(first)


def test_families_that_cannot_be_planned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "build_world_model", Choosy.build)
    with pytest.raises(UserError, match=r"^The dream can't be planned: its networks look at numbers"):
        plan(RECIPES["smoke"], SPEC)


@pytest.mark.parametrize("settings", [
    {"objective": "epsilon", "training_timesteps": "all", "sampling_steps": 3},
    {"backbone": "transformer"},
    {"codec": "autoencoder"},
])  # fmt: skip
def test_every_kind_of_world_model_is_planned(settings: dict[str, Any]) -> None:
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, world_model=replace(recipe.world_model, **settings))
    spec = replace(SPEC, cameras={"front": (32, 32), "wide": (18, 50)})
    with META:
        world_model = VideoDiffusionModel.build(recipe.world_model, spec, 3)
    needs = world_model_training(recipe, world_model, spec)
    assert all(need.flop > 0 and need.training > 0 for need in needs)
    assert ("world: autoencoder" in [need.stage for need in needs]) == ("codec" in settings)
    assert all(need.stage.startswith("world: ") for need in needs) and plan(recipe, SPEC)[-2].flop > 0


def test_frozen_parts_have_no_optimiser() -> None:
    kinematics, denoiser = stages(RECIPES["smoke"], SPEC)[1:3]
    matrix, moments = 4 * (denoiser.parameters - kinematics.parameters), 2  # of AdamW
    fit = RECIPES["smoke"].world_model.fit
    assert fit.optimizer == "adamw" and denoiser.training == matrix * (1 + moments)


@pytest.mark.parametrize(
    "options",
    [
        ["--world-model.depth", "1000000"],
        ["--world-model.width", "1000000000000"],
        ["--world-model.image-size", "1000000000000", "64"],
        ["--world-model.context", "1000000000000"],
        ["--device", "meta"],
    ],
)
def test_impossible_sizes_are_refused_at_once(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    assert main(["plan", "smoke", "--env.renderer", "rays", *options]) == 2
    assert time.monotonic() - begin < 2
    complaint = capsys.readouterr().err
    assert "Traceback" not in complaint and len(complaint.strip().splitlines()) <= 3, complaint


def test_no_number_of_a_large_recipe_is_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [f"--{part}.fit.{name}" for part in ("policy", "world-model", "reward") for name in ("steps", "batch-size")]
    options = [word for option in steps for word in (option, "100000000" if "steps" in option else "2")]
    main(["plan", "smoke", "--env.renderer", "rays", "--tflops", "1", "--gpus", "1024", *options])
    printed = capsys.readouterr().out
    assert "100,000,000" in printed and "…" not in printed and max(map(len, printed.splitlines())) <= 80
    assert [line.count("┃") for line in printed.splitlines() if " 128 ┃" in line or " 64 ┃" in line] == [9, 6] * 2


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "--env.renderer", "rays"]) == 0
    printed = capsys.readouterr().out
    assert "16 episodes, up to" in printed and "hours in all" in printed
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed
    assert main(["plan", "smoke", "--env.renderer", "rays", "--tflops", "0.000001"]) == 0
    assert "hours at 1e-06 TFLOP/s" in capsys.readouterr().out
    assert main(["plan", "smoke", "--tflops", "-1"]) == 2
    assert main(["plan", "smoke", "--env.renderer", "rays", "--gpu-memory", "0.001"]) == 1
    assert main(["plan", "smoke", "--gpu-memory", "0"]) == 2
    capsys.readouterr()
    assert main(["plan", "smoke", "--env.renderer", "rays", "--tflops", "1e-6", "--gpus", "6"]) == 0
    memory, _, table = capsys.readouterr().out.partition("hours by the number of GPUs")
    sharing = memory.partition("GB in all, with fsdp, by")[2]
    assert "world: denoiser" in sharing and "practise" not in sharing.partition("arithmetic")[0]
    assert [cell.strip() for cell in table.splitlines()[2].split("┃")[1:-1]] == ["stage", "1", "2", "4", "6"]
