import errno
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
import torch
import trimesh
from gltf_check import check_glb
from torch import Tensor

from pgc3d import disk
from pgc3d.disk import atomic_path
from pgc3d.errors import InputError
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.formats import FORMATS, WRITABLE
from pgc3d.mesh_io.gltf_writer import encode_glb, pack_glb, unpack_glb
from pgc3d.mesh_io.mesh_file import GENERATOR, read_mesh, write_mesh

METADATA = {"prompt": 'a "blue" Bär\non a chair', "seed": 7}


def letter(size: int = 32) -> Tensor:
    """A white F on a ground that is red on the left and blue on top: mirrored in no way onto itself."""
    image = torch.zeros(size, size, 3, dtype=torch.uint8)
    image[:, : size // 2, 0] = 120
    image[: size // 2, :, 2] = 120
    unit = size // 8
    image[unit : 7 * unit, 2 * unit : 3 * unit] = 255
    image[unit : 2 * unit, 2 * unit : 6 * unit] = 255
    image[3 * unit : 4 * unit, 2 * unit : 5 * unit] = 255
    return image


def plate(**changes) -> MeshAsset:
    """A square that faces +z and shows the letter upright, folded back on its right side."""
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [1, -1, -1], [1, 1, -1]])
    fields = {
        "vertices": vertices,
        "faces": torch.tensor([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]]),
        "normals": torch.nn.functional.normalize(
            torch.tensor([[0.0, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]]), dim=1
        ),
        "uv": torch.tensor(
            [[0.0, 0], [1, 0], [1, 1], [0, 1], [0.1, 0.1], [0.2, 0.1], [0.2, 0.3], [0.1, 0.3]]
        ),
        "uv_faces": torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]),
        "base_color": letter(),
        "metallic_roughness": torch.full((8, 8, 3), 128, dtype=torch.uint8),
        "vertex_color": torch.arange(18, dtype=torch.uint8).reshape(6, 3),
        "metadata": METADATA,
    }
    return MeshAsset(**(fields | changes))


@pytest.mark.parametrize("format", WRITABLE)
def test_round_trip_keeps_the_surface(tmp_path, format):
    asset = plate()
    files = write_mesh(tmp_path / f"ä plate.{format}", asset, format)
    found = read_mesh(files[0])
    assert sorted(tmp_path.iterdir()) == sorted(files)
    torch.testing.assert_close(found.vertices[found.faces], asset.vertices[asset.faces])
    assert len(found.vertices) == len(asset.vertices)
    if format != "stl":
        normals = found.normals[found.normals_of_corners]
        torch.testing.assert_close(normals, asset.normals[asset.faces], atol=1e-5, rtol=0)
    if FORMATS[format].carries == "textures":
        torch.testing.assert_close(found.uv[found.uv_faces], asset.uv[asset.uv_faces])
        torch.testing.assert_close(found.base_color, asset.base_color)
    if format == "glb":
        torch.testing.assert_close(found.metallic_roughness, asset.metallic_roughness)
    if format == "ply":
        torch.testing.assert_close(found.vertex_color[found.faces], asset.vertex_color[asset.faces])


@pytest.mark.parametrize("format", ["glb", "obj"])
def test_the_letter_is_not_mirrored(tmp_path, format):
    """Read by another program, upper left of the front still shows what is upper left in the image."""
    path = tmp_path / f"plate.{format}"
    write_mesh(path, plate(), format)
    mesh = next(iter(trimesh.load_scene(path, process=False).geometry.values()))
    material = mesh.visual.material
    image = material.baseColorTexture if format == "glb" else material.image
    for corner, color in {(-1, 1, 0): (120, 0, 120), (1, -1, 0): (0, 0, 0), (-1, -1, 0): (120, 0, 0)}.items():
        front = [i for i in mesh.faces[:2].ravel() if tuple(mesh.vertices[i]) == corner]
        u, v = mesh.visual.uv[front[0]]
        column, row = min(int(u * 32), 31), min(int((1 - v) * 32), 31)
        assert image.convert("RGB").getpixel((column, row)) == color
    normal = mesh.face_normals[0]
    torch.testing.assert_close(torch.tensor(normal), torch.tensor([0.0, 0, 1], dtype=torch.float64))


def test_glb_carries_prompt_and_generator(tmp_path):
    path = tmp_path / "plate.glb"
    write_mesh(path, plate(), "glb")
    assert read_mesh(path).metadata == METADATA
    data = path.read_bytes()
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    assert document["asset"]["generator"] == GENERATOR
    assert check_glb(data) == []


@pytest.mark.parametrize("format", ["obj", "ply"])
def test_comments_hold_the_metadata_on_one_line(tmp_path, format):
    path = tmp_path / f"plate.{format}"
    write_mesh(path, plate(), format)
    lines = path.read_bytes().split(b"\n")
    comment = next(line for line in lines if b"prompt" in line)
    assert json.loads(comment[comment.index(b"{") :]) == METADATA


@pytest.mark.parametrize("count", [70_000, 30])
def test_glb_structure_is_sound_with_short_and_long_indices(count):
    generator = torch.Generator().manual_seed(0)
    faces = torch.arange(3 * (count // 3)).reshape(-1, 3)
    uv = torch.rand(faces.numel(), 2, generator=generator)
    vertices = torch.randn(faces.numel(), 3, generator=generator)
    normals = torch.nn.functional.normalize(vertices, dim=1)
    asset = MeshAsset(vertices, faces, normals, uv, faces, letter(), metadata={})
    assert check_glb(encode_glb(asset, generator=GENERATOR, name="soup")) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, b"x"), (8, b"\0"), (16, b"\0"), (-1, b"")],
    ids=["magic", "length", "chunk type", "cut off"],
)
def test_check_finds_damage(place, value):
    data = encode_glb(plate(), generator=GENERATOR, name="plate")
    damaged = data[:place] + value + data[place + 1 :] if value else data[:-1]
    assert check_glb(damaged)


