"""Volume rendering along rays: formulas, gradients, and agreement of the kernels."""

import pytest
import torch
from triton_devices import devices

from pgc3d.kernels import composite, composite_numba
from pgc3d.kernels.composite import Spans

COUNTS = (3, 0, 5, 1, 0, 40)
UNUSED = 4  # rows of no ray


def make_spans(counts=COUNTS, unused=UNUSED):
    count = torch.tensor(counts)
    ray = torch.cat([torch.arange(len(counts)).repeat_interleave(count), torch.full((unused,), len(counts))])
    return Spans(start=count.cumsum(0) - count, count=count, ray=ray)


def make_inputs(dtype=torch.float64, channels=4):
    generator = torch.Generator().manual_seed(0)
    rows = sum(COUNTS) + UNUSED
    depth = torch.rand(rows, generator=generator, dtype=torch.float64) * 0.8
    values = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return depth.to(dtype), values.to(dtype)


def by_definition(depth, values, spans):
    sums, left = [], []
    for start, count in zip(spans.start.tolist(), spans.count.tolist(), strict=True):
        passed, total = torch.ones((), dtype=depth.dtype), torch.zeros(values.shape[1], dtype=depth.dtype)
        for row in range(start, start + count):
            opacity = 1 - torch.exp(-depth[row])
            total = total + passed * opacity * values[row]
            passed = passed * (1 - opacity)
        sums.append(total)
        left.append(passed)
    return torch.stack(sums), torch.stack(left)


def test_sums_are_those_of_the_definition():
    depth, values = make_inputs()
    for found, expected in zip(
        composite.forward(depth, values, make_spans()),
        by_definition(depth, values, make_spans()),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_weights_and_what_is_left_add_to_one():
    depth, _ = make_inputs()
    sums, left = composite.forward(depth, torch.ones(len(depth), 1, dtype=depth.dtype), make_spans())
    torch.testing.assert_close(sums[:, 0] + left, torch.ones(len(COUNTS), dtype=depth.dtype))


def test_gradients_are_those_of_the_definition():
    depth, values = (tensor.requires_grad_() for tensor in make_inputs())
    spans = make_spans()
    sums, left = by_definition(depth, values, spans)
    generator = torch.Generator().manual_seed(1)
    of_sums = torch.randn(sums.shape, generator=generator, dtype=torch.float64)
    of_left = torch.randn(left.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad([sums, left], [depth, values], [of_sums, of_left])
    results = composite.forward(depth.detach(), values.detach(), spans)
    found = composite.backward(of_sums, of_left, results, depth.detach(), values.detach(), spans)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0], ids=["thin", "half", "opaque"])
def test_kernels_agree(scale):
    depth, values = make_inputs(torch.float32)
    depth, spans = depth * scale, make_spans()
    generator = torch.Generator().manual_seed(1)
    of_sums, of_left = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    exact = depth.double(), values.double(), spans
    own, wanted = composite_numba.forward(depth, values, spans), composite.forward(*exact)
    found = {
        "forward": own,
        "backward": composite_numba.backward(of_sums, of_left, own, depth, values, spans),
    }
    expected = {
        "forward": wanted,
        "backward": composite.backward(of_sums.double(), of_left.double(), wanted, *exact),
    }
    for name, tensors in found.items():
        for mine, exact_one in zip(tensors, expected[name], strict=True):
            torch.testing.assert_close(mine.double(), exact_one, rtol=1e-4, atol=1e-5, msg=name)


@devices
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0], ids=["thin", "half", "opaque"])
@pytest.mark.parametrize("channels", [1, 7])
def test_triton_agrees(scale, channels, device):
    from pgc3d.kernels import composite_triton

    depth, values = (tensor.to(device) for tensor in make_inputs(torch.float32, channels))
    spans = Spans(**{name: value.to(device) for name, value in vars(make_spans()).items()})
    generator = torch.Generator().manual_seed(1)
    of_sums = torch.randn(6, channels, generator=generator).to(device)
    of_left = torch.randn(6, generator=generator).to(device)
    depth = depth * scale
    exact = depth.double(), values.double(), spans
    own, wanted = composite_triton.forward(depth, values, spans), composite.forward(*exact)
    pairs = [
        (own, wanted),
        (
            composite_triton.backward(of_sums, of_left, own, depth, values, spans),
            composite.backward(of_sums.double(), of_left.double(), wanted, *exact),
        ),
    ]
    for found, expected in pairs:
        for mine, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)
