"""Clipping relative to each image's own gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.clip_rules import RULES, parse_rule
from pgc3d.relative_clip import IMAGES, RelativeClip, median_lengths


def images(count=4, side=16, *, seed=0):
    """Gradients of an object that covers half of each image."""
    gradient = torch.randn(count, side, side, 3, generator=torch.Generator().manual_seed(seed))
    gradient[:, : side // 2] = 0.0
    return gradient


def length(gradient, norm="linf"):
    largest = gradient.abs().amax(-1, keepdim=True)
    return largest if norm == "linf" else gradient.square().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_median_is_that_of_the_object(norm):
    gradient = images()
    expected = [length(image[8:], norm).flatten().sort().values[63] for image in gradient]  # of 128 pixels
    torch.testing.assert_close(median_lengths(gradient, norm), torch.stack(expected))
    assert median_lengths(torch.zeros(2, 4, 4, 3), norm).isnan().all()


@given(seed=st.integers(0, 1000), factor=st.floats(0.5, 8.0), scale=st.floats(1e-6, 1e6))
def test_no_pixel_exceeds_its_images_bound_and_the_scale_of_a_guidance_does_not_matter(seed, factor, scale):
    gradient = images(seed=seed)
    clipped = RelativeClip(factor=factor).build()(gradient)
    bound = (factor * median_lengths(gradient, "linf"))[:, None, None, None]
    assert (length(clipped) <= bound * (1 + 1e-6)).all()
    other = RelativeClip(factor=factor).build()(scale * gradient)
    torch.testing.assert_close(other / scale, clipped, rtol=1e-4, atol=1e-5)


def test_directions_stay_and_short_pixels_of_usual_images_are_untouched():
    gradient = images(1)
    clipped = RelativeClip(factor=2.0).build()(gradient)
    short = length(gradient) <= 2.0 * median_lengths(gradient, "linf")
    assert 0.5 < short.float().mean() < 1
    assert torch.equal(torch.where(short, clipped, 0.0), torch.where(short, gradient, 0.0))
    cosine = torch.nn.functional.cosine_similarity(clipped[:, 8:], gradient[:, 8:], dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_an_image_above_the_usual_ones_is_scaled_to_them_and_one_below_is_not_enlarged():
    clip, usual = RelativeClip(factor=1e6).build(), images(8, seed=1)
    clip(usual)
    strong, weak = 10.0 * images(1, seed=2), 0.1 * images(1, seed=3)
    middle = torch.cat([median_lengths(usual, "linf"), median_lengths(strong, "linf")]).nanmedian()
    torch.testing.assert_close(median_lengths(clip(strong), "linf")[0], middle)
    assert torch.equal(clip(weak), weak)


def test_the_running_median_forgets_and_images_without_a_gradient_do_not_count():
    clip = RelativeClip(factor=1e6).build()
    clip(100.0 * images(4))
    for seed in range(IMAGES // 4):
        clip(images(4, seed=seed))
    # The strong images have left the window: one of ten times the usual size is scaled down again.
    strong = median_lengths(clip(10.0 * images(1)), "linf")
    torch.testing.assert_close(strong, median_lengths(images(1), "linf"), rtol=0.2, atol=0.0)
    fresh = RelativeClip().build()
    fresh(torch.zeros(3, 8, 8, 3))
    assert not fresh.state_dict()["medians"].any()


@pytest.mark.parametrize("name", RULES)
def test_a_checkpoint_can_hold_the_state_of_a_rule_at_any_time(name):
    """It must be finite: before the first image, after one without a gradient, and with few images."""
    clip = parse_rule(name).build()
    for gradient in (None, torch.zeros(1, 8, 8, 3), images(1)):
        if gradient is not None:
            clip(gradient)
        state = clip.state_dict() if hasattr(clip, "state_dict") else {}
        assert all(value.isfinite().all() for value in state.values())
        again = parse_rule(name).build()
        if state:
            again.load_state_dict(state)
            assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def test_the_state_goes_on_where_it_was():
    first = RelativeClip().build()
    first(images(3))
    second = RelativeClip().build()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(5.0 * images(2, seed=4)), first(5.0 * images(2, seed=4)))


def test_the_rule_has_a_short_text():
    assert parse_rule("relative") == RelativeClip()
    assert parse_rule("relative=2") == RelativeClip(factor=2.0)
    with pytest.raises(ValueError, match="a factor of the median must be positive"):
        RelativeClip(factor=0.0)
