"""Materials of a glTF document with new images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from pgc3d.images import encode_png
from pgc3d.mesh_io.gltf_edit import Editor, entries, extension
from pgc3d.mesh_io.gltf_material import BUMP, SPECULAR, TRANSFORM
from pgc3d.mesh_io.gltf_pieces import Piece
from pgc3d.mesh_io.gltf_writer import LINEAR, LINEAR_MIPMAP_LINEAR, WRAPS
from pgc3d.mesh_io.repaint import MaterialImages

VARIANTS = "KHR_materials_variants"
TANGENT = "TANGENT"


@dataclass(frozen=True)
class Coordinates:
    """A set of texture coordinates that new images are seen through."""

    number: int
    transformed: bool = False  # by the KHR_texture_transform of the base colour's texture
    repeats: bool = False  # the images repeat


def paint_materials(
    editor: Editor,
    groups: Mapping[tuple[int, int], Sequence[Piece]],
    coordinates: Mapping[tuple[int, int], Coordinates],
    images: Sequence[MaterialImages],
) -> None:
    """Give each group of primitives a material with its images.

    A material changes in place where no other primitive uses it, else the group gets a copy.

    Args:
        editor: of the document.
        groups: the primitives of each pair of a material, -1 for none, and index in `images`.
        coordinates: of each group.
        images: of materials.
    """
    made: dict[Any, int] = {}
    for key, group in groups.items():
        place = _own_material(editor, key[0], group)
        info = coordinates[key]
        wrap = ("repeat", "repeat") if info.repeats else images[key[1]].wrap

        def texture(kind: str, image: Shaped[Tensor, "H W C"], wrap: Any = wrap, number: int = key[1]) -> int:
            if (number, kind, wrap) not in made:
                made[number, kind, wrap] = _add_texture(editor, kind, image, wrap)
            return made[number, kind, wrap]

        material = editor.root["materials"][place]
        _paint(editor, material, images[key[1]], info, texture)
        for piece in group:
            piece.primitive["material"] = place
            if images[key[1]].normal_map is not None and TANGENT in piece.primitive["attributes"]:
                # they belong to the texture coordinates of the file's own normal map
                attributes = piece.primitive["attributes"]
                attributes[f"_{TANGENT}"] = attributes.pop(TANGENT)


def _own_material(editor: Editor, material: int, group: Sequence[Piece]) -> int:
    """The index of a material that only the primitives of a group use.

    Others, also those of no node, may lack the texture coordinates of the new images.
    """
    if material < 0:
        plain = {"name": "surface", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
        return editor.append("materials", plain | {"doubleSided": True})
    mine = {id(piece.primitive) for piece in group}
    everything = [item for mesh in entries(editor.root, "meshes") for item in entries(mesh, "primitives")]
    others = [item for item in everything if id(item) not in mine]
    choices = [choice for item in others for choice in entries(extension(item, VARIANTS), "mappings")]
    if all(item.get("material") != material for item in [*others, *choices]):
        return material
    place = editor.copied("materials", material)
    copied = editor.root["materials"][place]
    copied["name"] = f"{copied.get('name') or f'material {material}'} textured"
    return place


def _paint(
    editor: Editor, material: dict[str, Any], images: MaterialImages, info: Coordinates, texture: Any
) -> None:
    surface = _object(material, "pbrMetallicRoughness")
    old = surface.get("baseColorTexture") or {}
    base = _info(texture("base color", images.base_color), info, old)
    older = extension(material, SPECULAR)
    shown = older.get("diffuseTexture") if older and not old else None
    emitted = material.get("emissiveTexture")
    if isinstance(emitted, dict) and _same_image(editor, emitted, old or shown or {}):
        # an emission by the image of the base colour: a material that is shown without shading
        material["emissiveTexture"] = dict(base)
    surface["baseColorTexture"] = base
    _whiten(surface, "baseColorFactor")
    if older:
        older["diffuseTexture"] = dict(base)
        _whiten(older, "diffuseFactor")
    if images.metallic_roughness is not None:
        surface["metallicRoughnessTexture"] = _info(
            texture("roughness", images.metallic_roughness), info, old
        )
        surface.pop("metallicFactor", None)
        surface.pop("roughnessFactor", None)
    if images.normal_map is not None:
        material[BUMP] = _info(texture("normal", images.normal_map), info, old)


def _object(holder: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(holder.get(key), dict):
        holder[key] = {}
    found: dict[str, Any] = holder[key]
    return found


def _info(index: int, info: Coordinates, old: dict[str, Any]) -> dict[str, Any]:
    """The reference to a texture, with the extras of an old one and its transform where that still holds."""
    kept = {"extras": old["extras"]} if "extras" in old else {}
    moved = extension(old, TRANSFORM)
    if info.transformed and moved:
        kept["extensions"] = {TRANSFORM: moved}
    return {"index": index} | ({"texCoord": info.number} if info.number else {}) | kept


def _same_image(editor: Editor, first: dict[str, Any], second: dict[str, Any]) -> bool:
    textures = entries(editor.root, "textures")
    found = [dict(enumerate(textures)).get(item.get("index", -1)) for item in (first, second)]
    sources = [None if item is None else item.get("source") for item in found]
    return sources[0] is not None and sources[0] == sources[1]


def _whiten(surface: dict[str, Any], key: str) -> None:
    """A factor of 1 for red, green and blue: the colour is in the image; alpha stays."""
    factor = surface.pop(key, None)
    if isinstance(factor, list) and len(factor) == 4 and factor[3] != 1:
        surface[key] = [1.0, 1.0, 1.0, factor[3]]


def _add_texture(editor: Editor, kind: str, image: Shaped[Tensor, "H W C"], wrap: tuple[str, str]) -> int:
    sampler = {
        "magFilter": LINEAR,
        "minFilter": LINEAR_MIPMAP_LINEAR,
        "wrapS": WRAPS[wrap[0]],
        "wrapT": WRAPS[wrap[1]],
    }
    known = entries(editor.root, "samplers")
    place = known.index(sampler) if sampler in known else editor.append("samplers", sampler)
    view = editor.add_view(encode_png(image))
    source = editor.append("images", {"name": kind, "bufferView": view, "mimeType": "image/png"})
    return editor.append("textures", {"sampler": place, "source": source})
