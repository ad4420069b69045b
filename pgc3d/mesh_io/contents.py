"""Facts about the contents of a glTF or OBJ, besides its surface, as short texts."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io.bundle import document_format
from pgc3d.mesh_io.gltf_accessor import count
from pgc3d.mesh_io.gltf_document import Document, Entry, parse_document
from pgc3d.mesh_io.gltf_scene import INSTANCING
from pgc3d.mesh_io.limits import inside, read_limited
from pgc3d.mesh_io.lines import Lines, counted
from pgc3d.mesh_io.mtl import MtlMaterial, library_names, library_paths, map_names, parse_mtl
from pgc3d.mesh_io.obj import read_obj
from pgc3d.mesh_io.side_images import is_inside

SLOTS = {  # textures of a material, and what they are called here
    "baseColorTexture": "base colour", "metallicRoughnessTexture": "metallic-roughness",
    "normalTexture": "normal", "occlusionTexture": "occlusion", "emissiveTexture": "emission",
    "diffuseTexture": "diffuse",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """Texts about a file; nodes and materials by their index in `FaceLabels`."""

    nodes: Mapping[int, str] = field(default_factory=dict)
    materials: Mapping[int, str] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_contents(path: Path) -> Contents:
    """The facts about a mesh file; empty for formats of a surface alone.

    Raises:
        InputError: the file is damaged.
    """
    kind = document_format(path)
    if kind is None:
        return Contents()
    return _gltf(path) if kind == "glb" else _obj(path)


def _gltf(path: Path) -> Contents:
    document = parse_document(read_limited(path), path)
    images = [_image(document, image) for image in document.root.entries("images")]
    materials = document.root.entries("materials")
    return Contents(
        nodes={index: text for index, node in enumerate(document.nodes) if (text := _node(document, node))},
        materials={index: _material(document, item, images) for index, item in enumerate(materials)},
        sets=tuple(_sets(document)),
        images=tuple(images),
        others=tuple(_others(document)),
    )


def _node(document: Document, node: Entry) -> str:
    facts = []
    mesh, skin = node.index("mesh", len(document.meshes)), node.index("skin", len(document.skins))
    if mesh is not None:
        name = document.meshes[mesh].text("name")
        facts.append(f"mesh {name!r}" if name else f"mesh {mesh}")
        targets = [len(item.entries("targets")) for item in document.meshes[mesh].entries("primitives")]
        if any(targets):
            facts.append(counted(max(targets), "morph target"))
    if skin is not None:
        facts.append(f"skin of {counted(len(document.skins[skin].value.get('joints', [])), 'joint')}")
    instances = node.extension(INSTANCING)
    if instances is not None:
        places = instances.entry("attributes").value.values()
        facts.append(counted(max((count(document, place) for place in places), default=1), "instance"))
    return ", ".join(facts)


def _image(document: Document, image: Entry) -> str:
    name = image.name("image")
    try:
        if "uri" in image:
            name = image.text("name") or image.text("uri")[:60]
            data = document.resource(image, "image")
        else:
            data = bytes(document.view(image.integer("bufferView")))
        return f"{name} {_pixels(data)}"
    except InputError:
        return f"{name} (missing)"


def _pixels(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return f"{opened.width} x {opened.height}"
    except Exception:  # Pillow's readers raise exceptions of any kind
        return "(not readable)"


def _material(document: Document, material: Entry, images: list[str]) -> str:
    facts, textures = [], document.root.entries("textures")
    for place in (material, material.entry("pbrMetallicRoughness"), *_extensions(material)):
        for key in place.value:
            if key.endswith("Texture") and isinstance(place.value[key], dict):
                index = place.entry(key).index("index", len(textures))
                source = None if index is None else textures[index].index("source", len(images))
                shown = "image of another format" if source is None else images[source]
                number = place.entry(key).integer("texCoord", 0)
                facts.append(f"{SLOTS.get(key, key)} {shown}{f' by TEXCOORD_{number}' if number else ''}")
    mode = material.text("alphaMode", "OPAQUE")
    return ", ".join([*facts, *([f"alpha {mode}"] if mode != "OPAQUE" else [])])


def _extensions(material: Entry) -> list[Entry]:
    held = material.entry("extensions")
    return [held.entry(name) for name in held.value if isinstance(held.value[name], dict)]


def _sets(document: Document) -> Iterator[str]:
    primitives = [item for mesh in document.meshes for item in mesh.entries("primitives")]
    names = [set(item.entry("attributes").value) for item in primitives]
    every = sorted(name for name in set().union(*names) if name.startswith(("TEXCOORD_", "COLOR_", "_")))
    for name in every:
        yield f"{name} of {sum(name in some for some in names)} of {counted(len(names), 'primitive')}"


def _others(document: Document) -> Iterator[str]:
    root = document.root
    for skin in document.skins:
        yield f"{skin.name('skin')}: skeleton of {counted(len(skin.value.get('joints', [])), 'joint')}"
    for animation in root.entries("animations"):
        channels = counted(len(animation.entries("channels")), "channel")
        yield f"{animation.name('animation')}: animation of {channels}, {_seconds(document, animation):.2f} s"
    yield from (f"{camera.name('camera')}: camera" for camera in root.entries("cameras"))
    lights = root.extension("KHR_lights_punctual")
    for light in lights.entries("lights") if lights is not None else []:
        yield f"{light.name('light')}: light"
    names = root.texts("extensionsUsed")
    if names:
        yield f"extensions: {', '.join(names)}"


def _seconds(document: Document, animation: Entry) -> float:
    ends = [0.0]
    for sampler in animation.entries("samplers"):
        index = sampler.index("input", len(document.accessors))
        ends += [] if index is None else document.accessors[index].numbers("max", 1) or []
    return max(ends)


def _obj(path: Path) -> Contents:
    data = read_limited(path)
    lines, names = Lines(data, path), [material.name for material in read_obj(data, path).materials]
    texts = library_names(lines)
    libraries = list(dict.fromkeys(file for text in texts for file in library_paths(text, path)))
    found: dict[str, MtlMaterial] = {}
    for library in libraries:
        for name, material in parse_mtl(read_limited(library), library).items():
            found.setdefault(name, material)
    materials = {}
    for index, name in enumerate(names):
        item = found.get(name)
        maps = (
            []
            if item is None
            else [("base colour", item.image), ("normal", item.normal), ("alpha", item.mask)]
        )
        facts = [f"{kind} {text}" for kind, text in maps if text]
        materials[index] = ", ".join(facts) if item is not None else "in no library"
    images = {name: library for library in libraries for name in map_names(library)}
    return Contents(
        materials=materials,
        sets=(f"{counted(len(lines.starting_with(b'vt')), 'texture coordinate')}",),
        images=tuple(_side_image(name, library) for name, library in images.items()),
    )


def _side_image(name: str, library: Path) -> str:
    if not is_inside(name, library):
        return f"{name} (outside the folder)"
    try:
        return f"{name} {_pixels(read_limited(inside(library.parent, name, library), 'image'))}"
    except InputError:
        return f"{name} (missing)"
