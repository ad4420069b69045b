import dataclasses
import json
import signal

import pytest
import torch
from fakes import FlatColor, PullTowardColor

from pgc3d.build.run import Built
from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.checkpoint import pack, unpack
from pgc3d.config import Config, LoggingConfig, ObjectiveConfig, OptimizerConfig, StageConfig
from pgc3d.errors import DivergedError, OutOfMemoryError, RunDirectoryError
from pgc3d.optimize import Objective, Problem
from pgc3d.pgc import AdaptiveClip, PixelClip
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session, explain_memory
from pgc3d.signals import StopFlag

CPU = torch.device("cpu")
CONFIG = Config(
    stages={
        "main": StageConfig(
            steps=12, resolution=(16,), resolution_until=(), optimizer=OptimizerConfig(max_skipped=4)
        )
    },
    logging=LoggingConfig(log_every=4, preview_every=5, checkpoint_every=5),
)


def with_objectives(**batches):
    """The configuration with objectives of so many views."""
    objectives = {name: ObjectiveConfig(batch=batch) for name, batch in batches.items()}
    return dataclasses.replace(
        CONFIG, stages={"main": dataclasses.replace(CONFIG.last, objectives=objectives)}
    )


class NoRasterizer:
    def rasterize(self, clip, faces, resolution):
        raise NotImplementedError

    def interpolate(self, attributes, fragments, faces):
        raise NotImplementedError


def built(seed=0, batch=2, **guidance):
    """The real parts around a fake asset: an adaptive clip, noise in the guidance, Adam."""
    asset, clip = FlatColor(), AdaptiveClip(quantile=0.5).build()
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(batch, OrbitConfig(), step.generator("cameras")),
        guidance=PullTowardColor(noise=0.3, **guidance),
        clip=clip,
        backgrounds=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    )
    asset.parameter_store().use_adam()
    problem = Problem(representation=asset, objectives={"color": objective})
    return Built(problem=problem, rasterizer=NoRasterizer(), states={"clip.color": clip})


@pytest.fixture
def session(tmp_path):
    with RunDirectory.create(tmp_path / "run") as run:
        yield Session(run, CONFIG, CPU, lambda event: None, StopFlag(), {"prompt": "a red chair"})


def no_preview(path):
    path.write_bytes(b"")


def color(parts):
    return parts.problem.representation.color.detach()


def stop_at(session, step):
    def report(event):
        if event.report is not None and event.report.step == step:
            session.stop.signal = 15

    return report


@pytest.mark.parametrize("step", [1, 5, 7])
def test_stopped_and_continued_run_ends_like_an_uninterrupted_one(session, tmp_path, step):
    whole, first, second = built(), built(), built(seed=99)
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", whole, None, no_preview)

    session.on_event = stop_at(session, step)
    assert not session.optimize("main", first, None, no_preview)
    session.stop.signal = None
    checkpoint = session.run.load_checkpoint("main")
    assert checkpoint.step == step
    assert session.optimize("main", second, checkpoint, no_preview)

    torch.testing.assert_close(color(second), color(whole), rtol=0, atol=0)


def test_signal_before_the_first_step_leaves_a_checkpoint(session):
    session.stop.signal = 2
    assert not session.optimize("main", built(), None, no_preview)
    assert session.run.load_checkpoint("main").step == 1


def test_signal_in_the_last_step_leaves_the_export_to_resume(session):
    session.on_event = stop_at(session, CONFIG.last.steps)
    assert not session.optimize("main", built(), None, no_preview)
    session.stop.signal = None
    assert session.optimize("main", built(), session.run.load_checkpoint("main"), no_preview)


def test_signal_during_the_export_stops_nothing(session):
    with session.recorded():
        assert session.optimize("main", built(), None, no_preview)
        session.stop.signal = 15
    assert session.run.read_manifest()["status"] == "done"


def test_steps_that_a_crash_lost_are_told_once(session):
    path = session.run.path / "metrics.jsonl"
    session.on_event = stop_at(session, 5)
    session.optimize("main", built(), None, no_preview)
    session.stop.signal = None
    for step in (8, 12):  # written after the last checkpoint
        session.run.log_metrics({"stage": "main", "step": step, "loss": 1.0})
    with path.open("a") as stream:
        stream.write('{"stage": "main", "step": 1')
    assert session.optimize("main", built(), session.run.load_checkpoint("main"), no_preview)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert not any("loss" in line for line in lines)


