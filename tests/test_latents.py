"""Frames encoded once: the same training as with each frame encoded each time, within half precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo.algorithm import fit_stage
from wmpo.config import FitConfig
from wmpo.data.cache import FrameCache
from wmpo.data.clips import VideoClips
from wmpo.data.latents import encode_once
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError
from wmpo.imagination import ImaginedEnv
from wmpo.opening import open_run
from wmpo.protocols import TrainingStage
from wmpo.recipes import RECIPES
from wmpo.training.resume import Checkpoints
from wmpo.types import Observation
from wmpo.world_models.settings import VideoDiffusionSettings
from wmpo.world_models.video_diffusion import VideoDiffusionModel

SETTINGS = VideoDiffusionSettings(codec="autoencoder", width=16, depth=1, shift=0, precision="float32")
EPISODES = 5


class Counting(VideoDiffusionModel):
    """Counts the frames that it encodes."""

    frames = 0

    def encode_camera(self, camera: str, frames: Tensor) -> Tensor:
        if not frames.is_floating_point():
            self.frames += frames[..., 0, 0, 0].numel()
        return super().encode_camera(camera, frames)


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return make_store(tmp_path / "store", [make_episode(n, 6 + n) for n in range(EPISODES)])


@pytest.fixture
def model() -> Counting:
    torch.manual_seed(0)
    built = Counting.build(SETTINGS, SPEC, 4)
    for parameter in built.denoiser.parameters():  # the last layer is 0 at first, which would hide what it is given
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    assert isinstance(built, Counting)
    return built.eval()


def test_latents_are_those_of_the_frames(store: EpisodeStore, model: Counting) -> None:
    cache = FrameCache(store)
    latents = encode_once(cache, [1, 3], model)
    for camera, images in cache.images.items():
        frames = cache.frames_of(np.array([1, 3]))
        wanted = model.encode_camera(camera, torch.from_numpy(images[frames]))
        found = torch.from_numpy(latents[camera][frames])
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), wanted, rtol=2**-10, atol=1e-4)
    assert latents["front"].shape == (len(cache.action), 8, *model.latent[1:])


def test_each_frame_is_encoded_once(store: EpisodeStore, model: Counting) -> None:
    told: list[int] = []

    def encode(episodes: list[int]) -> dict[str, np.ndarray]:
        model.frames = 0
        return encode_once(FrameCache(EpisodeStore.open(store.root)), episodes, model, told.append)

    encode([0, 2])
    assert model.frames == 2 * (7 + 9) and told == [7 + 9]  # two cameras
    before = encode([2, 0])
    assert model.frames == 0
    encode([0, 1])
    assert model.frames == 2 * 8
    store.append([make_episode(9, 3)])  # grows, at its end
    after = encode(list(range(EPISODES + 1)))
    assert model.frames == 2 * (10 + 11 + 4) and told == [16, 8, 25]
    assert np.array_equal(after["front"][:7], before["front"][:7])


def test_what_is_damaged_or_of_others_is_made_anew(store: EpisodeStore, model: Counting, tmp_path: Path) -> None:
    cache = FrameCache(store)
    whole = encode_once(cache, range(EPISODES), model)
    wanted = {name: np.array(values) for name, values in whole.items()}
    (file,) = cache.folder.glob("front-*.f16")
    (about,) = cache.folder.glob("latents-*.json")

    def cut() -> None:
        os.truncate(file, file.stat().st_size - 1)

    def another_episode() -> None:
        text = about.read_text()
        digest = cache.digest([2])
        assert digest in text
        about.write_text(text.replace(digest, "0" * 16))

    def led_elsewhere() -> None:
        file.replace(tmp_path / "mine")
        file.symlink_to(tmp_path / "mine")

    spoils: list[Callable[[], object]] = [
        cut,
        led_elsewhere,
        another_episode,
        file.unlink,
        about.unlink,
        lambda: about.write_text("["),
    ]
    for spoil in spoils:
        spoil()
        model.frames = 0
        again = encode_once(cache, range(EPISODES), model)
        assert model.frames == 2 * len(cache.action)
        assert all(np.array_equal(again[name], values) for name, values in wanted.items())
    with torch.no_grad():
        model.codec.latent_mean += 1.0  # type: ignore[union-attr, operator]
    other = encode_once(cache, range(EPISODES), model)
    assert np.abs(other["front"] - wanted["front"]).min() > 0.9
    assert sorted(path.suffix for path in cache.folder.glob("*-*")) == [".f16", ".f16", ".json"]  # of the last encoder
    assert np.array_equal(whole["wrist"], wanted["wrist"])  # still mapped by whoever had it


def test_another_precision_gives_other_latents(model: Counting) -> None:
    before = model.encoder_digest()
    model.codec.precision = "bfloat16"
    assert model.encoder_digest() != before


def test_a_stop_keeps_what_is_done(store: EpisodeStore, model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmpo.data.latents.KEEP_EVERY", 1)
    encode_camera, cache = model.encode_camera, FrameCache(store)

    def stopping(camera: str, frames: Tensor) -> Tensor:
        if model.frames >= 2 * (7 + 8):
            raise KeyboardInterrupt
        return encode_camera(camera, frames)

    monkeypatch.setattr(model, "encode_camera", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode_once(cache, range(EPISODES), model)
    monkeypatch.setattr(model, "encode_camera", encode_camera)
    model.frames = 0
    encode_once(cache, range(EPISODES), model)
    assert model.frames == 2 * (9 + 10 + 11)


def test_no_room(store: EpisodeStore, model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache(store)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"latents of .* GB left: make room.*cache_latents"):
        encode_once(cache, [0], model)


def trained(store: EpisodeStore, model: Counting, folder: Path, cached: bool) -> tuple[dict[str, Tensor], int]:
    """Weights of the denoiser after a few steps, and how many frames they have cost."""
    cache = FrameCache(store)
    model.set_normalizer(Normalizer.from_cache(cache, range(EPISODES)))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit = FitConfig(steps=6, batch_size=8, lr=1e-3, ema=0.9)
    clips, stage = VideoClips(cache, range(EPISODES), 2, 4), TrainingStage("denoiser", model, fit, model)
    recipe = RECIPES["smoke"]
    recipe = replace(recipe, device="cpu", env=replace(recipe.env, workers=0, renderer="rays"))
    model.frames = 0
    with open_run(recipe, folder) as run:
        for _ in range(2):  # the second time the result is only loaded
            model.load_state_dict(start)
            fit_stage(run, stage if cached else replace(stage, encoder=None), [(clips, 8, 0)], "", 0)
    return {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}, model.frames


def test_training_is_that_with_frames_encoded_each_step(store: EpisodeStore, model: Counting, tmp_path: Path) -> None:
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    each, many = trained(store, model, tmp_path / "each", cached=False)
    model.load_state_dict(start)
    once, few = trained(store, model, tmp_path / "once", cached=True)
    assert many == 6 * 8 * 2 * (2 + 1 + 4) and few == 2 * sum(7 + n for n in range(EPISODES))
    moved = torch.cat([(each[name] - start[f"denoiser.{name}"]).flatten() for name in each])
    apart = torch.cat([(each[name] - once[name]).flatten() for name in each])
    assert 0 < apart.norm() < 0.01 * moved.norm()


def test_who_encodes_once() -> None:
    def encoder(**settings: object) -> object:
        changed = replace(SETTINGS, **settings)  # type: ignore[arg-type]
        stages = VideoDiffusionModel.build(changed, SPEC, 4).training_stages(align=False)
        assert all(stage.encoder is None for stage in stages[:-1])  # they look at pictures
        return stages[-1].encoder

    assert encoder() is not None
    for settings in ({"shift": 2}, {"codec": "pixels"}, {"cache_latents": False}):
        assert encoder(**settings) is None


def test_moved_pictures_are_not_encoded_beforehand(store: EpisodeStore) -> None:
    with pytest.raises(ValueError, match="moved"):
        VideoClips(FrameCache(store), [0], 2, 4, shift=1).encoded({}, "key")


class Judge:
    """Never sees success."""

    clip_length, threshold = 2, 0.0

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return torch.full((len(clips_BLCHW),), -1.0)


def first_frames(count: int) -> Observation:
    dice = torch.Generator().manual_seed(1)
    images = {
        name: torch.randint(256, (count, 3, *size), generator=dice, dtype=torch.uint8)
        for name, size in SPEC.cameras.items()
    }
    return Observation(images, torch.rand(count, 2, generator=dice), ("go",) * count)


def noting(sizes: list[int], work: Callable[..., Any], rows: Tensor, *rest: Any) -> Any:
    sizes.append(len(rows))
    return work(rows, *rest)


def test_caps_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, backbone="transformer", motion_prior=False, heads=2, sampling_steps=2)
    torch.manual_seed(0)
    free = VideoDiffusionModel.build(settings, SPEC, 4)
    torch.nn.init.normal_(free.denoiser.out.weight, std=0.2)  # type: ignore[union-attr, arg-type]
    capped = VideoDiffusionModel.build(replace(settings, imagined_rows=2, codec_rows=3), SPEC, 4)
    capped.load_state_dict(free.state_dict())
    sizes: dict[str, list[int]] = {"sample": [], "encode": [], "decode": []}
    for owner, name in ((capped, "sample"), (capped.codec, "encode"), (capped.codec, "decode")):
        monkeypatch.setattr(owner, name, partial(noting, sizes[name], getattr(owner, name)))
    found = []
    for model in (free, capped):
        memory, imagined = model.imagine(
            model.begin(first_frames(5)), torch.ones(5, 4, 3), torch.Generator().manual_seed(2)
        )
        found.append((memory, imagined, model.decode(imagined)))
    (before, one, (seen, _)), (after, other, (again, _)) = found
    torch.testing.assert_close(other.latents, one.latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.context, before.context, rtol=1e-4, atol=1e-4)
    assert all((seen[name].int() - again[name].int()).abs().max() <= 1 for name in seen)
    assert sizes["sample"] == [2, 2, 1] and max(sizes["encode"]) == max(sizes["decode"]) == 3


def test_a_dream_decodes_what_is_looked_at(model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    outcomes, judge = [], cast(Any, Judge())
    for whole in (True, False):
        generator = torch.Generator().manual_seed(0)
        dream = ImaginedEnv(model, judge, SPEC, first_frames(3), range(3), generator=generator, whole=whole)
        dream.reset(range(3))
        outcomes.append(dream.step(range(3), torch.ones(3, 4, 3)))
    assert decoded == [12, 12, 12, 3]  # four frames of three videos and two cameras; then one of the other camera
    one, other = (outcome.last(("go",) * 3) for outcome in outcomes)
    assert all(torch.equal(one.images[name], other.images[name]) for name in SPEC.cameras)
    assert torch.equal(outcomes[0].images["front"], outcomes[1].images["front"])


def test_checkpoints_that_take_long_are_written_less_often(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path / "training", {})
    files.written -= 30
    assert files.is_due(20) and not files.is_due(40)
    files.took = 2.0  # of which 20 times are more than 30
    assert not files.is_due(20)
    files.took = 0.01
    assert files.is_due(20)
    files.save(1, {})
    assert not files.is_due(20) and files.took > 0
