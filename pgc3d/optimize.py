"""One optimisation step and the loop around it, written against the protocols of `interfaces` alone.

The host synchronises with the device at the log interval only: measurements stay tensors, times are device
events, and the fused optimiser skips a step with a non-finite gradient on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from pgc3d import pgc
from pgc3d.backgrounds import Background, draw_backgrounds, put_behind
from pgc3d.cameras import CameraSampler
from pgc3d.errors import DivergedError
from pgc3d.images import resize
from pgc3d.interfaces import Clipper, Guidance, Representation, SupportsLatents
from pgc3d.schedules import PiecewiseLinear
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import Rendering, Step, Views

ParameterClipper = Callable[[Sequence[Tensor]], Any]
Schedule = Callable[[float], float]  # a positive number over progress
_ONE = PiecewiseLinear((1.0,))
Roots = list[tuple[Tensor, Tensor]]  # tensors to backpropagate from, each with its gradient


@dataclass(frozen=True)
class Objective:
    """One term of the loss: its cameras, its guidance, and the clipping rule and weight of its gradient."""

    sample_cameras: CameraSampler
    guidance: Guidance
    clip: Clipper
    backgrounds: tuple[Background, ...]  # one is drawn for every view
    weight: Schedule = _ONE  # of the gradient, after clipping
    threshold_scale: Schedule = _ONE  # of the threshold: of the scale at which the rule clips the gradient
    target: Literal["color", "normal"] = "color"  # the buffer that the guidance evaluates


@dataclass(frozen=True)
class Problem:
    """A representation, and the objectives that it is optimised for."""

    representation: Representation
    objectives: Mapping[str, Objective]
    clip_parameters: ParameterClipper | None = None  # in place, on whole parameters, after all objectives
    lr_scale: Schedule = _ONE  # for all groups


@dataclass(frozen=True)
class StepOutput:
    """The measurements of one step: scalar tensors on the device."""

    metrics: Mapping[str, Float[Tensor, ""]]
    finite: Bool[Tensor, ""]  # False: the step was skipped


@dataclass(frozen=True)
class StepReport:
    """The state between two steps."""

    step: int  # number of steps that are done
    steps: int  # of the stage
    metrics: Mapping[str, float] | None = None  # at the log interval only


def _backpropagate(roots: Roots, *, again: bool) -> None:
    """Add gradients to the parameters; `again` keeps the graph, for the other objectives of the step."""
    roots = [(root, gradient) for root, gradient in roots if root.requires_grad]
    if roots:
        tensors, gradients = zip(*roots, strict=True)
        torch.autograd.backward(tensors, gradients, retain_graph=again)


def evaluate(
    representation: Representation,
    objective: Objective,
    step: Step,
    *,
    resolution: int,
    stopwatch: Stopwatch,
    percentiles: bool = False,
) -> tuple[Roots, dict[str, Float[Tensor, ""]]]:
    """Render one objective's views and compute its clipped gradients.

    The guidance evaluates the image at its own resolution, and the gradient is clipped there, so that a
    threshold means the same at every resolution of the rendering: that of the model's images, or of its
    latents where it evaluates renderings as latents, whose four channels are clipped as one vector. Only
    pixels that show the object are clipped and counted: the others have no gradient with respect to a
    parameter.

    Args:
        representation: what is rendered.
        objective: cameras, guidance, clipping rule and weight.
        step: the step that was begun, with the scope of the objective.
        resolution: side of the square renderings in pixels.
        stopwatch: adds up the times of the parts.
        percentiles: also measure the percentiles of the pixel gradients.

    Returns:
        The tensors to backpropagate from with their gradients, and the measurements, as scalars.
    """
    with stopwatch.part("cameras"):
        cameras = objective.sample_cameras(step)
        background, backdrops = draw_backgrounds(
            objective.backgrounds, len(cameras), step.generator("backgrounds"), cameras.azimuth.device
        )
        views = Views(cameras, background)
    with stopwatch.part("render"):
        rendering = put_behind(representation.render(views, resolution, step), backdrops)
        side = objective.guidance.input_resolution(resolution)
        image = resize(evaluated_image(rendering, objective), side)
        inside = visible_pixels(rendering.alpha, side)
    with stopwatch.part("guidance"):
        output = objective.guidance(image.detach(), rendering, views, step)
    with stopwatch.part("backward"):
        gradient = torch.where(inside, output.gradient, 0.0)
        weight, scale = objective.weight(step.progress), objective.threshold_scale(step.progress)
        clipped = objective.clip(gradient / scale) * scale
        roots = [(image, weight * clipped)]
        roots += [(getattr(rendering, buffer), weight * values) for buffer, values in output.buffers.items()]
    with stopwatch.part("metrics"):
        measured = pgc.statistics(gradient, clipped, percentiles=percentiles, mask=inside)
        measured["coverage"] = rendering.alpha.detach().mean()
    if rendering.complete is not None:
        measured["complete"] = rendering.complete.float()
    return roots, {**output.metrics, **measured}


def evaluated_image(rendering: Rendering, objective: Objective) -> Float[Tensor, "B H W C"]:
    """The rendering's target buffer, or the four channels that a guidance evaluates as latents."""
    image: Tensor = getattr(rendering, objective.target)
    guidance = objective.guidance
    if isinstance(guidance, SupportsLatents) and guidance.as_latent:
        return torch.cat([2.0 * image - 1.0, rendering.alpha], dim=-1)
    return image


