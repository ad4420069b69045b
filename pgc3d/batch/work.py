"""The work of one job, in the process that it has of its own."""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pgc3d import pipeline
from pgc3d.batch.job import Job, Outcome, Ranked
from pgc3d.batch.lists import SWEEPS
from pgc3d.batch.ranking import best_first, rank_run
from pgc3d.config import Config
from pgc3d.disk import replace_file, writing
from pgc3d.environment import peak_memory
from pgc3d.errors import DivergedError, Pgc3dError, RunDirectoryError
from pgc3d.evaluation.retrieval import load_retriever
from pgc3d.events import Event, EventCallback
from pgc3d.execution import RunResult
from pgc3d.kernels import share_cores
from pgc3d.memory import release_memory
from pgc3d.mini import clip_model
from pgc3d.prompt_weights import plain_text
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag

REACHED = 0  # in a stop flag, in place of a signal's number: the steps of a sweep are done
RANKING = "ranking.json"
# Seconds that the process of a killed batch may take to end, or a file server to release the locks of a node
# that died: NFS does so after 90 s.
LEFT_BEHIND = 120.0


def run_job(
    job: Job,
    out: Path,
    sweep_steps: int | None,
    retriever: Path | None,
    processes: int,
    *,
    on_event: EventCallback,
    stop: StopFlag,
) -> Outcome:
    """Make the asset of a job, or continue with it; every error becomes the reason of a failure.

    Args:
        job: with several seeds, each makes some steps and the best one continues.
        out: the batch's folder.
        sweep_steps: of each seed; a quarter of all when None.
        retriever: folder of the CLIP model that ranks seeds; the bundled one when None.
        processes: that run at once; more than one share the cores.
        on_event: called after every step, for messages, and for every file that was written.
        stop: once its `signal` is set, the run saves after the current step.
    """
    if processes > 1:
        share_cores(processes)
    try:
        outcome = _run(job, out, sweep_steps, retriever, on_event, stop)
    except Pgc3dError as error:
        outcome = Outcome("failed", str(error))
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        outcome = Outcome("failed", f"{named}{error.strerror or error}")
    except Exception as error:  # an error of pgc3d itself must not stop the other jobs
        lines = str(error).splitlines() or [""]
        outcome = Outcome("failed", f"an unexpected error: {type(error).__name__}: {lines[0]}")
    return replace(outcome, peak_memory_bytes=peak_memory(_device(job)) | _peak_resident())


def _device(job: Job) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and job.config.run.device != "cpu" else "cpu")


def _run(
    job: Job,
    out: Path,
    sweep_steps: int | None,
    retriever: Path | None,
    on_event: EventCallback,
    stop: StopFlag,
) -> Outcome:
    ranking: tuple[Ranked, ...] = ()
    if len(job.seeds) > 1:
        ranking = _sweep(job, out, sweep_steps, retriever, on_event, stop)
        if not ranking:
            return Outcome("stopped")
    seed = ranking[0].seed if ranking else job.seeds[0]
    result = _make(job, seed, out / job.name, on_event, stop)
    if result.stopped_by is not None:
        return Outcome("stopped", seed=seed, ranking=ranking)
    return Outcome("done", asset=_asset(result, job.config.export.format), seed=seed, ranking=ranking)


def _make(job: Job, seed: int, folder: Path, on_event: EventCallback, stop: StopFlag) -> RunResult:
    """Begin a run of a job, or continue with it."""
    run, deadline = RunDirectory(folder), time.monotonic() + LEFT_BEHIND
    while run.is_locked() and time.monotonic() < deadline:
        time.sleep(0.1)
    if run.has_begun():
        return pipeline.resume(folder, on_event=on_event, stop=stop)
    config = replace(job.config, run=replace(job.config.run, seed=seed))
    return pipeline.generate(job.task, out=folder, config=config, on_event=on_event, stop=stop)


def _asset(result: RunResult, suffix: str) -> str:
    """The path of the newest asset of a run; the format may have other files beside it."""
    manifest = RunDirectory(result.path).read_manifest()
    names = [name for name in manifest.get("files", {}) if re.fullmatch(rf"asset(-\d+)?\.{suffix}", name)]
    if not names:
        raise RunDirectoryError(
            f"{result.path} must have an asset, but its manifest names none; use `pgc3d export {result.path}`"
        )
    return str(result.path / names[-1])


