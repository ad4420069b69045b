"""Laws of the clipping rules."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgc3d import pgc
from pgc3d.adaptive_clip import AdaptiveClip, AdaptivePixelClip
from pgc3d.relative_clip import RelativeClip

DTYPES = (torch.float32, torch.bfloat16)
NORMS = ("linf", "l2")
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}

exponents = st.integers(-30, 30)
thresholds = st.floats(1e-4, 1e4)


@st.composite
def gradients(draw: Any, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Tensor:
    """[2, 4, 5, 3] with lengths over 15 decades, some zero pixels, and a power of ten in front."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = 10.0 ** torch.randint(-8, 7, (2, 4, 5, 1), generator=generator)
    gradient = torch.randn(2, 4, 5, 3, generator=generator) * spread * 10.0 ** draw(exponents)
    gradient[torch.rand(2, 4, 5, generator=generator) < 0.1] = 0
    return gradient.to(draw(st.sampled_from(dtypes)))


def length(gradient: Tensor, norm: str) -> Tensor:
    order = float("inf") if norm == "linf" else 2
    return torch.linalg.vector_norm(gradient.double(), ord=order, dim=-1)


def reference_clip(gradient: Tensor, threshold: float, norm: str) -> Tensor:
    """Eq. 9, pixel by pixel in double precision."""
    result = torch.zeros_like(gradient, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in gradient.shape[:-1])):
        pixel = gradient[tuple(index)].double()
        size = pixel.abs().max() if norm == "linf" else pixel.pow(2).sum().sqrt()
        result[tuple(index)] = pixel * min(1.0, threshold / size.item()) if size > 0 else pixel
    return result


@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=60)
@given(gradient=gradients(), threshold=thresholds)
def test_pixel_clip_laws(norm: pgc.Norm, gradient: Tensor, threshold: float) -> None:
    clipped = pgc.clip_pixelwise(gradient, threshold, norm=norm)
    rounding = ROUNDING[gradient.dtype]
    before, after = length(gradient, norm), length(clipped, norm)
    assert clipped.dtype == gradient.dtype
    assert (after <= threshold * (1 + rounding)).all()
    below = before <= threshold * (1 - 1e-6)
    assert torch.equal(clipped[below], gradient[below])
    assert (clipped[gradient.eq(0)] == 0).all()
    scale = gradient.double().abs().amax(-1, keepdim=True).clamp_min(1e-300)
    cosine = torch.cosine_similarity(gradient.double() / scale, clipped.double() / threshold, dim=-1)
    assert (cosine[before > threshold] > 1 - 4 * rounding).all()
    torch.testing.assert_close(
        pgc.clip_pixelwise(clipped, threshold, norm=norm), clipped, rtol=rounding, atol=threshold * rounding
    )


@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=15)
@given(gradient=gradients(dtypes=(torch.float32,)), threshold=thresholds)
def test_pixel_clip_equals_the_formula(norm: pgc.Norm, gradient: Tensor, threshold: float) -> None:
    expected = reference_clip(gradient, threshold, norm)
    actual = pgc.clip_pixelwise(gradient, threshold, norm=norm).double()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=30)
@given(gradient=gradients(dtypes=(torch.float32,)), threshold=thresholds)
def test_linf_clip_is_idempotent_to_the_bit(gradient: Tensor, threshold: float) -> None:
    once = pgc.clip_pixelwise(gradient, threshold)
    assert torch.equal(pgc.clip_pixelwise(once, threshold), once)


@settings(deadline=None, max_examples=30)
@given(gradient=gradients(), threshold=thresholds)
def test_channel_clip_is_a_clamp(gradient: Tensor, threshold: float) -> None:
    clipped = pgc.clip_channelwise(gradient, threshold)
    expected = gradient.float().clamp(-threshold, threshold).to(gradient.dtype)
    assert torch.equal(clipped, expected)
    assert torch.equal(pgc.clip_channelwise(clipped, threshold), clipped)


@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=30)
@given(gradient=gradients(dtypes=(torch.float32,)), threshold=thresholds)
def test_pngd_equals_the_formula(norm: pgc.Norm, gradient: Tensor, threshold: float) -> None:
    squashed = pgc.normalize_pngd(gradient, threshold, norm=norm).double()
    size = length(gradient, norm)[..., None]
    expected = threshold * gradient.double() / (size + threshold)
    torch.testing.assert_close(squashed, expected, rtol=2e-6, atol=1e-43)
    assert (length(squashed, norm) <= threshold * (1 + 1e-6)).all()


