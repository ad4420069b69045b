"""One run in several processes: time of a step by part, memory of each, and agreement with one process.

    python scripts/benchmark_scaling.py OUT --gpus 1,2                        # on GPUs, SDXL at full size
    python scripts/benchmark_scaling.py OUT --gpus 1,2 --tiny --device cpu    # the script itself, in minutes

First a whole `pgc3d texture` with as many processes as GPUs, of which one is killed in the middle, and the
run resumed by one process. Then steps: the jobs are SDXL textures at 1024 px, with random weights on which
time and memory do not depend, without and with a depth ControlNet, and DMTet and NeRF with the bundled
prior; each with several numbers of views, by one and by more processes in turn, with models that are loaded
once. Half of the steps warm up, and the others are timed. Where there are fewer GPUs than processes they
share them, and tensors go through the host. Writes OUT/scaling.json after every row, and prints a table.

Of a step, `own` is the work on a process's own views and the optimiser, `reduce` the sum of the gradients
with the wait of the device for the slower processes, and `meet` what hosts wait in meetings, which overlaps
with the work of GPUs. `difference` is the length of the difference of all parameters from those of one
process after the same steps, as a fraction of how far these moved; for one process, of a repetition.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from make_random_controlnet import write_random_controlnet
from make_random_sdxl import write_random_sdxl
from process_group import ProcessGroup
from torch import Tensor

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_stage
from pgc3d.config import Config
from pgc3d.disk import replace_file
from pgc3d.inputs.mesh import prepare_mesh_file, save_prepared
from pgc3d.memory import release_memory
from pgc3d.optimize import optimize
from pgc3d.parallel import SHARE_GPU, Processes, fingerprint
from pgc3d.presets import TEXT, TEXTURE, configure
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task

PROMPT = "a red chair"
OWN = ("cameras", "render", "guidance", "backward", "metrics", "optimizer")
JOBS = ("sdxl", "dmtet", "nerf", "sdxl+depth")  # in this order
COLUMNS = ("job", "views", "processes", "step", "own", "reduce", "meet", "faster", "peak GB", "difference")


@dataclass(frozen=True)
class Job:
    """Steps that are measured."""

    name: str  # one of `JOBS`
    views: int
    steps: int
    out: Path  # with the models and the mesh
    device: str
    tiny: bool

    def config(self) -> Config:
        """The settings of the presets, with so many views."""
        options: dict[str, Any] = {"run": {"device": self.device, "seed": 1}}
        every: dict[str, Any] = {"batch": self.views}
        if not self.name.startswith("sdxl"):
            pipeline = "dreamfusion" if self.name == "nerf" else None
            if self.tiny:
                options["representation"] = {"resolution": 16} if self.name == "dmtet" else {"stations": 16}
            config, _ = configure(
                TEXT, guidance="mini", pipeline=pipeline, options=options, every_objective=every,
                resolution=16 if self.tiny else None,
            )  # fmt: skip
            return config
        if self.name == "sdxl+depth":
            every["guidance"] = {"controls": {"depth": {"model": str(self.out / "control")}}}
        config, _ = configure(
            TEXTURE, guidance="sdxl", model=str(self.out / "model"), options=options, every_objective=every,
            resolution=64 if self.tiny else None,
        )  # fmt: skip
        return config


_models: dict[str, LoadedModels] = {}  # of this process: those of the last job
_states: dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]] = {}  # first and last ones of one process


def context_of(job: Job) -> RunContext:
    """The context of a job, whose models are loaded once for all numbers of processes and views."""
    device, config = torch.device(job.device), job.config()
    if job.name not in _models:
        _models.clear()
        release_memory(device)
        _models[job.name] = LoadedModels(locate_models(config, device), device)
    release_memory(device)
    task, rasterizer = Task(PROMPT, mesh=job.out / "mesh.safetensors"), build_rasterizer("auto", device)
    return RunContext.of(config, task, rasterizer, device, _models[job.name])


def measure(processes: Processes, job: Job) -> dict[str, Any]:
    """Make the steps of a job together; the row of this process, with times in milliseconds a step."""
    context = context_of(job)
    (name, stage), *_ = context.config.stages.items()
    parts = build_stage(context, name)
    tensors = parts.problem.representation.parameter_store().tensors()
    before = _copied(tensors)
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    warm, end, metrics = 0.0, 0.0, {}
    for report in optimize(
        parts.problem,
        steps=job.steps,
        resolution_at=stage.resolution_at,
        seed=1,
        stage=name,
        log_every=job.steps // 2,
        processes=processes,
    ):
        if report.metrics is not None:
            warm, end, metrics = end, time.perf_counter(), dict(report.metrics)
        processes.agree(None)
    row = _times(metrics, 2e3 * (end - warm) / job.steps)
    row |= {"bytes": _peak(context.device), "fingerprint": fingerprint(tensors)}
    return row | (_difference(job, processes.size, before, tensors) if processes.leads else {})


def _times(metrics: Mapping[str, float], step: float) -> dict[str, float]:
    parts = {name: 1e3 * metrics.get(f"seconds/{name}", 0.0) for name in (*OWN, "reduce", "wait")}
    own = sum(parts[name] for name in OWN)
    return {"step": step, "own": own, "reduce": parts["reduce"], "meet": parts["wait"]}


def _difference(job: Job, size: int, before: list[Tensor], tensors: Sequence[Tensor]) -> dict[str, float]:
    """How far the parameters are from those of one process, as a fraction of how far these moved."""
    first, last = _states.setdefault((job.name, job.views), (before, _copied(tensors)))
    moved = _length(last, first)
    return {"difference": _length(tensors, last) / moved, "moved": moved, "processes": size}


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _length(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    squares = [(a.detach() - b).double().square().sum().item() for a, b in zip(tensors, others, strict=True)]
    return float(sum(squares) ** 0.5)


def _peak(device: torch.device) -> int:
    """Bytes: of the GPU, or resident."""
    from pgc3d.environment import peak_memory

    peak = peak_memory(device)
    return peak.get("cuda", peak["resident"])


def write_inputs(out: Path, *, tiny: bool, device: str) -> None:
    """The models with random weights, and a sphere with new texture coordinates."""
    import trimesh

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model" / "model_index.json").exists():
        write_random_sdxl(out / "model", full_size=not tiny, device=device)
    if not (out / "control" / "config.json").exists():
        write_random_controlnet(out / "control", out / "model", full_size=not tiny, device=device, seed=2)
    if not (out / "sphere.glb").exists():
        trimesh.creation.icosphere(2 if tiny else 4).export(out / "sphere.glb")
    prepared = prepare_mesh_file(
        out / "sphere.glb", up="+y", front="auto", crease_degrees=40.0, texture_size=256 if tiny else 2048,
        rasterizer=build_rasterizer("auto", torch.device(device)),
    )  # fmt: skip
    save_prepared(out / "mesh.safetensors", prepared)


def killed_and_resumed(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A texture by all GPUs, of which one process is killed after a checkpoint, resumed by one process."""
    run = out / f"run-{time.strftime('%H%M%S')}"
    size, steps = max(options.gpus), options.run_steps
    small = ["--resolution", "64", "--texture-size", "64"] if options.tiny else ["--texture-size", "1024"]
    command = [
        "texture", str(out / "sphere.glb"), PROMPT, "--guidance", "sdxl", "--model", str(out / "model"),
        "--device", options.device, "--steps", str(steps), "--out", str(run), *small,
        "--set", "logging.log_every=5", "--set", "logging.preview_every=0",
        "--set", f"logging.checkpoint_every={max(steps // 5, 1)}",
    ]  # fmt: skip
    found: dict[str, Any] = {"processes": size, "steps": steps}
    start = time.perf_counter()
    process = _begin([*command, "--gpus", str(size)])
    try:
        found["checkpoint_s"] = _wait_for(process, run, start)
        rank = _rank_of(process.pid, size - 1)
        killed = time.perf_counter()
        if rank is not None:
            os.kill(rank, signal.SIGKILL)
        text = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        found["hangs"], text = True, ""
    finally:
        process.kill()  # whose end ends the others
    found |= {"ended_after_s": time.perf_counter() - killed, "code": process.returncode}
    found["errors"] = [line for line in text.splitlines() if line.startswith("error")]
    found["traceback"] = "Traceback" in text
    found["kept_steps"] = _steps(run)
    resumed = time.perf_counter()
    process = _begin(["resume", str(run)])
    written, text = process.communicate()
    manifest = json.loads((run / "manifest.json").read_text())
    found |= {"resumed_s": time.perf_counter() - resumed, "resumed_code": process.returncode}
    found |= {"status": manifest["status"], "steps_done": _steps(run), "files": written.split()}
    found["log_tail"] = text.splitlines()[-3:]
    return found


