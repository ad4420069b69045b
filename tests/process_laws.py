"""What the processes of a `process_group.ProcessGroup` do in tests; all of them call each function."""

import dataclasses
from functools import cache
from pathlib import Path

import torch
from fakes import PullTowardColor
from sessions import CPU, built, color, no_preview, with_objectives

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import Built, RunContext, build_stage
from pgc3d.checkpoint import pack, unpack
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.clip_images import RecordedClip
from pgc3d.clip_rules import parse_rule
from pgc3d.config import load_config
from pgc3d.errors import DivergedError, Pgc3dError
from pgc3d.execution import begin_stage
from pgc3d.optimize import optimize
from pgc3d.parallel import fingerprint
from pgc3d.pgc import BatchRule, Rows
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session
from pgc3d.signals import StopFlag
from pgc3d.task import Task

COLORS = {"levels": 4, "log2_rows": 8}
DMTET = {"kind": "dmtet", "resolution": 12, "redistance_every": 6, "color_field": COLORS}
NERF = {
    "kind": "nerf", "stations": 32, "occupancy": 16, "occupancy_every": 4, "levels": 2, "finest": 16,
    "color_field": {"levels": 2, "finest": 16}, "regularizer_rays": 64, "sparsity": 0.1, "shaded": [0.5],
    "blob_radius": 0.3,
}  # fmt: skip
MESH = {"kind": "textured_mesh", "color_field": COLORS, "material": {"kind": "pbr"}, "shading": True}
IMAGE = {"kind": "textured_mesh", "texture": "image", "image_size": 64}
SDS = {"kind": "sds", "guidance_scale": 7.5}
CASES = {  # representation, rate, and batch, rule and other settings of each objective
    "dmtet": (DMTET, 2e-4, {
        "color": {"batch": 3, "clip": {"kind": "adaptive"}, "guidance": SDS},
        "normal": {"batch": 1, "clip": {"kind": "global", "threshold": 0.05}, "guidance": SDS,
                   "target": "normal"},
    }),
    "nerf": (NERF, 3e-3, {
        "color": {"batch": 2, "clip": {"kind": "relative"}, "guidance": {"kind": "vsd"}},
    }),
    "mesh": (MESH, 1e-3, {
        "color": {"batch": 3, "backgrounds": ["random", "white"], "guidance": SDS},
        "one": {"batch": 1, "clip": {"kind": "adaptive"}, "guidance": SDS},
    }),
    "image": (IMAGE, 3e-2, {
        "color": {"batch": 3, "guidance": {**SDS, "perp_neg": 1.0, "as_latent": True}},
        "near": {"batch": 1, "clip": {"kind": "parameter"}, "guidance": {"kind": "bgt"},
                 "cameras": {"kind": "cover"}},
    }),
}  # fmt: skip
INIT = {"steps": 3, "views": 2, "more_elevation_degrees": [], "fit_steps": 5}
CASES["short"] = CASES["mesh"]
SIDE = 16
__all__ = ["DivergedError"]


def steps_of(case: str) -> int:
    return 8 if case == "short" else 20


@cache
def context_of(case: str, folder: Path, *, controls: bool | None = None) -> RunContext:
    """The context of a case's run, over the tiny checkpoint and the prepared mesh in a folder.

    It has initial views, with a ControlNet or without, where `controls` is not None.
    """
    representation, _, objectives = CASES[case]
    networks = {"depth": {"model": str(folder / "control")}}
    layer = {} if controls is None else {"init": {**INIT, "controls": networks if controls else {}}}
    layer |= {
        # One image at a time, since the rounding of a network depends on the number of images.
        "run": {"device": "cpu", "seed": 3, "micro_batch": 1},
        "steps": steps_of(case),
        "resolution": [SIDE],
        "resolution_until": [],
        "representation": representation,
        "objectives": objectives,
    }
    config = load_config([layer], options={"models": {"text": {"name": str(folder / "model")}}})
    models = LoadedModels(locate_models(config, CPU), CPU, decoders=controls is not None)
    task = Task("a red chair", mesh=folder / "mesh.safetensors")
    return RunContext.of(config, task, CpuRasterizer(), CPU, models)


def stage_of(case: str, folder: Path, *, plain: bool) -> Built:
    """A stage at its start; `plain` is gradient descent, in which rounding does not grow."""
    parts = build_stage(context_of(case, folder), "main")
    if plain:
        rate = CASES[case][1]
        stores = [parts.problem.representation.parameter_store()]
        leave_the_kinks(parts)
        stores += [state.store for state in parts.states.values() if hasattr(state, "store")]
        for store in stores:
            groups = [{**group, "lr": rate} for group in store.optimizer.param_groups]
            store._optimizer = torch.optim.SGD(
                [{"name": group["name"], "params": group["params"], "lr": rate} for group in groups],
                fused=True,
            )
    return parts


def leave_the_kinks(parts: Built) -> None:
    """Enlarge the features of hash grids from 1e-4 to 0.1.

    With those of the start all points are at the kink of each ReLU, so that rounding decides on gradients.
    """
    for name, value in pack(parts, 0).tensors.items():
        if name.endswith("grid.table"):
            value.mul_(1e3)


