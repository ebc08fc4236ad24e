"""The world model on videos whose laws are known: a dot that moves exactly as it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmpo.config import WorldModelConfig
from wmpo.data.clips import VideoBatch
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.codecs import PixelCodec, shift_image
from wmpo.world_models.flow import FlowWorldModel
from wmpo.world_models.unet import FrameFilm

SPEC = EnvSpec({"front": (16, 16)}, 0, 2, 8, 5)
SMALL = WorldModelConfig(width=8, depth=1, context=2)
STEP = 2.0  # pixels per unit of action


def dots(position_B2: Tensor) -> Tensor:
    """(B, 3, 16, 16) uint8: a bright blob of about three pixels at (right, down), in pixels."""
    grid = torch.arange(16.0)
    right, down = position_B2[:, 0, None, None], position_B2[:, 1, None, None]
    blob = torch.exp(-((grid[None, None] - right) ** 2 + (grid[None, :, None] - down) ** 2) / 3)
    return (blob * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def batch(seed: int, size: int = 32, chunk: int = 4) -> VideoBatch:
    generator = torch.Generator().manual_seed(seed)
    begin = 5 + 6 * torch.rand(size, 2, generator=generator)
    action = 1.4 * torch.rand(size, chunk, 2, generator=generator) - 0.7
    # The first action moves left and right, the second one up: a map with a sign and an order to learn.
    moves = STEP * torch.stack([action[..., 0], -action[..., 1]], -1).cumsum(1)
    future = torch.stack([dots(begin + moves[:, k]) for k in range(chunk)], 1)
    first = dots(begin)
    context = first[:, None].expand(-1, 2, -1, -1, -1)
    return VideoBatch({"front": context}, {"front": first}, {"front": future}, action, torch.zeros(size, chunk, 0))


def build(settings: WorldModelConfig = SMALL) -> FlowWorldModel:
    torch.manual_seed(0)
    return FlowWorldModel.build(settings, SPEC, 4)


def test_pixel_codec_is_lossless() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    codec = PixelCodec(4)
    latents = codec.encode(images)
    assert latents.shape == (3, *codec.latent_shape(16, 24)) == (3, 48, 4, 6)
    assert torch.equal(codec.decode(latents), images)


def test_shifting_moves_right_and_down() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    moved = shift_image(
        images, torch.tensor([[[0.5, 0.0], [0.0, 0.5]]])
    )  # half an image is two half sizes: 0.5 is one pixel of 4
    assert moved.shape == (1, 2, 1, 4, 4)
    assert moved[0, 0, 0, 1].tolist() == pytest.approx([4, 4, 5, 6])
    assert moved[0, 1, 0, :, 1].tolist() == pytest.approx([1, 1, 5, 9])


def test_untrained_it_says_that_nothing_moves() -> None:
    model, data = build(), batch(0)
    memory = model.begin(Observation(data.anchor, torch.zeros(32, 0), ("",) * 32))
    _, latents = model.imagine(memory, data.action, torch.Generator().manual_seed(0))
    frames, state = model.decode(latents)
    assert torch.equal(frames["front"], data.anchor["front"][:, None].expand(-1, 4, -1, -1, -1))
    assert state.shape == (32, 4, 0)


@pytest.fixture(scope="module")
def trained() -> FlowWorldModel:
    model = build(replace(SMALL, width=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(120):
        torch.manual_seed(step)
        loss, _ = model(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_it_learns_how_actions_move_the_picture(trained: FlowWorldModel) -> None:
    # One unit of the first action is STEP pixels of 8 (half an image) to the right; of the second one, up.
    learned = 10 * trained.motion.weight.detach()
    torch.testing.assert_close(learned, torch.tensor([[STEP / 8, 0.0], [0.0, -STEP / 8]]), rtol=0, atol=0.05)


def test_it_imagines_where_the_dot_goes(trained: FlowWorldModel) -> None:
    data = batch(999)
    memory = trained.begin(Observation(data.anchor, torch.zeros(32, 0), ("",) * 32))
    memory, latents = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    frames = trained.decode(latents)[0]["front"].float()
    still = data.anchor["front"][:, None].float()
    real = data.future["front"].float()
    assert (frames - real).square().mean() < 0.1 * (still - real).square().mean()
    assert torch.equal(memory.context, latents[:, -2:]) and torch.equal(memory.anchor, trained.encode(data.anchor))


def test_what_was_hidden_comes_back_from_the_first_frame(trained: FlowWorldModel) -> None:
    # The denoiser is made to choose the first frame everywhere: whatever the context shows, that is what comes out.
    model, data = build(), batch(3, size=4)
    with torch.no_grad():
        choice = torch.zeros(4, model.latent[0] + model.votes)
        choice[:, model.latent[0] + model.codec.sites : model.latent[0] + 2 * model.codec.sites] = 50.0
        model.denoiser.out.bias.copy_(choice.flatten())
    memory = trained.begin(Observation(data.anchor, torch.zeros(4, 0), ("",) * 4))
    moved, _ = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    _, latents = model.imagine(moved, data.action, torch.Generator().manual_seed(0))
    frames = model.decode(latents)[0]["front"]
    assert torch.equal(frames, data.anchor["front"][:, None].expand(-1, 4, -1, -1, -1))


def test_rows_are_selected_together(trained: FlowWorldModel) -> None:
    data = batch(7, size=5)
    memory = trained.begin(Observation(data.anchor, torch.zeros(5, 0), ("",) * 5))
    some = trained.select(memory, [3, 1])
    _, part = trained.imagine(some, data.action[[3, 1]], torch.Generator().manual_seed(0))
    _, whole = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    # With one sampling step at pure noise only the dice differ; the pictures must agree closely.
    difference = trained.decode(part)[0]["front"].float() - trained.decode(whole[[3, 1]])[0]["front"].float()
    assert difference.abs().mean() < 3


@pytest.mark.parametrize("settings", [
    SMALL,
    replace(SMALL, anchor=False, motion_prior=False, action_conditioning="chunk"),
    replace(SMALL, times="all", sampling_steps=3),
    replace(SMALL, objective="epsilon", times="all", sampling_steps=4),
    replace(SMALL, backbone="transformer", width=16, depth=1, heads=2),
    replace(SMALL, codec="autoencoder"),
])  # fmt: skip
def test_every_kind_trains_imagines_and_comes_back_from_disk(settings: WorldModelConfig, tmp_path: Path) -> None:
    model, data = build(settings), batch(1, size=4)
    loss, metrics = model(data)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert torch.isfinite(loss) and any(g is not None and g.abs().max() > 0 for g in grads.values())
    assert float(metrics["error_of_standing_still"]) > 0
    model.save_pretrained(tmp_path)
    loaded = FlowWorldModel.from_pretrained(tmp_path)
    memory = model.eval().begin(Observation(data.anchor, torch.zeros(4, 0), ("",) * 4))
    videos = [m.imagine(memory, data.action, torch.Generator().manual_seed(3))[1] for m in (model, loaded)]
    assert torch.equal(videos[0], videos[1]) and videos[0].shape == (4, 4, *model.latent)


def test_a_frames_action_modulates_its_own_slice() -> None:
    film = FrameFilm(6, 12, chunk=3)
    torch.nn.init.normal_(film.linear.weight)
    embedding = torch.randn(1, 3, 6)
    other = embedding.clone()
    other[0, 1] += 1
    changed = (film(embedding)[0] != film(other)[0])[0]
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    with pytest.raises(ValueError, match="shared evenly"):
        FrameFilm(6, 10, chunk=3)


def test_two_cameras_move_each_in_their_own_way() -> None:
    spec = EnvSpec({"front": (16, 16), "wrist": (16, 16)}, 0, 2, 8, 5)
    torch.manual_seed(0)
    model = FlowWorldModel.build(SMALL, spec, 4)
    with torch.no_grad():
        model.motion.weight.copy_(torch.tensor([[0.025, 0], [0, 0], [0, 0], [0, 0.025]]))
    frame = dots(torch.tensor([[8.0, 8.0]]))
    last = model.encode({"front": frame, "wrist": frame})
    moved = model.move(last, torch.tensor([[[1.0, 1.0]] * 4]), model.codec.translate)
    images, _ = model.decode(moved)
    front, wrist = (images[name][0, 1, 0].float() for name in ("front", "wrist"))
    assert front.argmax().item() % 16 == 8 + 4 and front.argmax().item() // 16 == 8  # 2 x 0.25 of 8 pixels, right
    assert wrist.argmax().item() // 16 == 8 + 4 and wrist.argmax().item() % 16 == 8  # down
