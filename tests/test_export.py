import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from gltf_check import check_glb
from steps import show
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.errors import DivergedError, InputError
from pgc3d.exporting.bake import vertex_colors
from pgc3d.exporting.export import export_asset
from pgc3d.exporting.roundtrip import comparison_views, render_asset, round_trip_psnr
from pgc3d.images import psnr
from pgc3d.interfaces import Meshable
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.formats import FORMATS, WRITABLE
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.parameters import ParameterStore
from pgc3d.rendering import build_rasterizer
from pgc3d.types import Handover, Material, Mesh, Rendering, Step, Views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rasterizer():
    return build_rasterizer("cpu", CPU)


def arrays(mesh: trimesh.Trimesh) -> tuple[Tensor, Tensor]:
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64)


class Painted:
    """A fixed surface whose colour is a smooth function of the place, rendered texel-free."""

    def __init__(self, vertices: Tensor, faces: Tensor, rasterizer) -> None:
        self.vertices, self.faces, self.rasterizer = vertices, faces, rasterizer

    def to_mesh(self) -> Mesh:
        normals = torch.zeros_like(self.vertices)
        return Mesh(self.vertices, self.faces, normals)

    def material(self, points: Tensor) -> Material:
        flat = torch.full_like(points[:, :1], 0.5)
        return Material(base_color=0.5 + 0.4 * torch.sin(3 * points), roughness=flat, metallic=flat)

    def begin_step(self, step: Step) -> None: ...

    def end_step(self, step: Step) -> None: ...

    def regularizers(self, step: Step) -> dict[str, Tensor]:
        return {}

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """Rendered with a colour at every vertex of the dense surface: no texture is involved."""
        asset = MeshAsset(
            self.vertices,
            self.faces,
            torch.nn.functional.normalize(self.vertices, dim=1),
            vertex_color=vertex_colors(self.vertices, self.material),
        )
        return render_asset(
            asset, views.cameras, resolution, background=views.background, rasterizer=self.rasterizer
        )

    def parameter_store(self) -> ParameterStore:
        return ParameterStore([])

    def handover(self) -> Handover:
        return Handover(surface=self.to_mesh(), sdf=None, material=self.material)

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


@pytest.fixture(scope="module")
def sphere(rasterizer) -> Painted:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=4))
    return Painted(0.8 * vertices, faces, rasterizer)


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_shows_what_the_run_showed(tmp_path, sphere, rasterizer, format):
    assert isinstance(sphere, Meshable)
    path = tmp_path / f"ball.{format}"
    report = export_asset(
        sphere, path, format=format, rasterizer=rasterizer, texture_size=256, faces=2000, metadata={"seed": 3}
    )
    assert report.faithful, report
    assert report.psnr >= 28.0
    assert report.faces <= 2000
    assert report.uv_method == ("xatlas" if FORMATS[format].carries == "textures" else None)
    assert report.files[0].path == path
    assert all(file.size == file.path.stat().st_size > 0 for file in report.files)
    assert all(len(file.sha256) == 64 for file in report.files)
    assert {"surface", "cleanup", "write", "compare"} <= set(report.seconds)
    assert sorted(file.path for file in report.files) == sorted(tmp_path.iterdir())
    if format == "glb":
        assert check_glb(path.read_bytes()) == []
        assert read_mesh(path).metadata == {"seed": 3}


def test_fallback_of_the_unwrap_is_said_and_faithful(tmp_path, sphere, rasterizer, caplog):
    with caplog.at_level(logging.WARNING):
        report = export_asset(
            sphere,
            tmp_path / "ball.glb",
            format="glb",
            rasterizer=rasterizer,
            texture_size=512,
            faces=1000,
            uv_time_limit=1e-3,
        )
    assert report.uv_method == "triangles"
    assert "packing the" in caplog.text
    assert report.faithful, report


