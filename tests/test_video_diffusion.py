"""The world model on videos whose laws are known: a dot that moves exactly as the actions say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from wmpo.data.clips import VideoBatch
from wmpo.data.normalizer import Normalizer
from wmpo.types import EnvSpec, Observation
from wmpo.world_models.codecs import PixelCodec, shift_image
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.unet import FrameFilm
from wmpo.world_models.video_diffusion import Imagined, VideoDiffusionModel

SPEC = EnvSpec({"front": (16, 16)}, 0, 2, 8, 5)
SMALL = VideoDiffusionSettings(width=8, depth=1, context=2)
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
    nothing = torch.zeros(size, 1 + chunk, 0)
    travel = torch.zeros(size, 2)
    return VideoBatch({"front": context}, {"front": first}, {"front": future}, action, nothing, nothing[:, 0], travel)


def build(settings: VideoDiffusionSettings = SMALL) -> VideoDiffusionModel:
    torch.manual_seed(0)
    return VideoDiffusionModel.build(settings, SPEC, 4)


def test_pixel_codec_is_lossless() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    codec = PixelCodec(4)
    latents = codec.encode(images)
    assert latents.shape == (3, codec.latent_channels, 16 // codec.downsample, 6) == (3, 48, 4, 6)
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
    _, imagined = model.imagine(memory, data.action, torch.Generator().manual_seed(0))
    frames, state = model.decode(imagined)
    assert torch.equal(frames["front"], data.anchor["front"][:, None].expand(-1, 4, -1, -1, -1))
    assert state.shape == (32, 4, 0)


def learn(module: torch.nn.Module, make: Callable[[int], VideoBatch], steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for step in range(steps):
        loss, _ = module(make(step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained() -> VideoDiffusionModel:
    model = build(replace(SMALL, width=16))
    learn(model.kinematics, batch, 100, 5e-3)
    learn(model, batch, 120, 4e-3)
    return model.eval()


def test_it_learns_how_actions_move_the_picture(trained: VideoDiffusionModel) -> None:
    # One unit of the first action is STEP pixels of 8 (half an image) to the right; of the second one, up.
    learned = 10 * trained.kinematics.moves.weight.detach()
    torch.testing.assert_close(learned, torch.tensor([[STEP / 8, 0.0], [0.0, -STEP / 8]]), rtol=0, atol=0.05)


def test_it_imagines_where_the_dot_goes(trained: VideoDiffusionModel) -> None:
    data = batch(999)
    memory = trained.begin(Observation(data.anchor, torch.zeros(32, 0), ("",) * 32))
    memory, imagined = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    frames = trained.decode(imagined)[0]["front"].float()
    still = data.anchor["front"][:, None].float()
    real = data.future["front"].float()
    assert (frames - real).square().mean() < 0.1 * (still - real).square().mean()
    assert torch.equal(memory.context, imagined.latents[:, -2:])
    assert torch.equal(memory.anchor, trained.encode(data.anchor))
    torch.testing.assert_close(memory.pose, data.action.sum(1))
    assert not memory.first_pose.any()


def test_what_was_hidden_comes_back_from_the_first_frame(trained: VideoDiffusionModel) -> None:
    # The denoiser is made to choose the first frame everywhere: whatever the context shows, that is what comes out.
    model, data = build(), batch(3, size=4)
    with torch.no_grad():
        choice = torch.zeros(4, model.latent[0] + model.mask_logits)
        choice[
            :, model.latent[0] + model.codec.pixels_per_latent : model.latent[0] + 2 * model.codec.pixels_per_latent
        ] = 50.0
        model.denoiser.out.bias.copy_(choice.flatten())
    memory = trained.begin(Observation(data.anchor, torch.zeros(4, 0), ("",) * 4))
    moved, _ = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    _, imagined = model.imagine(moved, data.action, torch.Generator().manual_seed(0))
    frames = model.decode(imagined)[0]["front"]
    assert torch.equal(frames, data.anchor["front"][:, None].expand(-1, 4, -1, -1, -1))


def test_rows_are_selected_together(trained: VideoDiffusionModel) -> None:
    data = batch(7, size=5)
    memory = trained.begin(Observation(data.anchor, torch.zeros(5, 0), ("",) * 5))
    some = trained.select(memory, [3, 1])
    _, part = trained.imagine(some, data.action[[3, 1]], torch.Generator().manual_seed(0))
    _, whole = trained.imagine(memory, data.action, torch.Generator().manual_seed(0))
    # With one sampling step at pure noise only the noise differs; the pictures must agree closely.
    same = Imagined(whole.latents[[3, 1]], whole.pose[[3, 1]])
    assert torch.equal(part.pose, same.pose)
    difference = trained.decode(part)[0]["front"].float() - trained.decode(same)[0]["front"].float()
    assert difference.abs().mean() < 3


def test_the_cores_change_no_bit_of_a_dream(trained: VideoDiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(8, size=70)  # three pieces of at most 32 videos
    memory = trained.begin(Observation(data.anchor, torch.zeros(70, 0), ("",) * 70))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dreams = []
    for cores in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", cores)
        dreams.append(trained.imagine(memory, data.action, torch.Generator().manual_seed(0))[1])
    torch.set_num_threads(before)
    assert torch.equal(dreams[0].latents, dreams[1].latents) and len(dreams[0].latents) == 70


@pytest.mark.parametrize("settings", [
    SMALL,
    replace(SMALL, anchor=False, motion_prior=False, action_conditioning="chunk"),
    replace(SMALL, training_timesteps="all", sampling_steps=3),
    replace(SMALL, objective="epsilon", training_timesteps="all", sampling_steps=4),
    replace(SMALL, backbone="transformer", width=16, depth=1, heads=2),
    replace(SMALL, codec="autoencoder"),
])  # fmt: skip
def test_every_kind_trains_imagines_and_comes_back_from_disk(settings: VideoDiffusionSettings, tmp_path: Path) -> None:
    model, data = build(settings), batch(1, size=4)
    rng_state = torch.get_rng_state()
    loss, again = (model(data, torch.Generator().manual_seed(2))[0] for _ in range(2))
    assert loss == again and torch.equal(
        torch.get_rng_state(), rng_state
    )  # all its random numbers come from the generator
    loss, metrics = model(data)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert torch.isfinite(loss) and any(g is not None and g.abs().max() > 0 for g in grads.values())
    assert float(metrics["error_of_standing_still"]) > 0
    model.save_pretrained(tmp_path)
    loaded = VideoDiffusionModel.from_pretrained(tmp_path)
    memory = model.eval().begin(Observation(data.anchor, torch.zeros(4, 0), ("",) * 4))
    videos = [m.imagine(memory, data.action, torch.Generator().manual_seed(3))[1] for m in (model, loaded)]
    assert torch.equal(videos[0].latents, videos[1].latents) and videos[0].latents.shape == (4, 4, *model.latent)


def test_a_frames_action_modulates_its_own_slice() -> None:
    film = FrameFilm(6, 12, chunk=3)
    torch.nn.init.normal_(film.linear.weight)
    embedding = torch.randn(1, 3, 6)
    other = embedding.clone()
    other[0, 1] += 1
    changed = (film(embedding)[0] != film(other)[0])[0]
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize(("channels", "chunk", "owner"), [
    (6, 4, [[0], [1, 2], [3], [4, 5]]),
    (3, 6, [[0], [0], [1], [1], [2], [2]]),  # neighbours add up
])  # fmt: skip
def test_slices_of_any_chunk(channels: int, chunk: int, owner: list[list[int]]) -> None:
    film = FrameFilm(5, channels, chunk)
    torch.nn.init.normal_(film.linear.weight)
    embedding = torch.randn(1, chunk, 5)
    for k, own in enumerate(owner):
        other = embedding.clone()
        other[0, k] += 1
        for before, after in zip(film(embedding), film(other), strict=True):
            assert (before != after)[0].nonzero().flatten().tolist() == own


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
@pytest.mark.parametrize("chunk", [1, 5, 50])
def test_any_chunk_trains_and_imagines(backbone: Literal["unet", "transformer"], chunk: int) -> None:
    torch.manual_seed(0)
    model = VideoDiffusionModel.build(replace(SMALL, backbone=backbone, heads=2), SPEC, chunk)
    data = batch(4, size=2, chunk=chunk)
    model(data, torch.Generator().manual_seed(0))[0].backward()
    memory = model.eval().begin(Observation(data.anchor, torch.zeros(2, 0), ("",) * 2))
    memory, imagined = model.imagine(memory, data.action, torch.Generator().manual_seed(0))
    assert model.decode(imagined)[0]["front"].shape == (2, chunk, 3, 16, 16) and memory.context.shape[1] == 2


MIXED = EnvSpec({"wide": (18, 32), "tall": (48, 24), "odd": (13, 19)}, 0, 2, 8, 5)


@pytest.mark.parametrize("settings", [
    SMALL,
    replace(SMALL, image_size=(20, 28)),
    replace(SMALL, codec="autoencoder"),
    replace(SMALL, backbone="transformer", heads=2),
])  # fmt: skip
def test_cameras_of_any_sizes_come_back_in_their_own(settings: VideoDiffusionSettings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VideoDiffusionModel.build(settings, MIXED, 3)

    def shots(*frames: int) -> dict[str, Tensor]:
        return {name: torch.randint(256, (2, *frames, 3, *size)).byte() for name, size in MIXED.cameras.items()}

    nothing = torch.zeros(2, 4, 0)
    data = VideoBatch(shots(2), shots(), shots(3), torch.zeros(2, 3, 2), nothing, nothing[:, 0], torch.zeros(2, 2))
    for stage in model.training_stages(align=False):
        stage.module(data, torch.Generator().manual_seed(0))[0].backward()
    model.save_pretrained(tmp_path)
    model = VideoDiffusionModel.from_pretrained(tmp_path)
    memory = model.begin(Observation(data.anchor, torch.zeros(2, 0), ("",) * 2))
    frames = model.decode(model.imagine(memory, data.action, torch.Generator().manual_seed(0))[1])[0]
    assert {name: frame.shape for name, frame in frames.items()} == {
        name: (2, 3, 3, *size) for name, size in MIXED.cameras.items()
    }
    if settings == SMALL:  # nothing moves, and what is only padded keeps every pixel
        assert all(torch.equal(frames[name], data.anchor[name][:, None].expand(-1, 3, -1, -1, -1)) for name in frames)


@pytest.mark.parametrize("size", [None, (32, 40)])
def test_a_motion_is_as_long_in_every_size(size: tuple[int, int] | None) -> None:
    spec = EnvSpec({"small": (16, 20), "large": (32, 48)}, 0, 2, 8, 5)
    model = VideoDiffusionModel.build(replace(SMALL, image_size=size), spec, 1)
    with torch.no_grad():
        model.kinematics.moves.weight.copy_(torch.tensor([[0.02, 0], [0, 0.025], [0, 0], [0, 0]]))
    grid_y, grid_x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    blob = (255 * torch.exp(-((grid_x - 6) ** 2 + (grid_y - 7) ** 2) / 6)).byte().expand(1, 3, -1, -1)
    last = model.encode({"small": blob, "large": torch.zeros(1, 3, 32, 48, dtype=torch.uint8)})
    pose = torch.ones(1, 1, 2)
    frame = model.decode(Imagined(model.warp(last, pose), pose))[0]["small"][0, 0, 0].float()
    assert (frame.argmax().item() % 20, frame.argmax().item() // 20) == (6 + 2, 7 + 2)  # 0.2 of 10, 0.25 of 8 pixels


def test_units_of_the_actions_do_not_matter() -> None:
    # A gripper in percent and a joint in degrees: with the data's normaliser the loss is the same.
    data, model = batch(2, size=8), build()
    scale = torch.tensor([50.0, 90.0])
    raw = replace(data, action=data.action * scale, travel=data.travel * scale)
    for layer in (model.denoiser.out, model.kinematics.moves, *(film.linear for film in model.denoiser.films)):
        torch.nn.init.normal_(layer.weight, std=0.1)

    def loss(moments: VideoBatch) -> float:
        return model(moments, torch.Generator().manual_seed(0))[0].item()

    expected, wrong = loss(data), loss(raw)
    normalizer = Normalizer(2, 0)
    for name in ("low", "min", "high", "max"):
        normalizer.get_buffer(f"action_{name}").mul_(scale)
    model.set_normalizer(normalizer)
    assert loss(raw) == pytest.approx(expected, rel=1e-5) and wrong != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(("objective", "signal", "spread"), [("flow", 0.95, 0.05), ("epsilon", 0.985, 0.171)])
def test_the_context_is_noised_as_the_objective_noises(
    objective: Literal["flow", "epsilon"], signal: float, spread: float
) -> None:
    model, seen = build(replace(SMALL, objective=objective, context_noise=0.05, training_timesteps="all")), []
    channels = model.context * model.latent[0]
    model.denoiser.look_back.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, :channels]))
    black = batch(0, size=256)
    black = replace(black, context={"front": torch.zeros_like(black.context["front"])})
    model(black, torch.Generator().manual_seed(0))
    assert seen[0].mean().item() == pytest.approx(-signal, abs=2e-3)  # black is -1
    assert seen[0].std().item() == pytest.approx(spread, rel=0.02)


def test_two_cameras_move_each_in_their_own_way() -> None:
    spec = EnvSpec({"front": (16, 16), "wrist": (16, 16)}, 0, 2, 8, 5)
    torch.manual_seed(0)
    model = VideoDiffusionModel.build(SMALL, spec, 4)
    with torch.no_grad():
        model.kinematics.moves.weight.copy_(torch.tensor([[0.025, 0], [0, 0], [0, 0], [0, 0.025]]))
    frame = dots(torch.tensor([[8.0, 8.0]]))
    last = model.encode({"front": frame, "wrist": frame})
    pose = torch.ones(1, 4, 2).cumsum(1)
    images, _ = model.decode(Imagined(model.warp(last, pose), pose))
    front, wrist = (images[name][0, 1, 0].float() for name in ("front", "wrist"))
    assert front.argmax().item() % 16 == 8 + 4 and front.argmax().item() // 16 == 8  # 2 x 0.25 of 8 pixels, right
    assert wrist.argmax().item() // 16 == 8 + 4 and wrist.argmax().item() % 16 == 8  # down


# With a state: the position of the dot.

WITH_STATE = replace(SPEC, state_dim=2)
CENTRE, SPREAD = torch.tensor([8.0, 8.0]), torch.tensor([2.0, 4.0])  # the two numbers of a pose differ in scale
FRAMES = 16  # of a journey: four chunks


def journeys(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """(B, 17, 2) positions of dots that cross the picture and never leave it; (B, 16, 2) the actions that say so."""
    generator = torch.Generator().manual_seed(seed)
    stops = 4 + 8 * torch.rand(size, 5, 2, generator=generator)
    share = torch.arange(FRAMES + 1) / 4
    before = share.long().clamp(max=3)
    position = stops[:, before] + (share - before)[:, None] * (stops[:, before + 1] - stops[:, before])
    position = position + 0.4 * torch.rand(size, FRAMES + 1, 2, generator=generator)
    return position, position.diff(dim=1) * torch.tensor([1, -1]) / STEP


def clips_with_state(seed: int, size: int = 32) -> VideoBatch:
    """One chunk of each journey, from its beginning or later."""
    position, action = journeys(seed, size)
    now = torch.randint(0, FRAMES - 3, (size,), generator=torch.Generator().manual_seed(seed))
    row = torch.arange(size)[:, None]
    frames = dots(position.flatten(0, 1)).unflatten(0, position.shape[:2])
    context = frames[row, (now[:, None] + torch.tensor([-1, 0])).clamp(min=0)]
    travel = torch.stack([action[b, :t].sum(0) for b, t in enumerate(now)])
    steps = now[:, None] + torch.arange(5)
    state = position[row, steps]
    images = ({"front": context}, {"front": frames[:, 0]}, {"front": frames[row, steps[:, 1:]]})
    return VideoBatch(*images, action[row, steps[:, :4]], state, position[:, 0], travel)


def build_with_state(width: int = 8) -> VideoDiffusionModel:
    torch.manual_seed(0)
    model = VideoDiffusionModel.build(replace(SMALL, width=width), WITH_STATE, 4)
    normalizer = Normalizer(2, 2)
    normalizer.state_mean.copy_(CENTRE)
    normalizer.state_std.copy_(SPREAD)
    model.set_normalizer(normalizer)
    return model


def dream_on(model: VideoDiffusionModel, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 16, C, H, W) frames and (B, 16, 2) states of four imagined chunks."""
    first = Observation({"front": dots(position[:, 0])}, position[:, 0], ("",) * len(position))
    memory, generator, parts = model.begin(first), torch.Generator().manual_seed(0), []
    for chunk in action.split(4, dim=1):
        memory, imagined = model.imagine(memory, chunk, generator)
        images, state = model.decode(imagined)
        parts.append((images["front"], state))
    return torch.cat([images for images, _ in parts], 1), torch.cat([state for _, state in parts], 1)