def _sweep(
    job: Job,
    out: Path,
    sweep_steps: int | None,
    retriever: Path | None,
    on_event: EventCallback,
    stop: StopFlag,
) -> tuple[Ranked, ...]:
    """The ranking of a job's seeds, after which the run of the best one is in the job's folder.

    Its first steps are those of the whole run: it is stopped, and resumed later.

    Returns:
        The seeds, the best one first; empty where a signal stopped the sweep.

    Raises:
        DivergedError: all seeds failed.
    """
    folder = out / SWEEPS / job.name
    ranking = _stored_ranking(folder)
    if not ranking:
        ranking = _ranked_seeds(job, folder, sweep_steps, retriever, on_event, stop)
        if not ranking:
            return ()
        content = json.dumps([asdict(item) for item in ranking], indent=1)
        replace_file(folder / RANKING, f"{content}\n".encode())
    if not (out / job.name).exists() and (folder / str(ranking[0].seed)).exists():
        on_event(Event("build", message=f"seed {ranking[0].seed} continues: {_shown(ranking)}"))
        with writing(out / job.name):
            os.rename(folder / str(ranking[0].seed), out / job.name)  # noqa: PTH104 - atomic
    return ranking


def _ranked_seeds(
    job: Job,
    folder: Path,
    sweep_steps: int | None,
    retriever: Path | None,
    on_event: EventCallback,
    stop: StopFlag,
) -> tuple[Ranked, ...]:
    """Make the first steps of each seed and rank them; empty where a signal stopped that."""
    steps, failed = sweep_steps or max(1, _all_steps(job.config) // 4), dict[int, str]()
    for number, seed in enumerate(job.seeds, 1):
        on_event(Event("build", message=f"seed {seed}, {number} of {len(job.seeds)}: {steps} steps"))
        try:
            if not _make_part(job, seed, folder / str(seed), steps, on_event, stop):
                return ()
        except DivergedError as error:
            failed[seed] = str(error)
        release_memory(_device(job))
    if len(failed) == len(job.seeds):
        raise DivergedError(f"at least one seed must not fail, but all did: {failed[job.seeds[0]]}")
    model = load_retriever(retriever or clip_model(), torch.device("cpu"))
    return best_first(
        [
            Ranked(seed, error=failed[seed])
            if seed in failed
            else rank_run(folder / str(seed), seed, plain_text(job.task.prompt), model)
            for seed in job.seeds
        ]
    )


def _shown(ranking: Sequence[Ranked]) -> str:
    return ", ".join(
        f"{item.seed} failed"
        if item.error
        else f"{item.seed} similarity {item.similarity:.3f} consistency {item.consistency:.3f}"
        for item in ranking
    )


def _stored_ranking(folder: Path) -> tuple[Ranked, ...]:
    """The ranking of an earlier process; empty where there is none, or it is damaged."""
    try:
        return tuple(Ranked(**item) for item in json.loads((folder / RANKING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ()


def _make_part(
    job: Job, seed: int, folder: Path, steps: int, on_event: EventCallback, stop: StopFlag
) -> bool:
    """Make the first steps of a seed's run; returns False where a signal stopped it before them."""
    if _steps_done(folder) >= min(steps, _all_steps(job.config)):
        return True
    limited, before = StopFlag(), _steps_before(job.config)

    def observe(event: Event) -> None:
        if stop.signal is not None:
            limited.signal = stop.signal
        elif event.report is not None and before[event.stage] + event.report.step >= steps:
            limited.signal = REACHED
        on_event(event)

    result = _make(job, seed, folder, observe, limited)
    return result.stopped_by in {None, REACHED}


def _steps_before(config: Config) -> dict[str, int]:
    """The number of steps before each stage."""
    names = list(config.stages)
    return {
        name: sum(config.stages[earlier].steps for earlier in names[:index])
        for index, name in enumerate(names)
    }


def _all_steps(config: Config) -> int:
    return sum(stage.steps for stage in config.stages.values())


def _steps_done(folder: Path) -> int:
    """The steps of a run's checkpoints."""
    if not RunDirectory(folder).has_begun():
        return 0
    stages = RunDirectory(folder).read_manifest().get("stages", {})
    return sum(stage.get("steps", 0) for stage in stages.values())


def _peak_resident() -> dict[str, int]:
    """The peak of the resident memory on Linux: of this process, without that of the one that started it.

    What `getrusage` has survives the start of another program in the same process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError, UnicodeDecodeError):
        return {}
    return {"resident": 1024 * kilobytes}
