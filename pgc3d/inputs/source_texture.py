"""The textures that a mesh has before a run, in the prepared texture coordinates, and where they may change.

Where these are the file's own and all faces of a texture set have one image, the texture is that image, texel
for texel. Otherwise the colours of the file, or the user's image, are sampled at the texels' points.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.exporting.asset_colors import surface_colors
from pgc3d.exporting.bake import fill
from pgc3d.geometry.own_uv import draw_atlas, uv_coverage
from pgc3d.images import encode_png, to_bytes
from pgc3d.inputs.decode import ignore
from pgc3d.inputs.formats import Notify
from pgc3d.inputs.texture_images import opaque_image, read_mask, showing
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.colors import WHITE, colored
from pgc3d.mesh_io.reader import read_source
from pgc3d.types import Fragments, PreparedMesh, SourceTexture

SHIFT = 1e-6  # by which texture coordinates may differ from the file's, apart from whole numbers
KEPT_RING = 3  # texels a side around a kept one that a filtered look-up in it reads


@dataclass(frozen=True)
class SourceRequest:
    """What a user gives of a source, and the sides of textures in pixels."""

    image: Path | None = None  # in place of the file's textures, in its texture coordinates
    mask: Path | None = None  # white where they may change, likewise
    starts: bool = True  # whether colours start from the source, so that there must be some
    side: int = 0  # the longer one of the largest result, 0 for that of the file's image
    sampled: int = 1024  # the same of colours that are no single image, where `side` is 0


def prepare_sources(
    path: Path,
    prepared: PreparedMesh,
    request: SourceRequest,
    *,
    rasterizer: Rasterizer,
    notify: Notify = ignore,
) -> list[SourceTexture]:
    """The source of each texture set.

    A mask may have any size: it is enlarged without a filter and shrunk by Pillow's box filter, so that a
    texel that touches black ones alone is black. The faces that the mesh keeps are masked, too.

    Args:
        path: the mesh file.
        prepared: from this file, on the rasteriser's device.
        request: of the user.
        rasterizer: on the device of `prepared`.
        notify: receives lines on the textures and on the mask.

    Raises:
        InputError: a file cannot be read or used, or the mesh has no colours to start from.
    """
    source = read_source(path)
    shown = source
    if request.image is not None:
        shown = showing(source, opaque_image(request.image, "--init"), path, "--init")
    asset = colored(shown)
    if asset.bare and request.starts:
        raise InputError(
            f"--refine must have colours to start from, got none in {path.name}; remove --refine, or give "
            "an image with --init"
        )
    own = [own_image(asset, prepared, index) for index in range(len(prepared.sets))]
    images = _images(asset, prepared, own, request, rasterizer)
    notify(_said(images, sum(image is None for image in own), path))
    masks: list[UInt8[Tensor, "H W"] | None] = [None] * len(images)
    if request.mask is not None:
        grey = read_mask(request.mask)
        whole = colored(showing(source, grey.convert("RGB"), path, "--mask"))
        masks = [_mask(grey, whole, prepared, index, image, rasterizer) for index, image in enumerate(images)]
    if prepared.kept is not None:
        masks = [
            _without_kept(mask, prepared, index, images[index], rasterizer)
            for index, mask in enumerate(masks)
        ]
    found = [SourceTexture(image, mask) for image, mask in zip(images, masks, strict=True)]
    if request.mask is not None or prepared.kept is not None:
        share = _painted(found, prepared, rasterizer)
        if share == 0:
            raise InputError(
                "--mask, --only and --keep must leave texels of the surface to be textured, got none; row 0 "
                "of a mask is at v = 1"
            )
        notify(f"{share:.0%} of the texels of the surface may change, the others stay as they are")
    return found


def own_image(asset: MeshAsset, prepared: PreparedMesh, index: int) -> UInt8[Tensor, "H W 3"] | None:
    """The image of all faces of a texture set; None where they have others, or other coordinates than it."""
    rows = prepared.faces_of(index).cpu()
    chosen = torch.unique(asset.face_surface[rows]).tolist()
    if not asset.surfaces or -1 in chosen or asset.vertex_color is not None:
        return None
    used = [asset.surfaces[number] for number in chosen]
    image, wrap = used[0].image, used[0].wrap
    plain = all(
        item.image is image and item.wrap == wrap and bool((item.color > WHITE).all()) for item in used
    )
    if image is None or not plain or asset.uv is None or asset.uv_faces is None:
        return None
    shift = (
        asset.uv[asset.uv_faces[rows]].double() - prepared.uv.cpu()[prepared.uv_faces.cpu()[rows]].double()
    )
    if bool(((shift - shift.round()).abs() > SHIFT).any()):
        return None
    moved = bool((shift.round() != 0).any()) or prepared.sets[index].wraps
    return None if moved and wrap != ("repeat", "repeat") else image


def pack_sources(sources: Sequence[SourceTexture]) -> bytes:
    """A safetensors file of sources: the bytes of a PNG file for each image and each mask."""
    from safetensors.torch import save

    tensors = {}
    for index, source in enumerate(sources):
        parts = {"image": source.image, "mask": source.mask}
        for name, pixels in parts.items():
            if pixels is not None:
                content = np.frombuffer(encode_png(pixels), dtype=np.uint8)
                tensors[f"{name}.{index}"] = torch.from_numpy(content.copy())
    return bytes(save(tensors))


def load_sources(path: Path, count: int) -> tuple[SourceTexture, ...]:
    """The sources of `count` texture sets in a file of `pack_sources`.

    Raises:
        RunDirectoryError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        found = []
        for index in range(count):
            image, mask = (
                _decoded(tensors[name], mode) if name in tensors else None
                for name, mode in ((f"image.{index}", "RGB"), (f"mask.{index}", "L"))
            )
            if image is None or (mask is not None and mask.shape != image.shape[:2]):
                raise ValueError(f"texture set {index} must have an image, and a mask of its size")
            found.append(SourceTexture(image, mask))
        return tuple(found)
    except (OSError, ValueError, SyntaxError, SafetensorError, Image.DecompressionBombError) as error:
        raise RunDirectoryError(
            f"{path} must be the run's source textures, but is missing or damaged ({error}); start a new run"
        ) from error


