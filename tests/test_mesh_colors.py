"""Colours of meshes: images, factors, vertex colours, and the files that they come from."""

from collections.abc import Callable
from pathlib import Path

import mesh_cases as cases
import numpy as np
import pytest
import torch
from gltf_builder import Gltf, one_box, red_and_blue, square
from gltf_cases import CPU, assert_line

from pgc3d.exporting.asset_colors import surface_colors
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source, source_files

# Colours

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
MIXED = (127.5, 0, 127.5)


def one_square(texture=None, sampler=None, factor=None, repeat=1.0, transform=None, **attributes) -> Gltf:
    """A square with the red and blue image, or without."""
    gltf = Gltf()
    info = None
    if texture is not None:
        info = {"index": gltf.texture(red_and_blue(), sampler)} | texture
        if transform is not None:
            info["extensions"] = {"KHR_texture_transform": transform}
    material = gltf.material(info, factor)
    made = {name: gltf.accessor(*values) for name, values in attributes.items()}
    gltf.mesh(square(gltf, repeat=repeat, **made) | {"material": material})
    return gltf.nodes({"mesh": 0})


def two_squares(*, first_texture: bool) -> Gltf:
    gltf = Gltf()
    if first_texture:
        left, right = (
            gltf.material({"index": gltf.texture(red_and_blue())}),
            gltf.material(factor=[0, 1, 0, 1]),
        )
    else:
        left, right = gltf.material(factor=[1, 0, 0, 1]), gltf.material(factor=[0, 0, 1, 1])
    second = square(gltf, shift=2.0) | {"material": right}
    if first_texture:
        del second["attributes"]["TEXCOORD_0"]
    gltf.mesh(square(gltf) | {"material": left}, second)
    return gltf.nodes({"mesh": 0})


def older_material() -> Gltf:
    gltf = one_square()
    values = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0, 1, 1]}}
    gltf.document["materials"] = [{"extensions": values}]
    return gltf


NO_COLOR = [[0.0, 0, 0]] * 4
CLAMPED, MIRRORED = {"wrapS": 33071}, {"wrapS": 33648}


# of quarters of the picture from left to right
COLOR_CASES: dict[str, tuple[Callable[[], Gltf], tuple]] = {
    "plain": (lambda: one_square({}), (RED, RED, BLUE, BLUE)),
    "repeat4": (lambda: one_square({}, repeat=4.0), (MIXED,) * 4),
    "clamped": (lambda: one_square({}, CLAMPED, repeat=4.0), (MIXED, BLUE, BLUE, BLUE)),
    "mirrored": (lambda: one_square({}, MIRRORED, repeat=2.0), (RED, BLUE, BLUE, RED)),
    "another_tile": (
        lambda: one_square({}, TEXCOORD_0=([[3.0, 8], [4, 8], [4, 7], [3, 7]],)), (RED, RED, BLUE, BLUE)
    ),
    "texcoord1": (lambda: one_square({"texCoord": 1}, TEXCOORD_1=([[0.0, 0]] * 4,)), (RED,) * 4),
    "texcoord_of_the_transform": (
        lambda: one_square({}, transform={"texCoord": 1}, TEXCOORD_1=([[0.75, 0]] * 4,)), (BLUE,) * 4
    ),
    "offset": (lambda: one_square({}, transform={"offset": [0.5, 0]}), (BLUE, BLUE, RED, RED)),
    "scale": (lambda: one_square({}, transform={"scale": [2, 2]}), (RED, BLUE, RED, BLUE)),
    "turned_over": (
        lambda: one_square({}, transform={"rotation": np.pi, "offset": [1, 1]}), (BLUE, BLUE, RED, RED)
    ),
    "factor_times_vertex_colour": (
        lambda: one_square(factor=[0, 1, 0, 1], COLOR_0=([[1.0, 1, 0, 1]] * 4,)), (GREEN,) * 4
    ),
    "vertex_colour_times_texture": (
        lambda: one_square({}, COLOR_0=([[255, 255, 0, 255]] * 4, "u1"), ), (RED, RED, (0, 0, 0), (0, 0, 0))
    ),
    "two_factors": (lambda: two_squares(first_texture=False), (RED, RED, BLUE, BLUE)),
    "texture_and_factor": (lambda: two_squares(first_texture=True), (RED, BLUE, GREEN, GREEN)),
    "linear_factor": (lambda: one_square(factor=[0.2140411, 0, 0, 1]), ((127.5, 0, 0),) * 4),
    "linear_vertex_colour": (
        lambda: one_square(COLOR_0=([[0.2140411, 0, 0]] * 4,)), ((127.5, 0, 0),) * 4
    ),
    "specular_glossiness": (older_material, (BLUE,) * 4),
    "no_material": (one_box, ((127.5,) * 3,) * 4),
}  # fmt: skip


