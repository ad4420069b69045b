"""Meshes of other programs painted with a known pattern: the file written shows what the run shows."""

import mesh_cases as cases
import pytest
import torch
from gltf_builder import Gltf, one_box, square, two_boxes

from pgc3d.exporting.textured_mesh import export_textured_mesh
from pgc3d.inputs.mesh import load_prepared, prepare_mesh_file, save_prepared
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh

CPU = CpuRasterizer()


def pattern(size: int = 64) -> torch.Tensor:
    """An image without any symmetry: u in red, v in green, a blue stripe."""
    ramp = (torch.arange(size) + 0.5) / size
    image = torch.stack(
        [ramp.expand(size, size), ramp.flip(0)[:, None].expand(size, size), 0 * ramp.expand(size, size)], -1
    )
    image[:, size // 4 : size // 3, 2] = 1.0
    return image.contiguous()


def textured(tmp_path, gltf: Gltf, *, uv: str, texture: str) -> TexturedMesh:
    """As a run does it: the canvas comes from the run's own file."""
    prepared = prepare_mesh_file(
        gltf.write(tmp_path / "given.glb"), up="+y", front="auto", crease_degrees=40.0, texture_size=128,
        rasterizer=CPU, uv=uv,
    )  # fmt: skip
    save_prepared(tmp_path / "prepared", prepared)
    config = TexturedMeshConfig(
        texture=texture, image_size=64, color_field=ColorFieldConfig(levels=4), shading=False
    )
    generator = torch.Generator().manual_seed(0)
    model = build_textured_mesh(
        config, load_prepared(tmp_path / "prepared"), rasterizer=CPU, generator=generator
    )
    with torch.no_grad():
        if texture == "image":
            for image in model.texture.images:
                image.image.copy_(pattern(len(image.image)))
        else:  # a pattern that is coarse enough for the file's texels
            model.texture.grid.table.copy_(
                2 * torch.rand(model.texture.grid.table.shape, generator=generator) - 1
            )
            for level, (start, end) in enumerate(
                zip(model.texture.grid.layout.offsets, model.texture.grid.layout.offsets[1:], strict=False)
            ):
                model.texture.grid.table[start:end] *= float(level == 0)
    return model


def repeating() -> Gltf:
    """A square over which the image lies two and a half times."""
    gltf = Gltf()
    gltf.mesh(square(gltf, repeat=2.5))
    return gltf.nodes({"mesh": 0})


MESHES = {
    "skinned": (cases.lifted, "auto"),
    "instanced": (cases.instancing, "own"),
    "mirrored halves": (cases.mirrored_halves, "own"),
    "repeat": (repeating, "own"),
    "tiles": (lambda: two_boxes(shift=(1, 0)), "own"),
    "parts": (cases.one_part_without, "auto"),
    "flat": (lambda: one_box({"mesh": 0, "scale": [0, 1, 1]}), "auto"),
}


@pytest.mark.parametrize("texture", ["field", "image"])
@pytest.mark.parametrize(("make", "uv"), MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("out", ["glb", "obj"])
def test_the_file_shows_what_the_run_shows(tmp_path, make, uv, texture, out):
    model = textured(tmp_path, make(), uv=uv, texture=texture)
    path = tmp_path / f"out.{out}"
    report = export_textured_mesh(model, path, format=out, rasterizer=CPU, texture_size=128)
    assert report.psnr > 30
    found, given = read_source(path), read_source(tmp_path / "given.glb")
    torch.testing.assert_close(found.vertices[found.faces], given.vertices[given.faces])
    for surface in read_mesh(path).surfaces:
        assert float(surface.image.float().std(dim=(0, 1)).max()) > 5  # it is a pattern, not one colour


def test_mirrored_halves_have_one_paint(tmp_path):
    """Both halves show the same colours at places that mirror each other, in the run and in the file."""
    model = textured(tmp_path, cases.mirrored_halves(), uv="own", texture="field")
    mesh = model.mesh
    for face in range(12):
        left, right = (mesh.uv[mesh.uv_faces[index]].mean(0) for index in (face, face + 12))
        torch.testing.assert_close(left, right)
    points = mesh.vertices[mesh.faces].mean(1)
    uv = mesh.uv[mesh.uv_faces].mean(1)
    colors = model.texels(points, uv, mesh.face_set, texture_size=128)
    torch.testing.assert_close(colors[:12], colors[12:])
    assert float(colors.std(dim=0).max()) > 0.01


def test_an_image_that_repeats_says_so_in_the_file(tmp_path):
    model = textured(tmp_path, repeating(), uv="own", texture="image")
    export_textured_mesh(model, tmp_path / "out.glb", format="glb", rasterizer=CPU, texture_size=64)
    asset = read_mesh(tmp_path / "out.glb")
    assert asset.wrap == ("repeat", "repeat")
    torch.testing.assert_close(asset.uv.amax(0) - asset.uv.amin(0), torch.tensor([2.5, 2.5]))
    torch.testing.assert_close(asset.base_color.float() / 255, pattern(), atol=0.003, rtol=0)
    once = textured(tmp_path, one_box(), uv="own", texture="image")
    export_textured_mesh(once, tmp_path / "box.glb", format="glb", rasterizer=CPU, texture_size=64)
    assert read_mesh(tmp_path / "box.glb").wrap == ("clamp", "clamp")
