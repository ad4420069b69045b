"""Base colours of glTF materials; images are opened at their first use."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_document import Document, Entry
from pgc3d.mesh_io.source import SourceMaterial, SourceSurface
from pgc3d.rendering.shading import linear_to_srgb

WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
SPECULAR = "KHR_materials_pbrSpecularGlossiness"
SHADERS = ("KHR_techniques_webgl", "KHR_technique_webgl")
BUMP = "normalTexture"
TRANSFORM = "KHR_texture_transform"
OTHER_IMAGES = ("EXT_texture_webp", "EXT_texture_avif", "KHR_texture_basisu", "MSFT_texture_dds")


def read_materials(document: Document) -> tuple[SourceMaterial, ...]:
    """The materials in the file's order. A damaged one raises an error when its image is loaded."""
    return tuple(_tolerated(document, entry) for entry in document.root.entries("materials"))


def _tolerated(document: Document, entry: Entry) -> SourceMaterial:
    try:
        return _material(document, entry)
    except InputError as error:
        return SourceMaterial(load_image=partial(_refuse, str(error)))


def _refuse(message: str) -> Image.Image:
    raise InputError(message)


def coordinate_set(material: Entry | None) -> int:
    """The set of texture coordinates that the base colour's image uses, 0 where there is no image."""
    try:
        texture = None if material is None else _base(material)[1]
        if texture is None:
            return 0
        transform = texture.extension(TRANSFORM)
        if transform is not None and "texCoord" in transform:
            return transform.integer("texCoord")
        return texture.integer("texCoord", 0)
    except InputError:  # `read_materials` raises it where the colours are used
        return 0


def _base(material: Entry) -> tuple[list[float], Entry | None]:
    """Linear factor and texture of the base colour."""
    surface, factor, image = material.entry("pbrMetallicRoughness"), "baseColorFactor", "baseColorTexture"
    older = material.extension(SPECULAR)
    if older is not None and factor not in surface and image not in surface:
        surface, factor, image = older, "diffuseFactor", "diffuseTexture"
    return surface.numbers(factor, 4) or [1.0] * 4, surface.entry(image) if image in surface else None


def _material(document: Document, entry: Entry) -> SourceMaterial:
    factor, texture = _base(entry)
    linear = torch.tensor(factor, dtype=torch.float32).clamp(0.0, 1.0)
    surface = entry.entry("pbrMetallicRoughness")
    rough = "metallicRoughnessTexture"
    material = SourceMaterial(
        name=entry.text("name"),
        color=torch.cat([linear_to_srgb(linear[:3]), linear[3:]]),
        load_surface=_loader(document, surface.entry(rough)) if rough in surface else None,
        load_normal=_loader(document, entry.entry(BUMP)) if BUMP in entry else None,
        alpha=_alpha(entry),
        cutoff=entry.number("alphaCutoff", 0.5),
        surface=_surface(document, entry),
    )
    if any(entry.extension(name) is not None for name in SHADERS):
        return SourceMaterial(name=material.name, load_image=partial(_refuse, _shader(document)))
    if texture is None:
        return material
    return replace(
        material,
        load_image=_loader(document, texture),
        wrap=_wrap(document, texture),
        uv_transform=_transform(texture),
        image_key=_image_key(document, texture),
    )


def _surface(document: Document, entry: Entry) -> SourceSurface:
    """Factors and images of the core material besides the base colour."""
    surface = entry.entry("pbrMetallicRoughness")

    def load(holder: Entry, name: str) -> Callable[[], Image.Image] | None:
        return _loader(document, holder.entry(name)) if name in holder else None

    red, green, blue = entry.numbers("emissiveFactor", 3) or [0.0] * 3
    return SourceSurface(
        roughness=surface.number("roughnessFactor", 1.0),
        metallic=surface.number("metallicFactor", 1.0),
        load_surface=load(surface, "metallicRoughnessTexture"),
        normal_scale=entry.entry(BUMP).number("scale", 1.0),
        load_normal=load(entry, BUMP),
        occlusion_strength=entry.entry("occlusionTexture").number("strength", 1.0),
        load_occlusion=load(entry, "occlusionTexture"),
        emission=(red, green, blue),
        load_emission=load(entry, "emissiveTexture"),
    )


def _alpha(entry: Entry) -> Literal["OPAQUE", "MASK", "BLEND"]:
    mode = entry.text("alphaMode", "OPAQUE")
    return "MASK" if mode == "MASK" else "BLEND" if mode == "BLEND" else "OPAQUE"


