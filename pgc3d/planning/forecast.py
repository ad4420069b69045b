"""The time and the memory of a run before it begins, from measured times; nothing is loaded or fetched.

A step takes, for each image that a model evaluates, the time that was measured of the same work on the same
device (`plan_times`), or that of an earlier run. Memory is what `plan` plans. A number that was not measured
stays None, with a line about it: nothing is scaled from another device or another size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pgc3d.build.devices import require_one_process
from pgc3d.build.run import resolve_device
from pgc3d.config import Config, StageConfig
from pgc3d.errors import InputError, OutOfMemoryError
from pgc3d.kernels import allowed_cores
from pgc3d.memory import free_memory
from pgc3d.planning.eta import export_seconds, phases_of
from pgc3d.planning.known_models import KnownModel, evaluations, known_model, work_of
from pgc3d.planning.plan import changes, fit, places, plan_run
from pgc3d.planning.plan_times import Times

ADVICE = "use --time-per-step SECONDS, or --like RUN with a run that was made there"


@dataclass(frozen=True)
class PlannedDevice:
    """The device that a run is planned for."""

    name: str  # torch's, or "cpu with N cores"
    type: str  # "cuda" or "cpu"
    free: int | None  # bytes for a run, None where that is unknown
    is_here: bool  # whether it is one of this computer


@dataclass(frozen=True)
class PhaseTime:
    """The steps of a stage at one resolution."""

    stage: str
    steps: int  # with those that the seeds of a list repeat
    side: int  # of the renders, in pixels
    images: int  # that models evaluate in each step
    step_seconds: float | None
    sources: tuple[str, ...] = ()  # of the time
    notes: tuple[str, ...] = ()  # about it


@dataclass(frozen=True)
class SeveralGpus:
    """A run on a number of GPUs."""

    gpus: int
    seconds: float | None  # of the steps
    bytes: float | None  # of memory on each GPU
    note: str = ""


def _stepping(phases: Sequence[PhaseTime]) -> float | None:
    """Seconds of all steps; None where those of a phase are not known."""
    known = [phase.steps * phase.step_seconds for phase in phases if phase.step_seconds is not None]
    return sum(known) if len(known) == len(phases) else None


@dataclass(frozen=True)
class Forecast:
    """What a run needs; times are in seconds, None where they were not measured."""

    title: str
    device: str
    models: tuple[str, ...]
    steps: int
    images: int
    phases: tuple[PhaseTime, ...]
    start: float | None
    build: float | None
    initial_views: float | None  # 0 without them
    export: float | None
    first_start: float | None  # more, at the first start on a computer
    gpus: tuple[SeveralGpus, ...]  # the first one is a single GPU
    free_bytes: int | None
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def stepping(self) -> float | None:
        """Of all steps, on one device."""
        return _stepping(self.phases)

    @property
    def seconds(self) -> float | None:
        """Of all parts that were measured, on one device; None without a time of the steps."""
        parts = (self.start, self.build, self.initial_views, self.export)
        return None if self.stepping is None else self.stepping + sum(part or 0.0 for part in parts)

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts that `seconds` lacks."""
        parts = {name: getattr(self, name) for name in ("start", "build", "initial_views", "export")}
        return tuple(name.replace("_", " ") for name, seconds in parts.items() if seconds is None)


@dataclass(frozen=True)
class Settings:
    """What a plan is made with, beside the run's configuration."""

    times: Times
    device: str | None = None  # name of a measured one; this computer's when None
    step_seconds: float | None = None  # of every step, in the place of measured ones
    gpus: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Seeds:
    """The seeds of a job of a list: each makes the first steps, and the best one continues."""

    count: int = 1
    steps: int | None = None  # a quarter of all when None


@dataclass
class _Notes:
    """Lines about what is unknown, each once, and the sources of what is known."""

    lines: dict[str, None] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self.lines.setdefault(line)


def planned_device(config: Config, settings: Settings) -> PlannedDevice:
    """The device that a run is planned for.

    Raises:
        InputError: there are no measurements of the named device.
        BackendUnavailableError: the run needs a CUDA device, and this computer has none.
    """
    if settings.device is not None:
        name = named_device(settings.device, settings.times.devices)
        memory = settings.times.memory.get(name)
        type_ = "cpu" if name.startswith("cpu") else "cuda"
        return PlannedDevice(name, type_, None if memory is None else int(memory), is_here=False)
    device = resolve_device(config.run.device)
    if device.type == "cuda":
        return PlannedDevice(torch.cuda.get_device_name(device), "cuda", free_memory(device), is_here=True)
    return PlannedDevice(f"cpu with {allowed_cores()} cores", "cpu", free_memory(device), is_here=True)


