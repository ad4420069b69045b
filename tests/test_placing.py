"""`pgc3d export --height --up --origin --unit`: laws of the bounding box, and the same shape as before."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meshes import write_cube
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_mesh_file import plate
from test_texture_command import TINY

from pgc3d.choices import AXES
from pgc3d.errors import InputError
from pgc3d.export_config import PlacingConfig
from pgc3d.exporting.placing import METRES, place_asset
from pgc3d.geometry.placement import axis_vector, orientation
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.types import Placement

UPRIGHT = Placement.identity()


def slab(**changes):
    """The plate, turned and away from the origin, so that no number is 0 or equal to another."""
    asset = plate(tangents=torch.tensor([[1.0, 0, 0, 1]]).expand(8, -1), **changes)
    moved = asset.vertices @ torch.tensor([[1.0, 0.2, 0], [0, 2, 0.1], [0.3, 0, 0.5]]) + torch.tensor(
        [3.0, 1, -2]
    )
    return plate(vertices=moved, tangents=asset.tangents)


def box(asset):
    return asset.vertices.amin(dim=0), asset.vertices.amax(dim=0)


def shape(asset):
    """Lengths of all edges, and the angles of normals and tangents to them, which no similarity changes."""
    corners = asset.vertices[asset.faces].double()
    edges = corners - corners.roll(1, dims=1)
    normals = asset.normals[asset.normals_of_corners].double()
    tangents = asset.tangents[asset.uv_faces][..., :3].double()
    length = edges.norm(dim=-1)
    directions = edges / length[..., None]
    volume = torch.linalg.det(torch.stack([directions[:, 0], directions[:, 1], normals[:, 0]], dim=1))
    return length / length.sum(), (directions * normals).sum(-1), (directions * tangents).sum(-1), volume


@given(
    height=st.floats(1e-3, 1e4),
    up=st.sampled_from(("keep", *AXES)),
    own=st.sampled_from(AXES),
    origin=st.sampled_from(("keep", "bottom", "center")),
    unit=st.sampled_from(list(METRES)),
)
def test_the_box_is_as_requested_and_the_shape_as_before(height, up, own, origin, unit):
    asset = slab()
    front = next(axis for axis in AXES if axis[1] != own[1])
    placement = Placement(orientation(own, front), torch.tensor([0.5, 1, 2], dtype=torch.float64), 0.3)
    config = PlacingConfig(height=height, up=up, origin=origin, unit=unit)
    placed, after = place_asset(asset, config, placement, "stl")
    axis = axis_vector(own if up == "keep" else up).float()
    low, high = box(placed)
    size = float((high - low) @ axis.abs())
    assert size == pytest.approx(height, rel=1e-5)
    middle = (low + high) / 2
    if origin == "center":
        assert middle.abs().max() < 1e-4 * (high - low).max()
    if origin == "bottom":
        assert (middle - axis * size / 2).abs().max() < 1e-4 * (high - low).max()
    for found, expected in zip(shape(placed), shape(asset), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    world = placement.to_world(asset.vertices)
    far = float(placed.vertices.abs().max()) / float((high - low).max())  # single precision is lost far away
    torch.testing.assert_close(after.to_world(placed.vertices), world, atol=1e-5 * (1 + far), rtol=1e-3)


def test_the_defaults_change_no_bit():
    asset = slab()
    assert place_asset(asset, PlacingConfig(), UPRIGHT, "glb") == (asset, UPRIGHT)


@pytest.mark.parametrize("unit", METRES)
def test_formats_with_a_unit_get_metres(unit):
    config = PlacingConfig(height=12.0, unit=unit, origin="bottom")
    for format, size in (("glb", 12.0 * METRES[unit]), ("gltf", 12.0 * METRES[unit]), ("obj", 12.0)):
        low, high = box(place_asset(slab(), config, UPRIGHT, format)[0])
        assert float(high[1] - low[1]) == pytest.approx(size, rel=1e-5)
        assert float(low[1]) == pytest.approx(0.0, abs=1e-6 * size)


def test_turning_y_up_to_z_up_turns_the_front_to_minus_y():
    """As Blender and slicers have it: a front at +z looks along -y where z is up."""
    asset = plate(normals=torch.tensor([[0.0, 0, 1]]).expand(6, -1), tangents=None)
    placed, _ = place_asset(asset, PlacingConfig(up="+z"), UPRIGHT, "stl")
    x, y, z = asset.vertices.unbind(1)
    torch.testing.assert_close(placed.vertices, torch.stack([x, -z, y], dim=1))
    torch.testing.assert_close(placed.normals, torch.tensor([[0.0, -1, 0]]).expand(6, -1))


def test_what_has_no_sense_is_refused():
    with pytest.raises(ValueError, match="unit must go with a height, got mm and no height; add --height"):
        PlacingConfig(unit="mm")
    with pytest.raises(ValueError, match=r"up must be one of keep, \+x, .*, got 'z up'"):
        PlacingConfig(up="z up")
    with pytest.raises(ValueError, match="height must lie in"):
        PlacingConfig(height=-1.0)
    for format in ("glb", "gltf", "usdz"):
        with pytest.raises(InputError, match=rf"--up must be \+y for {format}, in which y is up, got \+z"):
            place_asset(slab(), PlacingConfig(up="+z"), UPRIGHT, format)
    flat = plate(vertices=plate().vertices * torch.tensor([1.0, 0, 1]), tangents=None)
    with pytest.raises(InputError, match="a mesh must not be flat for --height"):
        place_asset(flat, PlacingConfig(height=1.0), UPRIGHT, "obj")


def test_an_export_is_placed_compared_and_recorded(run, checkpoint, tmp_path):
    """The other files of the run stay; a textured mesh changes only where that is requested."""
    folder = tmp_path / "run"
    mesh = write_cube(tmp_path / "cube.glb")
    assert run("texture", mesh, "x", "--model", checkpoint, *TINY, "--out", folder)[0] in (0, 5)
    before = (folder / "asset.glb").read_bytes()
    options = ["--height", "120", "--unit", "mm", "--origin", "bottom"]
    code, _, err = run("export", folder, "--format", "ply", "--up", "+z", *options)
    assert code in (0, 5), err
    low, high = box(read_mesh(folder / "asset.ply"))
    torch.testing.assert_close(low, torch.tensor([-60.0, -60, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([60.0, 60, 120]), atol=1e-3, rtol=0)
    record = json.loads((folder / "manifest.json").read_text())["export"]
    assert record["placing"] == {"height": 120.0, "up": "+z", "origin": "bottom", "unit": "mm"}
    assert record["height"] == pytest.approx(120.0)
    assert run("export", folder, *options)[0] in (0, 5)
    found = read_mesh(folder / "asset-2.glb")
    assert float(found.vertices[:, 1].max()) == pytest.approx(0.12)
    assert (folder / "asset.glb").read_bytes() == before
    code, _, err = run("export", folder, "--up", "+z")
    assert (code, "error: --up must be +y for glb" in err) == (2, True)
    code, _, err = run("export", folder, "--unit", "mm")
    assert (code, "unit must go with a height" in err) == (2, True)
    assert not (folder / "asset-3.glb").exists()
