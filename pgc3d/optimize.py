"""One optimisation step and the loop around it; knows the protocols and nothing behind them.

Nothing here waits for the device except the log interval: numbers stay tensors, times are device events, and
the decision to skip a step with a non-finite gradient is taken by the fused optimiser on the device.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pgc3d import pgc
from pgc3d.backgrounds import Background, draw_backgrounds, put_behind
from pgc3d.errors import DivergedError
from pgc3d.interfaces import Clipper, Guidance, Representation, parameters
from pgc3d.types import Cameras, Layer, Rendering

CameraSampler = Callable[[float, torch.Generator], Cameras]
ParameterClipper = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Objective:
    """One wish for the asset: where to look from, who judges, and how much of the answer is believed."""

    sample_cameras: CameraSampler  # (progress, generator) -> cameras
    guidance: Guidance
    clip: Clipper
    backgrounds: tuple[Background, ...]  # every view draws one
    weight: float = 1.0
    target: Literal["color", "normal"] = "color"


@dataclass(frozen=True)
class Problem:
    """What is optimised, and towards what."""

    representation: Representation
    objectives: Mapping[str, Objective]
    optimizer: torch.optim.Optimizer  # fused: only those can skip a step without asking the host
    generator: torch.Generator  # on the CPU; draws cameras and backgrounds
    clip_parameters: ParameterClipper | None = None  # in place, on whole parameters, after all objectives
    lr_scale: Callable[[float], float] = lambda _: 1.0  # over progress, for all groups

    def __post_init__(self) -> None:
        if not self.optimizer.defaults.get("fused"):
            raise ValueError("optimizer must be built with fused=True")


class Stopwatch:
    """Adds up the time of named parts: device events on CUDA, the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as a piece of `name`."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds by part since the last read; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for name, start, end in self._spans:
            span = start.elapsed_time(end) / 1000 if self._cuda else end - start
            seconds[name] = seconds.get(name, 0.0) + span
        self._spans.clear()
        return seconds


@dataclass(frozen=True)
class StepOutput:
    """What one step measured; the tensors are scalars that stay on the device."""

    metrics: Mapping[str, Float[Tensor, ""]]
    finite: Bool[Tensor, ""]  # False: the step was skipped


@dataclass(frozen=True)
class StepReport:
    """A step edge: `step` steps are done; `metrics` is filled at the log interval only."""

    step: int
    steps: int
    metrics: Mapping[str, float] | None = None


def _backpropagate(
    rendering: Rendering,
    gradients: Sequence[tuple[Layer, Float[Tensor, "B H W _"]]],
    share: float,
) -> None:
    """Send gradients on layers and a share of the regularisers through the renderer in one pass."""
    roots = [(getattr(rendering, layer), gradient) for layer, gradient in gradients]
    roots += [(loss, torch.full_like(loss, share)) for loss in rendering.losses.values()]
    roots = [(root, seed) for root, seed in roots if root.requires_grad]
    if not roots:
        raise DivergedError(
            "the rendering must depend on the parameters, but nothing was visible in any view"
        )
    torch.autograd.backward([root for root, _ in roots], [seed for _, seed in roots])