@settings(deadline=None, max_examples=30)
@given(gradient=gradients(), threshold=thresholds)
def test_global_scale_reaches_the_threshold_and_keeps_ratios(gradient: Tensor, threshold: float) -> None:
    scaled = pgc.scale_globally(gradient, threshold)
    rounding = ROUNDING[gradient.dtype]
    assert scaled.float().abs().max().item() == pytest.approx(threshold, rel=2 * rounding)
    expected = gradient.double() / gradient.double().abs().max() * threshold
    torch.testing.assert_close(scaled.double(), expected, rtol=2 * rounding, atol=threshold * 1e-37)


RULES = {
    "pixel": pgc.PixelClip(),
    "pixel_l2": pgc.PixelClip(norm="l2"),
    "channel": pgc.ChannelClip(),
    "pngd": pgc.PngdClip(),
    "global": pgc.GlobalScale(),
    "parameter": pgc.ParameterClip(),
    "none": pgc.NoClip(),
    "adaptive": AdaptiveClip(),
    "relative": RelativeClip(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_zero_and_removes_nonfinite_pixels(name: str, dtype: torch.dtype) -> None:
    gradient = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradient[0, 0, 0, 1], gradient[0, 1, 2, 0], gradient[0, 3, 3, 2] = (
        float("nan"),
        float("inf"),
        -float("inf"),
    )
    rule = RULES[name].build()
    clipped = rule(gradient)
    broken = ~torch.isfinite(gradient).all(-1)
    assert clipped.dtype == dtype
    assert torch.isfinite(clipped).all()
    assert (clipped[broken] == 0).all()
    assert (clipped[~broken] != 0).any(-1).all()
    assert pgc.count_nonfinite(gradient) == 3
    found = pgc.statistics(gradient, clipped)["nonfinite_fraction"]
    assert found.item() == pytest.approx(3 / broken.numel())
    zero = torch.zeros(1, 4, 4, 3, dtype=dtype)
    assert torch.equal(RULES[name].build()(zero), zero)
    assert torch.equal(rule(torch.full_like(zero, float("nan"))), zero)


@pytest.mark.parametrize("rule", [pgc.clip_pixelwise, pgc.clip_channelwise, pgc.normalize_pngd])
def test_channel_axis_can_be_anywhere(rule: Any) -> None:
    gradient = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rule(gradient.movedim(-1, 1), 0.3, dim=1).movedim(1, -1), rule(gradient, 0.3))


@pytest.mark.parametrize("clipper", [None, pgc.PngdClip().build()])
@pytest.mark.parametrize("scale", [1.0, 1024.0, torch.tensor(4096.0), lambda: 65536.0])
def test_hook_does_not_see_the_loss_scale(scale: Any, clipper: Any) -> None:
    target = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    factor = scale() if callable(scale) else scale

    def gradient_of_image(loss_scale: Any, factor: Any) -> Tensor:
        image = torch.zeros(1, 3, 4, 4, requires_grad=True)
        pgc.attach(image, dim=1, loss_scale=loss_scale, clipper=clipper)
        (0.2 * (image * target).sum() * factor).backward()
        assert image.grad is not None
        return image.grad / factor

    assert torch.equal(gradient_of_image(scale, factor), gradient_of_image(1.0, 1.0))


@pytest.mark.parametrize("clipper", [None, pgc.PngdClip().build()])
def test_a_scaler_finds_its_scale_again_after_an_overflow(clipper: Any) -> None:
    """Half precision cannot hold 4 * 65536: the first steps must be skipped, and the scale halved."""
    parameter = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    for _ in range(30):
        optimizer.zero_grad()
        image = parameter * 1.0
        pgc.attach(image, 0.1, dim=1, loss_scale=scaler.get_scale, clipper=clipper)
        scaler.scale((image.half() * 4).float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**13
    assert (parameter < 0.5 - 25 * 0.09 * 1e-3).all()


def test_adaptive_clip_passes_what_its_sample_missed() -> None:
    clip, gradient = AdaptivePixelClip(), torch.zeros(1, 512, 512, 3)
    gradient[0, 100, 101] = 5.0
    sampled = pgc.sampled(torch.arange(512 * 512))
    assert 100 * 512 + 101 not in sampled
    assert torch.equal(clip(gradient), gradient)
    assert clip.threshold == 0


def test_hook_can_be_removed() -> None:
    image = torch.zeros(1, 2, 2, 3, requires_grad=True)
    handle = pgc.attach(image, 0.1)
    handle.remove()
    (5 * image).sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 5.0))


def test_statistics_of_a_known_gradient() -> None:
    lengths = torch.linspace(0, 1, 101)
    gradient = torch.stack([lengths, -lengths / 2, lengths * 0], -1)[None, None]
    found = pgc.statistics(gradient, pgc.clip_pixelwise(gradient, 0.795))
    expected = {
        "clipped_fraction": 21 / 101,
        "nonfinite_fraction": 0,
        "gradient_p50": 0.5,
        "gradient_p90": 0.9,
        "gradient_p99": 0.99,
        "gradient_max": 1.0,
    }
    assert {name: round(value.item(), 6) for name, value in found.items()} == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("norm", NORMS)
