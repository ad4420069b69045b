import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.evaluation.image_metrics import saturated_fraction, speckle, statistics, total_variation


def draw(seed=0, size=(2, 9, 7, 3)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def disc(size=32, radius=10.0):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((x - 15.5) ** 2 + (y - 15.5) ** 2 < radius**2).float()[None, ..., None]


def test_speckle_is_the_mean_laplacian():
    image = draw()
    total = []
    for b in range(2):
        for y in range(1, 8):
            for x in range(1, 6):
                around = image[b, y - 1, x] + image[b, y + 1, x] + image[b, y, x - 1] + image[b, y, x + 1]
                total.append((around - 4 * image[b, y, x]).abs().mean())
    assert speckle(image).item() == pytest.approx(1000 * torch.stack(total).mean().item(), rel=1e-5)


@given(st.floats(0.0, 1.0), st.integers(0, 100))
def test_a_plain_picture_is_quiet_and_noise_raises_both(level, seed):
    plain = torch.full((1, 16, 16, 3), level)
    noisy = (plain + 0.1 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))).clamp(
        0, 1
    )
    for measure in (speckle, total_variation):
        assert measure(plain).item() == 0
        assert measure(noisy).item() > 0


def test_a_ramp_varies_but_has_no_speckle():
    ramp = torch.linspace(0, 1, 11)[None, None, :, None].expand(1, 5, 11, 3)
    assert speckle(ramp).item() == pytest.approx(0, abs=1e-3)
    # 0.1 to each right neighbour (5 rows of 10), 0 to each one below (4 rows of 11)
    assert total_variation(ramp).item() == pytest.approx(1000 * 0.1 * 50 / 94, rel=1e-4)


@pytest.mark.parametrize("measure", [speckle, total_variation, saturated_fraction])
def test_turned_pictures_measure_the_same(measure):
    image = draw(3)
    expected = measure(image).item()
    for turned in (image.flip(1), image.flip(2), image.transpose(1, 2)):
        assert measure(turned).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", [speckle, total_variation, saturated_fraction])
def test_the_mask_leaves_out_background_and_outline(measure):
    mask = disc()
    inside = draw(1, (1, 32, 32, 3))
    first, second = (inside * mask + color * (1 - mask) for color in (0.0, torch.tensor([1.0, 0.0, 0.0])))
    assert measure(first, mask).item() == pytest.approx(measure(second, mask).item(), rel=1e-6)


def test_saturated_pixels_are_counted():
    loud, pale, dark = [0.8, 0.0, 0.05], [0.8, 0.5, 0.4], [0.05, 0.0, 0.0]
    image = torch.tensor([[[loud, pale], [dark, loud]]])
    assert saturated_fraction(image).item() == 0.5


def test_all_by_name():
    assert set(statistics(draw())) == {"speckle", "total_variation", "saturated_fraction"}
