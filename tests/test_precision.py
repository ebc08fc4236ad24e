"""Arithmetic in bfloat16: of the denoiser's products alone, where it is asked for or faster; weights stay float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from test_video_diffusion import SMALL, batch, build
from wmpo.errors import UserError
from wmpo.nn import precision
from wmpo.types import Observation
from wmpo.world_models.settings import VideoDiffusionSettings

KINDS = {
    "unet": SMALL,
    "transformer": replace(SMALL, backbone="transformer", motion_prior=False, width=16, heads=2),
}


def computed_in(settings: VideoDiffusionSettings) -> set[torch.dtype]:
    """What the products of a denoiser are, in a step of training and in a dream; all else must be float32."""
    model, data, seen = build(settings), batch(0, size=3), set()
    for layer in model.denoiser.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, found: seen.add(found.dtype))
    loss, metrics = model(data, torch.Generator().manual_seed(0))
    loss.backward()
    memory = model.begin(Observation(data.anchor, torch.zeros(3, 0), ("",) * 3))
    memory, imagined = model.imagine(memory, data.action, torch.Generator().manual_seed(0))
    kept: list[Tensor] = [loss, *metrics.values(), *imagined, memory.context]
    kept += [tensor for own in model.parameters() for tensor in (own, own.grad) if tensor is not None]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    return seen


@pytest.mark.parametrize("name", KINDS)
def test_the_denoiser_computes_as_its_setting_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for faster in (False, True):
        monkeypatch.setattr(precision, "bfloat16_is_faster", lambda kind, faster=faster: faster)
        found = [computed_in(replace(KINDS[name], precision=one)) for one in ("float32", "bfloat16", "auto")]
        half = torch.bfloat16 if faster else torch.float32
        assert found == [{torch.float32}, {torch.bfloat16}, {half}]


@pytest.mark.parametrize("name", ["fit", "align", "distil"])
def test_a_denoisers_training_is_not_set_beside_it(name: str) -> None:
    own = replace(getattr(SMALL, name), precision="bfloat16")
    with pytest.raises(UserError, match=rf"^world_model\.{name}\.precision is bfloat16: set world_model\.precision"):
        replace(SMALL, **{name: own}).check()
    replace(SMALL, kinematics_fit=replace(SMALL.kinematics_fit, precision="bfloat16")).check()


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_a_networks_own_setting_counts_in_any_training(kind: str) -> None:
    device = torch.device(kind)
    x = torch.ones(2, 2, device=device)
    with precision.computing_in("bfloat16", device):
        with precision.computing_in("float32", device):
            assert not torch.is_autocast_enabled("cpu") and (x @ x).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


def test_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with matrix tiles, and a GPU of 2020 or later."""
    fast = precision.bfloat16_is_faster.__wrapped__
    for flags, faster in (({"avx512_bf16"}, False), ({"avx2", "amx_bf16"}, True)):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: flags)
        assert fast("cpu") is faster and fast("meta") is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, faster in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert fast("cuda") is faster
