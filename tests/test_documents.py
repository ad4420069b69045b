"""A glTF or OBJ that was textured is the same file with new images: nothing of it is lost."""

import mesh_cases as cases
import numpy as np
import pytest
import torch
from gltf_builder import Gltf, box, box_arrays, red_and_blue
from test_selection import furniture

from pgc3d.evaluation.documents import compare_documents
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.mesh_io.bundle import opened_document, pack_document
from pgc3d.mesh_io.gltf_repaint import repaint_gltf
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source
from pgc3d.mesh_io.repaint import MaterialImages, Repainting, split_vertices
from pgc3d.rendering.cpu import CpuRasterizer

GREEN = torch.tensor([0, 200, 0], dtype=torch.uint8).expand(64, 64, 3).contiguous()


def prepared(path, **options):
    return prepare_mesh_file(
        path,
        up="+y",
        front="auto",
        crease_degrees=40.0,
        texture_size=64,
        rasterizer=CpuRasterizer(),
        **options,
    )


def repainted(tmp_path, gltf: Gltf, painted=None, **options):
    """The file before and after all or some of its faces became green."""
    path, out = gltf.write(tmp_path / "given.glb"), tmp_path / "out.glb"
    mesh = prepared(path, **options)
    wanted = Repainting.of_all(MaterialImages(GREEN), mesh.uv, mesh.uv_faces)
    if painted is not None:
        images = torch.where(painted(mesh.labels), 0, -1)
        wanted = Repainting(wanted.images, images, mesh.uv, mesh.uv_faces)
    out.write_bytes(repaint_gltf(path, wanted, {"prompt": "green"}))
    return path, out