class Exact(torch.nn.Module):
    """How the dot's pose answers to an action."""

    def forward(self, pose_and_action: Tensor) -> Tensor:
        return pose_and_action[:, 2:] * STEP * torch.tensor([1, -1]) / SPREAD


def test_the_first_frame_is_moved_once_however_long_the_dream() -> None:
    # By hand: the kinematics know the law, the map is exact, and the denoiser chooses the first frame, moved.
    model = build_with_state().eval()
    with torch.no_grad():
        model.kinematics.step = Exact()
        model.kinematics.moves.weight.copy_(torch.diag(SPREAD / 8) / 10)
        choice = torch.zeros(4, model.latent[0] + model.mask_logits)
        pixels_per_latent = model.codec.pixels_per_latent
        choice[:, model.latent[0] + 3 * pixels_per_latent : model.latent[0] + 4 * pixels_per_latent] = (
            50.0  # after last, first, last moved
        )
        model.denoiser.out.bias.copy_(choice.flatten())
    position, action = journeys(5, 6)
    frames, state = dream_on(model, position, action)
    torch.testing.assert_close(state, position[:, 1:], rtol=0, atol=1e-3)  # in the units of the data
    first = dots(position[:, 0]).float()
    expected = shift_image(first, (position[:, 1:] - position[:, :1]) / 8)
    assert (frames.float() - expected).abs().max() < 1


