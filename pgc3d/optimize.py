"""One optimisation step and the loop around it, written against the protocols of `interfaces` alone.

The host synchronises with the device at the log interval only: measurements stay tensors, times are device
events, and the fused optimiser skips a step with a non-finite gradient on the device.

Where several processes make a run, each computes its rows of every objective's views, and the first one the
regularisers; gradients and whether they can be used are summed over all of them before the optimiser's step.

Guidances on another device than the representation's are begun first, and their gradients are fetched last:
between them the other guidances are queued, so that the devices work at the same time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from pgc3d import pgc
from pgc3d.backgrounds import Background, draw_backgrounds, put_behind
from pgc3d.cameras import CameraSampler
from pgc3d.devices import constant_on, current, output_on, views_on
from pgc3d.errors import DivergedError
from pgc3d.images import resize
from pgc3d.interfaces import Clipper, Guidance, Representation, SupportsLatents, TrainsOnViews
from pgc3d.measurements import VIEWS, RunningMeans, all_finite, are_usable, findings_of, of_all
from pgc3d.parallel import ALONE, Processes
from pgc3d.schedules import PiecewiseLinear
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import GuidanceOutput, Rendering, Step, Views

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
    device: torch.device | None = None  # of the guidance; None: the representation's


@dataclass(frozen=True)
class Evaluation:
    """One objective's views in a step, whose guidance was queued on its device."""

    objective: Objective
    step: Step
    rendering: Rendering
    image: Float[Tensor, "B H W C"]
    inside: Bool[Tensor, "B H W 1"]  # see `visible_pixels`
    output: GuidanceOutput  # on the guidance's device


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

    metrics: Mapping[str, Float[Tensor, ""]]  # of this process's views
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


def begin(
    representation: Representation,
    objective: Objective,
    step: Step,
    *,
    resolution: int,
    stopwatch: Stopwatch,
) -> Evaluation | None:
    """Render one objective's views and queue its guidance; None where this process has none of the views.

    The guidance evaluates the image at its own resolution, on its own device.

    Where several processes share the views, a rule that looks beyond a pixel has those of all of them.

    Args:
        representation: what is rendered.
        objective: cameras, guidance, clipping rule and weight.
        step: the step that was begun, with the scope of the objective.
        resolution: side of the square renderings in pixels.
        stopwatch: adds up the times of the parts.
    """
    with stopwatch.part("cameras"):
        cameras = objective.sample_cameras(step)
        step = replace(step, views=len(cameras))
        background, backdrops = draw_backgrounds(
            objective.backgrounds, len(cameras), step.generator("backgrounds"), cameras.azimuth.device
        )
        views = Views(cameras, background)
        if step.shard.size > 1:
            own = step.shard.rows(len(cameras))
            views, backdrops = Views(cameras[own], background[own]), backdrops[own]
    if not len(views):
        _take_part(objective, step, resolution, background)
        return None
    with stopwatch.part("render"):
        rendering = put_behind(representation.render(views, resolution, step), backdrops)
        side = objective.guidance.input_resolution(resolution)
        image = resize(evaluated_image(rendering, objective), side)
        inside = visible_pixels(rendering.alpha, side)
    with stopwatch.part("guidance"):
        output = _guided(objective, image.detach(), rendering, views, step)
    return Evaluation(objective, step, rendering, image, inside, output)


def _guided(
    objective: Objective, image: Float[Tensor, "B H W C"], rendering: Rendering, views: Views, step: Step
) -> GuidanceOutput:
    """The output of the guidance, computed on its device."""
    device = objective.device
    if device is None:
        return objective.guidance(image, rendering, views, step)
    with current(device):
        return objective.guidance(
            image.to(device), constant_on(device, rendering), views_on(device, views), step
        )


def finish(
    evaluation: Evaluation | None, stopwatch: Stopwatch, *, percentiles: bool = False
) -> tuple[Roots, dict[str, Float[Tensor, ""]]]:
    """The clipped gradients of an objective.

    The gradient is clipped at the resolution of the guidance's image, so that a threshold means the same at
    every resolution of the rendering: that of the model's images, or of its latents where it evaluates
    renderings as latents, whose four channels are clipped as one vector. Only pixels that show the object are
    clipped and counted: the others have no gradient with respect to a parameter.

    Args:
        evaluation: that was begun; None where this process has none of the views.
        stopwatch: adds up the times of the parts.
        percentiles: also measure the percentiles of the pixel gradients.

    Returns:
        The tensors to backpropagate from with their gradients, and the measurements, as scalars; both are
        empty where this process has none of the views.
    """
    if evaluation is None:
        return [], {}
    objective, step, rendering = evaluation.objective, evaluation.step, evaluation.rendering
    image, inside, output = evaluation.image, evaluation.inside, evaluation.output
    if objective.device is not None:
        with stopwatch.part("guidance"):
            output = output_on(image.device, output)
    with stopwatch.part("backward"):
        gradient = torch.where(inside, output.gradient, 0.0)
        weight, scale = objective.weight(step.progress), objective.threshold_scale(step.progress)
        clipped = _clip(objective, gradient / scale, step) * scale
        roots = [(image, weight * clipped)]
        roots += [(getattr(rendering, buffer), weight * values) for buffer, values in output.buffers.items()]
    with stopwatch.part("metrics"):
        measured = pgc.statistics(gradient, clipped, percentiles=percentiles, mask=inside)
        measured["coverage"] = rendering.alpha.detach().mean()
        if step.shard.size > 1:
            measured[VIEWS] = rendering.alpha.new_full((), len(rendering.alpha))
    if rendering.complete is not None:
        measured["complete"] = rendering.complete.float()
    return roots, {**output.metrics, **measured}


