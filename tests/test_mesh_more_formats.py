"""glTF of several files and USDZ, read back; OFF, 3MF and FBX of other programs."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from meshes import cube_arrays
from PIL import Image
from test_mesh_file import letter, plate

from pgc3d.choices import Format
from pgc3d.errors import InputError
from pgc3d.mesh_io.asset import AssetMaterial
from pgc3d.mesh_io.formats import FORMATS, READABLE, WRITABLE
from pgc3d.mesh_io.gltf_files import separate
from pgc3d.mesh_io.gltf_writer import pack_glb
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.mesh_io.reader import read_source, source_files


def test_the_table_has_every_format_that_can_be_chosen_and_reads_what_it_writes():
    from typing import get_args

    assert get_args(Format) == WRITABLE
    assert set(WRITABLE) <= set(READABLE) == set(FORMATS)


def test_a_gltf_of_files_holds_what_the_glb_holds(tmp_path):
    asset = plate(normal_map=letter(8), tangents=torch.tensor([[1.0, 0, 0, 1]]).expand(8, -1))
    glb = read_mesh(write_mesh(tmp_path / "a.glb", asset, "glb")[0])
    mesh, *others = write_mesh(tmp_path / "an object.gltf", asset, "gltf")
    assert sorted(file.name for file in others) == [
        "an_object.bin", "an_object_surface_base_color.png", "an_object_surface_metallic_roughness.png",
        "an_object_surface_normal.png",
    ]  # fmt: skip
    assert set(source_files(mesh)) == {mesh, *others}
    found = read_mesh(mesh)
    for name in (
        "vertices",
        "faces",
        "normals",
        "uv",
        "uv_faces",
        "base_color",
        "metallic_roughness",
        "normal_map",
    ):
        assert torch.equal(getattr(found, name), getattr(glb, name)), name


@pytest.mark.parametrize("format", ["gltf", "usdz"])
def test_several_materials_come_back_each_on_its_faces(tmp_path, format):
    looks = (
        AssetMaterial(torch.ones(3), letter(), name="a"),
        AssetMaterial(torch.ones(3), 255 - letter(), name="b"),
    )
    parts = {"materials": looks, "face_material": torch.tensor([0, 1, 1, 0])}
    asset = plate(base_color=None, metallic_roughness=None, vertex_color=None, **parts)
    found = read_mesh(write_mesh(tmp_path / f"plate.{format}", asset, format)[0])

    def rows(one):
        """Corners of each face with their image, in an order that does not depend on the file's."""
        places = one.vertices[one.faces].flatten(1)
        images = [one.materials[index].image.flatten().float()[:500] for index in one.face_material.tolist()]
        rows = torch.cat([places, one.uv[one.uv_faces].flatten(1), torch.stack(images)], dim=1)
        return torch.tensor(sorted(rows.tolist()))

    torch.testing.assert_close(rows(found), rows(asset))


def test_separate_files_keep_references_of_extensions_and_unknown_parts(tmp_path):
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": size} for start, size in ((0, 3), (4, 2), (8, 5))
    ]
    document = {
        "asset": {"version": "2.0"},
        "bufferViews": views,
        "images": [{"bufferView": 0, "mimeType": "image/jpeg", "name": "a b/c"}, {"uri": "mine.png"}],
        "accessors": [{"bufferView": 2, "sparse": {"indices": {"bufferView": 1}}}],
        "meshes": [
            {"extensions": {"KHR_draco_mesh_compression": {"bufferView": 2, "attributes": {"POSITION": 7}}}}
        ],
        "buffers": [{"byteLength": 13}],
        "extras": {"mine": [1, {"x": None}]},
    }
    binary = bytes(range(13)) + b"\0\0\0"
    files = separate(pack_glb(document, binary), tmp_path / "b.gltf")
    found = json.loads(files[tmp_path / "b.gltf"])
    assert files[tmp_path / "b_a_b_c.jpg"] == binary[:3]
    numbers = files[tmp_path / "b.bin"]
    assert found["accessors"] == [{"bufferView": 1, "sparse": {"indices": {"bufferView": 0}}}]
    assert found["meshes"][0]["extensions"]["KHR_draco_mesh_compression"] == {
        "bufferView": 1,
        "attributes": {"POSITION": 7},
    }
    parts = [numbers[view["byteOffset"] :][: view["byteLength"]] for view in found["bufferViews"]]
    assert parts == [binary[4:6], binary[8:13]]
    assert found["buffers"] == [{"byteLength": len(numbers), "uri": "b.bin"}]
    assert found["images"] == [
        {"uri": "b_a_b_c.jpg", "mimeType": "image/jpeg", "name": "a b/c"},
        {"uri": "mine.png"},
    ]
    assert found["extras"] == document["extras"]