def test_with_a_state_it_stays_sharp_and_right_over_four_chunks() -> None:
    model = build_with_state(width=16)

    learn(model.kinematics, clips_with_state, 100, 5e-3)
    learn(model, clips_with_state, 120, 4e-3)
    position, action = journeys(999, 32)
    frames, state = dream_on(model.eval(), position, action)
    late = slice(-4, None)  # the fourth chunk
    assert (state[:, late] - position[:, late]).abs().mean() < 0.5  # pixels
    real = dots(position[:, late].flatten(0, 1)).unflatten(0, (32, 4)).float()
    still = dots(position[:, 0])[:, None].float()
    imagined = frames[:, late].float()
    assert (imagined - real).square().mean() < 0.05 * (still - real).square().mean()
    assert imagined.amax((2, 3, 4)).mean() > 0.8 * real.amax((2, 3, 4)).mean()  # not smeared out


def test_the_denoiser_leaves_the_kinematics_alone() -> None:
    model = build_with_state()
    torch.nn.init.normal_(model.kinematics.step[-1].weight)
    model(clips_with_state(0), torch.Generator().manual_seed(0))[0].backward()
    assert all(parameter.grad is None for parameter in model.kinematics.parameters())
    assert any(parameter.grad is not None for parameter in model.denoiser.parameters())


