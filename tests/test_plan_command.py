"""`pgc3d plan`: its numbers are those of the configuration, the table and the planner, and nothing runs."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run  # noqa: F401 - a fixture
from test_docs import ROOT

from pgc3d.cli.options import runs_of
from pgc3d.config import dump_config
from pgc3d.errors import ConfigError, InputError
from pgc3d.planning.earlier_runs import times_of_run
from pgc3d.planning.fleet import fleet
from pgc3d.planning.forecast import Seeds, Settings, forecast
from pgc3d.planning.known_models import known_model
from pgc3d.planning.plan import fit
from pgc3d.planning.plan_times import H100, H200, MEASURED, SIZES, Scaling, Times, Work
from pgc3d.presets import TEXTURE, configure
from pgc3d.requirements import ModelUse
from pgc3d.run_directory import RunDirectory

FAST = ["texture", "crate.glb", "a rusty crate", "--guidance", "sdxl", "--quality", "fast"]
ON_H200 = Settings(MEASURED, "H200")


def sdxl(quality="fast"):
    return configure(TEXTURE, guidance="sdxl", quality=quality)[0]


def of(settings=ON_H200, config=None, **seeds):
    return forecast("a run", config or sdxl(), settings, Seeds(**seeds))


PLAIN = of()


def test_times_are_the_measured_ones_of_each_image():
    found, parts = PLAIN, MEASURED.parts_of("sdxl", H200)
    row = MEASURED.step(Work("sdxl", 1024), H200, 4, "textured_mesh", 1024)
    assert (found.steps, found.images) == (60, 240)
    assert found.stepping == pytest.approx(60 * row.ms / 1000)
    assert found.seconds == pytest.approx(parts.start + parts.build + parts.export + found.stepping)
    assert (found.initial_views, found.missing, found.notes, found.first_start) == (0, (), (), parts.first)


def test_memory_is_that_of_the_planner():
    found, config = of(replace(ON_H200, gpus=(1, 2, 4))), sdxl()
    free = int(MEASURED.memory[H200])
    sizes = {"text": SIZES["sdxl"]}
    planned = [fit(config.of_one_process(count), sizes, free)[1].bytes for count in (1, 2, 4)]
    assert [row.bytes for row in found.gpus] == planned == sorted(planned, reverse=True)


def test_several_gpus_have_a_time_once_their_efficiency_is_in_the_table():
    found = of(replace(ON_H200, gpus=(4,)))
    assert (found.gpus[1].seconds, "not measured" in found.gpus[1].note) == (None, True)
    scaled = MEASURED | Times(scaling=(Scaling("sdxl", H200, 4, 0.8, "a test"),))
    assert of(replace(ON_H200, times=scaled, gpus=(4,))).gpus[1].seconds == pytest.approx(
        found.stepping / 4 / 0.8
    )


def test_a_time_that_was_not_measured_stays_unknown_with_a_line():
    config = replace(sdxl(), models={"text": replace(sdxl().models["text"], fast="never")})
    found = of(config=config)
    assert (found.stepping, found.seconds) == (None, None)
    line = f"no measured time of sdxl at 1024 px, by diffusers' own code on {H200}; use --time-per-step"
    assert any(note.startswith(line) for note in found.notes)
    given = of(replace(ON_H200, step_seconds=0.5), config)
    assert (given.stepping, given.sources[0]) == (30.0, "--time-per-step")


def test_models_on_several_devices_are_planned_with_one_process():
    entry, stage = sdxl().models["text"], sdxl().last
    first = stage.objectives["color"]
    second = replace(first, guidance=replace(first.guidance, model="b"))
    config = replace(
        sdxl(),
        models={"text": entry, "b": replace(entry, device="cuda:1")},
        stages={"main": replace(stage, objectives={"color": first, "second": second})},
    )
    found = of(config=config)
    assert found.stepping == pytest.approx(2 * PLAIN.stepping)
    assert "models on several devices: the time is that of one after the other" in found.notes
    renders = 4 * 1024**2 * stage.representation.render_bytes(low_memory=False)
    assert found.gpus[0].bytes == pytest.approx(PLAIN.gpus[0].bytes + renders)
    with pytest.raises(ConfigError, match=r"models\.b\.device must be auto in a run of 2 processes"):
        of(replace(ON_H200, gpus=(1, 2)), config)


def test_a_step_that_differs_from_the_measured_one_is_named():
    objective = sdxl().last.objectives["color"]
    stage = replace(sdxl().last, objectives={"color": replace(objective, batch=2)})
    found = of(config=replace(sdxl(), stages={"main": stage}))
    assert found.stepping == pytest.approx(PLAIN.stepping / 2)
    assert found.notes == (
        "sdxl at 1024 px: measured with 4 images a step, textured_mesh at 1024 px; this has 2, textured_mesh "
        "at 1024 px",
    )


@pytest.mark.parametrize(("count", "steps", "total"), [(1, 9, 60), (3, 9, 78), (4, None, 105), (2, 500, 120)])
def test_the_seeds_of_a_job_repeat_the_first_steps(count, steps, total):
    assert of(count=count, steps=steps).steps == total


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 3))
def test_a_list_takes_no_less_than_its_work_and_at_most_one_run_more(steps, nodes, gpus):
    runs = [replace(PLAIN, phases=(replace(PLAIN.phases[0], steps=count),)) for count in steps]
    found, work = fleet(runs, nodes=nodes, gpus=gpus, price=2.0), sum(item.seconds for item in runs)
    workers = nodes * gpus
    longest = max(item.seconds for item in runs)
    assert max(work / workers, longest) <= found.seconds * (1 + 1e-9)
    assert found.seconds <= (work / workers + longest) * (1 + 1e-9)
    assert found.cost == pytest.approx(2.0 * workers * found.seconds / 3600)
    assert found.assets_per_hour == pytest.approx(3600 * len(steps) / found.seconds)


def test_a_list_with_an_unknown_time_has_no_total():
    unknown = replace(PLAIN, phases=(replace(PLAIN.phases[0], step_seconds=None),))
    found = fleet([PLAIN, unknown], price=1.0)
    assert (found.seconds, found.assets_per_hour, found.cost, found.jobs) == (None, None, None, 2)


def make_run(folder, config, of_step, **record):
    """The folder of a run with measured steps."""
    made = RunDirectory.create(folder)
    made.config.write_text(dump_config(config))
    for step in range(10, 61, 10):
        parts = {"seconds/guidance": of_step if step > 10 else 100.0, "seconds/render": 0.01}
        made.log_metrics({"stage": "main", "step": step, **parts})
    record = {
        "device": {"type": "cuda", "name": "Some GPU"},
        "seconds": {"build": 7.0, "export": 3.0},
    } | record
    made.write_manifest({"prompt": "x", **record})
    return folder


def test_a_run_like_an_earlier_one_takes_its_times(tmp_path):
    """On any device, without the first steps, in which kernels are compiled."""
    times = times_of_run(make_run(tmp_path / "run", sdxl(), 0.39), "Some GPU")
    (row,) = times.steps
    assert (row.work, row.images, row.ms) == (Work("sdxl", 1024), 4, pytest.approx(400))
    assert (times.parts[0].build, times.parts[0].export, times.parts[0].start) == (7.0, 3.0, None)
    (parts,) = times_of_run(
        make_run(tmp_path / "own", sdxl(), 0.39, seconds={"start": 4.0}), "Some GPU"
    ).parts
    assert (parts.start, parts.note) == (4.0, "")
    assert (MEASURED | times).step(row.work, "Some GPU", 4, "textured_mesh", 1024) == row


@pytest.mark.parametrize(
    ("record", "seconds", "line"),
    [
        ({"device": {"type": "cuda", "name": "Another"}}, 0.4, "made on Another"),
        ({"device": {"type": "cpu", "name": "x86_64"}}, 0.4, "made on cpu"),
        ({"processes": [{}, {}]}, 0.4, "a run of one process"),
        ({}, None, "with steps of one model that were measured"),
    ],
)
def test_runs_that_say_nothing_about_the_device_are_refused(tmp_path, record, seconds, line):
    folder = make_run(tmp_path / "run", sdxl(), seconds or 0.0, **record)
    if seconds is None:
        (folder / "metrics.jsonl").write_text('{"stage": "main", "step": 10}\nno json\n')
    with pytest.raises(InputError, match=line):
        times_of_run(folder, "Some GPU")


def test_every_number_has_a_source_and_is_possible():
    rows = [*MEASURED.steps, *MEASURED.parts, *MEASURED.initial_views, *MEASURED.scaling]
    assert all((ROOT / row.source).is_file() for row in rows)
    assert all(0 < row.ms < math.inf and row.images > 0 for row in MEASURED.steps)
    assert all(0 < row.efficiency <= 1 for row in MEASURED.scaling)
    keys = [(row.work, row.device, row.images, row.representation, row.rendered) for row in MEASURED.steps]
    assert len(set(keys)) == len(keys)


def test_the_bundled_models_are_known_and_those_of_another_size_are_not_taken_for_them():
    model = runs_of(["text", "a", "--guidance", "mini"])[0][1].models["text"]
    assert known_model(model, ModelUse()).kind == "mini"
    image = known_model(model, ModelUse(layouts=("zero123",)))
    assert (image.kind, image.size.resolution) == ("mini image", 256)
    for name, kind in (
        ("sdxl", "sdxl"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("sd21", "sd21"),
    ):
        assert known_model(replace(model, name=name), ModelUse()).kind == kind
    unknown = known_model(replace(model, name="sdxl"), ModelUse(controls=("owner/some-control",)))
    assert unknown.size is None


def test_the_command_prints_the_plan_and_makes_nothing(run, tmp_path):
    code, out, err = run("plan", *FAST, "--on", "h200", "--gpus", "1,2", "--price", "2.5")
    assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
    lines = out.splitlines()
    assert lines[0].endswith("60 steps, 240 images, sdxl on NVIDIA H200")
    names = ["start", "build", "initial views", "steps", "export", "all", "memory", "2 GPUs", "measured"]
    assert [line[2:17].strip() for line in lines[1:]] == [*names, "all jobs", "assets", "cost"]


def test_json_has_the_numbers_of_the_lines(run):
    _, out, _ = run("plan", *FAST, "--on", H100, "--json")
    record = json.loads(out)
    expected = of(replace(ON_H200, device=H100))
    (found,) = record["runs"]
    assert (found["seconds"], found["stepping"]) == (expected.seconds, expected.stepping)
    assert record["all"]["cost"] is None


def test_a_list_is_planned_for_all_its_jobs(run, tmp_path):
    jobs = [{"prompt": f"chair {k}", "guidance": "sdxl", "quality": "draft", "seeds": k} for k in (1, 2)]
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    line = ["plan", "batch", "jobs.yaml", "--jobs", "2", "--on", "H200", "--price", "2", "--nodes", "3"]
    code, out, err = run(*line, "--gpus", "2")
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.yaml"]
    assert "3 with 2 GPUs each" in out
    assert "--jobs 2 was not measured" in out
    _, text, _ = run(*line, "--json")
    record = json.loads(text)
    steps = [job["steps"] for job in record["runs"]]
    assert steps[1] == steps[0] + steps[0] // 4
    assert record["all"]["cost"] == pytest.approx(6 * record["all"]["seconds"] / 3600)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resume", "x"], "plan must have a command of text, image, texture, batch, got 'resume'"),
        (["text", "x", "--stepz", "3"], "No such option: --stepz"),
        (["text", "x", "--steps", "0"], "steps must lie in"),
        (["batch", "none.yaml"], "the list must be a file"),
        (["text", "x", "--gpus", "two"], "--gpus must be numbers from 1 to 64"),
        (["batch", "none.yaml", "--gpus", "1,2"], "--gpus must be one number for a list"),
        (["text", "x", "--nodes", "2"], "--nodes must go with batch"),
        (
            [*FAST, "--on", "Z1000"],
            "--on must be one of NVIDIA H100 80GB HBM3, NVIDIA H200, cpu with 2 cores",
        ),
        ([*FAST, "--on", "NVIDIA"], "--on must be one of"),
        ([*FAST, "--like", "none"], "none must be the folder of a run"),
    ],
)
def test_mistakes_are_those_of_the_command_itself(run, arguments, line):
    code, out, err = run("plan", *arguments)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]


def test_inputs_may_be_left_out(run):
    assert run("plan", "texture", "--guidance", "sdxl", "--on", "H200")[0] == 0
