"""From a document to the same document textured, on the command line, with a tiny random SDXL."""

import pytest
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_documents import BASE, IMAGE, differences, rich
from test_obj_documents import lines_of, scene
from test_texture_command import TINY

from pgc3d.mesh_io.bundle import opened_document
from pgc3d.mesh_io.mesh_file import read_mesh


def test_a_document_comes_back_though_its_files_are_gone(run, checkpoint, tmp_path):
    """Also by a later export, which is the same file; another format is said to have the surface alone."""
    path = rich().write(tmp_path / "given.gltf", uri="given.bin", buffer="given.bin")
    code, printed, err = run("texture", path, "a red chair", "--model", checkpoint, *TINY, "--out", "out")
    assert code in (0, 5), err
    assert "not kept" not in printed + err
    path.unlink()
    (tmp_path / "given.bin").unlink()
    out = tmp_path / "out"
    with opened_document(out / "document.zip") as given:
        found = differences(given, out / "asset.glb")
    assert found == IMAGE | {(f"{BASE}.baseColorFactor", "removed")}
    assert read_mesh(out / "asset.glb").metadata["prompt"] == "a red chair"
    assert run("export", out)[0] in (0, 5)
    assert (out / "asset-2.glb").read_bytes() == (out / "asset.glb").read_bytes()
    code, printed, err = run("export", out, "--format", "ply")
    assert code in (0, 5)
    assert "ply has the surface alone; --format glb has all contents of the mesh's file" in printed + err


def test_an_obj_comes_back_as_one(run, checkpoint, tmp_path):
    path = scene(tmp_path)
    code, _, err = run("texture", path, "a red chair", "--model", checkpoint, *TINY, "--out", "out")
    assert code in (0, 5), err
    kinds = ("v", "vn", "o", "g", "s", "usemtl")
    assert lines_of(tmp_path / "out" / "asset.obj", *kinds) == lines_of(path, *kinds)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"asset.mtl", "asset_base_color.png", "document.zip"} <= names
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert '"document": "document.zip"' in manifest


def test_a_damaged_archive_is_one_line(run, checkpoint, tmp_path):
    path = rich().write(tmp_path / "given.glb")
    assert run("texture", path, "a chair", "--model", checkpoint, *TINY, "--out", "out")[0] in (0, 5)
    archive = tmp_path / "out" / "document.zip"
    archive.write_bytes(archive.read_bytes()[:100])
    code, _, err = run("export", tmp_path / "out")
    assert (code, "document.zip must be as when the run began" in err.splitlines()[-1]) == (2, True)


def test_a_document_with_a_missing_buffer_gives_its_surface(run, checkpoint, tmp_path):
    gltf = rich()
    path = gltf.write(tmp_path / "given.glb")
    gltf.document["buffers"] = None
    document = gltf.finished()
    document["buffers"].append({"byteLength": 4, "uri": "lost.bin"})
    gltf.finished = lambda **_: document
    gltf.write(path)
    code, printed, err = run("texture", path, "a chair", "--model", checkpoint, *TINY, "--out", "out")
    assert code in (0, 5), err
    assert (
        "the result will have the surface of given.glb alone: the buffer of given.glb must exist"
        in printed + err
    )


def test_a_placed_document_is_moved_as_a_whole(run, checkpoint, tmp_path):
    path = rich().write(tmp_path / "given.glb")
    assert run("texture", path, "a chair", "--model", checkpoint, *TINY, "--out", "out")[0] in (0, 5)
    out = tmp_path / "out"
    assert run("export", out, "--height", "3", "--origin", "bottom")[0] in (0, 5)
    height = read_mesh(out / "asset-2.glb").vertices[:, 1]
    assert (float(height.min()), float(height.max())) == (pytest.approx(0.0, abs=1e-5), pytest.approx(3.0))
    found = differences(out / "asset.glb", out / "asset-2.glb")
    assert {place.split("[")[0].split(".")[0] for place, _ in found} <= {"nodes", "scenes"}


def test_a_placed_obj_keeps_its_other_lines(run, checkpoint, tmp_path):
    path = scene(tmp_path)
    assert run("texture", path, "a chair", "--model", checkpoint, *TINY, "--out", "out")[0] in (0, 5)
    out = tmp_path / "out"
    assert run("export", out, "--height", "50", "--unit", "cm")[0] in (0, 5)
    height = read_mesh(out / "asset-2.obj").vertices[:, 1]
    assert float(height.max() - height.min()) == pytest.approx(50.0)
    kinds = ("o", "g", "s", "usemtl", "f", "vt")
    assert lines_of(out / "asset-2.obj", *kinds) == lines_of(out / "asset.obj", *kinds)


def test_learned_roughness_and_metallic_are_those_of_the_document(run, checkpoint, tmp_path):
    path = rich().write(tmp_path / "given.glb")
    code, _, err = run("texture", path, "a chair", "--model", checkpoint, *TINY, "--pbr", "--out", "out")
    assert code in (0, 5), err
    found = {place for place, _ in differences(path, tmp_path / "out" / "asset.glb")}
    assert any("metallicRoughnessTexture" in place for place in found)
    assert not any("normalTexture" in place or "skins" in place or "animations" in place for place in found)
