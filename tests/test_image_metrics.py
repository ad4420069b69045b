"""Laws of the image metrics, and SSIM against its definition written out in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pgc3d.mini
from pgc3d.evaluation.image_metrics import mask_iou, normal_angle, ssim
from pgc3d.evaluation.perceptual import load_encoder_distance
from pgc3d.images import psnr

seeds = st.integers(0, 2**31 - 1)


def pictures(seed, count=2, height=24, width=20, channels=3):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def direct_ssim(first, second):
    """Wang et al. 2004, window by window."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True):
        for row in range(x.shape[0] - 10):
            for column in range(x.shape[1] - 10):
                for channel in range(x.shape[2]):
                    place = (slice(row, row + 11), slice(column, column + 11), channel)
                    a, b = x[place], y[place]
                    mean_a, mean_b = (window * a).sum(), (window * b).sum()
                    var_a = (window * (a - mean_a) ** 2).sum()
                    var_b = (window * (b - mean_b) ** 2).sum()
                    cov = (window * (a - mean_a) * (b - mean_b)).sum()
                    numerator = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
                    values.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return np.array(values).reshape(len(first), -1).mean(1)


@pytest.mark.parametrize("noise", [0.02, 0.3, 1.0])
def test_ssim_is_its_definition(noise):
    first = pictures(0, height=14, width=13)
    second = (first + noise * (pictures(1, height=14, width=13) - 0.5)).clamp(0, 1)
    np.testing.assert_allclose(ssim(first, second).numpy(), direct_ssim(first, second), atol=1e-10)


@settings(max_examples=30)
@given(seeds, seeds)
def test_ssim_is_symmetric_and_at_most_one(a, b):
    first, second = pictures(a, height=12, width=12), pictures(b, height=12, width=12)
    found = ssim(first, second)
    torch.testing.assert_close(found, ssim(second, first))
    assert ((found >= -1) & (found <= 1 + 1e-12)).all()


def test_equal_pictures_have_the_best_values():
    picture = pictures(3)
    assert psnr(picture, picture).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(picture, picture), torch.ones(2).double())
    mask = (picture[..., :1] > 0.4).float()
    assert mask_iou(mask, mask).tolist() == [1.0, 1.0]
    assert normal_angle(picture, picture, torch.ones_like(mask), torch.ones_like(mask)) == 0


@given(st.floats(1e-3, 0.9))
def test_psnr_of_a_constant_error(error):
    black = torch.zeros(1, 4, 4, 3, dtype=torch.float64)
    assert psnr(black, black + error).item() == pytest.approx(-20 * math.log10(error))


def test_each_picture_has_its_own_psnr():
    first = torch.zeros(2, 4, 4, 3)
    second = first.clone()
    second[1] = 0.1
    assert psnr(first, second).tolist() == [math.inf, pytest.approx(20.0)]


def test_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 8, 32, 3), torch.zeros(1, 8, 32, 3))


def test_mask_iou_counts_pixels():
    first, second = torch.zeros(3, 4, 4, 1), torch.zeros(3, 4, 4, 1)
    first[0, :2], second[0, 1:3] = 1, 1  # 4 of 12 pixels shared
    first[1, 0] = 1  # nothing shared
    assert mask_iou(first, second).tolist() == pytest.approx([4 / 12, 0.0, 1.0])


@given(st.floats(0.01, 3.1))
def test_normal_angle_is_the_turn(angle):
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    turned = torch.tensor([math.sin(angle), math.cos(angle), 0.0], dtype=torch.float64)
    first, second = (((n + 1) / 2).expand(1, 2, 2, 3) for n in (up, turned))
    alpha = torch.ones(1, 2, 2, 1)
    alpha[0, 0, 0] = 0.5  # at the outline, where the background is mixed in
    found = normal_angle(first, second, alpha, torch.ones_like(alpha))
    assert found.item() == pytest.approx(math.degrees(angle), abs=1e-4)


def test_no_overlap_has_no_normal_angle():
    normals = torch.full((1, 2, 2, 3), 0.7)
    assert math.isnan(normal_angle(normals, normals, torch.zeros(1, 2, 2, 1), torch.ones(1, 2, 2, 1)))


@pytest.fixture(scope="module")
def distance():
    return load_encoder_distance(pgc3d.mini.text_model(), torch.device("cpu"))


def scene(size=64):
    """A red disc with a darker stripe on white."""
    axis = torch.linspace(-1, 1, size)
    disc = (axis[:, None] ** 2 + axis**2 < 0.5)[..., None]
    color = torch.where(
        (axis.abs() < 0.2)[:, None], torch.tensor([0.5, 0.1, 0.1]), torch.tensor([0.9, 0.2, 0.1])
    )
    return torch.where(disc, color.expand(size, size, 3), torch.ones(3))[None]


def test_encoder_distance_is_symmetric_and_bounded(distance):
    picture, other = scene(), pictures(0, count=1, height=64, width=64)
    assert distance(picture, picture).item() == 0
    torch.testing.assert_close(distance(picture, other), distance(other, picture))
    assert 0 < distance(picture, other).item() <= 4


def test_encoder_distance_grows_with_the_damage(distance):
    picture, noise = scene(), pictures(5, count=1, height=64, width=64) - 0.5
    damaged = torch.cat([(picture + share * noise).clamp(0, 1) for share in (0.02, 0.1, 0.4)])
    found = distance(picture.expand(3, -1, -1, -1), damaged)
    assert found[0] < found[1] < found[2]
