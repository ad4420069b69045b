"""The work of one process on a run directory: optimisation steps, periodic files, and the manifest."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgc3d.build.run import Built
from pgc3d.checkpoint import pack, unpack
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.clip_images import ClipImages
from pgc3d.config import Config, StageConfig
from pgc3d.environment import describe_environment, peak_memory, used_memory
from pgc3d.errors import DivergedError, OutOfMemoryError, Pgc3dError, ProcessError
from pgc3d.events import Event, EventCallback, Phase
from pgc3d.interfaces import Stateful, SupportsMicroBatch
from pgc3d.memory import release_memory
from pgc3d.optimize import StepReport, optimize
from pgc3d.parallel import ALONE, Processes
from pgc3d.planning.eta import Eta
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag, interrupt_held
from pgc3d.start_times import read_parts, read_start

logger = logging.getLogger(__name__)

Preview = Callable[[Path], None]
SECONDS_LEFT = "seconds_left"  # in the metrics: the estimate for the rest of the run


@dataclass
class Session:
    """A locked run directory, and the manifest that this process updates.

    Where several processes make a run, the first one has the directory, and the others write nothing.
    """

    run: RunDirectory
    config: Config
    device: torch.device
    on_event: EventCallback
    stop: StopFlag
    record: dict[str, Any] = field(default_factory=dict)
    stopped_by: int | None = None  # number of the signal that stopped the optimisation
    stage: str = ""  # name of the stage that is being optimised
    processes: Processes = ALONE  # that make the run together
    eta: Eta | None = None  # of the time that is left; by pixels alone when None
    _clip_images: ClipImages = field(default_factory=lambda: ClipImages({}, lambda _: False))  # of the stage
    _edge: "_Edge | None" = None  # the state before the current step, None between two steps

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the manifest: the status is `running` in the block, then how it ended, also on errors."""
        self.record |= describe_environment(self.device)
        self._write("running")
        status = "running"
        try:
            with explain_memory(self.config, self.device):
                yield
            status = "done" if self.stopped_by is None else f"stopped by signal {self.stopped_by}"
        except Pgc3dError as error:
            status = f"failed: {error}"
            raise
        except BaseException as error:
            # After an interrupt or an exception of the caller, a run with a checkpoint can be resumed.
            begun = any(self.run.checkpoints(name) for name in self.config.stages)
            how = "stopped by" if begun else "failed:"
            status = f"{how} {type(error).__name__}"
            raise
        finally:
            self._write(status)

    def _write(self, status: str) -> None:
        self.record |= {"status": status, "peak_memory_bytes": peak_memory(self.device)}
        if self.processes.leads:
            self.run.write_manifest(self.record)

    def note(self, message: str) -> None:
        """Report a line about how the run is built."""
        self.on_event(Event("build", message=message))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes to a part's time in the manifest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(part, time.perf_counter() - start)
            self._eta.spent(part, time.perf_counter() - start)

    def add_seconds(self, part: str, seconds: float) -> None:
        """Add to a part's time in the manifest, a sum over all processes that worked on the run."""
        times = self.record.setdefault("seconds", {})
        times[part] = round(times.get(part, 0.0) + seconds, 3)

    def started(self) -> None:
        """Record the time from the start of the process to the first stage, where it makes this run alone."""
        seconds = read_start()
        if seconds is not None:
            self.add_seconds("start", seconds)

    def add_start_parts(self) -> None:
        """Record the parts of the times of the start and of the build, as sums over all processes."""
        known = self.record.setdefault("start_parts", {})
        for name, seconds in read_parts().items():
            known[name] = round(known.get(name, 0.0) + seconds, 3)

    def made(self, phase: Phase, paths: Iterator[Path] | list[Path]) -> None:
        """Add the hashes of new files to the manifest and call `on_event` for each.

        Args:
            phase: that wrote the files.
            paths: of the files.
        """
        paths = list(paths)
        self.record.setdefault("files", {}).update(self.run.hash_files(paths))
        for path in paths:
            self.on_event(Event(phase, file=path))

    def optimize(self, stage: str, built: Built, checkpoint: Checkpoint | None, preview: Preview) -> bool:
        """Optimise a stage until its last step or a signal, and save a checkpoint.

        Args:
            stage: its name.
            built: its problem.
            checkpoint: to continue from; None starts with the first step.
            preview: writes the image of the asset to a path.

        Returns:
            Whether the stage is finished.

        Raises:
            DivergedError: too many steps had no finite gradient; the last valid state was saved.
            ProcessError: another process failed; where it is gone, the last checkpoint stands.
            BaseException: what `on_event` raised, or a KeyboardInterrupt, raised after the current step; the
                state was saved.
        """
        self.stage, step = stage, 0
        if checkpoint is not None:
            unpack(checkpoint, built)
            step = checkpoint.step
        if self.processes.leads:  # steps after the checkpoint are made, and logged, again
            self.run.drop_metrics(stage, after=step)
        reached = _Reached(step, logged=step, saved=step)
        self._eta.begin(stage, step)
        self._clip_images = ClipImages(built.problem.objectives, self._has_preview)
        built = replace(built, problem=replace(built.problem, objectives=self._clip_images.objectives))
        self._clip_images.begin(step + 1)
        with interrupt_held() as interrupted:
            try:
                for report in self._steps(built, step):
                    self._after(built, report, reached, preview)
                    if interrupted():
                        raise KeyboardInterrupt
                    if self.stopped_by is not None:
                        break
            except BaseException as error:
                self._rescue(built, reached, error)
                raise
            if reached.step > reached.saved:
                self._save(built, reached.step)
                self._saved()
        self.stopped_by = self.processes.agree(self.stop.signal)
        return reached.step >= self._settings.steps and self.stopped_by is None

    @property
    def _eta(self) -> Eta:
        self.eta = self.eta or Eta(self.config, device=self.device.type)
        return self.eta

    def _has_preview(self, step: int) -> bool:
        """Whether this process writes a preview after a step."""
        return self.processes.leads and self.config.logging.has_preview(step, self._settings.steps)

    @property
    def _settings(self) -> StageConfig:
        return self.config.stages[self.stage]

    def _after(self, built: Built, report: StepReport, reached: "_Reached", preview: Preview) -> None:
        """Log a step, and write the preview and the checkpoint that are due after it."""
        config, step = self.config, report.step
        reached.step = step
        reached.logged = self._log(report, reached.logged)
        self.stopped_by = self.processes.agree(self.stop.signal)
        if self.stopped_by is not None:
            return
        if self._has_preview(step):
            path, clipping = self.run.preview(self.stage, step), self.run.clip_image(self.stage, step)
            with self.timed("preview"):
                preview(path)
                has_clipping = self._clip_images.write(clipping)
            self.on_event(Event("optimize", file=path, kind="preview", stage=self.stage))
            if has_clipping:
                self.on_event(Event("optimize", file=clipping, kind="clipping", stage=self.stage))
        self._clip_images.begin(step + 1)
        if step % config.logging.checkpoint_every == 0 and step < self._settings.steps:
            self._save(built, step)
            reached.saved = step
            self._saved()

    def _saved(self) -> None:
        if not self.processes.leads:
            return
        newest = self.run.checkpoints(self.stage)[0]
        self.on_event(Event("optimize", file=newest, kind="checkpoint", stage=self.stage))

    def _rescue(self, built: Built, reached: "_Reached", error: BaseException) -> None:
        """Save before an error is passed to the caller, if the state is one between two steps."""
        if isinstance(error, ProcessError) and error.is_lost:
            return  # the device may wait for the process that is gone
        if self._edge is not None and not isinstance(error, DivergedError):
            if not self._edge.can_be_restored(built):
                return  # the step had changed parameters: the last checkpoint stays the newest one
            self._edge.restore(built)
        if reached.step > reached.saved or isinstance(error, DivergedError):
            try:
                self._save(built, reached.step)
            except Pgc3dError as second:
                logger.warning("step %d could not be saved: %s", reached.step, second)

    def _steps(self, built: Built, step: int) -> Iterator[StepReport]:
        """Make the steps after `step`; one that runs out of memory is repeated with a smaller micro-batch."""
        config, settings = self.config, self._settings
        for earlier in self.record.get("out_of_memory", ()):
            self._limit_micro_batches(built, earlier["micro_batch"])
        while step < settings.steps:
            reports = optimize(
                built.problem,
                start=step,
                steps=settings.steps,
                resolution_at=settings.resolution_at,
                seed=config.run.seed,
                stage=self.stage,
                log_every=config.logging.log_every,
                max_skipped=settings.optimizer.max_skipped,
                processes=self.processes,
            )
            try:
                self._edge = before = _Edge.of(built)
                for report in reports:
                    step, self._edge = report.step, None
                    yield report
                    self._edge = before = _Edge.of(built)
            except (MemoryError, RuntimeError) as error:
                again = ran_out_of_memory(error) and self.processes.can_retry(error)
                micro_batch = self._half_micro_batch(built) if again else 0
                if not micro_batch:
                    raise
            else:
                self._edge = None
                return
            before.restore(built)
            self._edge = None
            self._retry(built, step, micro_batch)

    def _half_micro_batch(self, built: Built) -> int:
        """Half of the largest micro-batch of the guidances, 0 where it cannot be smaller."""
        return max(self._micro_batches(built).values(), default=0) // 2

    def _micro_batches(self, built: Built) -> dict[str, int]:
        """Views that each guidance with micro-batches evaluates at once, by objective."""
        share = self.processes.shard.largest
        batches = {name: share(self._settings.objectives[name].batch) for name in built.problem.objectives}
        return {
            name: min(objective.guidance.micro_batch or batches[name], batches[name])
            for name, objective in built.problem.objectives.items()
            if isinstance(objective.guidance, SupportsMicroBatch)
        }

    def _limit_micro_batches(self, built: Built, largest: int) -> None:
        """Reduce the micro-batches of all guidances to at most `largest` views."""
        for name, micro_batch in self._micro_batches(built).items():
            guidance = built.problem.objectives[name].guidance
            assert isinstance(guidance, SupportsMicroBatch)
            guidance.micro_batch = min(largest, micro_batch)

    def _retry(self, built: Built, step: int, micro_batch: int) -> None:
        built.problem.representation.parameter_store().zero_grad()
        self._limit_micro_batches(built, micro_batch)
        release_memory(self.device)
        self.record.setdefault("out_of_memory", []).append(
            {"stage": self.stage, "step": step + 1, "micro_batch": micro_batch}
        )
        self._save(built, step)
        message = f"out of memory in step {step + 1}: saved, continuing with {micro_batch} views at a time"
        self.on_event(Event("optimize", message=message))

    def _save(self, built: Built, step: int) -> None:
        if not self.processes.leads:
            return
        with self.timed("checkpoint"):
            self.run.save_checkpoint(self.stage, pack(built, step))
        status = "done" if step >= self._settings.steps else "begun"
        self.record.setdefault("stages", {})[self.stage] = {"status": status, "steps": step}

    def _log(self, report: StepReport, logged: int) -> int:
        """Log a step and call `on_event`; returns the number of the last step in the metrics."""
        self._eta.stepped(report.step, (report.metrics or {}).get("seconds/guidance"))
        left = self._eta.seconds_left()
        event = Event(
            "optimize", report=report, stage=self.stage, progress=self._eta.progress, seconds_left=left
        )
        if report.metrics is None:
            self.on_event(event)
            return logged
        estimate = {} if left is None else {SECONDS_LEFT: round(left, 1)}
        if self.processes.leads:
            self.run.log_metrics({"stage": self.stage, "step": report.step, **report.metrics, **estimate})
        for name, seconds in report.metrics.items():
            if name.startswith("seconds/"):
                self.add_seconds(name.removeprefix("seconds/"), seconds * (report.step - logged))
        # Last: an exception of the caller ends the run, whose step is complete and logged.
        self.on_event(replace(event, memory=used_memory(self.device)))
        return report.step