def _clip(objective: Objective, gradient: Float[Tensor, "B H W C"], step: Step) -> Float[Tensor, "B H W C"]:
    """The clipped gradient of this process's views."""
    clip, shard = objective.clip, step.shard
    if shard.size > 1 and isinstance(clip, pgc.BatchRule):
        first = shard.rows(step.views).start
        return clip.clip_rows(gradient, pgc.Rows(first, step.views, shard.sum))
    return clip(gradient)


def _take_part(objective: Objective, step: Step, resolution: int, like: Tensor) -> None:
    """Do what an objective does in all processes, in one that has none of its views."""
    guidance = objective.guidance
    if isinstance(guidance, TrainsOnViews):
        guidance.train_without_views(step)
    latents = isinstance(guidance, SupportsLatents) and guidance.as_latent
    side = guidance.input_resolution(resolution)
    _clip(objective, like.new_zeros(0, side, side, 4 if latents else 3), step)


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


def optimization_step(
    problem: Problem,
    step: Step,
    *,
    resolution: int,
    stopwatch: Stopwatch | None = None,
    percentiles: bool = False,
    processes: Processes = ALONE,
) -> StepOutput:
    """Render, evaluate the guidances, clip, backpropagate, and update the parameters.

    A step with a non-finite parameter gradient, or with an incomplete rendering, changes no parameter.

    Args:
        problem: the representation and its objectives.
        step: index of the step, and the source of all random numbers.
        resolution: side of the square renderings in pixels.
        stopwatch: adds up the times of the parts.
        percentiles: also measure the percentiles of the pixel gradients.
        processes: that make the step together.

    Raises:
        DivergedError: no parameter has a gradient, or the representation lost its surface.
    """
    representation = problem.representation
    store = representation.parameter_store()
    stopwatch = stopwatch or Stopwatch(store.device)
    store.zero_grad()
    metrics: dict[str, Tensor] = {}
    findings = {name: torch.zeros(3, device=store.device) for name in problem.objectives}
    step = replace(step, shard=processes.shard)
    with stopwatch.part("render"):
        representation.begin_step(step)
    steps = {
        name: replace(step.within(name), shard=replace(step.shard, turn=turn))
        for turn, name in enumerate(problem.objectives)
    }
    work = partial(begin, representation, resolution=resolution, stopwatch=stopwatch)
    elsewhere = {
        name: work(objective, steps[name])
        for name, objective in problem.objectives.items()
        if objective.device is not None
    }
    pending: Roots = []
    for name in sorted(problem.objectives, key=elsewhere.__contains__):
        with stopwatch.part("backward"):
            _backpropagate(pending, again=True)
        pending, measured = finish(
            elsewhere.pop(name) if name in elsewhere else work(problem.objectives[name], steps[name]),
            stopwatch,
            percentiles=percentiles,
        )
        metrics |= {f"{name}/{key}": value for key, value in measured.items()}
        if measured:
            findings[name] = findings_of(metrics, name)
    with stopwatch.part("backward"):
        losses = representation.regularizers(step) if processes.leads else {}
        metrics |= {f"regularizers/{name}": loss.detach() for name, loss in losses.items()}
        pending += [(loss, torch.ones_like(loss)) for loss in losses.values()]
        _backpropagate(pending, again=False)
    tensors = store.tensors()
    with stopwatch.part("reduce"):
        found = processes.add_gradients(tensors, torch.cat([*findings.values()])).view(-1, 3)
    with stopwatch.part("optimizer"):
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if not gradients:
            raise DivergedError(
                "the rendering must depend on the parameters, but nothing was visible in any view; lower the "
                "learning rates"
            )
        finite = all_finite(gradients) & are_usable(found)
        if problem.clip_parameters is not None:
            problem.clip_parameters(tensors)
        store.step(finite, lr_scale=problem.lr_scale(step.progress))
        representation.end_step(step)
    return StepOutput(metrics=metrics, finite=finite)


def optimize(  # noqa: PLR0913 - flat on purpose
    problem: Problem,
    *,
    steps: int,
    resolution_at: Callable[[float], int],
    start: int = 0,
    seed: int = 0,
    stage: str = "main",
    log_every: int = 10,
    max_skipped: int = 20,
    processes: Processes = ALONE,
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
        processes: that make the steps together.

    Raises:
        DivergedError: too many steps in a row had no finite gradient, or the representation lost its surface.
            The parameters are those of the last step that was not skipped.
        ProcessError: another process failed, or its parameters differ from this one's.
    """
    stopwatch = Stopwatch(problem.representation.parameter_store().device)
    means, logged = RunningMeans(), start
    for index in range(start, steps):
        step = Step(index=index, total=steps, seed=seed, stage=stage)
        log = (index + 1) % log_every == 0 or index + 1 == steps
        resolution = resolution_at(step.progress)
        output = optimization_step(
            problem,
            step,
            resolution=resolution,
            stopwatch=stopwatch,
            percentiles=log,
            processes=processes,
        )
        means.add(output.metrics, output.finite)
        metrics = None
        if log:
            metrics = of_all(processes, means.read(), problem.representation.parameter_store(), index + 1)
            seconds = stopwatch.read() | ({"wait": processes.read_waited()} if processes.size > 1 else {})
            metrics |= {f"seconds/{name}": total / (index + 1 - logged) for name, total in seconds.items()}
            logged = index + 1
            _require_finite(metrics["skipped_in_a_row"], max_skipped, index + 1)
        yield StepReport(step=index + 1, steps=steps, metrics=metrics)


def _require_finite(skipped: float, limit: int, step: int) -> None:
    if skipped >= limit:
        raise DivergedError(
            f"gradients must be finite, but the last {skipped:.0f} steps up to step {step} had none; "
            "lower the learning rates or the objective's weight"
        )
