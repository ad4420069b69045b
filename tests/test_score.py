import pytest
import torch

from pgc3d.guidance.score import (
    classifier_free_guidance,
    csd_gradient,
    sds_gradient,
    weight,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_guidance_scale_interpolates_and_extrapolates():
    uncond, cond = draw(2, 2, 4, 3, 3)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, 1.0), cond)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, 3.0), 3.0 * cond - 2.0 * uncond)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("sigma2", [0.75, 0.19]), ("sqrt_abar", [0.375, 0.171]), ("uniform", [1.0, 1.0])],
)
def test_weights(weighting, expected):
    torch.testing.assert_close(weight(torch.tensor([0.25, 0.81]), weighting), torch.tensor(expected))


def test_gradients_are_linear_and_vanish_where_they_should():
    uncond, cond, noise = draw(3, 2, 4, 3, 3)
    weights = torch.tensor([0.5, 2.0])
    assert sds_gradient(noise, noise, weights).count_nonzero() == 0
    assert csd_gradient(cond, [(-1.0, cond)], weights).count_nonzero() == 0
    torch.testing.assert_close(csd_gradient(cond, [(-1.0, uncond)], weights)[1], 2.0 * (cond - uncond)[1])
    # SDS is the classifier part times s plus the part without a prompt.
    guided = classifier_free_guidance(uncond, cond, 7.0)
    both = 7.0 * csd_gradient(cond, [(-1.0, uncond)], weights) + sds_gradient(uncond, noise, weights)
    torch.testing.assert_close(sds_gradient(guided, noise, weights), both)
