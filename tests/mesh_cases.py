"""Small glTF files, each with one thing in it that readers get wrong, built byte by byte."""

import struct
from typing import Any

import numpy as np
from gltf_builder import Gltf, box, box_arrays, one_box, red_and_blue


def instancing() -> Gltf:
    gltf = one_box()
    places = gltf.accessor([[0.0, 0, 0], [3, 0, 0], [6, 0, 0]])
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    gltf.document["nodes"][0]["extensions"] = extension
    gltf.document["extensionsUsed"] = list(extension)
    return gltf


def turned_instances() -> Gltf:
    """A quarter turn about z of a long box, and one that is mirrored and twice as large."""
    gltf = one_box({"mesh": 0, "scale": [2, 1, 1]})
    half = 0.5**0.5
    attributes = {
        "TRANSLATION": gltf.accessor([[0.0, 0, 0], [5, 0, 0]]),
        "ROTATION": gltf.accessor([[0.0, 0, half, half], [0, 0, 0, 1]]),
        "SCALE": gltf.accessor([[1.0, 1, 1], [-2, 2, 2]]),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    gltf.document["nodes"][0]["extensions"] = extension
    gltf.document |= {"extensionsUsed": list(extension), "extensionsRequired": list(extension)}
    return gltf


def skinned(*nodes: dict[str, Any], joints: list[int], inverse: Any = None, weights: Any = None) -> Gltf:
    """A box whose vertices hang on the first joint below 0 and on the last above it."""
    gltf, positions = Gltf(), box_arrays()[0]
    upper = (positions[:, 1] > 0).astype(int) * (len(joints) - 1)
    sets = np.zeros((24, 4))
    sets[:, 0] = upper
    share = np.zeros((24, 4))
    share[:, 0] = 1 if weights is None else weights
    extra = {"JOINTS_0": gltf.accessor(sets, "u1"), "WEIGHTS_0": gltf.accessor(share)}
    gltf.mesh(box(gltf, **extra))
    gltf.nodes(*nodes)
    skin: dict[str, Any] = {"joints": joints}
    if inverse is not None:
        skin["inverseBindMatrices"] = gltf.accessor(inverse)
    gltf.document["skins"] = [skin]
    return gltf


def shift_matrix(x: float, y: float, z: float) -> list[float]:
    """A translation as glTF stores it."""
    return [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, x, y, z, 1]


def lifted() -> Gltf:
    """The upper joint stands 2 higher than when it was bound; the node's own transform does not count."""
    return skinned(
        {"mesh": 0, "skin": 0, "translation": [10, 0, 0], "scale": [0.01, 0.01, 0.01]},
        {"children": [2]},
        {"translation": [0, 3, 0]},
        joints=[1, 2],
        inverse=[shift_matrix(0, 0, 0), shift_matrix(0, -1, 0)],
    )


def two_skinned() -> Gltf:
    return skinned(
        {"name": "body", "mesh": 0, "skin": 0},
        {"name": "hat", "mesh": 0, "skin": 0, "translation": [4, 0, 0], "scale": [3, 3, 3]},
        {"name": "root"},
        joints=[2],
    )


def eight_influences() -> Gltf:
    """A fifth of the weight lies in a second set: its joint is 4 to the right, so the box moves by 0.8."""
    gltf = skinned({"mesh": 0, "skin": 0}, {}, {"translation": [4, 0, 0]}, joints=[1, 2], weights=0.8)
    ones, fifth = np.zeros((24, 4)), np.zeros((24, 4))
    ones[:, 0], fifth[:, 0] = 1, 51
    attributes = gltf.document["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = gltf.accessor(np.zeros((24, 4)), "u1")
    attributes["JOINTS_1"] = gltf.accessor(ones, "u2")
    attributes["WEIGHTS_1"] = gltf.accessor(fifth, "u1", normalized=True)
    return gltf


def morphed(node: dict[str, Any], **mesh: Any) -> Gltf:
    """A box with a target that moves it by 1 along x, and one by 1 along y that only a few vertices have."""
    gltf = Gltf()
    primitive = box(gltf)
    every = gltf.accessor(np.tile([1.0, 0, 0], (24, 1)))
    few = np.array([index for index, point in enumerate(box_arrays()[0]) if point[1] > 0])
    sparse = {
        "count": len(few),
        "indices": {"bufferView": gltf.view(few.astype("<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": gltf.view(np.tile([0.0, 1, 0], (len(few), 1)).astype("<f4").tobytes())},
    }
    gltf.document["accessors"].append({"componentType": 5126, "count": 24, "type": "VEC3", "sparse": sparse})
    number = len(gltf.document["accessors"]) - 1
    primitive["targets"] = [{"POSITION": every}, {"POSITION": number}]
    gltf.mesh(primitive, **mesh)
    return gltf.nodes(node)


def sparse_corner(gltf: Gltf, index: int, place: tuple[float, float, float]) -> Gltf:
    """One vertex of the first accessor put elsewhere."""
    gltf.document["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": gltf.view(struct.pack("<H", index)), "componentType": 5123},
        "values": {"bufferView": gltf.view(struct.pack("<3f", *place))},
    }
    return gltf


def row_of_points(mode: int, points: Any) -> Gltf:
    gltf = Gltf()
    gltf.mesh({"attributes": {"POSITION": gltf.accessor(np.array(points, dtype=float))}, "mode": mode})
    return gltf.nodes({"mesh": 0})


def strip() -> Gltf:
    return row_of_points(5, [[index // 2, index % 2, 0] for index in range(10)])


def fan() -> Gltf:
    return row_of_points(6, [[-1, -1, 0], [1, -1, 0], [1, 0, 0], [1, 1, 0], [-1, 1, 0]])


def joined_strip() -> Gltf:
    """Two strips in one, joined by triangles without area, by indices."""
    gltf = strip()
    indices = [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    gltf.document["meshes"][0]["primitives"][0]["indices"] = gltf.accessor(indices, "u4")
    return gltf


def quantised(*, stride: int = 8) -> Gltf:
    """Normalised shorts for positions, each in 8 bytes, and unsigned bytes that are not normalised for uv."""
    positions, _, uv, faces = box_arrays()
    gltf = Gltf()
    rows = np.zeros((24, stride // 2), dtype="<i2")
    rows[:, :3] = np.round(2 * positions * 32767)
    gltf.document["accessors"] = [
        {"bufferView": gltf.view(rows.tobytes(), byteStride=stride), "componentType": 5122,
         "normalized": True, "count": 24, "type": "VEC3"}
    ]  # fmt: skip
    padded = np.zeros((24, 4), dtype="u1")
    padded[:, :2] = np.round(uv * 100)
    gltf.document["accessors"].append(
        {"bufferView": gltf.view(padded.tobytes(), byteStride=4), "componentType": 5121, "count": 24,
         "type": "VEC2"}
    )  # fmt: skip
    transform = {"KHR_texture_transform": {"scale": [0.01, 0.01]}}
    material = gltf.material({"index": gltf.texture(red_and_blue()), "extensions": transform})
    gltf.mesh(
        {
            "attributes": {"POSITION": 0, "TEXCOORD_0": 1},
            "indices": gltf.accessor(faces.reshape(-1), "u2"),
            "material": material,
        }
    )
    required = ["KHR_mesh_quantization", "KHR_texture_transform"]
    gltf.document |= {"extensionsUsed": required, "extensionsRequired": required}
    return gltf.nodes({"mesh": 0, "scale": [0.5, 0.5, 0.5]})


def short_uv() -> Gltf:
    gltf = one_box()
    uv = gltf.accessor(np.round(box_arrays()[2] * 65535), "u2", normalized=True)
    gltf.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = uv
    return gltf


def draco_used() -> Gltf:
    gltf = one_box(extensionsUsed=["KHR_draco_mesh_compression"])
    for accessor in gltf.document["accessors"]:
        del accessor["bufferView"]
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    return gltf


def draco_with_a_plain_copy() -> Gltf:
    gltf = one_box(extensionsUsed=["KHR_draco_mesh_compression"])
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    return gltf


def meshopt(*, plain: bool) -> Gltf:
    """A buffer view that is compressed beside a plain copy, or in place of it."""
    gltf = one_box(extensionsUsed=["EXT_meshopt_compression"])
    gltf.document["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}
    if not plain:
        gltf.document["extensionsRequired"] = ["EXT_meshopt_compression"]
    return gltf


def points_too() -> Gltf:
    gltf = Gltf()
    cloud = {"attributes": {"POSITION": gltf.accessor(9 * box_arrays()[0])}, "mode": 0}
    gltf.mesh(box(gltf), cloud)
    return gltf.nodes({"mesh": 0})


def one_part_without() -> Gltf:
    gltf = Gltf()
    gltf.mesh(box(gltf))
    gltf.mesh(box(gltf, uv=False))
    return gltf.nodes({"mesh": 0}, {"mesh": 1, "translation": [0, 2, 0]})


def two_materials() -> Gltf:
    gltf = Gltf()
    gltf.mesh(box(gltf) | {"material": gltf.material(factor=[0.6, 0.3, 0.1, 1], name="wood")})
    glass = gltf.material(factor=[0.8, 0.9, 1, 0.2], name="glass", alphaMode="BLEND")
    gltf.mesh(box(gltf) | {"material": glass})
    return gltf.nodes(
        {"name": "seat", "mesh": 0},
        {"name": "window", "translation": [0, 2, 0], "mesh": 1},
        {"name": "chair", "children": [0, 1]},
    )


def with_maps() -> Gltf:
    gltf = Gltf()
    info = {"index": gltf.texture(red_and_blue(4))}
    material = gltf.material(name="skin", normalTexture=info, occlusionTexture=info, emissiveFactor=[1, 0, 0])
    surface = gltf.document["materials"][material]["pbrMetallicRoughness"]
    surface |= {"metallicRoughnessTexture": info, "roughnessFactor": 0.2}
    gltf.mesh(box(gltf) | {"material": material})
    return gltf.nodes({"name": "statue", "mesh": 0})


def leaf() -> Gltf:
    gltf = Gltf()
    colors = gltf.accessor(np.tile([0.0, 1, 0, 1], (24, 1)))
    material = gltf.material(name="leaf", alphaMode="MASK", alphaCutoff=0.5, doubleSided=False)
    gltf.mesh(box(gltf, COLOR_0=colors) | {"material": material})
    return gltf.nodes({"mesh": 0})


def lid() -> Gltf:
    gltf = one_box({"name": "lid", "mesh": 0, "translation": [0, 1, 0]}, {"name": "chest", "mesh": 0})
    times, turns = gltf.accessor([0.0, 1.0]), gltf.accessor([[0.0, 0, 0, 1], [1, 0, 0, 0]])
    channel = {"sampler": 0, "target": {"node": 0, "path": "rotation"}}
    gltf.document["animations"] = [{"channels": [channel], "samplers": [{"input": times, "output": turns}]}]
    return gltf


def inward_normals() -> Gltf:
    gltf = one_box()
    normals = gltf.accessor(-box_arrays()[1])
    gltf.document["meshes"][0]["primitives"][0]["attributes"]["NORMAL"] = normals
    return gltf


def with_image(uri: str) -> Gltf:
    gltf = Gltf()
    gltf.document |= {"images": [{"uri": uri}], "textures": [{"source": 0}]}
    gltf.mesh(box(gltf) | {"material": gltf.material({"index": 0})})
    return gltf.nodes({"mesh": 0})


def scaled_texture() -> Gltf:
    """A texture that is repeated four times by its transform; the coordinates themselves are sane."""
    gltf = Gltf()
    gltf.document["textures"] = [{}]
    transform = {"KHR_texture_transform": {"scale": [4, 4]}}
    gltf.mesh(box(gltf) | {"material": gltf.material({"index": 0, "extensions": transform})})
    gltf.document |= {"extensionsUsed": list(transform), "extensionsRequired": list(transform)}
    return gltf.nodes({"mesh": 0})


def mirrored_halves() -> Gltf:
    """A box and its mirror image, which share their texture coordinates."""
    positions, normals, uv, faces = box_arrays()
    gltf = Gltf()
    mirror = np.array([-1.0, 1, 1])
    attributes = {
        "POSITION": gltf.accessor(np.concatenate([positions, positions * mirror - [2, 0, 0]])),
        "NORMAL": gltf.accessor(np.concatenate([normals, normals * mirror])),
        "TEXCOORD_0": gltf.accessor(np.concatenate([uv, uv])),
    }
    indices = gltf.accessor(np.concatenate([faces, faces[:, ::-1] + 24]).reshape(-1), "u2")
    gltf.mesh({"attributes": attributes, "indices": indices})
    return gltf.nodes({"mesh": 0})
