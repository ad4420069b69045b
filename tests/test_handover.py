"""What one stage leaves for the next: the surface, a field that is zero there, and the colours."""

import pytest
import torch
from meshes import write_cube
from test_dmtet import make
from test_textured_mesh import canvas_of, textured

from pgc3d.representation.dmtet import DMTet


def disturbed(deformation: torch.Tensor | float = 0.0, **options: object) -> DMTet:
    """A shape whose parameters are no longer those of the start."""
    shape = make(resolution=24, radii=(0.6, 0.5, 0.4), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        shape.deformation += deformation
        shape.color.grid.table += torch.randn(shape.color.grid.table.shape, generator=generator)
        if shape.residual is not None:
            shape.residual += 0.01 * torch.randn(shape.residual.shape, generator=generator)
    return shape


def random_deformation(points: int) -> torch.Tensor:
    """Random at `points` places along an axis and linear between; if those are few, neighbours move alike."""
    coarse = torch.randn((1, 3, points, points, points), generator=torch.Generator().manual_seed(3))
    size = (25, 25, 25)
    return (
        torch.nn.functional.interpolate(coarse, size, mode="trilinear", align_corners=True).reshape(3, -1).T
    )


DEFORMATIONS = {
    "none": 0.0,
    "small, each point by itself": 0.3 * random_deformation(25),
    "up to the limit": 2.0 * random_deformation(7),
}


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
@pytest.mark.parametrize("deformation", DEFORMATIONS.values(), ids=DEFORMATIONS)
def test_handed_over_field_is_zero_on_the_surface_and_negative_inside(
    sdf: str, deformation: torch.Tensor | float
) -> None:
    shape = disturbed(deformation, sdf=sdf)
    handover, mesh = shape.handover(), shape.to_mesh()
    assert torch.equal(handover.surface.vertices, mesh.vertices)
    assert torch.equal(handover.surface.faces, mesh.faces)
    assert handover.sdf(mesh.vertices).abs().max() < 0.1 * shape.cell
    points = torch.cat([0.2 * mesh.vertices, torch.zeros(1, 3)])
    assert (handover.sdf(points) < 0).all()
    outwards = torch.nn.functional.normalize(mesh.vertices, dim=1)
    assert (handover.sdf(mesh.vertices + 2 * shape.cell * outwards) > 0).all()
    assert (handover.sdf(mesh.vertices - 2 * shape.cell * outwards) < 0).all()
    assert not handover.sdf(points).requires_grad


def test_what_is_handed_over_stays_when_the_shape_goes_on() -> None:
    shape = disturbed(0.3 * random_deformation(25))
    handover, points = shape.handover(), shape.to_mesh().vertices
    before = handover.sdf(points)
    with torch.no_grad():
        shape.deformation.zero_()
        shape.residual.add_(0.1)
        shape.base.add_(0.1)
    assert torch.equal(handover.sdf(points), before)


def test_handed_over_material_and_weights_are_the_shapes() -> None:
    shape, other = disturbed(), make(resolution=24)
    handover, points = shape.handover(), shape.to_mesh().vertices
    found, expected = handover.material(points), shape.material(points)
    for name in ("base_color", "roughness", "metallic"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert not getattr(found, name).requires_grad
    weights = {name: value for name, value in handover.state.items() if name in other.state_dict()}
    assert weights
    other.load_state_dict(other.state_dict() | weights)
    assert torch.equal(other.material(points).base_color, expected.base_color)


@pytest.mark.parametrize("texture", ["field", "image"])
def test_what_is_handed_over_is_the_surface_in_the_world_with_its_colours(tmp_path, texture):
    prepared = canvas_of(write_cube(tmp_path / "cube.glb"), "+z")
    model = textured(prepared, texture=texture, image_size=64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameter_store().tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    mesh, handover = model.mesh, model.handover()
    assert torch.equal(handover.surface.vertices, prepared.in_world().vertices)
    assert torch.equal(handover.surface.faces, mesh.faces)
    outwards = torch.nn.functional.normalize(mesh.vertices, dim=1)
    assert (handover.surface.normals * outwards).sum(1).min() > 0.5
    assert handover.sdf is None
    corners, uv = mesh.vertices[mesh.faces].flatten(0, 1), mesh.uv[mesh.uv_faces].flatten(0, 1)
    sets = mesh.face_set.repeat_interleave(3)
    colors = model.texels(corners, uv, sets, texture_size=64)
    found = handover.material(corners)
    assert not found.base_color.requires_grad
    same_place = (corners[:, None] - corners).norm(dim=-1) < 1e-5  # three sides meet there
    same_color = (found.base_color[:, None] - colors).abs().amax(-1) < 1e-5
    assert (same_place & same_color).any(dim=1).all()
    assert colors.std(dim=0).min() > 1e-4
    assert (found.roughness == 0.8).all()
    assert (found.metallic == 0.0).all()
    other = textured(prepared, texture=texture, image_size=64)
    other.texture.load_state_dict(
        {name.removeprefix("color."): value for name, value in handover.state.items()}, strict=False
    )
    assert torch.equal(other.texels(corners, uv, sets, texture_size=64), colors)
