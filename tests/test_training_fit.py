"""The one supervised loop: it learns, it resumes bit for bit, in shares or not, and it says what went wrong."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from wmpo.config import FitConfig
from wmpo.errors import UserError
from wmpo.training.fit import fit, learning_rate
from wmpo.training.log import RunLog, read_metrics

torch.set_num_threads(1)


class Line(nn.Module):
    """Fits y = 2x - 1, with noise drawn inside forward as a diffusion loss would."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.noise = noise

    def forward(self, x_B3: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = x_B3 + self.noise * torch.randn(x_B3.shape, generator=generator)
        error = (self.layer(noisy) - (2 * x_B3 - 1)).square().mean()
        return error, {"error": error}


def sample(step: int) -> Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(step))


def train(folder: Path, config: FitConfig, sampler=sample, **options) -> dict[str, Tensor]:
    with RunLog(folder, quiet=True) as log:
        module = fit(Line(), sampler, config, folder=folder, name="line", log=log, **options)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_it_learns(tmp_path: Path) -> None:
    weights = train(tmp_path, FitConfig(steps=300, warmup=5, lr=0.1))
    assert torch.allclose(weights["layer.weight"], 2 * torch.eye(3), atol=0.15)
    assert torch.allclose(weights["layer.bias"], -torch.ones(3), atol=0.15)
    metrics = read_metrics(tmp_path)
    assert metrics["line/loss"][0][0] == 20 and metrics["line/loss"][-1][0] == 300
    assert metrics["line/loss"][-1][1] < 0.1 * metrics["line/loss"][0][1]