def test_what_is_due_is_written(session):
    session.optimize("main", built(), None, no_preview)
    assert [path.name for path in sorted((session.run.path / "previews" / "main").iterdir())] == [
        "step-000005.png",
        "step-000010.png",
    ]
    lines = (session.run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
    assert session.run.load_checkpoint("main").step == 12


def test_diverged_run_keeps_the_last_good_state(session):
    parts = built(broken=frozenset(range(3, 100)))
    with pytest.raises(DivergedError), session.recorded():
        session.optimize("main", parts, None, no_preview)
    saved = built()
    unpack(session.run.load_checkpoint("main"), saved)
    torch.testing.assert_close(color(saved), color(parts), rtol=0, atol=0)
    assert session.run.read_manifest()["status"].startswith("failed: gradients must be finite")


def test_manifest_says_how_the_run_went(session):
    with session.recorded():
        assert session.run.read_manifest()["status"] == "running"
        session.optimize("main", built(), None, no_preview)
        session.run.config.write_text("run: {}")
        session.made("export", [session.run.config])
    manifest = session.run.read_manifest()
    assert manifest["status"] == "done"
    assert manifest["prompt"] == "a red chair"
    assert {"python", "pgc3d", "torch"} <= set(manifest["versions"])
    assert {"render", "guidance", "backward", "optimizer", "checkpoint"} <= set(manifest["seconds"])
    assert manifest["peak_memory_bytes"]["resident"] > 0
    assert set(manifest["files"]) == {"config.yaml"}


def test_checkpoint_of_another_configuration_is_refused(session):
    session.run.save_checkpoint("main", pack(built(), 3))
    other = dataclasses.replace(built(), states={"clip.normal": AdaptiveClip().build()})
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(session.run.load_checkpoint("main"), other)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["cuda", "python", "torch"],
)
def test_running_out_of_memory_says_what_to_lower(error):
    with pytest.raises(OutOfMemoryError, match=r"lower --resolution \(now 16\)"), explain_memory(CONFIG, CPU):
        raise error


class Hungry(PullTowardColor):
    """Runs out of memory in some calls, unless it may look at `fits` views at most."""

    def __init__(self, *, at, fits, error=torch.OutOfMemoryError, **options):
        super().__init__(**options)
        self.at, self.fits, self.error, self.micro_batch, self.asked = at, fits, error, 0, 0

    def __call__(self, image, rendering, views, step):
        self.asked += 1
        if self.asked >= self.at and (self.micro_batch or len(image)) > self.fits:
            raise self.error("CUDA out of memory")
        return super().__call__(image, rendering, views, step)


def hungry(batch=2, **options):
    parts = built(batch=batch)
    objective = parts.problem.objectives["color"]
    guidance = Hungry(noise=0.3, **options)
    problem = dataclasses.replace(
        parts.problem, objectives={"color": dataclasses.replace(objective, guidance=guidance)}
    )
    return dataclasses.replace(parts, problem=problem), guidance


@pytest.mark.parametrize("at", [1, 6, 12])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError], ids=["cuda", "python"])
def test_a_step_that_runs_out_of_memory_is_done_again_with_fewer_views_at_a_time(
    session, tmp_path, at, error
):
    whole = built()
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", whole, None, no_preview)
    events = []
    session.on_event = events.append
    session.config = with_objectives(color=2)
    parts, guidance = hungry(at=at, fits=1, error=error)
    with session.recorded():
        assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 1
    torch.testing.assert_close(color(parts), color(whole), rtol=0, atol=0)
    assert session.run.read_manifest()["out_of_memory"] == [{"stage": "main", "step": at, "micro_batch": 1}]
    messages = [event.message for event in events if event.message]
    assert messages == [f"out of memory in step {at}: saved, continuing with 1 views at a time"]


def test_views_are_halved_until_they_fit_and_a_resumed_run_remembers(session):
    session.config = with_objectives(color=9)
    parts, guidance = hungry(batch=9, at=4, fits=2)
    assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 2
    assert [entry["micro_batch"] for entry in session.record["out_of_memory"]] == [4, 2]
    again, guidance = hungry(batch=9, at=1, fits=2)
    session.optimize("main", again, session.run.load_checkpoint("main"), no_preview)
    assert guidance.micro_batch == 2


def test_what_cannot_be_divided_ends_with_the_last_good_state_saved(session):
    session.config = with_objectives(color=2)
    parts, _ = hungry(at=7, fits=0)
    with pytest.raises(OutOfMemoryError, match="use --low-memory"), session.recorded():
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 6