def _decoded(content: UInt8[Tensor, " N"], mode: str) -> UInt8[Tensor, "H W *C"]:
    with Image.open(io.BytesIO(content.numpy().tobytes()), formats=["PNG"]) as image:
        if image.mode != mode:
            raise ValueError(f"an image must be {mode}, got {image.mode}")
        return torch.from_numpy(np.array(image))


def _images(
    asset: MeshAsset,
    prepared: PreparedMesh,
    own: Sequence[UInt8[Tensor, "_ _ 3"] | None],
    request: SourceRequest,
    rasterizer: Rasterizer,
) -> list[UInt8[Tensor, "_ _ 3"]]:
    """The image of each texture set, at the size of the result: its own, or sampled where it has none."""
    sides = [max(image.shape[:2]) for image in own if image is not None]
    if request.side and sides and request.side < max(sides):
        raise InputError(
            "--texture-size must not be less than the longer side of the file's texture, "
            f"{max(sides)} pixels, got {request.side}; remove it"
        )
    factor = request.side / max(sides) if request.side and sides else 1.0
    return [
        _sampled(asset, prepared, index, part.side(request.side or request.sampled), rasterizer)
        if image is None
        else _enlarged(image, factor)
        for index, (part, image) in enumerate(zip(prepared.sets, own, strict=True))
    ]


def _said(images: Sequence[Tensor], sampled: int, path: Path) -> str:
    """A line about the textures, of which some were sampled."""
    sizes = ", ".join(f"{image.shape[1]} x {image.shape[0]}" for image in images[:6])
    if not sampled:
        return f"texels of {path.name} that do not change keep their bytes ({sizes})"
    return f"the colours of {path.name} were sampled into {sampled} of {len(images)} textures ({sizes})"