def visible_pixels(alpha: Float[Tensor, "B H W 1"], side: int) -> Bool[Tensor, "B S S 1"]:
    """The pixels of images of `side` pixels whose colours depend on the object, its silhouettes included.

    Args:
        alpha: coverage of the rendering in [0, 1]; the pixels beside it count too: antialiasing affects them.
        side: S, in pixels.
    """
    covered = (alpha.detach() > 0).to(alpha.dtype).movedim(-1, 1)
    grown = max_pool2d(covered, 3, stride=1, padding=1).movedim(1, -1)
    return resize(grown, side) > 0


def all_finite(tensors: Sequence[Tensor]) -> Bool[Tensor, ""]:
    """Whether all entries of the tensors are finite, as a scalar on their device."""
    return torch.isfinite(torch.nn.utils.get_total_norm(tensors, float("inf")))


def _usable(metrics: Mapping[str, Tensor], objective: str) -> Bool[Tensor, ""]:
    """Whether an objective's rendering is complete, and its gradient is finite in at least one pixel.

    A clipping rule replaces non-finite pixels by zeros; with no others left, the step must be skipped.
    """
    finite = metrics[f"{objective}/nonfinite_fraction"] < 1
    complete = metrics.get(f"{objective}/complete")
    return finite if complete is None else finite & (complete > 0)


def optimization_step(
    problem: Problem,
    step: Step,
    *,
    resolution: int,
    stopwatch: Stopwatch | None = None,
    percentiles: bool = False,
) -> StepOutput:
    """Render, evaluate the guidances, clip, backpropagate, and update the parameters.

    A step with a non-finite parameter gradient, or with an incomplete rendering, changes no parameter.

    Args:
        problem: the representation and its objectives.
        step: index of the step, and the source of all random numbers.
        resolution: side of the square renderings in pixels.
        stopwatch: adds up the times of the parts.
        percentiles: also measure the percentiles of the pixel gradients.

    Raises:
        DivergedError: no parameter has a gradient, or the representation lost its surface.
    """
    representation = problem.representation
    store = representation.parameter_store()
    stopwatch = stopwatch or Stopwatch(store.device)
    store.zero_grad()
    metrics: dict[str, Tensor] = {}
    with stopwatch.part("render"):
        representation.begin_step(step)
    pending: Roots = []
    for name, objective in problem.objectives.items():
        with stopwatch.part("backward"):
            _backpropagate(pending, again=True)
        pending, measured = evaluate(
            representation,
            objective,
            step.within(name),
            resolution=resolution,
            stopwatch=stopwatch,
            percentiles=percentiles,
        )
        metrics |= {f"{name}/{key}": value for key, value in measured.items()}
    with stopwatch.part("backward"):
        losses = representation.regularizers(step)
        metrics |= {f"regularizers/{name}": loss.detach() for name, loss in losses.items()}
        pending += [(loss, torch.ones_like(loss)) for loss in losses.values()]
        _backpropagate(pending, again=False)
    with stopwatch.part("optimizer"):
        tensors = store.tensors()
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if not gradients:
            raise DivergedError(
                "the rendering must depend on the parameters, but nothing was visible in any view; lower the "
                "learning rates"
            )
        finite = all_finite(gradients)
        finite = finite & torch.stack([_usable(metrics, name) for name in problem.objectives]).all()
        if problem.clip_parameters is not None:
            problem.clip_parameters(tensors)
        store.step(finite, lr_scale=problem.lr_scale(step.progress))
        representation.end_step(step)
    return StepOutput(metrics=metrics, finite=finite)