def test_other_runtime_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explain_memory(CONFIG, CPU):
        raise RuntimeError("shape")


def deformed(at, rule):
    """A DMTet with two objectives; the second runs out of memory in its `at`th call."""
    asset = build_dmtet(
        DMTetConfig(resolution=12, redistance_every=4, color_field=ColorFieldConfig(log2_rows=8)),
        rasterizer=CpuRasterizer(),
        generator=torch.Generator().manual_seed(0),
    )
    clip = rule.build()
    objectives = {
        name: Objective(
            sample_cameras=lambda step: sample_orbit(2, OrbitConfig(), step.generator("cameras")),
            guidance=guidance,
            clip=clip,
            backgrounds=((1.0, 1.0, 1.0),),
        )
        for name, guidance in (
            ("a", PullTowardColor(noise=0.3)),
            ("b", Hungry(at=at, fits=1, noise=0.3)),
        )
    }
    asset.parameter_store().use_adam()
    return Built(
        problem=Problem(representation=asset, objectives=objectives),
        rasterizer=CpuRasterizer(),
        states={"clip": clip} if isinstance(rule, AdaptiveClip) else {},
    )


@pytest.mark.parametrize("rule", [PixelClip(), AdaptiveClip()])
def test_a_step_that_is_done_again_counts_once(tmp_path, rule):
    config, ends = with_objectives(a=2, b=2), []
    for at in (1000, 4):
        parts = deformed(at, rule)
        with RunDirectory.create(tmp_path / str(at)) as run:
            session = Session(run, config, CPU, lambda event: None, StopFlag())
            assert session.optimize("main", parts, None, no_preview)
        assert bool(session.record.get("out_of_memory")) == (at == 4)
        ends.append(pack(parts, 12).tensors)
    whole, again = ends
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


def test_a_resumed_run_never_looks_at_more_views_than_it_may_now(session):
    session.config = with_objectives(color=8)
    session.record["out_of_memory"] = [{"step": 3, "micro_batch": 4}]
    parts, guidance = hungry(batch=8, at=1, fits=1)
    guidance.micro_batch = 1
    assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 1
    assert len(session.record["out_of_memory"]) == 1


class Gone(Exception):
    """What a caller's own code raises."""


def raise_at(step, error):
    def report(event):
        if event.report is not None and event.report.step == step:
            raise error

    return report


def finish(session, parts):
    """Resume with other objects, as a new process has them."""
    session.on_event = lambda event: None
    session.stop.signal = None
    assert session.optimize("main", parts, session.run.load_checkpoint("main"), no_preview)
    return color(parts)


@pytest.fixture
def whole(tmp_path):
    """The colour that a run without a stop ends with."""
    parts = built()
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", parts, None, no_preview)
    return color(parts)


@pytest.mark.parametrize("step", [1, 5, 7, 12])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), Gone("mine")], ids=lambda e: type(e).__name__
)
def test_whatever_a_caller_raises_between_steps_loses_none(session, whole, step, error):
    session.on_event = raise_at(step, error)
    with pytest.raises(type(error)) as raised, session.recorded():
        session.optimize("main", built(), None, no_preview)
    assert raised.value is error
    assert session.run.load_checkpoint("main").step == step
    manifest = session.run.read_manifest()
    assert manifest["status"] == f"stopped by {type(error).__name__}"
    assert manifest["stages"]["main"]["steps"] == step
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["preview", "metrics"])
def test_an_error_while_something_is_written_loses_no_step(session, whole, monkeypatch, kind):
    def broken(*_):
        raise Gone

    if kind == "metrics":
        monkeypatch.setattr(session.run, "log_metrics", broken)
    with pytest.raises(Gone):
        session.optimize("main", built(), None, broken)
    assert session.run.load_checkpoint("main").step == {"preview": 5, "metrics": 4}[kind]
    monkeypatch.undo()
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


class Interrupted(PullTowardColor):
    """Interrupts a step in its middle, after it has drawn from its generators."""

    error: BaseException | None = None
    at = 7
    times = 1

    def __call__(self, image, rendering, cameras, progress):
        output = super().__call__(image, rendering, cameras, progress)
        if self.calls == self.at:
            if self.error is not None:
                raise self.error
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return output


def interrupted(error=None):
    parts = built()
    objective = parts.problem.objectives["color"]
    guidance = Interrupted(noise=0.3)
    guidance.error = error
    problem = dataclasses.replace(
        parts.problem, objectives={"color": dataclasses.replace(objective, guidance=guidance)}
    )
    return dataclasses.replace(parts, problem=problem), guidance


