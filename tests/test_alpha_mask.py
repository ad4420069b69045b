"""Holes that alpha channels cut into faces are in the renders, and in the file that comes back."""

import io

import numpy as np
import pytest
import torch
from gltf_builder import Gltf, square
from PIL import Image
from test_documents import GREEN, prepared

from pgc3d.cameras import turntable
from pgc3d.exporting.document import write_document
from pgc3d.inputs.mesh import load_prepared, save_prepared
from pgc3d.mesh_io.bundle import pack_document
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.repaint import MaterialImages
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import Views


def disc(size: int = 64) -> np.ndarray:
    """An image that is opaque in a circle of half its side about its middle."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    pixels = np.full((size, size, 4), 200, dtype=np.uint8)
    pixels[..., 3] = 255 * (axis[:, None] ** 2 + axis**2 < 0.25**2)
    return pixels


def card(mode: str = "MASK", *, twice: bool = False) -> Gltf:
    gltf = Gltf()
    material = gltf.material({"index": gltf.texture(disc())}, alphaMode=mode)
    gltf.mesh(square(gltf) | {"material": material})
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [3, 0, 0]}]
    return gltf.nodes(*nodes[: 1 + twice])


def model(path, **options):
    return build_textured_mesh(
        TexturedMeshConfig(),
        prepared(path, **options),
        rasterizer=CpuRasterizer(),
        generator=torch.Generator().manual_seed(0),
    )


def coverage(mesh, **options):
    """The share of the pixels of the card's square that the first view shows."""
    views = Views(turntable(4), torch.ones(4, 3))
    rendering = mesh.shaded(views, 128, shading=False, **options)
    return float(rendering.alpha[0].detach().sum()), rendering


def test_a_mask_cuts_its_circle_out_of_a_square(tmp_path):
    """Its area is pi / 16 of the square, up to a pixel at its edge; without holes the square is whole."""
    mesh = model(card().write(tmp_path / "card.glb"))
    cut, rendering = coverage(mesh)
    full, _ = coverage(mesh, holes=False)
    assert cut / full == pytest.approx(np.pi / 16, rel=0.05)
    assert len(mesh.prepared.faces) == 2
    middle = rendering.alpha[0, 64, 64]
    assert float(middle.detach()) == pytest.approx(1.0)
    blended, _ = coverage(model(card("BLEND").write(tmp_path / "blend.glb")))
    assert blended == pytest.approx(full)


def test_a_cut_surface_shows_the_same_colours(tmp_path):
    """Where both are opaque, also for instances, whose colours are those of the first one."""
    mesh = model(card(twice=True).write(tmp_path / "card.glb"))
    cut, whole = coverage(mesh)[1], coverage(mesh, holes=False)[1]
    both = (cut.alpha[0] == 1) & (whole.alpha[0] == 1)
    assert int(both.sum()) > 100
    torch.testing.assert_close(cut.color[0][both[..., 0]], whole.color[0][both[..., 0]], atol=2e-3, rtol=0)


def test_a_cutout_is_in_the_prepared_file(tmp_path):
    mesh = prepared(card().write(tmp_path / "card.glb"))
    save_prepared(tmp_path / "mesh.safetensors", mesh)
    read = load_prepared(tmp_path / "mesh.safetensors").cutout
    for name in ("whole", "parent", "corners"):
        assert torch.equal(getattr(read, name), getattr(mesh.cutout, name))
    area = torch.linalg.det(mesh.cutout.corners.double()).abs()
    assert float(area.sum()) / 2 == pytest.approx(np.pi / 16, rel=0.03)


@pytest.mark.parametrize("uv", ["own", "new"])
@pytest.mark.parametrize("mode", ["MASK", "BLEND"])
def test_the_alpha_channel_is_in_the_new_image(tmp_path, uv, mode):
    path, out = card(mode).write(tmp_path / "card.glb"), tmp_path / "out.glb"
    (tmp_path / "document.zip").write_bytes(pack_document(path))
    mesh = prepared(path, uv=uv)
    write_document(tmp_path / "document.zip", out, mesh, [MaterialImages(GREEN)], rasterizer=CpuRasterizer())
    again = prepared(out)
    document, binary = unpack_glb(out.read_bytes())
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    image = Image.open(io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]]))
    assert image.mode == "RGBA"
    assert np.array(image.convert("RGB")).reshape(-1, 3).std(axis=0).max() == 0
    if mode == "MASK":
        area = torch.linalg.det(again.cutout.corners.double()).abs()
        assert float(area.sum()) / 2 == pytest.approx(np.pi / 16, rel=0.1)