def _shader(document: Document) -> str:
    return (
        f"the colours of a glTF file must be in its materials, but those of {document.path.name} are made by "
        f"shaders ({SHADERS[0]}); export it with plain materials"
    )


def _texture(document: Document, info: Entry) -> Entry | None:
    textures = document.root.entries("textures")
    index = info.index("index", len(textures))
    return None if index is None else textures[index]


def _wrap(document: Document, info: Entry) -> tuple[str, str]:
    texture, samplers = _texture(document, info), document.root.entries("samplers")
    index = None if texture is None else texture.index("sampler", len(samplers))
    if index is None:
        return ("repeat", "repeat")
    modes = [samplers[index].integer(key, 10497) for key in ("wrapS", "wrapT")]
    for key, value in zip(("wrapS", "wrapT"), modes, strict=True):
        if value not in WRAPS:
            raise samplers[index].error(key, "33071, 33648 or 10497")
    return WRAPS[modes[0]], WRAPS[modes[1]]


def _transform(info: Entry) -> Tensor | None:
    """The affine map [2, 3] of KHR_texture_transform, for coordinates whose v points up.

    The file's own points down, and there the rotation is counter-clockwise in the image as it is shown.
    """
    entry = info.extension(TRANSFORM)
    if entry is None:
        return None
    offset, scale = entry.numbers("offset", 2) or [0.0, 0.0], entry.numbers("scale", 2) or [1.0, 1.0]
    cos, sin = math.cos(entry.number("rotation", 0.0)), math.sin(entry.number("rotation", 0.0))
    down = np.array(
        [[cos * scale[0], sin * scale[1], offset[0]], [-sin * scale[0], cos * scale[1], offset[1]], [0, 0, 1]]
    )
    flip = np.array([[1.0, 0, 0], [0, -1, 1], [0, 0, 1]])
    up = (flip @ down @ flip)[:2]
    return None if np.array_equal(up, np.eye(3)[:2]) else torch.from_numpy(up).float()


def _source(document: Document, texture: Entry) -> Entry | None:
    """The image of a texture, None where it has none that is read."""
    images = document.root.entries("images")
    source = texture.index("source", len(images))
    readable = texture.extension(OTHER_IMAGES[0]) or texture.extension(OTHER_IMAGES[1])
    if readable is not None and source is None:
        source = readable.index("source", len(images))
    return None if source is None else images[source]


def _image_key(document: Document, info: Entry) -> str:
    entry = _texture(document, info)
    image = None if entry is None else _source(document, entry)
    return "" if image is None else image.place


def _loader(document: Document, info: Entry) -> Callable[[], Image.Image] | None:
    entry = _texture(document, info)
    if entry is None:
        raise info.error("index", "an index")
    source = _source(document, entry)
    if source is not None:
        return partial(_open, document, source)
    other = [name for name in OTHER_IMAGES if entry.extension(name) is not None]
    if other:
        return partial(_refuse, _image_kind(document, other[0]))
    return None  # a texture without an image is white


def _image_kind(document: Document, extension: str) -> str:
    return (
        f"the images of a glTF file must be PNG, JPEG, WebP or AVIF, but {document.path.name} has others "
        f"({extension}); export it with PNG"
    )


def _open(document: Document, image: Entry) -> Image.Image:
    if image.place in document.decoded:
        return document.decoded[image.place]
    if "uri" in image:
        data = document.resource(image, "image")
    else:
        view = image.index("bufferView", len(document.views))
        if view is None:
            raise image.error("bufferView", "an index")
        data = bytes(document.view(view))
    document.decoded[image.place] = decode_image(data, f"{image.place} of {document.path.name}")
    return document.decoded[image.place]


def decode_image(data: bytes, name: str) -> Image.Image:
    """A decoded image.

    Raises:
        InputError: it is damaged, of an unknown format or too large; `name` identifies it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.copy()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"an image of a mesh must be smaller, got {name} with {len(data)} bytes; reduce it"
        ) from error
    except Exception as error:  # Pillow's readers raise exceptions of any kind
        raise InputError(
            f"an image of a mesh must be readable, but {name} is damaged; save it again"
        ) from error


def image_files(document: Document) -> list[str]:
    """The names of images outside the file."""
    uris = [image.text("uri") for image in document.root.entries("images") if "uri" in image]
    return [uri for uri in uris if uri[:5].lower() != "data:"]
