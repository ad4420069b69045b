"""Files of other kinds are named, with a way to convert them."""

import io
import zipfile

import pytest
from mesh_cases_formats import FORMAT_CASES

from pgc3d.mesh_io.foreign import explain_foreign

# ---- other formats


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


FOREIGN = {
    "ascii_fbx.obj": (b"; FBX 7.3.0 project file\n", "an FBX file"),
    "fbx_named.glb": (b"Kaydara FBX Binary  \0", "an FBX file; rename it to .fbx"),
    "a.dae": (b'<?xml version="1.0"?>\n<COLLADA xmlns="">', "a COLLADA file"),
    "dae_named.obj": (b"<COLLADA>", "a COLLADA file"),
    "3mf.zip": (zipped("[Content_Types].xml", "3D/3dmodel.model"), "a 3MF file; rename it to .3mf"),
    "usdz.zip": (zipped("a.usdc"), "a USDZ archive; rename it to .usdz"),
    "a.usda": (b"#usda 1.0\n", "a USD file"),
    "a.usdc": (b"PXR-USDC\0", "a USD file"),
    "off_named.ply": (b"OFF\n3 1 0\n", "an OFF file; rename it to .off"),
    "a.blend": (b"BLENDER-v300", "a Blender file; open it in Blender"),
    "packed.blend": (b"\x28\xb5\x2f\xfd\0\0", "Zstandard"),
    "a.zip": (zipped("readme.txt", "chair.obj"), "a ZIP archive; unpack it and give 'chair.obj'"),
    "zip_named.glb": (zipped("readme.txt"), "a ZIP archive; unpack it"),
    "a.rar": (b"Rar!\x1a\x07\0", "a RAR archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    "a.gz": (b"\x1f\x8b\x08\0", "compressed with gzip"),
    "page.glb": (b"\n<!DOCTYPE html><html>", "a web page"),
    "pointer.glb": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.* git lfs pull"),
    "error.glb": (b'{"error": "login"}', "JSON text"),
    "text.obj": (b'{"asset": {"version": "2.0"}}', "a glTF of text; rename it to .gltf"),
    "error.gltf": (b'{"error": "login"}', "JSON text"),
    "image.obj": (b"\x89PNG\r\n\x1a\n", "an image"),
    "photo.glb": (b"\xff\xd8\xff\xe0", "an image"),
    "ply_named.obj": (b"ply\nformat ascii 1.0\n", "a PLY; rename it to .ply"),
    "glb_named.obj": (b"glTF\2\0\0\0", "a GLB; rename it to .glb"),
    "part.step": (b"ISO-10303-21;\n", "a CAD file"),
    "empty.glb": (b"", "empty"),
    "unknown.max": (b"\xd0\xcf\x11\xe0", "a 3ds Max file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_is_named_with_a_way_to_convert_it(tmp_path, name):
    data, match = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    line = explain_foreign(tmp_path / name, data)
    assert line is not None
    assert line.isprintable()
    assert str(tmp_path / name) in line
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(line)


def test_folder_is_named(tmp_path):
    assert "a folder; give the mesh file inside" in explain_foreign(tmp_path, b"")
    assert "a COLLADA file" in explain_foreign(tmp_path / "missing.dae", b"")
    assert explain_foreign(tmp_path / "missing.glb", b"") is None


@pytest.mark.parametrize("name", sorted(name for name, case in FORMAT_CASES.items() if case.error is None))
def test_own_formats_are_not_foreign(tmp_path, name):
    assert explain_foreign(tmp_path / name, FORMAT_CASES[name].content) is None


def test_own_glb_and_gltf_are_not_foreign(tmp_path):
    assert explain_foreign(tmp_path / "a.fbx", b"Kaydara FBX Binary  \0\x1a\0") is None
    assert explain_foreign(tmp_path / "a.3mf", zipped("3D/3dmodel.model")) is None
    assert explain_foreign(tmp_path / "a.usdz", zipped("a.usdc")) is None
    assert explain_foreign(tmp_path / "a.off", b"OFF\n3 1 0\n") is None
    assert explain_foreign(tmp_path / "a.glb", b"glTF\2\0\0\0") is None
    assert explain_foreign(tmp_path / "a.gltf", b'{"asset": {}}') is None
    assert explain_foreign(tmp_path / "a.glb", b'{"asset": {}}') is None
    assert explain_foreign(tmp_path / "a.gltf", b"glTF\2\0\0\0") is None