def test_states_have_the_units_of_the_data_before_and_after_the_disk(tmp_path: Path) -> None:
    model = build_with_state()
    model.save_pretrained(tmp_path)
    loaded = VideoDiffusionModel.from_pretrained(tmp_path)
    pose = torch.tensor([[[0.0, 0.0], [1.0, -1.0], [2.0, 0.5], [0.0, 1.0]]])
    latents = torch.zeros(1, 4, *model.latent)
    for one in (model, loaded):
        _, state = one.decode(Imagined(latents, pose))
        assert state.tolist() == [[[8, 8], [10, 4], [12, 10], [8, 12]]]
        memory = one.begin(Observation({"front": dots(CENTRE[None])}, torch.tensor([[10.0, 4.0]]), ("",)))
        assert memory.pose.tolist() == memory.first_pose.tolist() == [[1, -1]]


@pytest.mark.parametrize(("pixels", "rows"), [(64, [32, 8]), (128, [8] * 5), (256, [2] * 20), (512, [1] * 40)])
def test_a_cpu_imagines_fewer_videos_at_once_the_larger_they_are(
    pixels: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seen = EnvSpec({"front": (pixels, pixels)}, 0, 2, 8, 5), []
    model = VideoDiffusionModel.build(SMALL, spec, 1).eval()

    def sample(noise: Tensor, *given: object) -> Tensor:
        seen.append(len(noise))
        return noise

    monkeypatch.setattr(model, "sample", sample)
    first = Observation(
        {"front": torch.zeros(40, 3, pixels, pixels, dtype=torch.uint8)}, torch.zeros(40, 0), ("",) * 40
    )
    model.imagine(model.begin(first), torch.zeros(40, 1, 2), torch.Generator())
    assert seen == rows