def test_arithmetic_in_bfloat16_keeps_weights_in_float32(tmp_path: Path) -> None:
    seen = set()

    class Watched(Line):
        def forward(self, x_B3: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            seen.add(self.layer(x_B3).dtype)
            return super().forward(x_B3, generator)

    config = FitConfig(steps=300, warmup=5, lr=0.1, ema=0.9, cpu_shards=2)
    for precision in ("float32", "bfloat16"):
        seen.clear()
        with RunLog(tmp_path / precision, quiet=True) as log:
            own = replace(config, precision=precision)
            module = fit(Watched(), sample, own, folder=tmp_path / precision, name="line", log=log)
        assert seen == {getattr(torch, precision)}
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
        assert torch.allclose(module.layer.weight, 2 * torch.eye(3), atol=0.15)


def test_no_gradients_are_kept(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True) as log:
        module = fit(Line(), sample, FitConfig(steps=2), folder=tmp_path, name="line", log=log)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.fixture(params=[1, 2])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param


@pytest.mark.parametrize("cpu_shards", [1, 2])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_resume_equals_uninterrupted(
    tmp_path: Path, ema: float, number: signal.Signals, cpu_shards: int, cores: int
) -> None:
    config = FitConfig(steps=6, warmup=2, lr=0.05, ema=ema, weight_decay=0.01, cpu_shards=cpu_shards)
    whole = train(tmp_path / "whole", config)

    class StopsAtThree(Line):
        def forward(self, x_B3: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            if torch.equal(x_B3[0], sample(2)[0]):  # the third step's batch, or its first share
                os.kill(os.getpid(), number)
            return super().forward(x_B3, generator)

    parts = tmp_path / "parts"
    with RunLog(parts, quiet=True) as log, pytest.raises(KeyboardInterrupt, match="after step 3"):
        fit(StopsAtThree(), sample, config, folder=parts, name="line", log=log)
    assert not (parts / "line" / "model.safetensors").exists()
    seen = []
    resumed = train(parts, config, lambda step: seen.append(step) or sample(step))
    assert seen == [3, 4, 5]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not (parts / "line" / "checkpoint.safetensors").exists()


def test_interrupted_by_an_error_in_sampling(tmp_path: Path) -> None:
    """A crash after a periodic checkpoint continues from it, to the same weights."""
    config = FitConfig(steps=6, warmup=2, lr=0.05, ema=0.9)

    def broken(step: int) -> Tensor:
        if step == 4:
            raise RuntimeError("disk gone")
        return sample(step)

    with pytest.raises(RuntimeError, match="disk gone"):
        train(tmp_path / "parts", config, broken, checkpoint_seconds=0.0)
    whole, resumed = train(tmp_path / "whole", config), train(tmp_path / "parts", config)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_finished_fit_is_loaded_not_repeated(tmp_path: Path) -> None:
    config = FitConfig(steps=4, warmup=1, ema=0.5)
    first = train(tmp_path, config)

    def forbidden(step: int) -> Tensor:
        raise AssertionError("trained again")

    again = train(tmp_path, config, forbidden)
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(UserError, match="steps = 4, not 5"):
        train(tmp_path, replace(config, steps=5), forbidden)
    with pytest.raises(UserError, match="seed = 0, not 1"):
        train(tmp_path, config, forbidden, seed=1)


def test_seed_changes_the_noise(tmp_path: Path) -> None:
    config = FitConfig(steps=2, warmup=1)
    one, two = train(tmp_path / "1", config, seed=1), train(tmp_path / "2", config, seed=2)
    assert not torch.equal(one["layer.weight"], two["layer.weight"])


def test_global_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    module = Line()
    torch.manual_seed(5)
    with RunLog(tmp_path, quiet=True) as log:
        fit(module, sample, FitConfig(steps=2, warmup=1), folder=tmp_path, name="line", log=log)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("parts", [{"cpu_shards": 2}, {"cpu_shards": 4}, {"accumulate": 3}])
def test_parts_take_the_steps_of_the_whole_batch(tmp_path: Path, parts: dict[str, int], cores: int) -> None:
    ends = []
    for chosen in ({}, parts):
        folder = tmp_path / str(len(chosen))
        config = FitConfig(steps=5, warmup=2, lr=0.05, ema=0.5, **chosen)
        with RunLog(folder, quiet=True) as log:
            module = fit(Line(noise=0.0), sample, config, folder=folder, name="line", log=log)
        logged = read_metrics(folder)
        # Adam doesn't care how large gradients are, hence a look at their norm too
        facts = [logged[f"line/{name}"][-1][1] for name in ("loss", "error", "grad_norm")]
        ends.append((module.layer.weight.detach(), module.layer.bias.detach(), torch.tensor(facts)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[0][0], Line().layer.weight, atol=1e-2)


def test_the_shares_not_the_cores_decide_what_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    for cores, threads in ((1, 1), (2, 1), (2, 2)):  # workers, and threads of an operation outside them
        monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
        torch.set_num_threads(threads)
        learned.append(train(tmp_path / f"{cores}{threads}", FitConfig(steps=5, warmup=2, lr=0.05, cpu_shards=2)))
    torch.set_num_threads(1)
    assert all(torch.equal(learned[0][name], learned[2][name]) for name in learned[0])
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_every_share_of_every_step_has_its_own_dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one share after the other

    class Gambler(Line):
        thrown: ClassVar[list[float]] = []

        def forward(self, x_B3: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            self.thrown.append(torch.rand((), generator=generator).item())
            return super().forward(x_B3, generator)

    for name in ("one", "two"):
        with RunLog(tmp_path / name, quiet=True) as log:
            config = FitConfig(steps=3, warmup=1, cpu_shards=4)
            fit(Gambler(), sample, config, folder=tmp_path / name, name="line", log=log)
    assert Gambler.thrown[:12] == Gambler.thrown[12:] and len(set(Gambler.thrown)) == 12


def test_first_step_of_adamw_and_average_by_hand(tmp_path: Path) -> None:
    """The first AdamW step moves every weight by lr against its gradient's sign; the average by nine tenths of it."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 1.0]))

        def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            return (self.w * x).sum(), {}

    def run(name: str, ema: float) -> Tensor:
        with RunLog(tmp_path, quiet=True) as log:
            config = FitConfig(steps=1, warmup=1, lr=0.25, ema=ema)
            module = fit(Slope(), lambda _: torch.tensor([3.0, -3.0]), config, folder=tmp_path, name=name, log=log)
        return next(module.parameters()).detach()

    assert torch.allclose(run("plain", 0.0), torch.tensor([0.75, 1.25]), atol=1e-5)
    assert torch.allclose(run("average", 0.999), torch.tensor([1 - 0.9 * 0.25, 1 + 0.9 * 0.25]), atol=1e-5)


def test_not_finite_names_step_and_checkpoint(tmp_path: Path) -> None:
    def poisoned(step: int) -> Tensor:
        return sample(step) * (math.nan if step == 7 else 1.0)

    config = FitConfig(steps=20, warmup=1)
    with pytest.raises(UserError, match=r"not finite at step 7; there is no checkpoint"):
        train(tmp_path / "a", config, poisoned)
    with pytest.raises(UserError, match=r"not finite at step 7; the last checkpoint, of step 7"):
        train(tmp_path / "b", config, poisoned, checkpoint_seconds=0.0)


def test_learning_rate() -> None:
    config = FitConfig(steps=111, warmup=10, lr=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == learning_rate(config, 10) == 1.0
    assert learning_rate(config, 60) == pytest.approx(0.55)
    assert learning_rate(config, 110) == pytest.approx(0.1)


def test_a_result_is_not_reused_for_other_inputs(tmp_path: Path) -> None:
    config = FitConfig(steps=3, warmup=1)
    train(tmp_path, config, depends={"data": "aaaa"})
    with pytest.raises(UserError, match=r"line was trained with data = aaaa, not bbbb; use another folder"):
        train(tmp_path, config, depends={"data": "bbbb"})
    with pytest.raises(UserError, match=r"trained with data = aaaa, not none"):
        train(tmp_path, config)
    with pytest.raises(UserError, match=r"trained with weights = \w{16}, not \w{16}"), RunLog(tmp_path) as log:
        other = Line()
        other.layer.bias.data += 1
        fit(other, sample, config, folder=tmp_path, name="line", log=log, depends={"data": "aaaa"})


def test_a_checkpoint_is_not_continued_with_other_inputs(tmp_path: Path) -> None:
    def broken(step: int) -> Tensor:
        if step == 2:
            raise RuntimeError
        return sample(step)

    with pytest.raises(RuntimeError):
        train(tmp_path, FitConfig(steps=3), broken, checkpoint_seconds=0.0, depends={"data": "aaaa"})
    with pytest.raises(UserError, match="data = aaaa, not bbbb"):
        train(tmp_path, FitConfig(steps=3), depends={"data": "bbbb"})


def test_what_is_logged_does_not_depend_on_checkpoints_or_stops(tmp_path: Path) -> None:
    def broken(step: int) -> Tensor:
        if step == 29:
            raise RuntimeError
        return sample(step)

    config = FitConfig(steps=47, warmup=1)
    train(tmp_path / "whole", config)
    with pytest.raises(RuntimeError):
        train(tmp_path / "parts", config, broken, checkpoint_seconds=0.0)
    train(tmp_path / "parts", config, checkpoint_seconds=0.0)
    whole, parts = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert [step for step, _ in whole["line/loss"]] == [20, 40, 47]
    for name in ("line/loss", "line/error", "line/grad_norm", "line/lr"):
        assert whole[name] == parts[name]