@dataclass
class _RunningMeans:
    """Sums of the device scalars since the last log."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: Tensor | None = None
    skipped_in_a_row: Tensor | None = None

    def add(self, output: StepOutput) -> None:
        for key, value in output.metrics.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1
        bad = (~output.finite).float()
        self.skipped = bad if self.skipped is None else self.skipped + bad
        in_a_row = bad if self.skipped_in_a_row is None else (self.skipped_in_a_row + bad) * bad
        self.skipped_in_a_row = in_a_row

    def read(self) -> dict[str, float]:
        """Means since the last read, in one transfer, and the counts of skipped steps so far."""
        if self.skipped is None or self.skipped_in_a_row is None:
            return {}
        means = [total.float() / self.counts[key] for key, total in self.sums.items()]
        numbers = torch.stack([*means, self.skipped, self.skipped_in_a_row]).tolist()
        names = [*self.sums, "skipped_steps", "skipped_in_a_row"]
        self.sums.clear()
        self.counts.clear()
        return dict(zip(names, numbers, strict=True))


def optimize(
    problem: Problem,
    *,
    steps: int,
    resolution_at: Callable[[float], int],
    start: int = 0,
    seed: int = 0,
    stage: str = "main",
    log_every: int = 10,
    max_skipped: int = 20,
) -> Iterator[StepReport]:
    """Run steps and yield a report after each one.

    Args:
        problem: the representation and its objectives.
        steps: number of steps of the stage.
        resolution_at: side of the renders in pixels, from the progress in [0, 1].
        start: number of steps that are done already.
        seed: of all random numbers.
        stage: name of the stage, by which its random numbers differ from those of others.
        log_every: steps between two reports with metrics: means over them, and `seconds/PART` per step.
        max_skipped: non-finite steps in a row that end the run; checked when logging.

    Raises:
        DivergedError: too many steps in a row had no finite gradient, or the representation lost its surface.
            The parameters are those of the last step that was not skipped.
    """
    stopwatch = Stopwatch(problem.representation.parameter_store().device)
    means, logged = _RunningMeans(), start
    for index in range(start, steps):
        step = Step(index=index, total=steps, seed=seed, stage=stage)
        log = (index + 1) % log_every == 0 or index + 1 == steps
        resolution = resolution_at(step.progress)
        means.add(
            optimization_step(problem, step, resolution=resolution, stopwatch=stopwatch, percentiles=log)
        )
        metrics = None
        if log:
            seconds = {name: total / (index + 1 - logged) for name, total in stopwatch.read().items()}
            metrics = means.read() | {f"seconds/{name}": value for name, value in seconds.items()}
            logged = index + 1
            _require_finite(metrics["skipped_in_a_row"], max_skipped, index + 1)
        yield StepReport(step=index + 1, steps=steps, metrics=metrics)


def _require_finite(skipped: float, limit: int, step: int) -> None:
    if skipped >= limit:
        raise DivergedError(
            f"gradients must be finite, but the last {skipped:.0f} steps up to step {step} had none; "
            "lower the learning rates or the objective's weight"
        )
