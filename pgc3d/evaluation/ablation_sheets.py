"""Image sheets of the two-dimensional experiment: images and gradient magnitudes of each rule."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pgc3d.disk import writing
from pgc3d.exporting.turntable import tile
from pgc3d.images import encode_png, to_bytes

COLUMNS = 6  # images of each rule in the strip
CELL = 192  # pixels, the least side of an image on a sheet
HEAT = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # dark to light, sRGB


@dataclass(frozen=True)
class Heatmap:
    """Magnitude (largest channel) of the gradient at every pixel or latent of an optimised image."""

    last: Float[Tensor, "H W"]  # at the last step, before clipping
    last_clipped: Float[Tensor, "H W"]
    mean: Float[Tensor, "H W"]  # over the steps, before clipping
    mean_clipped: Float[Tensor, "H W"]
    bound: Float[Tensor, "H W"]  # fraction of the steps in which clipping changed it


@dataclass(frozen=True)
class RuleResult:
    """The images, gradients and metrics of one clipping rule."""

    images: list[Float[Tensor, "1 H W 3"]]  # at the steps of `columns`; the last one is the result
    heat: Heatmap
    metrics: Mapping[str, float]


def columns(steps: int) -> list[int]:
    """The steps of a strip's images, evenly spaced, the last step included."""
    return sorted({max(1, round(steps * (k + 1) / COLUMNS)) for k in range(COLUMNS)})


def result_images(out: Path, results: Mapping[str, RuleResult], steps: int) -> dict[Path, bytes]:
    """The sheets and the final images as PNG by path; creates the folder of the final images."""
    final = out / "final"
    with writing(final):
        final.mkdir()
    files = {out / "strip.png": _strip(results, steps), out / "gradients.png": _heat_sheet(results)}
    files |= {final / f"{_slug(rule)}.png": to_bytes(item.images[-1][0]) for rule, item in results.items()}
    return {path: encode_png(image) for path, image in files.items()}


def _slug(rule: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", rule)


def _strip(results: Mapping[str, RuleResult], steps: int) -> UInt8[Tensor, "H W 3"]:
    shown = columns(steps)
    cells = [enlarge(to_bytes(image[0])) for item in results.values() for image in item.images]
    return tile(cells, len(shown), [f"{rule}, step {step}" for rule in results for step in shown])


def _heat_sheet(results: Mapping[str, RuleResult]) -> UInt8[Tensor, "H W 3"]:
    """All magnitudes on one scale, to be comparable: white is the 99.5th percentile of the means."""
    means = torch.cat([item.heat.mean.flatten() for item in results.values()])
    ceiling = max(means[:: -(-len(means) // (1 << 20))].quantile(0.995).item(), 1e-12)
    cells, labels = [], []
    for rule, item in results.items():
        heat = item.heat
        maps = {
            "last step": heat.last / ceiling,
            "last step, clipped": heat.last_clipped / ceiling,
            f"mean, white = {ceiling:.2g}": heat.mean / ceiling,
            "mean, clipped": heat.mean_clipped / ceiling,
            "fraction of steps clipped": heat.bound,
        }
        cells += [enlarge(to_bytes(heat_colors(values))) for values in maps.values()]
        labels += [f"{rule}: {name}" for name in maps]
    return tile(cells, len(labels) // len(results), labels)


def heat_colors(values: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Colours of a map in sRGB: 0 is black, then violet, red and yellow, 1 nearly white; clamped outside."""
    stops = torch.tensor(HEAT, device=values.device) / 255
    position = values.clamp(0, 1) * (len(HEAT) - 1)
    index = position.floor().long().clamp(max=len(HEAT) - 2)
    return torch.lerp(stops[index], stops[index + 1], (position - index)[..., None])


def enlarge(image: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H2 W2 3"]:
    """The image with pixels repeated (nearest neighbour) until a side has at least `CELL`."""
    factor = max(1, -(-CELL // image.shape[0]))
    return image.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
