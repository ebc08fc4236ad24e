"""A compiled dream equals the one that it is made of; what else a world model does is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from test_video_diffusion import SMALL, batch, build
from wmpo.cli import main
from wmpo.errors import UserError
from wmpo.types import Observation
from wmpo.world_models import compiled
from wmpo.world_models.video_diffusion import VideoDiffusionModel

VIDEOS = 7
KINDS = {
    "unet": replace(SMALL, sampling_steps=2, imagined_rows=3, precision="float32"),
    "transformer": replace(
        SMALL, backbone="transformer", motion_prior=False, width=16, depth=1, heads=2, sampling_steps=2,
        imagined_rows=3, precision="float32",
    ),
}  # fmt: skip


def both(name: str) -> tuple[VideoDiffusionModel, VideoDiffusionModel]:
    """The same world model, as it is and compiled, with weights that are nowhere 0."""
    plain, quick = build(KINDS[name]).eval(), build(replace(KINDS[name], compile=True)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    quick.load_state_dict(plain.state_dict())
    return plain, quick


def dream(model: VideoDiffusionModel) -> Tensor:
    data = batch(2, size=VIDEOS)
    memory = model.begin(Observation(data.anchor, torch.zeros(VIDEOS, 0), ("",) * VIDEOS))
    latents: Tensor = model.imagine(memory, data.action, torch.Generator().manual_seed(0))[1].latents
    return latents


@pytest.mark.parametrize("name", KINDS)
def test_pieces_of_the_usual_size_alone_are_compiled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def watched(work: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
        def call(denoiser: Any, videos: Tensor, *given: Any) -> Any:
            seen.append((work.__name__, len(videos)))
            return work(denoiser, videos, *given)

        return call

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one piece after the other
    monkeypatch.setattr(compiled, "_compiled", watched)
    plain, quick = both(name)
    assert torch.equal(dream(plain), dream(quick))
    piece = [("_remember", 3), ("_forward", 3), ("_forward", 3)]  # the past once, for both denoising steps
    assert seen == [*piece, *piece]  # and the seventh video by itself
    quick(batch(3, size=3))[0].backward()
    quick.save_pretrained(tmp_path)
    loaded = VideoDiffusionModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(dream(loaded), dream(plain))
    assert len(seen) == 6 and not loaded.config.settings.compile  # on another machine it may be out of reach


@pytest.mark.parametrize("name", KINDS)
def test_what_a_graph_writes_over_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for CUDA graphs: whatever is computed lands where it did the time before."""
    places: dict[tuple[Callable[..., Any], int], Tensor] = {}

    def recorded(work: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            found = work(*given)
            many = found if isinstance(found, list) else [found]
            same = [places.setdefault((work, i), tensor.clone()).copy_(tensor) for i, tensor in enumerate(many)]
            return same if isinstance(found, list) else same[0]

        return call

    monkeypatch.setattr(compiled, "_compiled", recorded)
    plain = both(name)[0]
    quick, level_B = compiled.Compiled(plain.denoiser, graphs=True), torch.ones(3)
    seen = [Observation(batch(seed, size=3).anchor, torch.zeros(3, 0), ("",) * 3) for seed in (2, 3)]
    with torch.no_grad():
        memories = [plain.begin(observation) for observation in seen]
        found = [quick.remember(memory.context, memory.anchor, level_B) for memory in memories]
        wanted = [plain.denoiser.remember(memory.context, memory.anchor, level_B) for memory in memories]
    pairs = [pair for parts in zip(found, wanted, strict=True) for pair in zip(*parts, strict=True)]
    assert pairs and all(torch.equal(kept, right) for kept, right in pairs)
    assert not torch.equal(found[0][0], found[1][0])
    asked: list[Any] = []
    watching = plain.denoiser.register_forward_pre_hook(lambda denoiser, given: asked.append(given))
    dream(plain)
    watching.remove()
    with torch.no_grad():
        first, second = (quick(*given) for given in asked[:2])  # two denoising steps
        assert torch.equal(first, plain.denoiser(*asked[0])) and not torch.equal(first, second)


def test_graphs_need_a_compiled_denoiser() -> None:
    with pytest.raises(UserError, match=r"cuda_graphs needs world_model\.compile"):
        replace(SMALL, cuda_graphs=True).check()
    replace(SMALL, cuda_graphs=True, compile=True).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_dream_equals_the_other(name: str) -> None:
    plain, quick = both(name)
    first = dream(quick)
    torch.testing.assert_close(first, dream(plain), rtol=1e-4, atol=1e-4)
    assert torch.equal(first, dream(quick))
    with torch.no_grad():
        for parameter in (*plain.parameters(), *quick.parameters()):
            parameter.mul_(0.5)  # it is the weights of the moment that are used
    torch.testing.assert_close(dream(quick), dream(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(dream(quick), first, atol=1e-2)


def test_without_a_compiler_it_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ["smoke", "--world-model.compile", "--env.renderer", "rays"]
    assert main(["run", *options, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "wmpo: world_model.compile is on, which needs no-such-compiler, a C++ compiler: install it (apt install g++ "
        "python3-dev), or turn that off.\n"
    )
    assert not (tmp_path / "run").exists()
    assert main(["plan", *options]) == 0