def test_a_wrong_file_is_not_faithful(tmp_path, sphere, rasterizer):
    path = tmp_path / "ball.glb"
    export_asset(sphere, path, format="glb", rasterizer=rasterizer, texture_size=64, faces=500)
    right = read_mesh(path)
    write_mesh(path, replace(right, uv=right.uv.flip(1)), "glb")
    cameras, background = comparison_views()
    reference = show(sphere, cameras, 64, background)
    assert round_trip_psnr(path, reference, cameras, rasterizer=rasterizer) < 20


def test_no_surface_is_one_line(tmp_path, rasterizer):
    empty = Painted(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), rasterizer)
    with pytest.raises(DivergedError, match="must have faces"):
        export_asset(empty, tmp_path / "no.glb", format="glb", rasterizer=rasterizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="folders have no such rights there")
def test_missing_folder_is_one_line(tmp_path, sphere, rasterizer):
    with pytest.raises(InputError, match="folder that can be written"):
        export_asset(
            sphere,
            Path(tmp_path / "gone" / "ball.stl"),
            format="stl",
            rasterizer=rasterizer,
            faces=100,
        )


def test_psnr_counts_only_the_mask():
    first, second = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3)
    second[0, 0, 0] = 0.1
    mask = torch.zeros(1, 4, 4, 1, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert psnr(first, second, mask).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(first, second, ~mask).item() == float("inf")


def cube() -> MeshAsset:
    """A cube that shows the same picture, an F, upright on its four sides."""
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]) * 0.5
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # +z to +x about y
    sides = [corners]
    for _ in range(3):
        sides.append(sides[-1] @ quarter.T)
    vertices = torch.cat(sides)
    faces = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * side for side in range(4)])
    image = torch.full((64, 64, 3), 40, dtype=torch.uint8)
    image[8:56, 16:24] = 255
    image[8:16, 16:48] = 255
    image[28:36, 16:40] = 255
    return MeshAsset(
        vertices=vertices,
        faces=faces,
        normals=torch.cat(
            [torch.nn.functional.normalize(side.mean(0), dim=0).expand(4, 3) for side in sides]
        ),
        uv=torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]).repeat(4, 1),
        uv_faces=faces,
        base_color=image,
    )


@pytest.mark.parametrize("format", ["glb", "obj"])
def test_letters_read_correctly_from_every_side(tmp_path, rasterizer, format):
    path = tmp_path / f"cube.{format}"
    write_mesh(path, cube(), format)
    cameras = turntable(4, elevation_degrees=0.0)
    found = render_asset(
        read_mesh(path), cameras, 96, background=torch.full((4, 3), 0.5), rasterizer=rasterizer
    )
    image = cube().base_color.permute(2, 0, 1)[None].float() / 255
    for view in range(4):
        rows, columns = (found.alpha[view, ..., 0] > 0.5).nonzero().unbind(1)
        crop = found.color[view, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        letter = torch.nn.functional.interpolate(image, size=crop.shape[:2], mode="area")[0].permute(1, 2, 0)
        upright = correlation(crop, letter)
        assert upright > 0.85
        assert upright > correlation(crop, letter.flip(0)) + 0.2
        assert upright > correlation(crop, letter.flip(1)) + 0.2
        assert upright > correlation(crop, letter.flip(0, 1)) + 0.2


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def test_loose_pieces_are_dropped_and_said_but_do_not_count_as_a_fault(rasterizer, tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=3)
    crumb = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    crumb.apply_translation([0.0, 0.0, 1.3])
    vertices, faces = arrays(trimesh.util.concatenate([ball, crumb]))
    textured = Painted(0.7 * vertices, faces, rasterizer)
    report = export_asset(textured, tmp_path / "a.glb", format="glb", rasterizer=rasterizer, texture_size=256)
    assert report.dropped == pytest.approx(crumb.area / (ball.area + crumb.area), rel=1e-3)
    assert report.faces == len(ball.faces)
    assert report.faithful
