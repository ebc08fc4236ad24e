"""The policy: what it says it did is what it did, and what is saved is what is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from wmpo.contracts import check_policy
from wmpo.data.clips import ImitationBatch
from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError
from wmpo.nn.layers import resized
from wmpo.nn.text import SentenceEncoder, word_ids
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings
from wmpo.types import EnvSpec, Observation

SPEC = EnvSpec({"front": (32, 32), "wrist": (32, 32)}, 3, 4, 16, 5)
CONFIG = MiniVLASettings(chunk=3, bins=9, width=8, hidden=16)


def observation(batch: int, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    images = {
        name: torch.randint(0, 256, (batch, 3, 32, 32), generator=generator, dtype=torch.uint8) for name in SPEC.cameras
    }
    state = torch.randn(batch, 3, generator=generator)
    return Observation(images, state, tuple(f"push the {('red', 'blue')[i % 2]} cube" for i in range(batch)))


def policy(seed: int = 0) -> MiniVLA:
    torch.manual_seed(seed)
    model = MiniVLA.build(CONFIG, SPEC).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)  # so that probabilities are far from uniform
    return model


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_log_prob_reproduces_that_of_sampling(temperature: float) -> None:
    model = policy()
    decision = model.act(observation(6), temperature=temperature, generator=torch.Generator().manual_seed(0))
    again = model.log_prob(observation(6), decision.trace, temperature=temperature)
    torch.testing.assert_close(again, decision.log_prob, rtol=1e-5, atol=1e-5)
    assert decision.chunk.shape == (6, 3, 4) and decision.trace.shape == (6, 3, 4)
    assert again.requires_grad and not decision.log_prob.requires_grad


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    model = policy()
    one = observation(1)
    many = one[[0] * 4000]
    tokens = model.act(many, temperature=1.3, generator=torch.Generator().manual_seed(0)).trace[:, 0, 0]
    share = torch.bincount(tokens, minlength=9) / 4000
    expected = torch.softmax(model.logits(one)[0, 0, 0] / 1.3, -1)
    assert expected.max() > 0.13  # not uniform: 1/9
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)


def test_temperature_zero_is_the_most_likely_token() -> None:
    model = policy()
    decision = model.act(observation(5), temperature=0.0, generator=torch.Generator())
    assert torch.equal(decision.trace, model.logits(observation(5)).argmax(-1))


def demonstrated() -> Normalizer:
    """Degrees, a gripper that closes in one step of 200, a constant, and what is usual; the state hardly varies."""
    dice = np.random.default_rng(0)
    degrees, usual = dice.uniform(-90, 90, 4000), dice.uniform(-0.5, 0.5, 4000)
    gripper = np.where(np.arange(4000) % 200 == 7, -1.0, 1.0)
    actions = np.stack([degrees, gripper, np.full(4000, 0.3), usual], 1).astype(np.float32)
    return Normalizer.fit(actions, dice.normal(5, (1, 1e-7, 2), (4000, 3)).astype(np.float32))


def test_actions_map_to_what_was_demonstrated() -> None:
    model = policy()
    model.set_normalizer(demonstrated())
    low, high = model.decode_actions(torch.tensor([0, 8]).view(2, 1, 1).expand(2, 1, 4))[:, 0]
    torch.testing.assert_close(low, torch.tensor([-90.0, -1, 0.3, -0.5]), rtol=0.03, atol=1e-5)
    torch.testing.assert_close(high, torch.tensor([90.0, 1, 0.3, 0.5]), rtol=0.03, atol=1e-5)
    least, most = model.normalizer.limits
    wild = model.from_unit(torch.tensor([[-50.0], [50.0]]).expand(2, 4))
    assert torch.equal(wild[0], least) and torch.equal(wild[1], most)  # and no clamping to [-1, 1]
    still = Observation(observation(1).images, torch.full((1, 3), 5.0) + 1e-3, ("go",))
    moved = replace(still, state=still.state + torch.tensor([0.0, 1e-3, 0.0]))
    torch.testing.assert_close(model.features(moved), model.features(still), rtol=0, atol=0.01)  # no explosion


MIXED = replace(SPEC, cameras={"front": (90, 160), "wrist": (65, 97)})


def of_sizes(cameras: Mapping[str, tuple[int, int]], batch: int = 2) -> Observation:
    images = {name: torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8) for name, size in cameras.items()}
    return replace(observation(batch), images=images)


@pytest.mark.parametrize("how", ["pad", "stretch"])
@pytest.mark.parametrize(("side", "canvas"), [(0, (90, 160)), (33, (33, 33))])
@pytest.mark.parametrize("chunk", [1, 5, 50])
def test_cameras_of_any_sizes_and_chunks_of_any_length(
    how: Literal["pad", "stretch"], side: int, canvas: tuple[int, int], chunk: int
) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, chunk=chunk, image_size=side, resize=how)
    model = MiniVLA.build(config, MIXED).eval()
    assert model.config.canvas == canvas
    seen = of_sizes(MIXED.cameras)
    assert check_policy(model, seen, 4) == []
    batch = ImitationBatch(seen, torch.zeros(2, chunk, 4), torch.ones(2, chunk, dtype=torch.bool))
    model(batch)[0].backward()
    for name in MIXED.cameras:
        changed = replace(seen, images={**seen.images, name: 255 - seen.images[name]})
        assert not torch.allclose(model.logits(changed), model.logits(seen), atol=1e-5)


def test_cameras_that_are_too_small_are_refused_when_the_policy_is_built() -> None:
    with pytest.raises(UserError, match=r"4x4 pixels or more, and the cameras give 3x8: set policy\.image_size"):
        MiniVLA.build(CONFIG, replace(SPEC, cameras={"front": (3, 8)}))


def test_resizing_by_hand() -> None:
    wide = torch.full((1, 2, 3, 2, 4), 100, dtype=torch.uint8)
    padded = resized(wide, (8, 8), "pad")
    assert padded.shape == (1, 2, 3, 8, 8)
    torch.testing.assert_close(padded[..., 2:6, :], torch.full((1, 2, 3, 4, 8), 100.0))
    assert float(padded[..., :2, :].abs().max()) == float(padded[..., 6:, :].abs().max()) == 0
    torch.testing.assert_close(resized(wide, (8, 8), "stretch"), torch.full((1, 2, 3, 8, 8), 100.0))
    assert resized(wide, (2, 4), "pad") is wide  # pictures of the right size are left alone


def test_imitation_loss_of_one_frame_by_hand() -> None:
    """A head of zeros gives a uniform distribution: the cross-entropy to any soft label is log(bins)."""
    model = policy()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = ImitationBatch(observation(2), torch.rand(2, 3, 4) * 2 - 1, mask)
    loss, _ = model(batch)
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(9.0)).item(), rel=1e-5)


def test_actions_beyond_the_end_teach_nothing() -> None:
    model = policy()
    mask = torch.tensor([[True, True, False]] * 2)
    action = torch.rand(2, 3, 4) * 2 - 1
    other = action.clone()
    other[:, 2] = -other[:, 2]
    losses = [model(ImitationBatch(observation(2), a, mask))[0] for a in (action, other)]
    assert torch.equal(losses[0], losses[1])


def test_the_sentence_the_state_and_every_camera_matter() -> None:
    model = policy()
    for film in (model.film1, model.film2):  # they begin at 0
        torch.nn.init.normal_(film.linear.weight, std=0.1)
    seen = observation(2)
    base = model.logits(seen)
    changes = [
        replace(seen, instruction=("stack the red cube on the blue cube",) * 2),
        replace(seen, state=seen.state + 1),
        *(replace(seen, images={**seen.images, name: 255 - seen.images[name]}) for name in SPEC.cameras),
    ]
    for changed in changes:
        assert not torch.allclose(model.logits(changed), base, atol=1e-4)


def test_word_order_matters() -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(16)
    a, b, c = encoder(("red cube on the blue cube", "blue cube on the red cube", "red cube on the blue cube"))
    assert torch.equal(a, c) and not torch.allclose(a, b, atol=1e-4)
    assert word_ids("Red  CUBE!") == word_ids("red cube")


def test_no_word_is_lost() -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(16)
    long = "put " + " ".join(["the red cube on"] * 7)
    assert len(long.split()) > 16
    a, b = encoder((f"{long} the tray", f"{long} the peg"))
    assert not torch.allclose(a, b, atol=1e-5)
    alone = encoder(("push the red cube",))
    torch.testing.assert_close(encoder(("push the red cube", long))[:1], alone)  # whatever else is in the batch
    with pytest.raises(
        UserError, match=r"The instruction 'word word .*\.\.\.' has 65 words, and at most 64 can be read"
    ):
        encoder(("word " * 65,))


def test_save_and_load(tmp_path: Path) -> None:
    model = policy()
    model.set_normalizer(demonstrated())
    model.save_pretrained(tmp_path)
    loaded = MiniVLA.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.logits(observation(3)), model.logits(observation(3)))


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        MiniVLA.from_pretrained(tmp_path)
