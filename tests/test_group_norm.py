import pytest
import torch
from torch.nn import functional

from pgc3d.kernels import group_norm as gn

SHAPES = {  # views, channels, height, width, groups
    "usual": (2, 32, 6, 10, 8),
    "one pixel": (3, 8, 1, 1, 2),
    "odd": (1, 21, 5, 7, 3),
    "a channel each": (2, 6, 4, 4, 6),
    "one group": (2, 5, 3, 2, 1),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(shape, *, silu, mean=0.0):
    views, channels, height, width, groups = shape
    x = draw(views, channels, height, width) + mean
    norm = gn.Norm(draw(channels, seed=1), draw(channels, seed=2), groups, silu=silu)
    return x, norm, draw(channels, seed=3), draw(*x.shape, seed=4)


def cast(norm, dtype):
    return gn.Norm(norm.weight.to(dtype), norm.bias.to(dtype), norm.groups, norm.eps, norm.silu)


def reference(x, norm, shift, gradient):
    """The definition in float64, differentiated by autograd."""
    x = x.double().requires_grad_()
    norm = cast(norm, torch.float64)
    y = functional.group_norm(
        x + shift.double()[:, None, None], norm.groups, norm.weight, norm.bias, norm.eps
    )
    y = functional.silu(y) if norm.silu else y
    return y.detach(), torch.autograd.grad(y, x, gradient.double())[0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_value_and_input_gradient_are_those_of_the_definition(shape, silu, dtype):
    x, norm, shift, gradient = inputs(shape, silu=silu)
    x, shift, gradient = x.to(dtype), shift.to(dtype), gradient.to(dtype)
    norm = cast(norm, dtype)
    y, pull = reference(x, norm, shift, gradient)
    x.requires_grad_()
    found = gn.group_norm(x, norm, shift=shift, implementation="torch")
    (found_pull,) = torch.autograd.grad(found, x, gradient)
    assert found.dtype == found_pull.dtype == dtype
    for value, expected in ((found, y), (found_pull, pull)):
        atol = TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=atol)


def test_a_shift_may_differ_between_pictures():
    x, norm, _, _ = inputs(SHAPES["usual"], silu=True)
    shift = draw(2, 32, seed=5)
    found = gn.group_norm(x, norm, shift=shift, implementation="torch")
    for view in range(2):
        alone = gn.group_norm(x[view : view + 1], norm, shift=shift[view], implementation="torch")
        torch.testing.assert_close(found[view : view + 1], alone)


def test_gradient_agrees_with_finite_differences():
    x, norm, shift, _ = inputs((1, 6, 2, 3, 2), silu=True)
    assert torch.autograd.gradcheck(
        lambda x: gn.group_norm(x, norm, shift=shift, implementation="torch"), x.requires_grad_()
    )


def test_memory_order_changes_nothing_and_the_result_is_channels_last():
    x, norm, _, _ = inputs(SHAPES["usual"], silu=True)
    found = gn.group_norm(x, norm, implementation="torch")
    again = gn.group_norm(x.to(memory_format=torch.channels_last), norm, implementation="torch")
    assert torch.equal(found, again)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_pictures_are_not_copied():
    x = torch.rand(2, 4, 3, 5).to(memory_format=torch.channels_last)
    pixels = gn.to_pixels(x)
    assert pixels.data_ptr() == x.data_ptr()
    assert torch.equal(gn.to_image(pixels, 3), x)


def test_a_large_mean_costs_no_precision():
    x, norm, shift, gradient = inputs(SHAPES["usual"], silu=False, mean=1000.0)
    x, norm, shift = x.float(), cast(norm, torch.float32), shift.float()
    y, _ = reference(x, norm, shift, gradient)
    torch.testing.assert_close(
        gn.group_norm(x, norm, shift=shift, implementation="torch").double(), y, rtol=0, atol=2e-3
    )


def test_statistics_reproduce_the_output_and_the_residual_is_added():
    x, norm, shift, gradient = inputs(SHAPES["usual"], silu=True)
    pixels, pull = gn.to_pixels(x), gn.to_pixels(gradient)
    y, statistics = gn.forward(pixels, norm, shift)
    assert torch.equal(gn.reapply(pixels, norm, statistics), y)
    alone = gn.backward(pull, pixels, norm, statistics)
    both = gn.backward(pull, pixels, norm, statistics, residual=pixels)
    torch.testing.assert_close(both - pixels, alone)


def test_pictures_do_not_influence_each_other():
    x, norm, shift, _ = inputs(SHAPES["usual"], silu=True)
    whole = gn.group_norm(x, norm, shift=shift)
    torch.testing.assert_close(whole[1:], gn.group_norm(x[1:], norm, shift=shift))


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="groups must divide the 6 channels, got 4"):
        gn.Norm(torch.ones(6), torch.zeros(6), 4)
    with pytest.raises(ValueError, match="must be frozen"):
        gn.Norm(torch.ones(6, requires_grad=True), torch.zeros(6), 2)