def named_device(name: str, known: Sequence[str]) -> str:
    """The device that a name or a part of it stands for, as "H200".

    Raises:
        InputError: none or several of the known ones.
    """
    found = [device for device in known if name.lower() in device.lower()]
    if name in known or len(found) == 1:
        return name if name in known else found[0]
    raise InputError(
        f"--on must be one of {', '.join(known)}, got {name!r}; leave it out to plan for this computer, or "
        "give --time-per-step"
    )


def forecast(title: str, config: Config, settings: Settings, seeds: Seeds = Seeds()) -> Forecast:
    """The time and the memory of a run.

    Args:
        title: for the user.
        config: of the run.
        settings: device, measured times, and numbers of GPUs.
        seeds: of a job of a list.

    Raises:
        InputError: there are no measurements of the named device.
        BackendUnavailableError: the run needs a CUDA device, and this computer has none.
        ConfigError: a model has a device of its own, for several GPUs.
    """
    device, notes = planned_device(config, settings), _Notes()
    require_one_process(config, max(settings.gpus))
    models = {name: known_model(config.models[name], use) for name, use in config.requires().models.items()}
    planned, memory = _memory(config, models, device, 1)
    phases = tuple(_phases(planned, models, device, settings, seeds, notes))
    last = _last_kind(config, models)
    parts = settings.times.parts_of(last, device.name)
    if parts is None:
        notes.add(f"no measured time of start, build and export with {last} on {device.name}")
    else:
        notes.sources.setdefault(parts.source)
        if parts.note:
            notes.add(parts.note)
    repeats = seeds.count if seeds.count > 1 else 0
    steps = sum(phase.steps for phase in phases)
    export = parts.export if parts else None
    return Forecast(
        title=title,
        device=device.name,
        models=tuple(dict.fromkeys(model.kind for model in models.values())),
        steps=steps,
        images=sum(phase.steps * phase.images for phase in phases),
        phases=phases,
        start=parts.start if parts else None,
        build=None if parts is None or parts.build is None else parts.build * (repeats + 1),
        initial_views=_initial_views(config, last, device, settings.times, notes, max(seeds.count, 1)),
        export=export_seconds(config) if export is None and device.type == "cpu" and parts else export,
        first_start=parts.first if parts else None,
        gpus=(memory, *_several(config, models, device, settings, seeds)),
        free_bytes=device.free,
        notes=tuple(notes.lines),
        sources=tuple(notes.sources),
    )


def _last_kind(config: Config, models: Mapping[str, KnownModel]) -> str:
    """The kind of the last stage's first model, which the times of loading and of the export are of."""
    for name in config.last.requires().models or config.requires().models:
        return models[name].kind
    return "no model"