@given(st.integers(0, 2**20), st.floats(0.0, 1.0))
def test_statistics_of_some_pixels_are_those_of_an_image_of_them(norm: Any, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(2, 6, 7, 3, generator=generator)
    gradient[torch.rand(2, 6, 7, generator=generator) < 0.1] = float("nan")
    mask = torch.rand(2, 6, 7, 1, generator=generator) < share
    clipped = pgc.clip_pixelwise(gradient, 0.5, norm=norm)
    found = pgc.statistics(gradient, clipped, norm=norm, mask=mask)
    inside = mask[..., 0]
    if inside.any():
        expected = pgc.statistics(gradient[inside][None], clipped[inside][None], norm=norm)
        torch.testing.assert_close(found, expected)
    else:
        assert all(value == 0 for value in found.values())


def test_statistics_of_a_picture_larger_than_the_sample() -> None:
    gradient = torch.rand(1, 512, 512, 1, generator=torch.Generator().manual_seed(3))
    found = pgc.statistics(gradient, pgc.clip_pixelwise(gradient, 0.25))
    assert found["gradient_p90"].item() == pytest.approx(0.9, abs=0.01)
    assert found["clipped_fraction"].item() == pytest.approx(0.75, abs=0.01)


def test_adaptive_threshold_follows_the_quantile_of_nonzero_lengths() -> None:
    rule = AdaptivePixelClip(quantile=0.5, decay=0.9)
    lengths = torch.cat([torch.zeros(500), torch.linspace(1, 3, 101)])
    gradient = torch.stack([lengths, lengths / 2, lengths / 4], -1)[None, None]
    rule(torch.zeros_like(gradient))
    clipped = rule(gradient)
    assert rule.threshold.item() == pytest.approx(2.0)
    assert clipped.max().item() == pytest.approx(2.0)
    for _ in range(100):
        rule(gradient * 10)
    assert rule.threshold.item() == pytest.approx(20.0, rel=1e-3)


def later_share(first_calls: int, spread: float) -> float:
    """The share that is clipped from 50 calls after a start of gradients that are 24 times as long."""
    generator = torch.Generator().manual_seed(5)
    rule, shares = AdaptiveClip().build(), []
    for call in range(20 + 130):
        scale = (spread * torch.randn((), generator=generator)).exp()
        gradient = scale * torch.randn(1, 32, 32, 3, generator=generator)
        gradient = gradient * 24 if 20 - first_calls <= call < 20 else gradient
        shares.append((rule(gradient) != gradient).any(-1).float().mean().item())
    return sum(shares[20 + 50 :]) / 80


@pytest.mark.parametrize("first_calls", [1, 5, 20])
def test_adaptive_clip_finds_its_share_after_a_start_of_long_gradients(first_calls: int) -> None:
    """A picture of one colour may have gradients 24 times as long as all later ones."""
    assert later_share(first_calls, 0.0) == pytest.approx(0.1, abs=0.01)
    assert later_share(first_calls, 0.7) == pytest.approx(later_share(0, 0.7), abs=0.01)


def test_adaptive_state_round_trip() -> None:
    generator = torch.Generator().manual_seed(4)
    pictures = [torch.randn(1, 4, 4, 3, generator=generator) * size for size in (1, 3, 9)]
    first, second = AdaptiveClip().build(), AdaptiveClip().build()
    first(pictures[0])
    first(pictures[1])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(pictures[2]), second(pictures[2]))


def test_parameter_clip_bounds_the_total_norm() -> None:
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 3.0), torch.full((2, 2), 4.0)
    before = pgc.clip_parameters(parameters, 1.0)
    after = pgc.clip_parameters(parameters, 2.0)
    torch.testing.assert_close(before, torch.tensor(91.0).sqrt())
    torch.testing.assert_close(after, torch.tensor(1.0))
    torch.testing.assert_close(parameters[0].grad / parameters[1].grad[0, 0], torch.full((3,), 0.75))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameter_clip_drops_a_nonfinite_step(value: float) -> None:
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.tensor([1.0, value, 2.0])
    assert not torch.isfinite(pgc.clip_parameters([parameter], 1.0))
    assert torch.equal(parameter.grad, torch.zeros(3))


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        pgc.clip_pixelwise(torch.ones(1, 1, 1, 3), threshold)
    with pytest.raises(ValueError, match="positive and finite"):
        pgc.PixelClip(threshold=threshold)


def test_imports_nothing_else_of_the_package() -> None:
    code = "import sys; from pgc3d import pgc; print([m for m in sys.modules if m.startswith('pgc3d.')])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "['pgc3d.pgc']"