def test_a_usdz_is_one_that_viewers_take(tmp_path):
    from pxr import Usd, UsdValidation

    path = write_mesh(tmp_path / "plate.usdz", plate(normal_map=letter(8)), "usdz")[0]
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        assert items[0].filename.endswith(".usdc")
        assert {item.compress_type for item in items} == {zipfile.ZIP_STORED}
        sizes = [30 + len(item.filename) + len(extra(path, item)) + item.header_offset for item in items]
        assert [size % 64 for size in sizes] == [0] * len(items)
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(path)))
    assert [error.GetMessage() for error in found] == []
    bare = Usd.Stage.CreateInMemory()  # without up axis and unit: so that the check can fail
    assert UsdValidation.ValidationContext(validators).Validate(bare)


def extra(path, item):
    """The extra field of a file's own header in an archive."""
    data = path.read_bytes()[item.header_offset :]
    name, size = (int.from_bytes(data[start : start + 2], "little") for start in (26, 28))
    return data[30 + name : 30 + name + size]


def test_a_stage_in_other_axes_and_units_stands_upright_in_metres(tmp_path):
    from pxr import Usd, UsdGeom, UsdUtils

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usdc"))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    mesh = UsdGeom.Mesh.Define(stage, "/a/quad")
    mesh.CreatePointsAttr([(0, 0, 0), (100, 0, 0), (100, 0, 200), (0, 0, 200)])
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    UsdGeom.XformCommonAPI(mesh).SetTranslate((0, 0, 50))
    stage.GetRootLayer().Save()
    assert UsdUtils.CreateNewUsdzPackage(str(tmp_path / "a.usdc"), str(tmp_path / "a.usdz"))
    found = read_source(tmp_path / "a.usdz")
    expected = [[0, 0.5, 0], [1, 0.5, 0], [1, 2.5, 0], [0, 2.5, 0]]
    torch.testing.assert_close(found.vertices, torch.tensor(expected), atol=1e-6, rtol=0)
    assert len(found.faces) == 2


def cube():
    vertices, faces, _ = cube_arrays()
    return trimesh.Trimesh(vertices, faces, process=False)


def test_off_and_3mf_of_another_program_are_the_same_surface(tmp_path):
    mesh, shift = cube(), trimesh.transformations.translation_matrix([1, 2, 3])
    (tmp_path / "a.off").write_text(mesh.export(file_type="off"))
    scene = trimesh.Scene()
    scene.add_geometry(mesh, transform=shift)
    (tmp_path / "a.3mf").write_bytes(scene.export(file_type="3mf"))
    for name, moved in (("a.off", np.zeros(3)), ("a.3mf", shift[:3, 3])):
        found = read_source(tmp_path / name)
        np.testing.assert_allclose(found.vertices[found.faces], mesh.triangles + moved, atol=1e-6)
    assert "--up +z" in found.notes[0]
    (tmp_path / "c.off").write_text("COFF\n3 1 0\n0 0 0 255 0 0\n1 0 0 0 255 0\n0 1 0 0 0 255\n3 0 1 2\n")
    assert read_source(tmp_path / "c.off").lost == ("colours",)


