"""Meshes with several textures: one for each material, image or UDIM tile of their own coordinates."""

import json
from dataclasses import asdict

import mesh_cases as cases
import numpy as np
import pytest
import torch
from gltf_builder import Gltf, box, box_arrays, red_and_blue, two_boxes
from gltf_check import check_glb
from test_mesh_painting import CPU, textured
from test_mesh_prepared import canvas_of

from pgc3d.exporting.textured_mesh import export_textured_mesh
from pgc3d.geometry.own_uv import chart_areas
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source
from pgc3d.rendering.mipmap import ChainPlace, mip_chain, sample_chain, sample_chains
from pgc3d.representation.uv_planes import UvPlanes
from pgc3d.types import TextureSet


def boxes(*uv_shifts: float, image: bool = False) -> Gltf:
    """Boxes of materials of their own, with the same coordinates, or moved along u, or with one image."""
    gltf, positions, nodes = Gltf(), box_arrays()[0], []
    texture = {"index": gltf.texture(red_and_blue(4))} if image else None
    for index, shift in enumerate(uv_shifts):
        primitive = box(gltf) | {"material": gltf.material(texture, name=f"part {index}")}
        primitive["attributes"]["TEXCOORD_0"] = gltf.accessor(box_arrays()[2] * [0.5, 1] + [shift, 0])
        gltf.mesh(primitive)
        nodes.append({"mesh": index, "translation": [2.0 * index * np.ptp(positions[:, 0]), 0, 0]})
    return gltf.nodes(*nodes)


SETS = {
    "materials": (cases.two_materials, ["wood", "glass"]),
    "tiles": (lambda: two_boxes(shift=(1, 0)), ["surface.1001", "surface.1002"]),
    "tiles above": (lambda: two_boxes(shift=(2, -1)), ["surface.1001", "surface.1013"]),
    "no overlap": (lambda: boxes(0.0, 0.5), ["surface"]),
    "overlap": (lambda: boxes(0.0, 0.0, 0.5), ["part 0", "part 1", "part 2"]),
    "one image": (lambda: boxes(0.0, 0.0, image=True), ["part 0", "part 1"]),
    "other tile": (lambda: boxes(3.0, 0.0, 0.0), ["part 0", "part 1", "part 2"]),
}


@pytest.mark.parametrize(("make", "names"), SETS.values(), ids=SETS)
def test_coordinates_are_kept_in_as_many_images_as_they_need(tmp_path, make, names):
    """Each corner has its coordinates of the file, in the unit square of its set's image."""
    path = make().write(tmp_path / "a.glb")
    prepared, said = canvas_of(path)
    assert prepared.uv_method == "own"
    assert [part.name for part in prepared.sets] == names
    assert len(names) == 1 or f"are kept in {len(names)} images" in said[-1]
    given = read_source(path)
    found, own = prepared.uv[prepared.uv_faces], given.uv[given.uv_faces]
    torch.testing.assert_close(found - found.floor(), own - own.floor(), atol=1e-6, rtol=0)
    assert (found >= -1e-6).all()
    assert (found <= 1 + 1e-6).all()
    for index, part in enumerate(prepared.sets):
        rows = prepared.faces_of(index)
        assert set(part.materials) == set(given.face_material[rows].tolist())


def test_what_overlaps_within_a_material_alone_gets_new_coordinates(tmp_path):
    gltf = boxes(0.0, 0.0)
    twice = gltf.document["meshes"][1]["primitives"][0]
    gltf.document["meshes"][1]["primitives"].append(dict(twice))
    prepared, said = canvas_of(gltf.write(tmp_path / "a.glb"))
    assert [part.name for part in prepared.sets] == ["part 0", "new"]
    assert [part.method for part in prepared.sets] == ["own", "xatlas"]
    assert "coordinates of part 1 in a.glb overlap on" in said[-1]
    assert "are kept in one image: part 0" in said[-1]
    assert prepared.sets[1].materials == (1,)
    kept, _ = canvas_of(tmp_path / "a.glb", uv="own")
    assert [(part.name, part.shared) for part in kept.sets] == [("part 0", False), ("part 1", True)]


