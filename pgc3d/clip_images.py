"""Images of what clipping does to each pixel of a step: the gradient's length, and the removed part of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pgc3d.disk import replace_file
from pgc3d.images import encode_png, resize, to_bytes
from pgc3d.interfaces import Clipper
from pgc3d.optimize import Objective
from pgc3d.pgc import BatchRule, Rows

VIEWS = 4  # of a step, at most
SIDE = 256  # of a view in pixels, at most
DECADES = 3.0  # of the gradient's length, from black to white


class RecordedClip:
    """A clipping rule that keeps its argument and its result while it is armed."""

    def __init__(self, clip: Clipper) -> None:
        self.clip = clip
        self.armed = False
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, gradient: Float[Tensor, "*B H W C"], /) -> Float[Tensor, "*B H W C"]:
        """The clipped gradient."""
        return self._kept(gradient, self.clip(gradient))

    def clip_rows(self, gradient: Float[Tensor, "b H W C"], rows: Rows) -> Float[Tensor, "b H W C"]:
        """See `pgc.BatchRule`; only the images of this process are kept."""
        rule = self.clip
        return self._kept(
            gradient, rule.clip_rows(gradient, rows) if isinstance(rule, BatchRule) else rule(gradient)
        )

    def _kept(self, gradient: Tensor, clipped: Tensor) -> Tensor:
        if self.armed and len(gradient):  # a process may have none of a step's views
            self.kept = gradient.detach(), clipped.detach()
        return clipped


class ClipImages:
    """Writes such images of the steps that have a preview; between them nothing is kept."""

    def __init__(self, objectives: Mapping[str, Objective], due: Callable[[int], bool]) -> None:
        """Record the clips of a stage's objectives.

        Args:
            objectives: `objectives` of the object are the same with clips that record.
            due: whether a step, by its number from 1, has an image.
        """
        self._clips = {name: RecordedClip(objective.clip) for name, objective in objectives.items()}
        self.objectives = {name: replace(one, clip=self._clips[name]) for name, one in objectives.items()}
        self._due = due

    def begin(self, step: int) -> None:
        """Keep the gradients of a step, by its number from 1, where it is to have an image."""
        armed = self._due(step)
        for clip in self._clips.values():
            clip.armed, clip.kept = armed, None

    def write(self, path: Path) -> bool:
        """Write the image of the last step as a PNG; returns whether there is one."""
        kept = {name: clip.kept for name, clip in self._clips.items() if clip.kept is not None}
        if kept:
            replace_file(path, encode_png(draw(kept)))
        return bool(kept)


def draw(
    kept: Mapping[str, tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W C"]]],
) -> UInt8[Tensor, "H2 W2 3"]:
    """Two rows for each objective, with up to `VIEWS` views side by side.

    The first row is the length of the gradient before clipping on a logarithmic scale, from black at a
    thousandth of the largest one of the step to white. The second is the part of the length that clipping
    removes, from black for none to white for all.

    Args:
        kept: gradients [B, H, W, C] before and after clipping, by objective.
    """
    rows = [row for before, after in kept.values() for row in _rows(before[:VIEWS], after[:VIEWS])]
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows]
    return torch.cat(padded)


def _rows(
    before: Float[Tensor, "B H W C"], after: Float[Tensor, "B H W C"]
) -> tuple[UInt8[Tensor, "h w 3"], UInt8[Tensor, "h w 3"]]:
    length, left = (torch.nan_to_num(value.float().norm(dim=-1), 0.0, 0.0, 0.0) for value in (before, after))
    relative = length / length.max().clamp_min(1e-30)
    scaled = 1.0 + torch.log10(relative.clamp_min(10.0**-DECADES)) / DECADES
    removed = torch.where(length > 0, 1.0 - left / length.clamp_min(1e-30), 0.0).clamp(0.0, 1.0)
    return _colored(scaled), _colored(removed)


def _colored(values: Float[Tensor, "B H W"]) -> UInt8[Tensor, "h w 3"]:
    """The values in [0, 1] of all views side by side, from black over red and yellow to white."""
    side = min(values.shape[1], SIDE)
    shrunk = resize(values[..., None], side)[..., 0]
    color = torch.stack([3.0 * shrunk, 3.0 * shrunk - 1.0, 3.0 * shrunk - 2.0], dim=-1).clamp(0.0, 1.0)
    return torch.cat(list(to_bytes(color).cpu()), dim=1)