def fbx(vertices, faces, uv, image):
    """An FBX of text, y up, in centimetres: one mesh with texture coordinates and a textured material."""

    def numbers(values, kind=float):
        flat = np.asarray(values).reshape(-1)
        return f"*{len(flat)} {{\na: {','.join(repr(kind(value)) for value in flat)}\n}}"

    ends = faces.copy()
    ends[:, 2] = ~ends[:, 2]  # the last corner of a polygon is its complement
    shared = {"UpAxis": 1, "UpAxisSign": 1, "FrontAxis": 2, "FrontAxisSign": 1, "CoordAxis": 0}
    rows = "\n".join(f'P: "{name}", "int", "Integer", "",{value}' for name, value in shared.items())
    return f"""; FBX 7.4.0 project file
FBXHeaderExtension:  {{
FBXHeaderVersion: 1003
FBXVersion: 7400
}}
GlobalSettings:  {{
Version: 1000
Properties70:  {{
{rows}
P: "UnitScaleFactor", "double", "Number", "",1
}}
}}
Objects:  {{
Geometry: 1, "Geometry::Cube", "Mesh" {{
Vertices: {numbers(vertices)}
PolygonVertexIndex: {numbers(ends, int)}
GeometryVersion: 124
LayerElementUV: 0 {{
Version: 101
Name: "UVMap"
MappingInformationType: "ByPolygonVertex"
ReferenceInformationType: "Direct"
UV: {numbers(uv)}
}}
LayerElementMaterial: 0 {{
Version: 101
Name: ""
MappingInformationType: "AllSame"
ReferenceInformationType: "IndexToDirect"
Materials: *1 {{
a: 0
}}
}}
Layer: 0 {{
Version: 100
LayerElement:  {{
Type: "LayerElementUV"
TypedIndex: 0
}}
LayerElement:  {{
Type: "LayerElementMaterial"
TypedIndex: 0
}}
}}
}}
Model: 2, "Model::Cube", "Mesh" {{
Version: 232
Properties70:  {{
P: "Lcl Translation", "Lcl Translation", "", "A",100,0,0
}}
}}
Material: 3, "Material::wood", "" {{
Version: 102
ShadingModel: "phong"
}}
Texture: 4, "Texture::wood", "" {{
Type: "TextureVideoClip"
Version: 202
FileName: "C:\\Users\\me\\{image}"
RelativeFilename: "C:\\Users\\me\\{image}"
}}
}}
Connections:  {{
C: "OO",1,2
C: "OO",2,0
C: "OO",3,2
C: "OP",4,3, "DiffuseColor"
}}
"""


def test_an_fbx_comes_in_metres_with_its_coordinates_and_its_image(tmp_path):
    vertices, faces, _ = cube_arrays()
    uv = np.random.default_rng(0).random((len(faces), 3, 2)).round(3)
    Image.fromarray(letter().numpy()).save(tmp_path / "wood.png")
    path = tmp_path / "cube.fbx"
    path.write_text(fbx(100 * vertices, faces, uv, "wood.png"))
    found = read_source(path)
    np.testing.assert_allclose(found.vertices[found.faces], vertices[faces] + [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found.uv[found.uv_faces], uv, atol=1e-6)
    asset = read_mesh(path)
    assert torch.equal(asset.base_color, letter())
    assert len(asset.vertices) == 8


@pytest.mark.parametrize("name", ["a.off", "a.3mf", "a.fbx", "a.usdz"])
def test_damaged_files_are_one_line(tmp_path, name):
    whole = {"a.off": b"OFF\n3 9 0\n0 0", "a.fbx": b"Kaydara FBX Binary  \0\x1a\0 and no more"}
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("3D/3dmodel.model" if name == "a.3mf" else "a.usdc", "<model")
    (tmp_path / name).write_bytes(whole.get(name, empty.getvalue()))
    with pytest.raises(InputError, match=rf"must .*{name}") as caught:
        read_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    for module in ("pxr", "lxml", "assimp_py"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'pgc3d\[usd\]'"):
        write_mesh(tmp_path / "a.usdz", plate(), "usdz")
    (tmp_path / "a.3mf").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"pip install 'pgc3d\[3mf\]'"):
        read_source(tmp_path / "a.3mf")
    (tmp_path / "a.fbx").write_bytes(b"Kaydara FBX Binary  \0")
    with pytest.raises(InputError, match=r"convert it: blender -b .*pip install 'pgc3d\[fbx\]'"):
        read_source(tmp_path / "a.fbx")
    assert list(tmp_path.glob("*.usdz")) == []
