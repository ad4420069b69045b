"""Contents of a glTF file that are lost in a textured copy of its surface."""

import re

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_document import Document, Entry
from pgc3d.mesh_io.gltf_scene import INSTANCING, Scene

MAPS = {
    "normalTexture": "normal map",
    "occlusionTexture": "occlusion map",
    "emissiveTexture": "emission map",
}
KEPT_MATERIALS = "KHR_materials_unlit"


def losses(document: Document, scene: Scene) -> tuple[str, ...]:
    """Noun phrases with their numbers, the largest first; damage in these contents is not an error."""
    try:
        return _losses(document, scene)
    except InputError:
        return ("what the file holds besides, which is damaged",)


def _losses(document: Document, scene: Scene) -> tuple[str, ...]:
    root = document.root
    counts = [
        (scene.nodes if scene.nodes > 1 else 0, "", "nodes with their names and hierarchy"),
        (len(root.entries("skins")), "skeleton", "skeletons"),
        (len(root.entries("animations")), "animation", "animations"),
        (sum(_targets(mesh) for mesh in document.meshes), "morph target", "morph targets"),
        (sum(node.extension(INSTANCING) is not None for node in document.nodes), "node of instances",
         "nodes of instances"),
        (len(root.entries("cameras")), "camera", "cameras"),
        (_lights(root), "light", "lights"),
        *_attributes(document),
        *_materials(document),
    ]  # fmt: skip
    return tuple(f"{number} {one if number == 1 else many}" for number, one, many in counts if number)


def _targets(mesh: Entry) -> int:
    return max((len(primitive.entries("targets")) for primitive in mesh.entries("primitives")), default=0)


def _lights(root: Entry) -> int:
    lights = root.extension("KHR_lights_punctual")
    return 0 if lights is None else len(lights.entries("lights"))


def _attributes(document: Document) -> list[tuple[int, str, str]]:
    """Further sets of texture coordinates, vertex colours, and attributes of an exporter's own."""
    names = [
        set(primitive.entry("attributes").value)
        for mesh in document.meshes
        for primitive in mesh.entries("primitives")
    ]
    every = set().union(*names)
    further = sum(re.fullmatch(r"TEXCOORD_\d+", name) is not None for name in every) - 1
    colors = sum(any(name.startswith("COLOR_") for name in some) for some in names)
    own = sum(name.startswith("_") for name in every)
    return [
        (max(further, 0), "further set of texture coordinates", "further sets of texture coordinates"),
        (colors, "part with vertex colours", "parts with vertex colours"),
        (own, "attribute of its own", "attributes of its own"),
    ]


def _materials(document: Document) -> list[tuple[int, str, str]]:
    materials = document.root.entries("materials")
    rough = ["metallicRoughnessTexture" in material.entry("pbrMetallicRoughness") for material in materials]
    glowing = [
        any(material.numbers("emissiveFactor", 3) or []) and "emissiveTexture" not in material
        for material in materials
    ]
    modes = [material.text("alphaMode", "OPAQUE") for material in materials]
    further = [
        any(name.startswith(("KHR_materials_", "EXT_materials_")) and name != KEPT_MATERIALS
            for name in material.entry("extensions").value)
        for material in materials
    ]  # fmt: skip
    return [
        (len(materials) if len(materials) > 1 else 0, "material", "materials"),
        *((sum(key in material for material in materials), name, f"{name}s") for key, name in MAPS.items()),
        (sum(rough), "metallic-roughness map", "metallic-roughness maps"),
        (sum(glowing), "emission of a material", "emissions of materials"),
        (modes.count("MASK"), "cut-out material (alphaMode MASK)", "cut-out materials (alphaMode MASK)"),
        (modes.count("BLEND"), "transparent material (alphaMode BLEND)",
         "transparent materials (alphaMode BLEND)"),
        (_single_sided(materials), "single-sided material", "single-sided materials"),
        (sum(further), "material with further effects", "materials with further effects"),
    ]  # fmt: skip


def _single_sided(materials: list[Entry]) -> int:
    """Materials that hide back faces explicitly; the copy shows both sides."""
    return sum(
        "doubleSided" in material and not material.flag("doubleSided", default=False)
        for material in materials
    )