def take_steps(processes, case, folder, *, first=0, last=None, plain=True, state=None):
    """The state after some steps of a stage, and a mark of the parameters after each of them."""
    parts, steps = stage_of(case, folder, plain=plain), steps_of(case)
    last = steps if last is None else last
    if state is not None:
        unpack(Checkpoint(step=first, tensors=state), parts)
    marks, metrics = [], {}
    for report in optimize(
        parts.problem,
        steps=steps,
        resolution_at=lambda progress: SIDE,
        start=first,
        seed=3,
        log_every=1,
        processes=processes,
    ):
        marks.append(fingerprint(parts.problem.representation.parameter_store().tensors()))
        metrics = report.metrics
        if processes.agree(report.step if report.step == last else None) is not None:
            break
    tensors = {name: value.clone() for name, value in pack(parts, last).tensors.items()}
    return tensors, marks, metrics


def with_adam(processes, case, folder):
    return take_steps(processes, case, folder, plain=False)


def first_half(processes, case, folder):
    return take_steps(processes, case, folder, last=steps_of(case) // 2)


def second_half(processes, case, folder, state):
    return take_steps(processes, case, folder, first=steps_of(case) // 2, state=state)


def start(processes, case, folder):
    """The state before the first step."""
    return {
        name: value.clone() for name, value in pack(stage_of(case, folder, plain=True), 0).tensors.items()
    }


def clip(processes, rule: str, gradients):
    """The rows that a process clips of each of some batches, joined over all processes."""
    clipper, found = RecordedClip(parse_rule(rule).build()), []  # as in a run with previews
    clipper.armed = True
    for turn, gradient in enumerate(gradients):
        shard = dataclasses.replace(processes.shard, turn=turn)
        part = shard.rows(len(gradient))
        rows = Rows(part.start, len(gradient), shard.sum)
        if isinstance(clipper, BatchRule) and processes.size > 1:
            clipped = clipper.clip_rows(gradient[part], rows)
        else:
            clipped = clipper(gradient[part])
        assert clipper.kept is None or torch.equal(clipper.kept[1], clipped) or not len(clipped)
        found.append(rows.gather(clipped) if processes.size > 1 else clipped)
    return found


def initial_views(processes, folder: Path, out: Path, *, controls: bool = True):
    """The parameters of a stage at its first step, after its initial views, and the lines for the user."""
    run = processes.first_then_others(
        lambda: RunDirectory.create(out) if processes.leads else RunDirectory(out)
    )
    context, told = context_of("short", folder, controls=controls), []
    work = Session(run, context.config, CPU, lambda event: told.append(event.message), StopFlag())
    work.processes = processes
    parts = begin_stage(work, context, "main", None)
    store = parts.problem.representation.parameter_store()
    names = [f"{group['name']}.{index}" for group in store.groups for index, _ in enumerate(group["params"])]
    return dict(zip(names, (tensor.detach().clone() for tensor in store.tensors()), strict=True)), told


def no_initial_views(processes, folder, out):
    return initial_views(processes, folder, out, controls=False)


class Bounded(PullTowardColor):
    """Runs out of memory in one process, from a call on, with more than `fits` views at a time."""

    def __init__(self, rank, at, fits):
        super().__init__(noise=0.0)
        self.rank, self.at, self.fits, self.micro_batch = rank, at, fits, 0

    def __call__(self, image, rendering, views, step):
        full = (self.micro_batch or len(image)) > self.fits
        if full and step.shard.rank == self.rank and self.calls + 1 >= self.at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(image, rendering, views, step)


class Faulty(PullTowardColor):
    """Raises in one process, in a call."""

    def __init__(self, rank, at, error):
        super().__init__(noise=0.0)
        self.rank, self.at, self.error = rank, at, error

    def __call__(self, image, rendering, views, step):
        if step.shard.rank == self.rank and step.index + 1 == self.at:
            raise self.error
        return super().__call__(image, rendering, views, step)


class Signal:
    """Sets a session's flag in one process, after a step."""

    def __init__(self, rank, step, number):
        self.rank, self.step, self.number = rank, step, number


def session(processes, folder: Path, batch: int, guidance=None, stopping: Signal | None = None):
    """How a session of a flat colour ended: its error, its state, and what the first process wrote."""
    run = processes.first_then_others(
        lambda: RunDirectory.create(folder) if processes.leads else RunDirectory(folder)
    )
    parts = built(batch=batch)
    if guidance is not None:
        item = dataclasses.replace(parts.problem.objectives["color"], guidance=guidance)
        parts = dataclasses.replace(
            parts, problem=dataclasses.replace(parts.problem, objectives={"color": item})
        )
    flag, record = StopFlag(), {"prompt": "a red chair"}
    told = []

    def report(event):
        if event.message:
            told.append(event.message)
        if stopping and event.report and (processes.rank, event.report.step) == (
            stopping.rank, stopping.step,
        ):  # fmt: skip
            flag.signal = stopping.number

    work = Session(run, with_objectives(color=batch), CPU, report, flag, record, processes=processes)
    error = None
    try:
        with work.recorded():
            work.optimize("main", parts, None, no_preview)
    except (Pgc3dError, RuntimeError) as caught:
        error = (type(caught).__name__, str(caught).splitlines()[0])
        processes.announce(caught)
    return {
        "error": error,
        "color": color(parts).clone(),
        "stopped_by": work.stopped_by,
        "told": told,
        "out_of_memory": work.record.get("out_of_memory"),
        "micro_batch": getattr(guidance, "micro_batch", None),
    }
