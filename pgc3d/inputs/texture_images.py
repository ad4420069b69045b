"""A user's images in the texture coordinates of a mesh file: in place of its textures, or as a mask."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.inputs.decode import decode_image, drop_idle_alpha
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh

GREY = 2  # difference of the channels of grey levels


def opaque_image(path: Path, option: str) -> Image.Image:
    """An image without transparent pixels, in sRGB.

    Raises:
        InputError: the file is no image, or has transparent pixels; the message names the option.
    """
    image = drop_idle_alpha(decode_image(path).image)
    if image.mode != "RGB":
        raise InputError(
            f"{option} must be an opaque image, got {path} with transparent pixels; save it without an alpha "
            "channel"
        )
    return image


def read_mask(path: Path) -> Image.Image:
    """The grey levels of a mask.

    Raises:
        InputError: it has colours or transparent pixels, or is black everywhere.
    """
    image = opaque_image(path, "--mask")
    pixels = np.asarray(image).astype(np.int16)
    if int((pixels.max(axis=2) - pixels.min(axis=2)).max()) > GREY:
        raise InputError(
            f"--mask must hold grey levels, white where the texture changes, got colours in {path}; save it "
            "in grey"
        )
    if not pixels.any():
        raise InputError(
            f"--mask must be white where the texture changes, but {path} is black everywhere; make some of "
            "it white"
        )
    return image.getchannel("G")


def showing(source: SourceMesh, image: Image.Image, path: Path, option: str) -> SourceMesh:
    """A mesh with an image on all its faces, through the transforms of its materials.

    Raises:
        InputError: it has no texture coordinates.
    """
    faces = source.uv_faces
    if faces is None or bool((faces < 0).all()):
        raise InputError(
            f"{option} must go with texture coordinates in the mesh file, got none in {path.name}; remove it"
        )

    def load() -> Image.Image:
        return image

    def shown(material: SourceMaterial) -> SourceMaterial:
        return SourceMaterial(
            name=material.name, load_image=load, wrap=material.wrap, uv_transform=material.uv_transform
        )

    number = source.face_material
    if number is None:
        number = torch.full_like(source.faces[:, 0], -1)
    materials = (*map(shown, source.materials), SourceMaterial(load_image=load))
    number = torch.where(number < 0, len(source.materials), number)
    return replace(source, materials=materials, face_material=number, vertex_color=None)
