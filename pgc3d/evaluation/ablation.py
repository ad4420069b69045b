"""The two-dimensional experiment: optimise one image directly, once for each clipping rule.

It is the cheapest way to see the effect of clipping, after section 1 of Pan et al. (arXiv 2310.12474): the
same guidance, noise and initial image for every rule, without a 3D representation.

    OUT/strip.png       rows are rules, columns are steps
    OUT/gradients.png   rows are rules; gradient lengths before and after clipping, and where it was clipped
    OUT/final/RULE.png  the last image of a rule
    OUT/metrics.json    clipped fractions, percentiles of the gradient, speckle, total variation, saturation
    OUT/config.yaml     the configuration, valid as input;  OUT/manifest.json   prompt, rules, versions
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d import pgc
from pgc3d.backgrounds import draw_backgrounds
from pgc3d.build.devices import require_one_device
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.notes import run_notes
from pgc3d.build.run import RunContext, build_objectives, resolve_device
from pgc3d.cameras import turntable
from pgc3d.choices import Space
from pgc3d.clip_rules import ClipConfig, parse_rule
from pgc3d.colors import COLORS, named_color
from pgc3d.config import Config, StageConfig, dump_config
from pgc3d.disk import new_folder, write_files
from pgc3d.environment import describe_environment, used_memory
from pgc3d.errors import ConfigError
from pgc3d.evaluation.ablation_sheets import Heatmap, RuleResult, columns, result_images
from pgc3d.evaluation.image_metrics import statistics
from pgc3d.events import Event, EventCallback, ignore
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.images import resize
from pgc3d.interfaces import Guidance, Stateful, SupportsLatents
from pgc3d.optimize import StepReport
from pgc3d.prompt_weights import require_prompt
from pgc3d.ranges import MAX_RATE
from pgc3d.rendering import build_rasterizer
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.run_files import CONFIG, MANIFEST
from pgc3d.schedules import PiecewiseLinear
from pgc3d.session import copy_state, explain_memory
from pgc3d.task import Task
from pgc3d.types import Rendering, Step, Views

RULES = ("none", "channel", "pngd", "pixel")
METRICS = "metrics.json"
LOG_EVERY = 10
START = "#bfbfbf"  # light grey, see `draw_start`
NOISE = "noise"
SINGULAR = 0.02  # from the middle grey, on every channel


@dataclass(frozen=True)
class OptimizedImage:
    """Optimised values (pixels or latents), their gradient, and how they become an image; channel last."""

    start: Float[Tensor, "1 H W C"]
    gradient: Callable[[Float[Tensor, "1 H W C"], Step], Float[Tensor, "1 H W C"]]  # d loss / d values
    decode: Callable[[Float[Tensor, "1 H W C"]], Float[Tensor, "1 h w 3"]]
    limits: tuple[float, float]


def ablate(
    task: Task,
    *,
    out: Path,
    config: Config,
    rules: Sequence[str] = RULES,
    space: Space = "pixels",
    learning_rate: float = 0.03,
    start: str = START,
    on_event: EventCallback = ignore,
) -> Path:
    """Optimise one image for each rule and write the files that are listed at the top of this module.

    The gradient is that of the first objective of the configuration, seen from the front; the objective's own
    clip is not used. The image has the resolution of the run's first stage; `config.run` gives the steps, the
    seed and the device.

    Args:
        task: the prompt or the input image.
        out: folder to create.
        config: as for a run.
        rules: see `parse_rule`; each is a row.
        space: "pixels", or "latents", which optimises the model's latents and decodes them only to write
            them, so that no gradient passes the encoder; for text-to-image guidances only.
        learning_rate: of Adam, in units of the optimised values, scaled by `config.optimizer.lr_scale` as in
            a run.
        start: the colour of the initial image, or "noise", see `draw_start`.
        on_event: called at every step and for every file made.

    Returns:
        `out`.

    Raises:
        Pgc3dError: an option, the configuration, a model or the folder is not valid; a line with the remedy.
    """
    clips = {rule: parse_rule(rule) for rule in rules}
    _check_options(clips, learning_rate)
    color = _parse_start(start, on_event)
    stage = _first_objective(config.first)
    needed = stage.requires()
    if "background" in needed.inputs:
        raise ConfigError("backgrounds must be colours where an image itself is optimised, got 'image'")
    require_one_device(config, "where an image itself is optimised", needed)
    device = resolve_device(config.run.device)
    located = locate_models(config, device, needed)
    if needed.prompt:
        require_prompt(task.prompt)
    for note in run_notes(task.prompt, config, located):
        on_event(Event("build", message=note))
    new_folder(out)
    with explain_memory(config, device):
        on_event(Event("build"))
        rasterizer = build_rasterizer(config.run.rasterizer, device)
        models = LoadedModels(located, device, low_memory=config.run.low_memory, decoders=True)
        context = RunContext.of(replace(config, stages={"main": stage}), task, rasterizer, device, models)
        name, objective = next(iter(build_objectives(context, "main").items()))
        drawing = torch.Generator().manual_seed(config.run.seed)
        background, _ = draw_backgrounds(objective.backgrounds[:1], 1, drawing, device)
        variable = make_image(
            objective.guidance,
            space,
            start=draw_start(color, stage.resolution[0], drawing).to(device),
            background=background,
        )
        steps = stage.steps
        results: dict[str, RuleResult] = {}
        restart = _restart_of(objective.guidance)
        for number, (rule, clip) in enumerate(clips.items()):
            restart()
            observed = _Observed(on_event, number * steps, len(clips) * steps, device)
            results[rule] = optimize_image(
                variable,
                clip,
                stage=stage,
                seed=config.run.seed,
                scope=name,
                learning_rate=learning_rate,
                observe=observed,
            )
    record = {
        **task.record(out), "rules": {rule: asdict(clip) for rule, clip in clips.items()}, "space": space,
        "start": start, "learning_rate": learning_rate, **describe_environment(device),
    }  # fmt: skip
    metrics = {rule: dict(result.metrics) for rule, result in results.items()}
    texts = {CONFIG: dump_config(config), MANIFEST: _json(record), METRICS: _json(metrics)}
    files = {out / name: text.encode() for name, text in texts.items()} | result_images(out, results, steps)
    write_files(files)
    for path in files:
        on_event(Event("render", file=path))
    return out


def _restart_of(guidance: Guidance) -> Callable[[], None]:
    """A function that gives a guidance its present state again, so that rules do not follow each other."""
    if not isinstance(guidance, Stateful):
        return lambda: None
    stateful: Stateful = guidance
    first = copy_state(stateful)

    def restart() -> None:
        stateful.load_state_dict({name: value.clone() for name, value in first.items()})

    return restart


def _check_options(clips: Mapping[str, ClipConfig], learning_rate: float) -> None:
    if not clips:
        raise ConfigError("--rules must name at least one rule, got none")
    if not 0 < learning_rate <= MAX_RATE:
        raise ConfigError(f"--learning-rate must lie in (0, {MAX_RATE:g}], got {learning_rate:g}")


def _parse_start(start: str, on_event: EventCallback) -> tuple[float, float, float] | None:
    """The colour of the initial image, None for noise; middle grey is reported."""
    color = named_color(start)
    if color is None and start != NOISE:
        raise ConfigError(f"--start must be one of {', '.join(COLORS)}, #rrggbb or {NOISE}, got {start!r}")
    if color is not None and all(abs(value - 0.5) < SINGULAR for value in color):
        on_event(Event("build", message="the middle grey is a singular point of image encoders, so that the "
                     f"first gradients are noise; --start {START} is not"))  # fmt: skip
    return color


def _first_objective(stage: StageConfig) -> StageConfig:
    """The stage with its first objective alone, and any representation, which is not used."""
    name, objective = next(iter(stage.objectives.items()))
    return replace(stage, representation=DMTetConfig(), objectives={name: objective})


def draw_start(
    color: tuple[float, float, float] | None, side: int, generator: torch.Generator
) -> Float[Tensor, "1 S S 3"]:
    """The initial image in sRGB: one colour, or for None uniform noise from the generator.

    Middle grey is a bad initial value: encoders take 2x - 1, which is zero there, and their normalisation
    then divides by nearly zero. Gradients are tens of times as long as later ones and mostly of high
    frequency.
    """
    if color is None:
        return torch.rand(1, side, side, 3, generator=generator)
    return torch.tensor(color).expand(1, side, side, 3).clone()


def make_image(
    guidance: Guidance,
    space: Space,
    *,
    start: Float[Tensor, "1 H W 3"],
    background: Float[Tensor, "1 3"],
) -> OptimizedImage:
    """The problem of optimising an image as the front view of an object, in pixels or in the model's latents.

    Args:
        guidance: the source of the gradient.
        space: of the optimised values.
        start: sRGB in [0, 1].
        background: sRGB, of the rendering that the guidance receives.

    Raises:
        ConfigError: the space is "latents" and the guidance has no latents.
    """
    views = Views(turntable(1).to(start.device), background)

    def render_of(image: Tensor) -> Rendering:
        ones, half = torch.ones_like(image[..., :1]), torch.full_like(image, 0.5)
        return Rendering(color=image, normal=half, depth=ones, alpha=ones, background=background)

    def gradient(image: Tensor, step: Step) -> Tensor:
        leaf = image.detach().requires_grad_()
        seen = resize(leaf, guidance.input_resolution(image.shape[1]))
        output = guidance(seen.detach(), render_of(image), views, step)
        return torch.autograd.grad(seen, leaf, output.gradient)[0]

    if space == "pixels":
        if isinstance(guidance, SupportsLatents) and guidance.as_latent:
            raise ConfigError("--space pixels must go with a guidance of images, got as_latent")
        return OptimizedImage(
            start=start,
            gradient=gradient,
            decode=lambda image: image,
            limits=(0.0, 1.0),
        )
    if not isinstance(guidance, ScoreDistillation):
        raise ConfigError(
            "--space latents must go with a text-to-image guidance, got another one; use --space pixels"
        )
    return _latent_image(guidance, start, render_of(start), views)


def _latent_image(
    guidance: ScoreDistillation, start: Tensor, rendering: Rendering, views: Views
) -> OptimizedImage:
    model = guidance.model
    noise = torch.zeros(model.latent_shape(1, start.shape[1]), device=start.device)

    def gradient(latents: Tensor, step: Step) -> Tensor:
        score = guidance.latent_gradient(latents.permute(0, 3, 1, 2), rendering, views, step)
        return score.permute(0, 2, 3, 1)

    with torch.no_grad():
        encoded = model.encode(start, noise)
    return OptimizedImage(
        start=encoded.permute(0, 2, 3, 1).contiguous(),
        gradient=gradient,
        decode=lambda latents: model.decode(latents.permute(0, 3, 1, 2)),
        limits=(-torch.inf, torch.inf),
    )


def optimize_image(
    variable: OptimizedImage,
    clip: ClipConfig,
    *,
    stage: StageConfig,
    learning_rate: float,
    seed: int = 0,
    scope: str = "",
    observe: Callable[[int, Mapping[str, Float[Tensor, ""]]], None] = lambda *_: None,
) -> RuleResult:
    """Optimise an image under one rule; pixels are kept in their range by projection after each step.

    Args:
        variable: initial values, gradient and decoder.
        clip: the rule.
        stage: steps, betas and the schedule of the learning rate.
        learning_rate: of Adam.
        seed: of the random numbers.
        scope: names them; equal ones give every rule the same noise.
        observe: called with the number of every finished step and its measurements, scalars on the device.
    """
    steps, schedule = stage.steps, PiecewiseLinear(stage.optimizer.lr_scale)
    rule, values = clip.build(), variable.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([values], betas=stage.optimizer.betas, eps=stage.optimizer.eps)
    shown, running, images, start = set(columns(steps)), _RunningMeans(), [], time.perf_counter()
    for index in range(steps):
        step = Step(index=index, total=steps, seed=seed, scope=scope)
        gradient = variable.gradient(values.detach(), step)
        values.grad = clipped = rule(gradient)
        if (norm := getattr(clip, "max_norm", None)) is not None:
            values.grad = clipped = clipped.clone()
            pgc.clip_parameters([values], norm)
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step.progress)
        optimizer.step()
        with torch.no_grad():
            values.clamp_(*variable.limits)
        observe(index + 1, running.add(gradient, clipped))
        if index + 1 in shown:
            images.append(variable.decode(values.detach().clone()))
    metrics = running.means() | statistics(images[-1]) | {"seconds": time.perf_counter() - start}
    return RuleResult(images=images, heat=running.heat(), metrics=metrics)


class _RunningMeans:
    """Means over the steps of one rule, accumulated on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def add(self, gradient: Tensor, clipped: Tensor) -> dict[str, Tensor]:
        """Accumulate one step; returns its measurements."""
        finite = pgc.replace_nonfinite(gradient)
        before, after = (values[0].abs().amax(-1) for values in (finite, clipped))
        self.last = before, after
        measured = pgc.statistics(gradient, clipped, percentiles=True)
        maps = {"before": before, "after": after, "bound": (finite != clipped)[0].any(-1).float()}
        for name, value in (measured | maps).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        return measured

    def means(self) -> dict[str, float]:
        return {name: (total / self.count).item() for name, total in self.sums.items() if total.ndim == 0}

    def heat(self) -> Heatmap:
        assert self.last is not None
        before, after, bound = (self.sums[name] / self.count for name in ("before", "after", "bound"))
        return Heatmap(self.last[0], self.last[1], before, after, bound)


@dataclass
class _Observed:
    """Reports the steps of one rule as steps of the whole experiment."""

    on_event: EventCallback
    done: int
    steps: int
    device: torch.device

    def __call__(self, step: int, measured: Mapping[str, Tensor]) -> None:
        step += self.done
        log = step % LOG_EVERY == 0 or step == self.steps
        numbers = {f"image/{name}": value.item() for name, value in measured.items()} if log else None
        memory = used_memory(self.device) if log else 0
        self.on_event(Event("optimize", report=StepReport(step, self.steps, numbers), memory=memory))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