def _begin(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, SHARE_GPU: "1"}
    command = [sys.executable, "-m", "pgc3d", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def _wait_for(process: "subprocess.Popen[str]", run: Path, start: float) -> float:
    """Seconds until the first checkpoint, and two seconds more."""
    while process.poll() is None and not list(run.glob("checkpoints/*/step-*.json")):
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    time.sleep(2.0 if _steps(run) else 0.0)
    return seconds


def _steps(run: Path) -> int:
    files = [path.stem for path in run.glob("checkpoints/*/step-*.json")]
    return max((int(name.removeprefix("step-")) for name in files), default=0)


def _rank_of(launcher: int, rank: int) -> int | None:
    """The process of a rank below a launcher."""
    import psutil

    for child in psutil.Process(launcher).children():
        if child.environ().get("RANK") == str(rank):
            return int(child.pid)
    return None


def rows_of(group: ProcessGroup, job: Job, sizes: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """The rows of a job: all numbers of processes in turn, some times."""
    times: dict[int, list[float]] = {}
    for _ in range(rounds):
        for size in sizes:
            found = group.call(size, measure, job)
            times.setdefault(size, []).append(found[0]["step"])
            alone = min(times.get(1, [float("nan")]))
            yield {
                "job": job.name,
                "views": job.views,
                "processes": size,
                **{key: value for key, value in found[0].items() if key in (*COLUMNS, "moved")},
                "faster": alone / found[0]["step"],
                "bytes": [row["bytes"] for row in found],
                "same_parameters": len({row["fingerprint"] for row in found}) == 1,
                "of_each": [{key: row[key] for key in ("own", "reduce", "meet", "step")} for row in found],
            }


def line_of(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    cells = [
        str(row["job"]),
        str(row["views"]),
        str(row["processes"]),
        *(f"{row[name]:.1f}" for name in ("step", "own", "reduce", "meet")),
        f"{row['faster']:.2f}x",
        " ".join(f"{value / 1e9:.2f}" for value in row["bytes"]),
        f"{row['difference']:.1e}{'' if row['same_parameters'] else ', PROCESSES DIFFER'}",
    ]
    return f"| {' | '.join(cells)} |"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", type=_numbers, default=[1, 2], help="numbers of processes, as 1,2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--views", type=_numbers, default=[4, 8])
    parser.add_argument("--steps", type=int, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run-steps", type=int, default=100, help="of the run that is killed; 0: none")
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="no new job starts after this")
    parser.add_argument("--tiny", action="store_true", help="miniatures, to try the script itself")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    start, options = time.perf_counter(), parse(arguments)
    out = options.out.absolute()
    write_inputs(out, tiny=options.tiny, device=options.device)
    print(f"inputs: {time.perf_counter() - start:.0f} s", flush=True)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    record: dict[str, Any] = {"device": name, "torch": torch.__version__, "rows": []}
    record |= {"gpus": torch.cuda.device_count(), "steps": options.steps, "tiny": options.tiny}
    if options.run_steps:
        record["run"] = killed_and_resumed(out, options)
        print(json.dumps(record["run"], indent=1), flush=True)
        _write(out, record)
    release_memory(torch.device(options.device))
    group = ProcessGroup(max(options.gpus), options.device)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    order = [(name, views) for name in JOBS if name in options.jobs for views in options.views]
    for job_name, views in order:
        if time.perf_counter() - start > options.budget_seconds:
            print(f"out of time before {job_name} with {views} views", flush=True)
            break
        job = Job(job_name, views, options.steps, out, options.device, options.tiny)
        for row in rows_of(group, job, sorted(options.gpus), options.rounds):
            record["rows"].append(row)
            print(line_of(row), flush=True)
            _write(out, record)
    group.close()
    print(f"{time.perf_counter() - start:.0f} s")


def _write(out: Path, record: Mapping[str, Any]) -> None:
    replace_file(out / "scaling.json", f"{json.dumps(record, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