def accumulate(
    representation: Representation,
    objective: Objective,
    *,
    resolution: int,
    progress: float,
    generator: torch.Generator,
    stopwatch: Stopwatch,
    percentiles: bool = False,
    regulariser_share: float = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """Add one objective's gradient to the parameters and return its metrics.

    Every objective renders, so each brings the regularisers; `regulariser_share` keeps their sum the same
    for any number of objectives.
    """
    with stopwatch.part("cameras"):
        cameras = objective.sample_cameras(progress, generator)
        background, backdrops = draw_backgrounds(
            objective.backgrounds, len(cameras), generator, cameras.azimuth.device
        )
    with stopwatch.part("render"):
        rendering = representation.render(cameras, resolution, background, progress=progress)
        rendering = put_behind(rendering, backdrops)
    image: Tensor = getattr(rendering, objective.target)
    with stopwatch.part("guidance"):
        output = objective.guidance(image.detach(), rendering, cameras, progress)
    with stopwatch.part("backward"):
        clipped = objective.clip(output.gradient)
        gradients = [(objective.target, clipped), *output.layers.items()]
        weighted = [(layer, objective.weight * gradient) for layer, gradient in gradients]
        _backpropagate(rendering, weighted, regulariser_share)
    losses = {f"loss_{name}": loss.detach() for name, loss in rendering.losses.items()}
    with stopwatch.part("metrics"):
        measured = pgc.statistics(output.gradient, clipped, percentiles=percentiles)
        measured["coverage"] = rendering.alpha.detach().mean()
    if rendering.complete is not None:
        measured["complete"] = rendering.complete.float()
    return {**output.metrics, **losses, **measured}


def all_finite(tensors: Sequence[Tensor]) -> Bool[Tensor, ""]:
    """Whether every number of the tensors is finite, as a tensor on their device."""
    return torch.isfinite(torch.nn.utils.get_total_norm(tensors, float("inf")))


def _usable(metrics: Mapping[str, Tensor], objective: str) -> Bool[Tensor, ""]:
    """Whether an objective judged a whole surface, and by at least one finite pixel.

    A rule turns non-finite pixels into zeros; a picture of nothing else must not pass as a good step.
    """
    sighted = metrics[f"{objective}/nonfinite_fraction"] < 1
    complete = metrics.get(f"{objective}/complete")
    return sighted if complete is None else sighted & (complete > 0)


def optimization_step(
    problem: Problem,
    *,
    resolution: int,
    progress: float,
    stopwatch: Stopwatch | None = None,
    percentiles: bool = False,
) -> StepOutput:
    """Render, ask, clip, send back, and step.

    A step with a non-finite parameter gradient, or with an incomplete rendering, changes nothing.

    Args:
        problem: what is optimised, and towards what.
        resolution: side of the square renderings in pixels.
        progress: share of the run that is done, in [0, 1].
        stopwatch: takes the times of the parts.
        percentiles: also measure the percentiles of the pixel gradients.
    """
    optimizer = problem.optimizer
    tensors = parameters(problem.representation.parameter_groups())
    stopwatch = stopwatch or Stopwatch(tensors[0].device)
    optimizer.zero_grad(set_to_none=True)
    metrics: dict[str, Tensor] = {}
    for name, objective in problem.objectives.items():
        measured = accumulate(
            problem.representation,
            objective,
            resolution=resolution,
            progress=progress,
            generator=problem.generator,
            stopwatch=stopwatch,
            percentiles=percentiles,
            regulariser_share=1.0 / len(problem.objectives),
        )
        metrics |= {f"{name}/{key}": value for key, value in measured.items()}
    with stopwatch.part("optimizer"):
        finite = all_finite([tensor.grad for tensor in tensors if tensor.grad is not None])
        finite = finite & torch.stack([_usable(metrics, name) for name in problem.objectives]).all()
        if problem.clip_parameters is not None:
            problem.clip_parameters(tensors)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * problem.lr_scale(progress)
        # The hook that fused optimisers offer to GradScaler: 1 makes the kernel leave everything as it is.
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    return StepOutput(metrics=metrics, finite=finite)


@dataclass
class _Tally:
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
    log_every: int = 10,
    max_skipped: int = 20,
) -> Iterator[StepReport]:
    """Run steps `start` to `steps` and hand over control after each one.

    The numbers of a report are means over the log interval, with `seconds/<part>` per step.

    Raises:
        DivergedError: `max_skipped` steps in a row had no finite gradient (looked at when logging), or the
            representation lost its surface. The parameters are those of the last good step.
    """
    device = parameters(problem.representation.parameter_groups())[0].device
    stopwatch, tally, logged = Stopwatch(device), _Tally(), start
    for step in range(start, steps):
        log = (step + 1) % log_every == 0 or step + 1 == steps
        progress = step / max(steps - 1, 1)
        output = optimization_step(
            problem,
            resolution=resolution_at(progress),
            progress=progress,
            stopwatch=stopwatch,
            percentiles=log,
        )
        tally.add(output)
        metrics = None
        if log:
            seconds = {name: total / (step + 1 - logged) for name, total in stopwatch.read().items()}
            metrics = tally.read() | {f"seconds/{name}": value for name, value in seconds.items()}
            logged = step + 1
            _require_finite(metrics["skipped_in_a_row"], max_skipped, step + 1)
        yield StepReport(step=step + 1, steps=steps, metrics=metrics)


def _require_finite(skipped: float, limit: int, step: int) -> None:
    if skipped >= limit:
        raise DivergedError(
            f"gradients must be finite, but the last {skipped:.0f} steps up to step {step} had none; "
            "lower the learning rates or the objective's weight"
        )