def _phases(
    config: Config,
    models: Mapping[str, KnownModel],
    device: PlannedDevice,
    settings: Settings,
    seeds: Seeds,
    notes: _Notes,
    gpus: int = 1,
) -> Iterator[PhaseTime]:
    """The phases of a run, with the steps that its seeds repeat."""
    total = sum(stage.steps for stage in config.stages.values())
    repeated = min(seeds.steps or max(1, total // 4), total) if seeds.count > 1 else 0
    before = 0
    for phase in phases_of(config):
        stage = config.stages[phase.stage]
        side = stage.resolution_at((phase.first - 1) / max(stage.steps - 1, 1))
        steps = phase.last - phase.first + 1
        again = max(0, min(steps, repeated - before)) * (seeds.count - 1)
        before += steps
        seconds, sources, about = settings.step_seconds, {"--time-per-step": None}, dict[str, None]()
        if seconds is None:
            seconds, sources, about = _step_seconds(config, stage, side, models, device, settings, gpus)
        for line in about:
            notes.add(line)
        notes.sources.update(sources)
        images = sum(item.batch * len(item.guidance.requires().models) for item in stage.objectives.values())
        yield PhaseTime(phase.stage, steps + again, side, images, seconds, tuple(sources), tuple(about))


def _step_seconds(
    config: Config,
    stage: StageConfig,
    side: int,
    models: Mapping[str, KnownModel],
    device: PlannedDevice,
    settings: Settings,
    gpus: int,
) -> tuple[float | None, dict[str, None], dict[str, None]]:
    """The time of a step at a resolution, its sources, and lines about it."""
    seconds, sources, notes, known = 0.0, dict[str, None](), dict[str, None](), True
    for objective, name, use in evaluations(stage):
        work = work_of(config, objective, name, use, side, models[name])
        alike = (-(-objective.batch // gpus), stage.representation.kind, side)
        row = settings.times.step(work, device.name, *alike) if work is not None else None
        if row is None:
            known = False
            what = str(work) if work is not None else f"{models[name].kind}, whose size is not known here,"
            notes.setdefault(f"no measured time of {what} on {device.name}; {ADVICE}")
            continue
        sources.setdefault(row.source)
        about = (row.difference(*alike), f"{work}: {row.note}" if row.note else "")
        notes |= dict.fromkeys(line for line in about if line)
        seconds += row.seconds_of_an_image * alike[0]
    if len({config.models[name].device for _, name, _ in evaluations(stage)}) > 1:
        notes.setdefault("models on several devices: the time is that of one after the other")
    if not sources and known:
        known = False
        notes.setdefault(f"no measured time of steps without a diffusion model; {ADVICE}")
    return seconds if known else None, sources, notes


def _initial_views(
    config: Config, kind: str, device: PlannedDevice, times: Times, notes: _Notes, repeats: int
) -> float | None:
    """The time of the initial views of all stages; 0 where there are none."""
    seconds = 0.0
    for stage in config.stages.values():
        init = stage.init
        if init is None or not init.requires().models:
            continue
        key = (kind, device.name, init.count, init.steps, init.fit_steps)
        row = next(
            (
                item
                for item in times.initial_views
                if (item.model, item.device, item.views, item.steps, item.fit_steps) == key
            ),
            None,
        )
        if row is None:
            notes.add(
                f"no measured time of {init.count} initial views with {init.steps} steps by {kind} on "
                f"{device.name}"
            )
            return None
        notes.sources.setdefault(row.source)
        seconds += row.seconds * repeats
    return seconds


def _memory(
    config: Config, models: Mapping[str, KnownModel], device: PlannedDevice, gpus: int
) -> tuple[Config, SeveralGpus]:
    """The configuration with which a run fits, and the memory of a GPU of several."""
    shared = config.of_one_process(gpus)
    unknown = [model.kind for model in models.values() if model.size is None]
    if device.free is None or device.type == "cpu":
        return config, _on_processor(shared, device, gpus)
    if unknown:
        return config, SeveralGpus(
            gpus,
            None,
            None,
            f"memory is not planned: the size of {unknown[0]} is not known before it is fetched",
        )
    sizes = {name: model.size for name, model in models.items() if model.size is not None}
    if not sizes:
        return config, SeveralGpus(gpus, None, None, "memory is not planned without a diffusion model")
    try:
        fitting, expected = fit(shared, sizes, device.free, dict.fromkeys(places(shared), device.free))
    except OutOfMemoryError as error:
        return config, SeveralGpus(gpus, None, None, str(error))
    return replace(config, run=fitting.run), SeveralGpus(gpus, None, expected.bytes, changes(shared, fitting))


def _on_processor(config: Config, device: PlannedDevice, gpus: int) -> SeveralGpus:
    """The check of a run's renders, where they are those of this computer."""
    note = "memory of models is planned on a GPU only"
    if device.is_here:
        try:
            note = plan_run(config, {}, torch.device("cpu"))[1] or note
        except OutOfMemoryError as error:
            note = str(error)
    return SeveralGpus(gpus, None, None, note)


def _several(
    config: Config,
    models: Mapping[str, KnownModel],
    device: PlannedDevice,
    settings: Settings,
    seeds: Seeds,
) -> Iterator[SeveralGpus]:
    """The run on each of the numbers of GPUs above one."""
    for gpus in sorted(set(settings.gpus) - {1}):
        planned, memory = _memory(config, models, device, gpus)
        kinds = {models[name].kind for stage in config.stages.values() for _, name, _ in evaluations(stage)}
        rows = [settings.times.efficiency(kind, device.name, gpus) for kind in kinds]
        efficiency = min((row.efficiency for row in rows if row is not None), default=None)
        seconds = _stepping(list(_phases(planned, models, device, settings, seeds, _Notes(), gpus)))
        if efficiency is None or None in rows or settings.step_seconds is not None or seconds is None:
            why = "time is not measured" if efficiency is None or None in rows else "time is not known"
            yield replace(memory, note="; ".join(part for part in (why, memory.note) if part))
            continue
        yield replace(memory, seconds=seconds / efficiency)
