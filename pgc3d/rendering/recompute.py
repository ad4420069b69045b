"""Renders whose activations are computed again in the backward pass: one view's are held at a time."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from pgc3d.shard import Shard
from pgc3d.types import Rendering, Step, Views

Render = Callable[[Views, Step | None], Rendering]


def render_step(render: Render, views: Views, step: Step | None, *, again: bool) -> Rendering:
    """The rendering of a step, with gradients, or of an evaluation (None), without.

    Args:
        render: deterministic for given views and step; a view's image depends on no other view.
        views: of this process.
        step: that was begun, within an objective or for views of this process alone.
        again: render each view once more in the backward pass. The images and gradients are the same, and
            only images are held while a guidance model evaluates them.
    """
    with torch.set_grad_enabled(step is not None and torch.is_grad_enabled()):
        if step is None or not (again and torch.is_grad_enabled()):
            return render(views, step)
        return _one_by_one(
            partial(checkpoint, render, use_reentrant=False, preserve_rng_state=False), views, step
        )


def _one_by_one(render: Render, views: Views, step: Step) -> Rendering:
    total, own = (step.views, step.shard.rows(step.views)) if step.views else (len(views), slice(0, None))
    parts = []
    for index in range(len(views)):
        row = slice(index, index + 1)
        place = Shard(rank=own.start + index, size=total)  # the view's own random numbers
        alone = replace(step, views=total, shard=place)
        parts.append(render(Views(views.cameras[row], views.background[row]), alone))
    return _together(parts)


def _together(parts: Sequence[Rendering]) -> Rendering:
    """The renderings of single views as one; complete where all are."""
    complete = [part.complete for part in parts if part.complete is not None]
    images = [item.name for item in fields(Rendering) if item.name != "complete"]
    return Rendering(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in images},
        complete=torch.stack(complete).all() if complete else None,
    )