def test_smaller_surfaces_have_smaller_images_and_no_fewer_texels_for_a_unit(tmp_path):
    gltf = boxes(0.0, 0.0, 0.0)
    for index, scale in enumerate((1.0, 0.2, 0.5)):
        gltf.document["nodes"][index]["scale"] = [scale] * 3
    prepared, _ = canvas_of(gltf.write(tmp_path / "a.glb"))
    assert [part.scale for part in prepared.sets] == [1.0, 0.25, 0.5]
    assert [part.side(1024) for part in prepared.sets] == [1024, 256, 512]
    assert TextureSet(scale=1 / 128).side(1024) == 64
    corners = prepared.vertices[prepared.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 2
    drawn = chart_areas(prepared.uv, prepared.uv_faces)
    density = [
        part.side(1024) ** 2 * float(drawn[rows].sum() / area[rows].sum())
        for index, part in enumerate(prepared.sets)
        for rows in [prepared.faces_of(index)]
    ]
    assert min(density) == pytest.approx(density[0])


@pytest.mark.parametrize("texture", ["field", "image"])
@pytest.mark.parametrize("uv", ["auto", "own"])
@pytest.mark.parametrize("out", ["glb", "obj"])
def test_each_set_has_a_material_with_an_image_and_shows_what_the_run_shows(tmp_path, texture, uv, out):
    gltf = boxes(0.0, 0.0, 0.0)
    gltf.document["meshes"][2]["primitives"] *= 2
    model = textured(tmp_path, gltf, uv=uv, texture=texture)
    report = export_textured_mesh(
        model, tmp_path / f"out.{out}", format=out, rasterizer=CPU, texture_size=128
    )
    assert report.psnr > 30
    asset, prepared = read_mesh(tmp_path / f"out.{out}"), model.prepared
    names = [part.name for part in prepared.sets]
    expected = names if out == "glb" else [name.replace(" ", "_") for name in names]
    assert [surface.name for surface in asset.surfaces] == expected
    given = read_source(tmp_path / "given.glb")
    torch.testing.assert_close(
        asset.vertices[asset.faces].sum((0, 1)), given.vertices[given.faces].sum((0, 1))
    )
    if out == "glb":
        document, _ = unpack_glb((tmp_path / "out.glb").read_bytes())
        assert check_glb((tmp_path / "out.glb").read_bytes()) == []
        assert len(document["images"]) == 2 * len(names)  # colours, and the constants of the surface


def test_a_prepared_mesh_of_several_sets_is_checked(tmp_path):
    prepared, _ = canvas_of(cases.two_materials().write(tmp_path / "a.glb"))
    assert json.loads(json.dumps([asdict(part) for part in prepared.sets]))[1]["materials"] == [1]
    assert torch.equal(torch.cat([prepared.faces_of(0), prepared.faces_of(1)]), torch.arange(24))


def test_look_ups_in_several_chains_are_those_in_each():
    generator = torch.Generator().manual_seed(0)
    sides, repeats = torch.tensor([16, 4, 8]), torch.tensor([False, True, False])
    images = [torch.rand(side, side, 3, generator=generator) for side in sides.tolist()]
    chains = [mip_chain(image) for image in images]
    starts = torch.tensor([0, *(len(chain) for chain in chains[:-1])]).cumsum(0)
    sets = torch.randint(3, (300,), generator=generator)
    uv, level = 3 * torch.rand(300, 2, generator=generator) - 1, 6 * torch.rand(300, generator=generator) - 1
    found = sample_chains(torch.cat(chains), ChainPlace(sides[sets], starts[sets], repeats[sets]), uv, level)
    for index, chain in enumerate(chains):
        rows = sets == index
        expected = sample_chain(chain, int(sides[index]), uv[rows], level[rows], repeat=bool(repeats[index]))
        torch.testing.assert_close(found[rows], expected)


def test_planes_of_texture_coordinates_lie_apart_from_each_other_and_from_the_surface():
    sets = [TextureSet(shared=number != 2, wraps=number == 1) for number in range(20)]
    planes = UvPlanes.of(sets, "cpu")
    uv = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    surface = torch.zeros(500, 3)
    points = torch.stack([planes(surface, uv, torch.full((500,), number)) for number in range(20)])
    assert torch.equal(points[2], surface)
    assert (points.abs() <= 1 + 1e-6).all()
    assert (points[[0, 1, 3, 4, 5, 6]].norm(dim=-1) >= 1).all()  # one on each side of the cube
    normals = [int((plane.amax(0) - plane.amin(0)).argmin()) for plane in points]
    heights = {(axis, round(float(plane[0, axis]), 3)) for axis, plane in zip(normals, points, strict=True)}
    assert len(heights) == 20
    moved = planes(surface, uv + torch.tensor([2.0, -1]), torch.full((500,), 1))
    torch.testing.assert_close(moved, points[1], atol=1e-5, rtol=0)
