"""Render the training models from random cameras with pgc3d's own rasteriser and shading.

A model is rasterised once per view; its colour variants only change the shading, so they are nearly free.
Transparent parts (glass, leaf cut-outs) are split into a few random subsets, each rasterised on its own and
composited by depth: an approximation of depth peeling that needs no more than the `Rasterizer` protocol.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pgc3d.cameras import fill_distance, orbit
from pgc3d.interfaces import Rasterizer
from pgc3d.rendering.shading import key_direction, shade
from pgc3d.types import Cameras

FOVY_DEGREES = 40.0
TRANSPARENT_LAYERS = 4


@dataclass(frozen=True)
class Model:
    """One training model on a device; texels of all textures lie in one flat buffer."""

    record: dict[str, Any]
    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "F 3 3"]
    uv: Float[Tensor, "F 3 2"]
    face_material: Int[Tensor, " F"]
    material_color: Float[Tensor, "M 4"]
    material_texture: Int[Tensor, "M 3"]  # offset into texels (-1 without texture), height, width
    texels: Float[Tensor, "N 4"]


def load_index(folder: Path) -> list[dict[str, Any]]:
    """The records of the data set, in a fixed order."""
    records: list[dict[str, Any]] = json.loads((folder / "index.json").read_text())
    return records


def load_model(folder: Path, record: dict[str, Any], device: torch.device) -> Model:
    """Read one model of `build_dataset.py` to a device."""
    data = np.load(folder / record["file"])
    offsets, texels = [], [np.zeros((1, 4), np.float32)]
    slots = {}
    for slot in sorted({int(t) for t in data["material_texture"] if t >= 0}):
        image = data[f"texture_{slot}"]
        slots[slot] = (sum(len(t) for t in texels), image.shape[0], image.shape[1])
        texels.append(image.reshape(-1, 4).astype(np.float32) / 255)
    offsets = [slots.get(int(t), (-1, 1, 1)) for t in data["material_texture"]]

    def tensor(array: np.ndarray, kind: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, kind)

    return Model(
        record=record,
        vertices=tensor(data["vertices"], torch.float32),
        faces=tensor(data["faces"], torch.int32),
        normals=tensor(data["normals"], torch.float32),
        uv=tensor(data["uv"], torch.float32),
        face_material=tensor(data["face_material"], torch.int64),
        material_color=tensor(data["material_color"], torch.float32),
        material_texture=torch.tensor(offsets, device=device),
        texels=torch.from_numpy(np.concatenate(texels)).to(device),
    )


def stretch(model: Model, factors: Float[Tensor, "3"]) -> Model:
    """Scale a model along its axes, a negative factor mirrors; its farthest vertex stays at radius 1."""
    vertices = model.vertices * factors
    normals = torch.nn.functional.normalize(model.normals / factors, dim=-1)
    return replace(model, vertices=vertices / vertices.norm(dim=-1).max(), normals=normals)


def random_cameras(count: int, generator: torch.Generator, device: torch.device) -> Cameras:
    """Cameras of the prior: fovy 40 degrees, the unit sphere fills 0.82 to 1.05 of the frame."""
    azimuth = (torch.arange(count) + torch.rand(count, generator=generator)) / count * 2 * math.pi
    low = torch.empty(count).uniform_(-12.0, 48.0, generator=generator)
    high = torch.empty(count).uniform_(48.0, 85.0, generator=generator)
    elevation = torch.where(torch.rand(count, generator=generator) < 0.12, high, low).deg2rad()
    fovy = torch.full((count,), FOVY_DEGREES).deg2rad()
    fill = torch.empty(count).uniform_(0.82, 1.05, generator=generator)
    return orbit(azimuth, elevation, fill_distance(fovy, fill), fovy).to(device)


def sample(model: Model, material: Int[Tensor, " P"], uv: Float[Tensor, "P 2"]) -> Float[Tensor, "P 4"]:
    """Bilinear texture lookup with wrap-around; plain colour where the material has no texture."""
    offset, height, width = model.material_texture[material].unbind(-1)
    x = uv[:, 0] * width - 0.5
    y = (1 - uv[:, 1]) * height - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    base = offset.clamp(min=0)

    def texel(dx: int, dy: int) -> Tensor:
        column = (x0.long() + dx) % width
        row = (y0.long() + dy) % height
        return model.texels[base + row * width + column]

    top = texel(0, 0) * (1 - fx) + texel(1, 0) * fx
    bottom = texel(0, 1) * (1 - fx) + texel(1, 1) * fx
    textured = top * (1 - fy) + bottom * fy
    return torch.where((offset >= 0)[:, None], textured, model.material_color[material])


@dataclass(frozen=True)
class Layer:
    """One visible layer at covered pixels: where it is and what lies there."""

    pixel: Int[Tensor, " P"]  # flat index into B x H x W
    depth: Float[Tensor, " P"]
    material: Int[Tensor, " P"]
    color: Float[Tensor, "P 4"]
    normal: Float[Tensor, "P 3"]
    point: Float[Tensor, "P 3"]


@dataclass(frozen=True)
class Recolor:
    """Recolour these materials with one sRGB colour, as wood if `grain`."""

    materials: Int[Tensor, " K"]
    rgb: tuple[float, float, float]
    grain: bool


def _layer(
    model: Model, faces: Int[Tensor, " S"], cameras: Cameras, resolution: int, rasterizer: Rasterizer
) -> Layer:
    """Rasterise a subset of the faces and look up what is seen."""
    homogeneous = torch.nn.functional.pad(model.vertices, (0, 1), value=1.0)
    clip = homogeneous @ cameras.clip_from_world.transpose(1, 2)
    fragments = rasterizer.rasterize(clip, model.faces[faces], (resolution, resolution)).data.reshape(-1, 4)
    pixel = torch.nonzero(fragments[:, 3] > 0)[:, 0]
    hit = fragments[pixel]
    face = faces[hit[:, 3].long() - 1]
    weights = torch.stack([hit[:, 0], hit[:, 1], 1 - hit[:, 0] - hit[:, 1]], -1)[..., None]
    normal = torch.nn.functional.normalize((model.normals[face] * weights).sum(1), dim=-1)
    material = model.face_material[face]
    color = sample(model, material, (model.uv[face] * weights).sum(1))
    view = pixel // resolution**2
    point = (model.vertices[model.faces[face].long()] * weights).sum(1)
    facing = ((cameras.position[view] - point) * normal).sum(-1, keepdim=True)
    return Layer(pixel, hit[:, 2], material, color, torch.where(facing < 0, -normal, normal), point)


def wood_grain(point: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
    """Brightness of growth rings around an axis outside the object, wavy along it; mean about 1."""
    x, y, z = point.unbind(-1)
    radius = torch.sqrt((x + 1.3) ** 2 + (z - 0.8 + 0.1 * torch.sin(2.1 * y)) ** 2)
    rings = torch.sin(38.0 * radius + 1.5 * torch.sin(5.0 * y + 3.0 * x))
    return 1.0 + 0.28 * rings + 0.08 * torch.sin(91.0 * radius + 17.0 * y)


def recolored(layer: Layer, model: Model, paint: Recolor | None) -> Float[Tensor, "P 4"]:
    """Colours of a layer; recoloured materials keep their relative brightness (texture, wear)."""
    if paint is None:
        return layer.color
    luminance = (layer.color[:, :3] ** 2.2 * layer.color.new_tensor([0.2126, 0.7152, 0.0722])).sum(-1)
    count = len(model.material_color)
    total = torch.zeros(count, device=luminance.device).index_add_(0, layer.material, luminance)
    number = torch.zeros_like(total).index_add_(0, layer.material, torch.ones_like(luminance))
    relative = luminance / (total / number.clamp(min=1)).clamp(min=1e-4)[layer.material]
    relative = relative.clamp(0.2, 3.0) ** 0.6
    if paint.grain:
        relative = relative * wood_grain(layer.point)
    goal = layer.color.new_tensor(paint.rgb) ** 2.2
    painted = (goal * relative[:, None]).clamp(0, 1) ** (1 / 2.2)
    chosen = torch.isin(layer.material, paint.materials)[:, None]
    return torch.cat([torch.where(chosen, painted, layer.color[:, :3]), layer.color[:, 3:]], -1)


def _composite(
    layers: list[Layer], colors: list[Tensor], cameras: Cameras, resolution: int
) -> Float[Tensor, "B H W 4"]:
    """Sort the layers of every pixel by depth and blend them front to back; premultiplied RGBA."""
    pixels = len(cameras) * resolution**2
    device = layers[0].depth.device
    depth = torch.full((len(layers), pixels), torch.inf, device=device)
    rgba = torch.zeros(len(layers), pixels, 4, device=device)
    for k, (layer, color) in enumerate(zip(layers, colors, strict=True)):
        depth[k, layer.pixel] = layer.depth
        rgba[k, layer.pixel] = color
    order = depth.argsort(0)
    rgba = rgba.gather(0, order[..., None].expand_as(rgba))
    out = torch.zeros(pixels, 4, device=device)
    for k in range(len(layers)):
        alpha = rgba[k, :, 3:]
        front = torch.cat([rgba[k, :, :3] * alpha, alpha], -1)
        out = out + (1 - out[:, 3:]) * front
    return out.reshape(len(cameras), resolution, resolution, 4)


@torch.no_grad()
def render_model(
    model: Model,
    cameras: Cameras,
    resolution: int,
    rasterizer: Rasterizer,
    recolors: list[Recolor | None],
    generator: torch.Generator,
) -> UInt8[Tensor, "N B H W 4"]:
    """Render every colour variant from every camera, supersampled twice, premultiplied sRGB with alpha."""
    alpha_texture = model.texels[1:, 3].min() < 0.9 if len(model.texels) > 1 else False
    transparent = model.material_color[:, 3] < 0.98
    if alpha_texture:
        transparent = transparent | (model.material_texture[:, 0] >= 0)
    see_through = transparent[model.face_material] & (model.material_color[model.face_material, 3] > 0.02)
    opaque = ~transparent[model.face_material]
    groups = [torch.nonzero(opaque)[:, 0]] if opaque.any() else []
    clear = torch.nonzero(see_through)[:, 0]
    if len(clear):
        # leaf cards come as runs of a few faces: keep runs of 8 together so that a card is not torn apart
        runs = torch.randint(TRANSPARENT_LAYERS, (len(clear) // 8 + 1,), generator=generator).to(clear.device)
        label = runs.repeat_interleave(8)[: len(clear)]
        groups += [clear[label == k] for k in range(TRANSPARENT_LAYERS) if (label == k).any()]
    fine = 2 * resolution
    layers = [_layer(model, group, cameras, fine, rasterizer) for group in groups]
    key, images = key_direction(cameras), []
    for paint in recolors:
        colors = []
        for layer in layers:
            painted = recolored(layer, model, paint)
            view = layer.pixel // fine**2
            rgb = shade(painted[:, :3], layer.normal, key[view])
            colors.append(torch.cat([rgb, painted[:, 3:]], -1))
        image = _composite(layers, colors, cameras, fine)
        small = torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        images.append((small * 255 + 0.5).to(torch.uint8))
    return torch.stack(images)


@torch.no_grad()
def nearest_depth(
    model: Model, cameras: Cameras, resolution: int, rasterizer: Rasterizer
) -> Float[Tensor, "B H W 1"]:
    """Distance along the view axis of the nearest face that is not quite transparent, 0 without one."""
    shown = torch.nonzero(model.material_color[model.face_material, 3] > 0.02)[:, 0]
    layer = _layer(model, shown, cameras, resolution, rasterizer)
    view = layer.pixel // resolution**2
    rows = cameras.camera_from_world[view, 2]
    depth = torch.zeros(len(cameras) * resolution**2, device=layer.point.device)
    depth[layer.pixel] = -((rows[:, :3] * layer.point).sum(-1) + rows[:, 3])
    return depth.reshape(len(cameras), resolution, resolution, 1)