def rich() -> Gltf:
    """A skinned, animated box with a camera, extras, an unknown extension, two sets of coordinates."""
    gltf = cases.lifted()
    _, _, uv, _ = box_arrays()
    first = gltf.document["meshes"][0]["primitives"][0]
    first["attributes"]["TEXCOORD_0"] = gltf.accessor(uv)
    first["attributes"]["TEXCOORD_1"] = gltf.accessor(0 * uv)
    first["attributes"]["_OWN"] = gltf.accessor(uv[:, 0])
    normal = gltf.texture(np.full((4, 4, 3), 128))
    first["material"] = gltf.material(
        {"index": gltf.texture(red_and_blue()), "extras": {"a": 1}}, [0.5, 1, 1, 1], name="skin",
        normalTexture={"index": normal}, emissiveFactor=[0.1, 0, 0],
    )  # fmt: skip
    gltf.material({"index": 0}, name="unused")
    times, turns = gltf.accessor([0.0, 1.0]), gltf.accessor(np.eye(4)[[3, 3]])
    gltf.document |= {
        "animations": [{
            "name": "idle",
            "samplers": [{"input": times, "output": turns}],
            "channels": [{"sampler": 0, "target": {"node": 0, "path": "rotation"}}],
        }],
        "cameras": [{"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1}}],
        "extras": {"author": "Ä", "null": None},
        "extensions": {"XX_unknown": {"deep": [1, {"two": 2.5}]}},
        "extensionsUsed": ["XX_unknown"],
    }  # fmt: skip
    return gltf


def differences(path, out):
    return {(item.place, item.kind) for item in compare_documents(path, out)}


BASE = "materials[0].pbrMetallicRoughness"
IMAGE = {  # of a document whose base colour alone is another one
    (f"{BASE}.baseColorTexture.index.source.sha256", "changed"),
    (f"{BASE}.baseColorTexture.index.sampler", "added"),
    ("asset.extras", "added"),
}


def test_a_document_with_own_coordinates_differs_in_its_base_colour_alone(tmp_path):
    path, out = repainted(tmp_path, rich())
    assert differences(path, out) == IMAGE | {(f"{BASE}.baseColorFactor", "removed")}
    given, made = (unpack_glb(file.read_bytes())[0] for file in (path, out))
    assert made["asset"]["extras"] == {"prompt": "green"}
    assert made["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["extras"] == {"a": 1}
    assert made["accessors"] == given["accessors"]


def test_new_coordinates_split_vertices_and_leave_every_corner(tmp_path):
    """Joints, weights, normals, other sets and attributes of its own are copied with a vertex."""
    path, out = repainted(tmp_path, rich(), uv="new")
    primitive, kinds = "meshes[0].primitives[0]", {}
    for place, kind in differences(path, out):
        kinds.setdefault(kind, set()).add(place)
    assert f"{primitive}.attributes.TEXCOORD_2" in kinds["added"]
    attributes = kinds.get("extended", set())
    assert attributes <= {f"{primitive}.attributes.{name}" for name in ALL}
    assert kinds.get("split", set()) <= {f"{primitive}.indices"}
    assert all(place.startswith(BASE) for place in kinds["changed"] | kinds["removed"])
    assert (
        unpack_glb(out.read_bytes())[0]["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"][
            "texCoord"
        ]
        == 2
    )


ALL = ("POSITION", "NORMAL", "JOINTS_0", "WEIGHTS_0", "TEXCOORD_0", "TEXCOORD_1", "_OWN")


def corners(path, name="vertices"):
    mesh = read_source(path)
    return getattr(mesh, name)[mesh.faces]


def smooth_box(**mesh) -> Gltf:
    """A box of eight vertices without texture coordinates, each of which needs several."""
    gltf, (positions, _, _, faces) = Gltf(), box_arrays()
    points, index = np.unique(positions, axis=0, return_inverse=True)
    primitive = {
        "attributes": {"POSITION": gltf.accessor(points)},
        "indices": gltf.accessor(index.reshape(-1)[faces].reshape(-1), "u1"),
        "targets": [{"POSITION": gltf.accessor(points[:, [1, 0, 2]] * [1, 0, 0])}],
    }
    gltf.mesh(primitive, **mesh)
    return gltf.nodes({"mesh": 0})


def test_morph_targets_are_split_with_their_vertices(tmp_path):
    path, out = repainted(tmp_path, smooth_box(weights=[0.5]))
    found, primitive = differences(path, out), "meshes[0].primitives[0]"
    assert {(f"{primitive}.indices", "split"), (f"{primitive}.targets[0].POSITION", "extended")} <= found
    assert torch.equal(corners(path), corners(out))
    positions = read_source(out)
    assert len(positions.vertices) > 8
    assert torch.equal(positions.uv_faces, positions.faces)


@pytest.mark.parametrize(
    "make",
    [rich, smooth_box, furniture, cases.strip, cases.fan, cases.mirrored_halves, cases.turned_instances,
     cases.two_skinned, cases.one_part_without, cases.quantised, cases.with_maps, cases.leaf,
     cases.points_too, cases.scaled_texture, cases.lid, cases.draco_with_a_plain_copy],
)  # fmt: skip
def test_the_surface_comes_back_bit_by_bit_in_its_new_colour(tmp_path, make):
    path, out = repainted(tmp_path, make(), uv="new")
    assert torch.equal(corners(path), corners(out))
    asset = read_mesh(out)
    images = [asset.base_color] if asset.base_color is not None else [item.image for item in asset.materials]
    assert all(bool((image == GREEN[0, 0]).all()) for image in images)
    assert asset.vertex_color is None or bool((asset.vertex_color == 255).all())
    kept = {item.place.partition("[")[0].partition(".")[0] for item in compare_documents(path, out)}
    assert kept <= {"meshes", "materials", "asset"}


def test_parts_that_are_kept_stay_and_shared_meshes_and_materials_are_copied(tmp_path):
    """Of two nodes with one mesh one is painted: it gets a mesh and materials of its own."""
    path, out = repainted(tmp_path, furniture(), painted=lambda labels: labels.node == 1)
    assert torch.equal(corners(path), corners(out))
    assert differences(path, out) == {
        ("nodes[1].mesh", "changed"), ("meshes[2]", "added"), ("materials[2]", "added"),
        ("materials[3]", "added"), ("asset.extras", "added"),
    }  # fmt: skip
    made = unpack_glb(out.read_bytes())[0]
    assert [item.get("name") for item in made["materials"]] == [
        "wood",
        None,
        "wood textured",
        "material 1 textured",
    ]
    assert [item.get("material") for item in made["meshes"][2]["primitives"]] == [2, 3]


def test_a_primitive_of_which_some_faces_are_painted_is_cut(tmp_path):
    gltf = Gltf()
    gltf.mesh(box(gltf) | {"material": gltf.material(name="wood")})
    path = gltf.nodes({"mesh": 0}).write(tmp_path / "given.glb")
    mesh, out = prepared(path), tmp_path / "out.glb"
    images = torch.tensor([-1] * 4 + [0] * 4 + [1] * 4)
    two = (MaterialImages(GREEN), MaterialImages(255 - GREEN))
    out.write_bytes(repaint_gltf(path, Repainting(two, images, mesh.uv, mesh.uv_faces)))
    assert torch.equal(corners(path), corners(out))
    source = read_source(out)
    assert [source.materials[index].name for index in source.face_material[::4].tolist()] == [
        "wood", "wood textured", "wood textured",
    ]  # fmt: skip
    assert len(torch.unique(source.face_material)) == 3


def test_colours_of_vertices_stay_without_a_tint(tmp_path):
    path, out = repainted(tmp_path, cases.leaf())
    found = differences(path, out)
    assert ("meshes[0].primitives[0].attributes.COLOR_0", "removed") in found
    given, made = (unpack_glb(file.read_bytes())[0]["meshes"][0]["primitives"][0] for file in (path, out))
    assert made["attributes"]["_COLOR_0"] == given["attributes"]["COLOR_0"]


def test_replaced_images_leave_the_file_and_shared_ones_stay(tmp_path):
    """The bytes of an image that nothing uses any more are cut; one that an emission uses stays."""
    gltf = Gltf()
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3))
    first, second = gltf.texture(noise), gltf.texture(noise[::-1])
    gltf.mesh(
        box(gltf) | {"material": gltf.material({"index": first})},
        box(gltf) | {"material": gltf.material({"index": second}, occlusionTexture={"index": second})},
    )
    path, out = repainted(tmp_path, gltf.nodes({"mesh": 0}), uv="new")
    given, made = (unpack_glb(file.read_bytes()) for file in (path, out))
    old = [given[0]["bufferViews"][item["bufferView"]] for item in given[0]["images"]]
    content = [given[1][view["byteOffset"] :][: view["byteLength"]] for view in old]
    assert (content[0] in made[1], content[1] in made[1]) == (False, True)
    assert len(made[0]["images"]) == 2


def test_an_emission_by_the_base_colours_image_follows_it(tmp_path):
    gltf = Gltf()
    info = {"index": gltf.texture(red_and_blue())}
    gltf.mesh(
        box(gltf) | {"material": gltf.material(info, emissiveTexture=dict(info), emissiveFactor=[1, 1, 1])}
    )
    _, out = repainted(tmp_path, gltf.nodes({"mesh": 0}))
    material = unpack_glb(out.read_bytes())[0]["materials"][0]
    assert material["emissiveTexture"] == material["pbrMetallicRoughness"]["baseColorTexture"]


def test_a_gltf_and_its_files_are_one_archive(tmp_path):
    gltf = rich()
    path = gltf.write(tmp_path / "given.gltf", uri="given%20data.bin", buffer="given data.bin")
    (tmp_path / "document.zip").write_bytes(pack_document(path))
    (tmp_path / "given data.bin").unlink()
    with opened_document(tmp_path / "document.zip") as opened:
        mesh = prepared(opened)
        (tmp_path / "out.glb").write_bytes(
            repaint_gltf(opened, Repainting.of_all(MaterialImages(GREEN), mesh.uv, mesh.uv_faces))
        )
        found = differences(opened, tmp_path / "out.glb")
    assert found == IMAGE - {("asset.extras", "added")} | {(f"{BASE}.baseColorFactor", "removed")}


def test_only_corners_with_other_coordinates_get_copies():
    """Each corner has its vertex and its coordinates; old vertices stay in their places."""
    generator = np.random.default_rng(0)
    faces = generator.integers(0, 20, (50, 3))
    uv = generator.integers(0, 3, (50, 3, 2)) / 4
    split = split_vertices(faces, uv, 25)
    np.testing.assert_array_equal(split.source[split.faces], faces)
    np.testing.assert_array_equal(split.uv[split.faces], uv)
    np.testing.assert_array_equal(split.source[:25], np.arange(25))
    pairs = {
        (int(vertex), *pair)
        for vertex, pair in zip(faces.reshape(-1), uv.reshape(-1, 2).tolist(), strict=True)
    }
    assert len(split.source) == 25 + len(pairs) - len(np.unique(faces))