def _mask(
    grey: Image.Image,
    whole: MeshAsset,
    prepared: PreparedMesh,
    index: int,
    image: UInt8[Tensor, "H W 3"],
    rasterizer: Rasterizer,
) -> UInt8[Tensor, "H W"]:
    """A user's mask at the texels of a source; `whole` has it on all faces."""
    height, width = image.shape[:2]
    if own_image(whole, prepared, index) is None:
        return _sampled(whole, prepared, index, height, rasterizer)[..., 0].contiguous()
    return torch.from_numpy(np.array(grey.resize((width, height), Image.Resampling.BOX)))


def _without_kept(
    mask: UInt8[Tensor, "H W"] | None,
    prepared: PreparedMesh,
    index: int,
    image: UInt8[Tensor, "H W 3"],
    rasterizer: Rasterizer,
) -> UInt8[Tensor, "H W"] | None:
    """A mask without the texels that kept faces show."""
    rows = prepared.faces_of(index)
    assert prepared.kept is not None
    kept = rows[prepared.kept[rows]]
    if not len(kept):
        return mask
    height, width = image.shape[:2]
    mask = torch.full((height, width), 255, dtype=torch.uint8) if mask is None else mask
    if len(kept) == len(rows) or prepared.sets[index].wraps:
        return torch.zeros_like(mask)
    # twice the size, so that no texel that a small face touches is missed
    side = 2 * max(height, width)
    drawn = draw_atlas(prepared.uv, prepared.uv_faces[kept], side, rasterizer).mask[0, ..., 0]
    reached = max_pool2d(drawn[None, None], 2 * KEPT_RING - 1, stride=1, padding=KEPT_RING - 1)[0, 0].cpu()
    rows_of, columns_of = (torch.arange(side) * own // side for own in (height, width))
    texels = rows_of[:, None] * width + columns_of
    shown = torch.zeros(height * width).scatter_reduce(0, texels.flatten(), reached.flatten(), "amax")
    return torch.where(shown.view(height, width) > 0, 0, mask).to(torch.uint8)


def _painted(sources: Sequence[SourceTexture], prepared: PreparedMesh, rasterizer: Rasterizer) -> float:
    """Fraction of the charts' texels that may change."""
    total, painted = 0, 0
    for index, source in enumerate(sources):
        height, width = source.image.shape[:2]
        side = max(height, width)
        covered = uv_coverage(prepared, index, side, rasterizer).cpu() > 0
        rows, columns = (torch.arange(side) * own // side for own in (height, width))
        total += int(covered.sum())
        if source.mask is not None:
            covered = covered & (source.mask[rows][:, columns] > 0)
        painted += int(covered.sum())
    return painted / max(total, 1)


def _enlarged(image: UInt8[Tensor, "H W 3"], factor: float) -> UInt8[Tensor, "h w 3"]:
    if factor == 1:
        return image
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    enlarged = Image.fromarray(image.numpy()).resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(enlarged))


def _sampled(
    asset: MeshAsset, prepared: PreparedMesh, index: int, size: int, rasterizer: Rasterizer
) -> UInt8[Tensor, "S S 3"]:
    """The colours of an asset at the texels of a texture set, continued beside its charts."""
    rows = prepared.faces_of(index)
    drawn = draw_atlas(prepared.uv, prepared.uv_faces[rows], size, rasterizer)
    hit = drawn.triangle[0] >= 0
    numbers = torch.cat([rows.new_tensor([-1]), rows])[drawn.triangle + 1] + 1
    data = torch.cat([drawn.data[..., :3], numbers[..., None].to(drawn.data.dtype)], dim=-1)
    image: Float[Tensor, "S S 3"] = torch.zeros(size, size, 3, device=prepared.uv.device)
    image[hit] = surface_colors(asset.to(prepared.uv.device), Fragments(data), rasterizer)
    return to_bytes(fill(image, hit))
