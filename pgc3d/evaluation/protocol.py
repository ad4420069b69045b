"""The protocol of a comparison: cameras, numbers of points, thresholds, normalisation; and its metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.cameras import fill_distance, orbit, reference_view
from pgc3d.choices import Frame
from pgc3d.errors import InputError
from pgc3d.evaluation.alignment import align, normalize_mesh
from pgc3d.evaluation.image_metrics import mask_iou, normal_angle, ssim
from pgc3d.evaluation.perceptual import EncoderDistance
from pgc3d.evaluation.render import render_views
from pgc3d.evaluation.shape_metrics import (
    chamfer_distance,
    f_score,
    nearest_distances,
    visible_points,
    volume_iou,
)
from pgc3d.geometry.sampling import sample_surface
from pgc3d.images import psnr
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.types import Cameras, Rendering
from pgc3d.view_config import ViewConfig

Alignment = Literal["none", "rotation"]


@dataclass(frozen=True)
class Protocol:
    """How a result is compared with the truth.

    The truth is normalised: bounding box centred, farthest vertex at radius 1. With the frame `own` the
    result is normalised by itself, so that errors of position and scale do not count; with the frame `shared`
    it is transformed like the truth, so that they do, which needs a result and a truth in one frame. Lengths
    are in radii of the truth; numbers in units of the bounding box are about half as large. The novel views
    are SyncDreamer's (Liu et al. 2023): an orbit of 16 at 30 degrees, 256 px, white. Points of the whole
    surface are area-weighted; points of the visible surface are hits of cameras all around the object.
    """

    views: int = 16
    elevation_degrees: float = 30.0
    resolution: int = 256
    fovy_degrees: float = 40.0
    fill: float = 0.95
    points: int = 16384
    surface_views: int = 32
    thresholds: tuple[float, float] = (0.05, 0.1)  # radii, of the F-score
    grid: int = 64  # voxels a side, of the volume IoU
    alignment: Alignment = "none"  # rotation: for results of arbitrary orientation
    frame: Frame = "own"
    seed: int = 0  # of the points

    def __post_init__(self) -> None:
        for name, least in (
            ("views", 1),
            ("resolution", 16),
            ("points", 1),
            ("surface_views", 1),
            ("grid", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.resolution % 8:
            raise ValueError(f"resolution must be a multiple of 8, got {self.resolution}")
        if not -89.0 <= self.elevation_degrees <= 89.0:
            raise ValueError(f"elevation_degrees must lie in [-89, 89], got {self.elevation_degrees}")
        if not 0 < self.thresholds[0] < self.thresholds[1]:
            raise ValueError(f"thresholds must be positive and rise, got {self.thresholds}")
        if self.frame == "shared" and self.alignment != "none":
            raise ValueError(f"alignment must be none in the shared frame, got {self.alignment}")

    def novel_cameras(self) -> Cameras:
        """The cameras of the orbit, starting at azimuth 0."""
        azimuth = torch.arange(self.views) * (2 * math.pi / self.views)
        return self._orbit(azimuth, self.elevation_degrees)

    def input_camera(self, elevation_degrees: float) -> Cameras:
        """A camera in the direction of an image item's input, with the orbit's distance and field of view."""
        return self._orbit(torch.zeros(1), elevation_degrees)

    def _orbit(self, azimuth: Float[Tensor, " B"], elevation_degrees: float) -> Cameras:
        fovy = torch.full_like(azimuth, math.radians(self.fovy_degrees))
        elevation = torch.full_like(azimuth, math.radians(elevation_degrees))
        return orbit(azimuth, elevation, fill_distance(fovy, torch.full_like(azimuth, self.fill)), fovy)


@torch.no_grad()
def compare(
    result: MeshAsset,
    truth: MeshAsset,
    protocol: Protocol,
    *,
    rasterizer: Rasterizer,
    distance: EncoderDistance,
    device: torch.device,
    input_elevation_degrees: float | None = None,
) -> dict[str, float]:
    """All metrics of a result against its truth by name; a mesh against itself has the best value of each.

    `psnr`, `ssim`, `mask_iou`, `vae_distance`, `normal_degrees` are means over the novel views; `input_psnr`,
    `input_ssim`, `input_mask_iou` belong to the input's direction, where there is one, and in the shared
    frame to the input's camera; `chamfer`, `f_score_T`, `volume_iou` to the whole surface, `visible_chamfer`,
    `visible_f_score_T` to the part that is visible from outside. `rotation_degrees` is the angle of the
    alignment's rotation.

    Args:
        result: the mesh to measure, on the CPU.
        truth: the mesh to compare with.
        protocol: see there.
        rasterizer: on `device`.
        distance: the perceptual distance.
        device: where views are rendered and distances computed.
        input_elevation_degrees: of an image item's input camera, None for a text item.

    Raises:
        InputError: a mesh has no extent, or its vertices are not finite.
    """
    given, shared = (result, truth), protocol.frame == "shared"
    result = normalize_mesh(result, like=truth if shared else None)
    truth = normalize_mesh(truth)
    turned = {}
    if protocol.alignment == "rotation":
        result, rotation = align(result, truth, seed=protocol.seed)
        cosine = ((rotation.trace() - 1) / 2).clamp(-1, 1)
        turned = {"rotation_degrees": math.degrees(torch.acos(cosine).item())}

    def render_pair(pair: tuple[MeshAsset, MeshAsset], cameras: Cameras) -> tuple[Rendering, Rendering]:
        views = cameras.to(device)
        size = protocol.resolution
        return (
            render_views(pair[0], views, size, rasterizer=rasterizer),
            render_views(pair[1], views, size, rasterizer=rasterizer),
        )

    metrics = _novel_view_metrics(*render_pair((result, truth), protocol.novel_cameras()), distance)
    if input_elevation_degrees is not None:
        view = ViewConfig(elevation_degrees=input_elevation_degrees)
        input_metrics = _image_metrics(
            *render_pair(given, reference_view(view))
            if shared
            else render_pair((result, truth), protocol.input_camera(input_elevation_degrees))
        )
        metrics |= {f"input_{name}": value for name, value in input_metrics.items()}
    surfaces = [(mesh.vertices.to(device), mesh.faces.to(device)) for mesh in (result, truth)]
    metrics |= _surface_metrics(surfaces, protocol, rasterizer)
    metrics["volume_iou"] = volume_iou(surfaces[0], surfaces[1], resolution=protocol.grid)
    return metrics | turned


def _image_metrics(result: Rendering, truth: Rendering) -> dict[str, float]:
    return {
        "psnr": psnr(result.color, truth.color).mean().item(),
        "ssim": ssim(result.color, truth.color).mean().item(),
        "mask_iou": mask_iou(result.alpha, truth.alpha).mean().item(),
    }


def _novel_view_metrics(result: Rendering, truth: Rendering, distance: EncoderDistance) -> dict[str, float]:
    angle = normal_angle(result.normal, truth.normal, result.alpha, truth.alpha)
    return _image_metrics(result, truth) | {
        "vae_distance": distance(result.color, truth.color).mean().item(),
        "normal_degrees": angle.item(),
    }


def _surface_metrics(
    surfaces: list[tuple[Tensor, Tensor]], protocol: Protocol, rasterizer: Rasterizer
) -> Mapping[str, float]:
    """Both surfaces are sampled with the same seed, so that the distance of a mesh to itself is zero."""
    metrics = {}
    for part in ("", "visible_"):
        clouds = []
        for vertices, faces in surfaces:
            generator = torch.Generator().manual_seed(protocol.seed)
            if part:
                points = visible_points(
                    vertices, faces, views=protocol.surface_views, count=protocol.points,
                    generator=generator, rasterizer=rasterizer,
                )  # fmt: skip
            else:
                points = _whole_surface(vertices, faces, protocol.points, generator)
            clouds.append(points)
        if not all(len(points) for points in clouds):
            raise InputError("a mesh to be compared must be visible, got nothing from any side")
        forward, backward = nearest_distances(*clouds)
        metrics[f"{part}chamfer"] = chamfer_distance(forward, backward)
        for threshold in protocol.thresholds:
            metrics[f"{part}f_score_{threshold:g}"] = f_score(forward, backward, threshold)
    return metrics


def _whole_surface(vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator) -> Tensor:
    try:
        return sample_surface(vertices, faces, count, generator)[0]
    except ValueError as error:
        raise InputError(f"a mesh to be compared must be usable, but {error}") from error
