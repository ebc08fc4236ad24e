"""MiniVLA with its flow head: the same protocol, the same practice, another way to choose actions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.baselines.preference import tokens_of
from test_minivla import CONFIG, SPEC, demonstrated, observation
from wmpo.contracts import check_policy
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import FlowConfig, MiniVLASettings

SDE = replace(CONFIG, head="flow", flow=FlowConfig(steps=3))
LEARNED = replace(SDE, flow=FlowConfig(steps=3, noise="learned", level=0.3))
KINDS = pytest.mark.parametrize("config", [SDE, LEARNED], ids=["sde", "learned"])


def policy(config: MiniVLASettings) -> MiniVLA:
    torch.manual_seed(0)
    model = MiniVLA.build(config, SPEC).eval()
    if model.head.spread is not None:
        torch.nn.init.normal_(model.head.spread.weight, std=0.5)  # it begins at 0
    return model


@KINDS
def test_it_keeps_the_contract(config: MiniVLASettings) -> None:
    assert check_policy(policy(config), observation(4), 4) == []


@KINDS
def test_the_trace_is_the_path_from_noise_to_actions(config: MiniVLASettings) -> None:
    model = policy(config)
    model.set_normalizer(demonstrated())
    decision = model.act(observation(5), temperature=0.7, generator=torch.Generator().manual_seed(0))
    assert decision.trace.shape == (5, 4, 3, 4) and decision.log_prob.shape == (5, 3, 12)
    torch.testing.assert_close(decision.chunk, model.from_unit(decision.trace[:, -1]))
    again = model.log_prob(observation(5), decision.trace, temperature=0.7)
    torch.testing.assert_close(again, decision.log_prob, rtol=1e-4, atol=1e-4)


def test_temperature_is_the_strength_of_the_noise() -> None:
    """From equal beginnings: none at 0, and twice as far from that at 0.2 as at 0.1."""
    model = policy(LEARNED)
    ends = [
        model.act(observation(5), temperature=temperature, generator=torch.Generator().manual_seed(0)).trace[:, 1]
        for temperature in (0.0, 0.1, 0.2)
    ]
    torch.testing.assert_close(ends[2] - ends[0], 2 * (ends[1] - ends[0]), rtol=1e-3, atol=1e-5)
    assert (ends[1] - ends[0]).abs().max() > 1e-3


@KINDS
def test_it_learns_what_is_shown(config: MiniVLASettings) -> None:
    """Two frames, two chunks: the greedy choice ends close to them, and the noise network learns nothing from it."""
    model = policy(config).train()
    action = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    mask = torch.tensor([[True, True, True], [True, True, False]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = None
    for step in range(150):
        loss, metrics = model(ImitationBatch(observation(2), action, mask), torch.Generator().manual_seed(step))
        first = first or metrics["loss"].item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["loss"].item() < first / 10 and metrics["action_error"].item() < 0.1
    decision = model.eval().act(observation(2), temperature=0.0, generator=torch.Generator().manual_seed(9))
    assert ((decision.chunk - action).abs().mean(-1) * mask).max() < 0.15
    if model.head.spread is not None:
        assert model.head.spread.weight.grad is None


@KINDS
def test_save_and_load(tmp_path: Path, config: MiniVLASettings) -> None:
    model = policy(config)
    model.set_normalizer(demonstrated())
    model.save_pretrained(tmp_path)
    loaded = MiniVLA.from_pretrained(tmp_path)
    assert loaded.config == model.config
    one, other = (
        each.act(observation(3), temperature=1.0, generator=torch.Generator().manual_seed(0))
        for each in (model, loaded)
    )
    assert torch.equal(one.trace, other.trace) and torch.equal(one.log_prob, other.log_prob)


def test_preferences_need_tokens() -> None:
    with pytest.raises(UserError, match="needs a policy that chooses tokens"):
        tokens_of(policy(SDE), torch.zeros(2, 3, 4))