def test_check_finds_bad_contents():
    asset = plate(normals=torch.ones(6, 3))
    assert check_glb(encode_glb(asset, generator=GENERATOR, name="p")) == ["NORMAL is not of unit length"]


def test_parts_of_a_texture_are_refused():
    with pytest.raises(ValueError, match="given together"):
        plate(uv=None)
    bare = plate(uv=None, uv_faces=None, base_color=None, metallic_roughness=None, vertex_color=None)
    for format in ("glb", "obj", "ply"):
        with pytest.raises(ValueError, match="must have"):
            write_mesh(Path("x"), bare, format)


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, format, call):
    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, call, fail)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        write_mesh(tmp_path / f"plate.{format}", plate(), format)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="must be a folder that can be written") as caught:
        write_mesh(tmp_path / "no" / "plate.glb", plate(), "glb")
    assert "\n" not in str(caught.value)


def test_failure_keeps_the_older_file(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_vertices_that_no_face_uses_do_no_harm(tmp_path):
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    asset = plate(faces=faces, uv_faces=faces, normal_faces=faces, vertex_color=None)
    for name in ("vertices", "uv", "normals"):
        short = {other: getattr(asset, other)[:4] for other in ("vertices", "uv", "normals") if other != name}
        found = read_mesh(write_mesh(tmp_path / f"{name}.glb", plate(**vars(asset) | short), "glb")[0])
        torch.testing.assert_close(found.vertices[found.faces], asset.vertices[asset.faces])
        torch.testing.assert_close(found.uv[found.uv_faces], asset.uv[asset.uv_faces])


def elsewhere(path, change, **fields):
    """The plate's GLB as another program could have written it: `change` is made in its document."""
    write_mesh(path, plate(**fields), "glb")
    document, binary = unpack_glb(path.read_bytes())
    change(document)
    path.write_bytes(pack_glb(document, binary))
    return read_mesh(path)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_nodes_transform_is_applied(tmp_path, mirror):
    linear = torch.tensor([[2.0, 0, 0], [0, 0, -mirror], [0, 1, 0]])  # mirrored where it says so
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, torch.tensor([1.0, 2, 3])
    found = elsewhere(tmp_path / "turned.glb", lambda document: document["nodes"][0].update(
        matrix=matrix.T.reshape(-1).tolist()
    ))  # fmt: skip
    asset = plate()
    corners, expected = found.vertices[found.faces], asset.vertices @ linear.T + matrix[:3, 3]
    torch.testing.assert_close(corners.mean(1), expected[asset.faces].mean(1))
    normals = torch.nn.functional.normalize(asset.normals @ torch.linalg.inv(linear), dim=1)
    stored = found.normals[found.normals_of_corners].mean(1)
    torch.testing.assert_close(stored, normals[asset.faces].mean(1))
    wound = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((wound * stored).sum(1) > 0).all()


def test_a_mesh_that_is_shown_twice_is_read_twice(tmp_path):
    def change(document):
        document["nodes"].append({"mesh": 0, "translation": [5.0, 0, 0]})
        document["scenes"] = [{"nodes": [0, 1]}]

    found, asset = elsewhere(tmp_path / "two.glb", change), plate()
    both = torch.cat([asset.vertices, asset.vertices + torch.tensor([5.0, 0, 0])])
    assert len(found.faces) == 2 * len(asset.faces)
    torch.testing.assert_close(found.vertices.amin(0), both.amin(0))
    torch.testing.assert_close(found.vertices.amax(0), both.amax(0))
    assert found.base_color is not None


def test_a_materials_colour_counts_beside_its_image_and_alone(tmp_path):
    def dye(document):
        document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = [1.0, 0.25, 0.0, 1.0]

    def bare(document):
        dye(document)
        del document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]

    white = torch.full((8, 8, 3), 255, dtype=torch.uint8)
    srgb = torch.tensor([255, 137, 0], dtype=torch.uint8)  # of the linear factor
    image = elsewhere(tmp_path / "dyed.glb", dye, base_color=white).base_color
    torch.testing.assert_close(image, srgb.expand_as(image), atol=1, rtol=0)
    colors = elsewhere(tmp_path / "bare.glb", bare).vertex_color
    torch.testing.assert_close(colors, srgb.expand_as(colors), atol=1, rtol=0)


def test_unreadable_files_are_one_line(tmp_path):
    for name, expected in {
        "a.glb": "must be readable",
        "a.xyz": "must be one of glb, gltf, obj, ply, stl",
    }.items():
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match=expected):
            read_mesh(tmp_path / name)
    with pytest.raises(InputError, match="must exist"):
        read_mesh(tmp_path / "b.glb")


@pytest.mark.slow
@pytest.mark.skipif("GLTF_VALIDATOR" not in os.environ, reason="GLTF_VALIDATOR names no module folder")
def test_khronos_validator_finds_nothing(tmp_path):
    path = tmp_path / "plate.glb"
    write_mesh(path, plate(), "glb")
    script = (
        "require(process.argv[1]).validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[2])))"
        ".then(report => console.log(JSON.stringify(report.issues)))"
    )
    command = ["node", "-e", script, os.environ["GLTF_VALIDATOR"], str(path)]
    issues = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
