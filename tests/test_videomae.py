import builtins
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from wmpo.contracts import check_reward_model
from wmpo.errors import UserError
from wmpo.recipes import RECIPES
from wmpo.rewards.clip_classifier import ClipClassifier
from wmpo.rewards.settings import ConvSettings, VideoMAESettings
from wmpo.rewards.videomae import MEAN, STD, VideoMAEClassifier, VideoMAEConfig
from wmpo.types import EnvSpec

transformers = pytest.importorskip("transformers")
TINY = VideoMAEConfig(clip_length=4, image_size=16, patch=8, width=32, depth=1, heads=2, threshold_logit=0.7)


def clips(batch=3, length=4, size=16, seed=0):
    shape = (batch, length, 3, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tiny(seed=0):
    torch.manual_seed(seed)
    return VideoMAEClassifier(TINY).eval()


def test_logits_are_those_of_transformers_on_normalised_pixels():
    model, video = tiny(), clips()
    pixels = (video / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = model.network(pixel_values=pixels).logits[:, 0]
        torch.testing.assert_close(model.logits(video), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.score(video, ("go",) * 3), expected, atol=1e-5, rtol=1e-4)
    assert model.clip_length == 4
    assert model.threshold == 0.7


def test_frames_of_other_sizes_are_resized():
    model, video = tiny(), clips()
    large = video.repeat_interleave(3, -1).repeat_interleave(2, -2)  # 32x48
    plain = torch.full((1, 4, 3, 40, 24), 90, dtype=torch.uint8)
    with torch.no_grad():
        assert model.logits(large).shape == (3,)
        torch.testing.assert_close(model.logits(plain), model.logits(plain[..., :16, :16]), atol=1e-5, rtol=1e-4)


def test_learns_what_only_the_last_frames_show():
    torch.manual_seed(0)
    model = VideoMAEClassifier(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(count):
        label = torch.randint(0, 2, (count,))
        video = clips(count, seed=int(torch.randint(10**6, ()))) // 4
        video[label == 1, 2:, 0] += 120
        return SimpleNamespace(clips=video, label=label)

    for _ in range(40):
        loss, metrics = model(draw(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics.keys() == {"loss", "accuracy"}
    batch = draw(64)
    right = (model.eval().score(batch.clips) > 0) == batch.label.bool()
    assert right.float().mean() > 0.9


def test_save_load_and_threshold(tmp_path):
    model, video = tiny(), clips()
    judged = model.with_threshold(-1.25)
    assert judged.threshold == -1.25
    assert torch.equal(judged.score(video), model.score(video))
    judged.save_pretrained(tmp_path)
    loaded = VideoMAEClassifier.from_pretrained(tmp_path)
    assert loaded.threshold == -1.25
    assert torch.equal(loaded.score(video), model.score(video))


def test_begins_from_a_pretrained_folder(tmp_path):
    # Pretrained on longer clips with another head, like VideoMAE-base on 16 frames of Kinetics.
    torch.manual_seed(1)
    config = transformers.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=8,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=5,
    )
    source = transformers.VideoMAEForVideoClassification(config).eval()
    source.save_pretrained(tmp_path)
    model = VideoMAEClassifier.from_transformers(tmp_path, clip_length=4).eval()
    assert model.config == VideoMAEConfig(clip_length=4, image_size=16, patch=8, width=32, depth=1, heads=2)
    own = model.network.videomae.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in source.videomae.state_dict().items())
    assert model.logits(clips()).shape == (3,)
    # The first tokens of the longer positions serve the shorter clip.
    torch.testing.assert_close(
        model.network.videomae.embeddings.position_embeddings,
        source.videomae.embeddings.position_embeddings[:, : 2 * 4],
    )


def test_small_preset_from_a_recipe():
    spec = EnvSpec(cameras={"front": (60, 64)}, state_dim=0, action_dim=4, horizon=40, fps=10)
    model = VideoMAEClassifier.build(VideoMAESettings(family="videomae", clip_length=4, width=64), spec)
    assert model.config == VideoMAEConfig(clip_length=4, image_size=64, patch=8, width=64, depth=4, heads=2)


def test_the_paper_preset_is_videomae_base():
    """From scratch on meta, which takes no memory: VideoMAE-base, but for its clips of 8 frames, is the default."""
    reward = RECIPES["paper"].reward
    spec = EnvSpec(cameras={"front": (256, 256)}, state_dim=0, action_dim=4, horizon=40, fps=10)
    with torch.device("meta"):
        model = VideoMAEClassifier.build(reward, spec)
    assert model.config == VideoMAEConfig()
    assert 85e6 < sum(p.numel() for p in model.network.videomae.parameters()) < 90e6


def test_begins_from_a_pretrained_folder_that_the_settings_name(tmp_path):
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128,
    )  # fmt: skip
    source = transformers.VideoMAEForVideoClassification(config)
    source.save_pretrained(tmp_path)
    settings = VideoMAESettings(family="videomae", clip_length=4, pretrained=str(tmp_path))
    spec = EnvSpec(cameras={"front": (60, 64)}, state_dim=0, action_dim=4, horizon=40, fps=10)
    model = VideoMAEClassifier.build(settings, spec)
    own = model.network.videomae.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in source.videomae.state_dict().items())
    with pytest.raises(UserError, match=r"reward\.pretrained, 'nowhere', is no folder with a VideoMAE"):
        replace(settings, pretrained="nowhere").check()


@pytest.mark.parametrize("threshold", ["NaN", "null", "Infinity", "1e999"])
def test_a_saved_threshold_that_is_no_finite_number_is_refused(tmp_path, threshold):
    spec = EnvSpec(cameras={"front": (16, 16)}, state_dim=0, action_dim=4, horizon=40, fps=10)
    conv = ClipClassifier.build(ConvSettings(width=8), spec)
    for model in (tiny(), conv):
        model.with_threshold(1.5).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        assert '"threshold_logit": 1.5' in path.read_text()
        path.write_text(path.read_text().replace('"threshold_logit": 1.5', f'"threshold_logit": {threshold}'))
        with pytest.raises(
            UserError, match=rf"{tmp_path.name}/config\.json: threshold_logit is (nan|inf|None); it must be"
        ):
            type(model).from_pretrained(tmp_path)
        with pytest.raises(UserError, match="must be a finite number"):
            model.with_threshold(float("nan"))


def test_the_small_classifier_takes_frames_of_any_size():
    spec = EnvSpec(cameras={"front": (65, 97), "wrist": (20, 20)}, state_dim=0, action_dim=4, horizon=40, fps=10)
    torch.manual_seed(0)
    model = ClipClassifier.build(ConvSettings(width=8), spec).eval()
    video = torch.randint(0, 256, (2, 4, 3, 65, 97), dtype=torch.uint8)
    assert check_reward_model(model, video, ("a", "b")) == []
    assert model.score(video[..., :40, :], ("a", "b")).shape == (2,)
    small = ClipClassifier.build(ConvSettings(width=8, image_size=32, resize="stretch"), spec)
    assert small.config.canvas == (32, 32) and small.score(video, ("a", "b")).shape == (2,)
    with pytest.raises(UserError, match=r"gives 3x64: set reward\.image_size"):
        ClipClassifier.build(ConvSettings(width=8), replace(spec, cameras={"front": (3, 64)}))


def test_what_does_not_fit_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="multiple of 2 frames, not 5"):
        VideoMAEClassifier(VideoMAEConfig(clip_length=5))
    with pytest.raises(UserError, match="divides by"):
        VideoMAEClassifier(VideoMAEConfig(image_size=30, patch=8))
    with pytest.raises(UserError, match="not a VideoMAE folder"):
        VideoMAEClassifier.from_transformers(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="can't be loaded"):
        VideoMAEClassifier.from_transformers(tmp_path)

    real = builtins.__import__

    def without_transformers(name, *rest):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(UserError, match=r'pip install "wmpo\[hub\]"'):
        tiny()