@pytest.fixture
def python_handles_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
def test_an_interrupt_waits_for_the_end_of_the_step(session, whole):
    """As from a notebook's stop button."""
    parts, guidance = interrupted()
    with pytest.raises(KeyboardInterrupt):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == guidance.at
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


@pytest.mark.usefixtures("python_handles_sigint")
def test_a_second_interrupt_waits_for_nothing(session):
    parts, guidance = interrupted()
    guidance.at, guidance.times = 3, 2
    with pytest.raises(KeyboardInterrupt):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 2


@pytest.mark.parametrize("error", [Gone(), KeyboardInterrupt(), ValueError()], ids=lambda e: type(e).__name__)
def test_an_error_inside_a_step_takes_that_step_back(session, whole, error):
    parts, guidance = interrupted(error)
    with pytest.raises(type(error)):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == guidance.at - 1
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


def test_a_step_that_had_changed_parameters_is_not_saved(session, whole):
    """It is between two states; the last checkpoint counts."""
    parts, guidance = interrupted(Gone())
    asset = parts.problem.representation
    render = asset.render

    def render_and_change(*arguments, **named):
        if guidance.calls == guidance.at - 1:
            with torch.no_grad():
                asset.color.add_(1.0)
        return render(*arguments, **named)

    asset.render = render_and_change
    with pytest.raises(Gone):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 5
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


def test_the_first_error_is_told_where_saving_fails_too(session, monkeypatch, caplog):
    def full(*_):
        raise RunDirectoryError("the disk must have room")

    monkeypatch.setattr(session.run, "save_checkpoint", full)
    session.on_event = raise_at(2, Gone())
    with pytest.raises(Gone):
        session.optimize("main", built(), None, no_preview)
    assert "step 2 could not be saved: the disk must have room" in caplog.text


def changed(tensors, name, change):
    tensors = dict(tensors)
    value = tensors.pop(name)
    return tensors if change is None else tensors | {name: change(value)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("representation.color", lambda t: t * float("nan")),
        ("representation.color", lambda t: t.double()),
        ("representation.color", lambda t: t[:2]),
        ("representation.color", None),
        ("optimizer.color.0.exp_avg", lambda t: t[:1]),
        ("optimizer.color.0.exp_avg_sq", lambda t: t * float("inf")),
        ("optimizer.color.0.step", lambda t: t.expand(3)),
        ("optimizer.color.0.step", None),
        ("state.clip.color.total", lambda t: torch.zeros(7)),
    ],
)
def test_a_checkpoint_of_other_tensors_is_one_line(session, name, change):
    parts = built()
    session.on_event = stop_at(session, 3)
    session.optimize("main", parts, None, no_preview)
    found = session.run.load_checkpoint("main")
    other = dataclasses.replace(found, tensors=changed(found.tensors, name, change))
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(other, built())


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.color.7.step",
        "optimizer.color.x.step",
        "optimizer.color.-9.step",
        "optimizer.sdf.0.step",
        "optimizer.color.scale",
        "optimizer.step",
        "representation.more",
    ],
)
def test_a_checkpoint_with_more_tensors_is_one_line(session, name):
    found = pack(built(), 3)
    more = dataclasses.replace(found, tensors={**found.tensors, name: torch.zeros(3)})
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(more, built())


def test_a_checkpoint_of_other_parameters_is_one_line(session):
    parts = built()
    session.on_event = stop_at(session, 3)
    session.optimize("main", parts, None, no_preview)
    found = session.run.load_checkpoint("main")
    tensors = {name.replace("optimizer.color", "optimizer.sdf"): t for name, t in found.tensors.items()}
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(dataclasses.replace(found, tensors=tensors), built())


@pytest.mark.parametrize("values", [{}, {"param_groups": [{"lr": float("nan")}]}])
def test_learning_rates_are_the_configurations(values):
    """Those in records are not looked at."""
    found = dataclasses.replace(pack(built(), 3), values=values)
    parts = built()
    unpack(found, parts)
    assert parts.problem.representation.parameter_store().optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Gone()], ids=lambda e: type(e).__name__)
def test_a_step_whose_report_raises_has_its_metrics_written(session, error):
    session.on_event = raise_at(8, error)
    with pytest.raises(type(error)):
        session.optimize("main", built(), None, no_preview)
    finish(session, built(seed=99))
    lines = (session.run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