@dataclass
class _Reached:
    """Numbers of steps of a stage."""

    step: int  # that are done
    logged: int  # that are in the metrics
    saved: int  # of the newest checkpoint


@dataclass(frozen=True)
class _Edge:
    """The state between two steps, apart from the parameters, from which a failed step is repeated."""

    states: Mapping[str, Mapping[str, Tensor]]  # of guidances and clips
    versions: tuple[int, ...]  # of the parameters: torch increments them with each change in place

    @classmethod
    def of(cls, built: Built) -> "_Edge":
        return cls(
            states={name: copy_state(stateful) for name, stateful in built.states.items()},
            versions=_versions(built),
        )

    def can_be_restored(self, built: Built) -> bool:
        """Whether the parameters have not changed since."""
        return self.versions == _versions(built)

    def restore(self, built: Built) -> None:
        """Restore the states of guidances and clips."""
        for name, stateful in built.states.items():
            stateful.load_state_dict(self.states[name])


def copy_state(stateful: Stateful) -> dict[str, Tensor]:
    """The state that an object has now, which its later changes do not reach."""
    return {name: torch.as_tensor(value).clone() for name, value in stateful.state_dict().items()}


def _versions(built: Built) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in built.problem.representation.parameter_store().tensors())


@contextmanager
def explain_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Raise OutOfMemoryError, with the settings to lower, for an error in the block that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise _out_of_memory(config, device) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error of any of the libraries means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error).lower()


def _out_of_memory(config: Config, device: torch.device) -> OutOfMemoryError:
    several = len(config.stages) > 1
    batches = ", ".join(
        f"{f'stages.{stage}.' if several else ''}objectives.{name}.batch={item.batch}"
        for stage, settings in config.stages.items()
        for name, item in settings.objectives.items()
    )
    texture = f"--texture-size (now {config.export.texture_size})"
    return OutOfMemoryError(
        f"the job must fit the memory of {device.type}, but it ran out; use --low-memory, lower "
        f"{', '.join([*config.memory_settings(), texture])}, or the views a step with --set "
        f"(now {batches})"
    )
