import math

import torch

from pgc3d.cameras import orbit
from pgc3d.rendering.shading import irradiance, key_direction, linear_to_srgb, shade, srgb_to_linear


def cameras(azimuth, elevation):
    count = len(azimuth)
    return orbit(
        torch.tensor(azimuth), torch.tensor(elevation), torch.full((count,), 3.0), torch.full((count,), 0.7)
    )


def test_srgb_round_trip_is_monotone_and_keeps_the_ends():
    color = torch.linspace(0, 1, 257)[:, None]
    linear = srgb_to_linear(color)
    torch.testing.assert_close(linear_to_srgb(linear), color, atol=1e-6, rtol=0)
    assert (linear.diff(dim=0) > 0).all()
    torch.testing.assert_close(linear[[0, -1], 0], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(
        srgb_to_linear(torch.tensor([[0.5]])), torch.tensor([[0.21404]]), atol=1e-5, rtol=0
    )


def test_gradients_are_finite_at_black_and_white():
    color = torch.tensor([[0.0, 0.5, 1.0]], requires_grad=True)
    shade(color, torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert color.grad.isfinite().all()
    assert (color.grad > 0).all()


def test_light_turns_with_the_camera():
    key = key_direction(cameras([0.0, math.pi / 2, 0.4], [0.0, 0.0, 0.5]))
    torch.testing.assert_close(key.norm(dim=1), torch.ones(3))
    expected = torch.tensor([-0.3, 0.5, 1.0])
    expected = expected / expected.norm()
    torch.testing.assert_close(key[0], expected)
    # A camera on +x: its right is -z and its back is +x.
    torch.testing.assert_close(
        key[1], torch.stack([expected[2], expected[1], -expected[0]]), atol=1e-6, rtol=0
    )
    assert (key[2] * torch.tensor([math.sin(0.4), 0.0, math.cos(0.4)])).sum() > 0


def test_white_surface_gets_between_ambient_and_one():
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(1000, 3, generator=generator), dim=1)
    key = torch.nn.functional.normalize(torch.tensor([[-0.3, 0.5, 1.0]]), dim=1)
    light = irradiance(normal, key.expand_as(normal))
    assert light.min() >= 0.45
    assert light.max() <= 1.0
    facing = irradiance(key, key)
    torch.testing.assert_close(facing, torch.full((1, 1), 0.9) + 0.1 * (0.5 + 0.5 * key[:, 1:2]))