def quarters(path: Path) -> torch.Tensor:
    """Mean colours [4, 3] of a mesh seen from +z, in 4 strips from left to right."""
    asset = read_mesh(path)
    low, high = asset.vertices.amin(0), asset.vertices.amax(0)
    flat = 2 * (asset.vertices - low) / (high - low).clamp_min(1e-6) - 1
    clip = torch.stack([flat[:, 0], flat[:, 1], -0.5 * flat[:, 2], torch.ones(len(flat))], dim=1)
    fragments = CPU.rasterize(clip[None], asset.faces, (64, 64))
    assert bool((fragments.triangle >= 0).all())
    colors = surface_colors(asset, fragments, CPU).view(64, 4, 16, 3)
    return 255 * colors.mean(dim=(0, 2))


@pytest.mark.parametrize(("make", "expected"), COLOR_CASES.values(), ids=COLOR_CASES)
def test_colours(tmp_path, make, expected):
    found = quarters(make().write(tmp_path / "a.glb"))
    # a strip of 16 pixels blends with its neighbour over a texel of 1/64
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=9.0, rtol=0)


def test_vertex_colours_are_mixed_in_linear_light(tmp_path):
    gltf = one_square(COLOR_0=([[0.0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]],))
    found = quarters(gltf.write(tmp_path / "a.glb"))
    light = (torch.arange(64) + 0.5) / 64
    srgb = torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    torch.testing.assert_close(found[:, 0], 255 * srgb.view(4, 16).mean(1), atol=1.0, rtol=0)


def test_colours_of_vertices_at_one_place_do_not_run_into_each_other(tmp_path):
    gltf = Gltf()
    left = square(gltf, COLOR_0=gltf.accessor([[1.0, 0, 0]] * 4))
    right = square(gltf, shift=2.0, COLOR_0=gltf.accessor([[0.0, 0, 1]] * 4))
    gltf.mesh(left, right)
    found = quarters(gltf.nodes({"mesh": 0}).write(tmp_path / "a.glb"))
    torch.testing.assert_close(found, torch.tensor([RED, RED, BLUE, BLUE]).float(), atol=1.0, rtol=0)


def test_rotation_of_a_texture_is_counter_clockwise_in_the_image(tmp_path):
    """A quarter turn about the origin: what was looked up along u is looked up along -v."""
    gltf = one_square({}, transform={"rotation": np.pi / 2})
    image = gltf.document["images"][0]
    image["bufferView"] = gltf.view(b"")
    rows = red_and_blue().transpose(1, 0, 2)  # red above blue
    gltf.document["images"].append({"mimeType": "image/png"})
    gltf.document["textures"][0]["source"] = gltf.image(rows)
    found = quarters(gltf.write(tmp_path / "a.glb"))
    torch.testing.assert_close(found, torch.tensor([BLUE, BLUE, RED, RED]).float(), atol=9.0, rtol=0)


def test_images_are_opened_for_colours_only_and_named(tmp_path):
    for uri, words in {
        "wood.png": "wood.png; check the path",
        "../wood.png": "own folder only",
        "https://example.org/wood.png": "own folder only",
        "data:image/png;base64,AAAA": "images[0] of a.glb is damaged",
    }.items():
        path = cases.with_image(uri).write(tmp_path / "a.glb")
        assert len(read_source(path).faces) == 12
        assert_line(lambda: read_mesh(path), words)  # noqa: B023


def test_files_that_a_result_depends_on(tmp_path):
    gltf = cases.with_image("wood%20a.png")
    (tmp_path / "wood a.png").write_bytes(b"x")
    path = gltf.write(tmp_path / "a.gltf", "a.bin", "a.bin")
    assert source_files(path) == [path, tmp_path / "a.bin", tmp_path / "wood a.png"]
    (tmp_path / "b.glb").write_bytes(b"x")
    assert source_files(tmp_path / "b.glb") == [tmp_path / "b.glb"]
