import math

import pytest
import torch

from wmpo.world_models.metrics import RandomFeatures, gaussian_frechet, psnr, random_feature_frechet, sharpness, ssim


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def smooth_images(count, size=32, seed=0):
    """Random coarse patterns, enlarged: images with structure that noise and blur destroy."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=size).to(torch.uint8)


def with_noise(images, strength, seed=1):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)) * strength
    return (images.float() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_by_hand():
    image = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    other = image.clone()
    other[0] += 1
    other[1, 0] = 160  # a third of the values are off by 60
    expected = [20 * math.log10(255), 10 * math.log10(255**2 / 1200)]
    assert psnr(other, image).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(image, image).tolist() == [100, 100]
    assert psnr(torch.zeros(5, 2, 3, 4, 4), torch.full((5, 2, 3, 4, 4), 255)).tolist() == [[0, 0]] * 5


def naive_ssim(x, y, size):
    """The definition, one window at a time, in double precision."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(x.shape[0]):
        for i in range(x.shape[1] - size + 1):
            for j in range(x.shape[2] - size + 1):
                a = x[channel, i : i + size, j : j + size].double()
                b = y[channel, i : i + size, j : j + size].double()
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 6.5025, 58.5225
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return torch.stack(values).mean().item()


@pytest.mark.parametrize(("side", "window"), [(14, 11), (8, 7), (5, 5)])
def test_ssim_against_its_definition(side, window):
    image = random_images(2, 3, side, side + 1)
    other = with_noise(image, 40)
    expected = [naive_ssim(other[i], image[i], window) for i in range(2)]
    assert ssim(other, image).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_constant_images_by_hand():
    # Only the luminance term is left: (2 * 100 * 200 + 6.5025) / (100^2 + 200^2 + 6.5025).
    image, other = torch.full((3, 16, 16), 100), torch.full((3, 16, 16), 200)
    assert ssim(image, other).item() == pytest.approx((40000 + 6.5025) / (50000 + 6.5025), abs=2e-3)
    video = random_images(2, 5, 3, 16, 16)
    assert ssim(video, video).shape == (2, 5)
    torch.testing.assert_close(ssim(video, video), torch.ones(2, 5))


def test_sharpness_by_hand():
    """A step of 100 levels down the middle of 4 columns: across, one difference of three."""
    step = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    step[..., 2:] = 100
    assert sharpness(step, step) == 1
    assert sharpness(step // 2, step) == pytest.approx(0.5)
    assert sharpness(torch.full_like(step, 7), step) == 0
    checked = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 100  # every difference, down and across
    checked = checked.to(torch.uint8).expand(2, 1, 4, 4)
    assert sharpness(checked, step) == pytest.approx(2 * 100 / (100 / 3))
    assert sharpness(step, checked) == pytest.approx(1 / 6)


def test_frechet_of_gaussians_in_closed_form():
    # Diagonal covariances commute: |m|^2 + sum (s_a - s_b)^2 = 9 + 1 + (1 - 3)^2 + (2 - 4)^2.
    mean = torch.tensor([3.0, 1.0])
    distance = gaussian_frechet(mean, torch.diag(torch.tensor([1.0, 4.0])), 0 * mean, torch.diag(torch.tensor([9, 16])))
    assert distance == pytest.approx(10 + 4 + 4)
    # In general 2x2: tr (S_a S_b)^(1/2) = sqrt(tr(S_a S_b) + 2 sqrt(det S_a det S_b)).
    a, b = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[3.0, -1.0], [-1.0, 1.0]])
    cross = math.sqrt((a @ b).trace() + 2 * math.sqrt(3 * 2))
    assert gaussian_frechet(0 * mean, a, 0 * mean, b) == pytest.approx(4 + 4 - 2 * cross, rel=1e-6)
    # Degenerate covariances: two points on lines.
    assert gaussian_frechet(mean, torch.zeros(2, 2), 0 * mean, torch.zeros(2, 2)) == pytest.approx(10)


def test_random_feature_frechet_is_zero_for_equal_sets_and_grows_with_noise():
    images = smooth_images(60)
    assert random_feature_frechet(images, images) == pytest.approx(0, abs=1e-6)
    fresh = random_feature_frechet(smooth_images(60, seed=5), images)
    noisy = [random_feature_frechet(with_noise(images, strength), images) for strength in (10, 30, 90)]
    assert noisy[0] < noisy[1] < noisy[2]
    assert noisy[2] > 3 * fresh  # noise is told from other images of the same kind


def test_random_features_are_fixed_by_their_seed_alone():
    images = smooth_images(3)
    torch.manual_seed(1)
    first = RandomFeatures()(images)
    torch.manual_seed(2)
    assert torch.equal(first, RandomFeatures()(images))
    assert not torch.equal(first, RandomFeatures(seed=1)(images))


def test_frechet_needs_two():
    with pytest.raises(ValueError, match="at least two"):
        random_feature_frechet(smooth_images(1), smooth_images(3))
