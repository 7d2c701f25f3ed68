"""Images are standardised by the training images' own numbers, ZCA removes their correlation, and both invert."""

import math

import numpy as np
import pytest
import torch

from ptm_ray.core.whitening import fit


def pixels(n=60, side=4, channels=3, seed=0):
    """Correlated pixels, as images have them: a common brightness each, and a scale for every channel."""
    draw = np.random.default_rng(seed)
    common = draw.normal(0, 25, (n, 1, 1, 1))
    scale = np.array([30.0, 10.0, 20.0])[:channels]
    values = 120 + common + draw.normal(0, 1, (n, side, side, channels)) * scale
    return values.clip(0, 255).astype(np.uint8)


def test_mean_and_std_are_those_of_every_pixel_of_a_channel():
    images = pixels()
    found = fit(torch.tensor(images))
    for channel in range(3):
        values = [v / 255 for v in images[..., channel].ravel().tolist()]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        torch.testing.assert_close(float(found.mean[channel]), mean, rtol=1e-5, atol=0)
        torch.testing.assert_close(float(found.std[channel]), math.sqrt(variance), rtol=1e-5, atol=0)


def test_forward_standardises_each_channel_and_puts_it_first():
    images = pixels()
    found = fit(torch.tensor(images)).forward(torch.tensor(images)).numpy()
    values = images / 255
    expected = (values - values.mean((0, 1, 2))) / values.std((0, 1, 2), ddof=1)
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_a_channel_without_variation_is_only_centred():
    images = pixels()
    images[..., 1] = 77
    found = fit(torch.tensor(images))
    assert found.std[1] == 1
    assert found.forward(torch.tensor(images))[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("epsilon", [0.1, 1e-4])
def test_zca_leaves_the_identity_but_for_its_regularisation(epsilon):
    pictures = pixels(n=400)
    # What all images have in common, as X-rays have, is no direction in which they differ.
    pictures[:, 1:3, 1:3] //= 2
    images = torch.tensor(pictures)
    plain = fit(images).forward(images).flatten(1).double().numpy()
    white = fit(images, zca=True, epsilon=epsilon).forward(images).flatten(1).double().numpy()
    spectrum, basis = np.linalg.eigh(np.cov(plain.T, bias=True))
    expected = basis @ np.diag(spectrum / (spectrum + epsilon)) @ basis.T
    np.testing.assert_allclose(np.cov(white.T, bias=True), expected, atol=2e-3)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    if epsilon < 0.01:
        np.testing.assert_allclose(expected, np.eye(48), atol=0.01)


def test_zca_keeps_images_near_what_they_were():
    images = torch.tensor(pixels(n=400))
    found = fit(images, zca=True)
    torch.testing.assert_close(found.zca.matrix, found.zca.matrix.T, atol=1e-5, rtol=0)
    plain, white = fit(images).forward(images).flatten(), found.forward(images).flatten()
    assert torch.corrcoef(torch.stack([plain, white]))[0, 1] > 0.5


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_backward_undoes_forward_even_with_fewer_images_than_pixels(zca, channels):
    images = torch.tensor(pixels(n=10, side=8, channels=channels))
    found = fit(images, zca=zca)
    fresh = torch.tensor(pixels(n=5, side=8, channels=channels, seed=1))
    for some in (images, fresh):
        torch.testing.assert_close(found.backward(found.forward(some)), some.float(), atol=0.05, rtol=0)


def test_real_images_survive_the_round_trip(real_data):
    with np.load(real_data / "wbc_32.npz") as file:
        images = torch.tensor(file["train_images"][:64])
    found = fit(images, zca=False)
    assert torch.equal(found.backward(found.forward(images)).round().byte(), images)


def test_the_bounds_are_black_and_white():
    images = torch.randint(0, 256, (20, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = fit(images)
    ends = torch.stack([torch.zeros(4, 4, 3), torch.full((4, 4, 3), 255.0)])
    torch.testing.assert_close(found.bounds.expand(2, 3, 4, 4), found.forward(ends))
    assert fit(images, zca=True).bounds is None
