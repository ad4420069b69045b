"""Renders that the backward pass computes again: the same images and gradients in less memory."""

import dataclasses

import pytest
import torch
from steps import FIRST
from test_materials import STUDIO, cube, disturb, shape, textured  # noqa: F401 - a fixture

from pgc3d.cameras import turntable
from pgc3d.representation.headlight import HeadlightConfig
from pgc3d.shard import Shard
from pgc3d.types import Views

VIEWS, SIDE = 3, 48
MATERIALS = {"headlight": HeadlightConfig(), "pbr": dataclasses.replace(STUDIO, lights=("studio", "sun"))}
KINDS = ["field", "image", "dmtet"]
IMAGES = ("color", "normal", "depth", "alpha", "background")
# Three views of this process alone, and the last three of the five that two processes have.
STEPS = {
    "alone": FIRST,
    "shard": dataclasses.replace(FIRST, scope="color", views=5, shard=Shard(rank=1, size=2)),
}


def make(kind, material, cube):
    return disturb(shape(material) if kind == "dmtet" else textured(cube, material, texture=kind))


def views():
    return Views(turntable(VIEWS), torch.linspace(0, 1, 3 * VIEWS).view(VIEWS, 3))


def rendered(model, step):
    """The images of a step, and the gradients of a loss that weighs every number of them differently."""
    model.zero_grad()
    model.begin_step(step)
    rendering = model.render(views(), SIDE, step)
    generator = torch.Generator().manual_seed(1)
    images = [getattr(rendering, name) for name in IMAGES]
    weights = [torch.randn(image.shape, generator=generator) for image in images]
    pairs = [(image, weight) for image, weight in zip(images, weights, strict=True) if image.requires_grad]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return images, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("material", MATERIALS.values(), ids=MATERIALS)
@pytest.mark.parametrize("kind", KINDS)
def test_rendering_again_changes_no_image_and_no_gradient(cube, kind, material, step):
    model = make(kind, material, cube)
    expected, pulls = rendered(model, step)
    expected, pulls = [image.detach() for image in expected], [pull.clone() for pull in pulls]
    model.recompute = True
    found, again = rendered(model, step)
    assert pulls
    for image, target in zip(found, expected, strict=True):
        torch.testing.assert_close(image.detach(), target, rtol=0, atol=1e-5)
    for pull, target in zip(again, pulls, strict=True):
        torch.testing.assert_close(pull, target, rtol=1e-3, atol=1e-4 * target.abs().max().item())


def kept_bytes(model):
    """What autograd keeps of a step's renders, beside the parameters and the renderings themselves."""
    model.begin_step(FIRST)
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rendering = model.render(views(), SIDE, FIRST)
    parameters = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    assert rendering.color.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_next_to_nothing_is_kept_until_the_backward_pass(cube, kind):
    model = make(kind, MATERIALS["headlight"], cube)
    whole = kept_bytes(model)
    model.recompute = True
    assert kept_bytes(model) < whole / 20


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_has_no_gradient(cube, kind):
    model = make(kind, MATERIALS["headlight"], cube)
    model.begin_step(FIRST)
    plain = model.render(views(), SIDE, None)
    model.recompute = True
    assert torch.equal(model.render(views(), SIDE, None).color, plain.color)
    assert not plain.color.requires_grad
    with torch.no_grad():
        assert not model.render(views(), SIDE, FIRST).color.requires_grad
