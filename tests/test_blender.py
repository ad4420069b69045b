"""Exported files in Blender: PGC3D_BLENDER names a Python with the package `bpy`."""

import os

import pytest
from test_mesh_file import letter, plate
from tiny import _script

from pgc3d.mesh_io.formats import TEXTURED
from pgc3d.mesh_io.mesh_file import write_mesh

PYTHON = os.environ.get("PGC3D_BLENDER", "")


@pytest.mark.scripts
@pytest.mark.skipif(not PYTHON, reason="PGC3D_BLENDER names no Python with bpy")
@pytest.mark.parametrize("format", TEXTURED)
def test_blender_shows_what_we_show(tmp_path, format):
    asset = plate(base_color=letter(256))
    found = _script("check_in_blender").compare(
        write_mesh(tmp_path / f"plate.{format}", asset, format)[0], PYTHON, side=128
    )
    assert found.psnr >= 25.0
    counts = found.counts
    assert (counts["meshes"], counts["triangles"], counts["materials"]) == (1, 4, 1)
    assert (counts["bones"], counts["actions"]) == (0, 0)
