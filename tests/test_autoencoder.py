import builtins
import json

import pytest
import torch

from wmpo.errors import UserError
from wmpo.world_models.autoencoder import Autoencoder, DiffusersCodec


def pictures(count, size=32, seed=0):
    """Squares of random colour on a random background."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.randint(0, 256, (count, 2, 3, 1, 1), generator=generator, dtype=torch.uint8)
    images = colour[:, 0].expand(-1, -1, size, size).clone()
    for i, (y, x) in enumerate(torch.randint(0, size - 8, (count, 2), generator=generator).tolist()):
        images[i, :, y : y + 8, x : x + 8] = colour[i, 1]
    return images


@pytest.mark.parametrize(("downsample", "channels"), [(2, 4), (4, 8), (8, 16)])
def test_shapes(downsample, channels):
    codec = Autoencoder(latent_channels=channels, downsample=downsample, width=8)
    images = pictures(2)
    latents = codec.encode(images)
    assert latents.shape == (2, codec.latent_channels, 32 // codec.downsample, 32 // downsample)
    assert (codec.latent_channels, codec.downsample) == (channels, downsample)
    assert latents.dtype == torch.float32
    decoded = codec.decode(latents)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.uint8


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        Autoencoder(downsample=6)


def test_learns_to_reconstruct_with_latents_of_unit_spread():
    torch.manual_seed(0)
    codec = Autoencoder(width=16)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        loss, metrics = codec(pictures(16, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["loss"].item())
    codec.eval()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    images = pictures(64, seed=1000)
    latents = codec.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 0.5 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.5
    error = (codec.decode(latents).float() - images.float()).square().mean()
    assert error < 0.2 * images.float().var()  # and the scale was undone
    _, metrics = codec(images)
    assert metrics["psnr"].item() == pytest.approx(10 * torch.log10(255**2 / error).item(), abs=0.3)


def test_running_scale_follows_the_latents():
    torch.manual_seed(0)
    codec = Autoencoder(width=8)
    images = pictures(8)
    before = codec.encode(images).std()
    decoded = codec.decode(codec.encode(images))
    codec.eval()
    codec(images)
    assert (codec.latent_std == 1).all()  # evaluation leaves it alone
    codec.train()
    for _ in range(20):
        codec(images)
    after = codec.encode(images).std((0, 2, 3))
    assert before < 0.8
    # A change of scale changes the latents, not the pictures.
    assert (codec.decode(codec.encode(images)).int() - decoded.int()).abs().max() <= 1
    torch.testing.assert_close(after, torch.ones(8), atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=16,
    )
    folder = tmp_path_factory.mktemp("vae")
    network.save_pretrained(folder)
    return folder, network.eval()


def test_diffusers_codec_is_the_network_with_its_scale(tiny_vae):
    folder, network = tiny_vae
    codec = DiffusersCodec(folder).train()
    assert not codec.network.training
    images = pictures(3, size=16)
    latents = codec.encode(images)
    assert latents.shape == (3, codec.latent_channels, 16 // codec.downsample, 8) == (3, 4, 8, 8)
    with torch.no_grad():
        moments = network.encode(images.float() / 127.5 - 1).latent_dist.mean
        pixels = network.decode(moments).sample
    torch.testing.assert_close(latents, 0.13025 * moments)
    decoded = codec.decode(latents)
    assert decoded.dtype == torch.uint8
    torch.testing.assert_close(decoded.float(), ((pixels + 1) * 127.5).clamp(0, 255), atol=0.51, rtol=0)


def test_diffusers_codec_undoes_a_shift(tiny_vae, tmp_path):
    folder, _ = tiny_vae
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5}))
    plain, shifted = DiffusersCodec(folder), DiffusersCodec(tmp_path)
    images = pictures(2, size=16)
    torch.testing.assert_close(shifted.encode(images), plain.encode(images) - 0.5 * 0.13025)
    difference = shifted.decode(shifted.encode(images)).int() - plain.decode(plain.encode(images)).int()
    assert difference.abs().max() <= 1


def test_folders_that_hold_no_autoencoder(tiny_vae, tmp_path, monkeypatch):
    folder, _ = tiny_vae
    with pytest.raises(UserError, match=r"no config\.json"):
        DiffusersCodec(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="safetensors"):
        DiffusersCodec(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="can't be loaded"):
        DiffusersCodec(tmp_path)

    real = builtins.__import__

    def without_diffusers(name, *rest):
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_diffusers)
    with pytest.raises(UserError, match=r'pip install "wmpo\[hub\]"'):
        DiffusersCodec(folder)


def test_all_random_numbers_come_from_the_generator():
    torch.manual_seed(0)
    codec = Autoencoder(width=8, noise=0.5)
    images, before = pictures(4), torch.get_rng_state()
    start = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    losses = []
    for seed in (1, 1, 2):
        codec.load_state_dict(start)  # the running scale must not differ
        losses.append(codec(images, torch.Generator().manual_seed(seed))[0].item())
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)
