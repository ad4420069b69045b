"""`--json` and `--quiet`: what other programs read of a run, and nothing else on stdout."""

import json
import math
from dataclasses import fields
from typing import get_args

import pytest
from test_cli import TINY, checkpoint, run  # noqa: F401 - fixtures

from pgc3d import __version__
from pgc3d.cli import output
from pgc3d.cli.json_lines import FORMAT, End, Error, Line, Message, Step, encode
from pgc3d.cli.options import MAKERS
from pgc3d.events import Event
from pgc3d.optimize import StepReport

HEAD = {"format", "event", "time", "job"}


def lines_of(out):
    """The lines, after a check that each has the fields of its class and no others."""
    known = {kind.__name__.lower(): {item.name for item in fields(kind)} for kind in get_args(Line)}
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        assert line["format"] == FORMAT
        assert set(line) == HEAD | known[line["event"]], line
    return lines


def of(lines, event):
    return [line for line in lines if line["event"] == event]


def test_the_shape_of_version_1():
    """A reader of this format relies on these names."""
    assert FORMAT == 1
    assert {kind.__name__: [item.name for item in fields(kind)] for kind in get_args(Line)} == {
        "Start": ["command", "version", "run"],
        "Phase": ["phase"],
        "Message": ["text"],
        "Warning": ["text"],
        "Step": ["stage", "step", "steps", "progress", "seconds_left", "metrics", "memory_bytes"],
        "File": ["path", "kind", "stage"],
        "End": ["status", "exit_code", "run", "files"],
        "Error": ["text", "exit_code"],
    }


def test_a_line_is_json_in_ascii_whatever_it_holds():
    text = encode(Message("a\nb \udcff \u202e 箱" + "x" * 5000), time=1.23456)
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["text"] == "a\nb \udcff \u202e 箱" + "x" * 5000
    step = Step("main", 1, 2, 0.5, math.inf, {"a": math.nan, "b": 0.5}, 3)
    found = json.loads(encode(step, time=1.0, job="chair"))
    assert (found["metrics"], found["seconds_left"], found["job"]) == ({"a": None, "b": 0.5}, None, "chair")


def test_a_run_is_lines_from_its_start_to_its_end(run, checkpoint, tmp_path):
    more = ["--set", "logging.checkpoint_every=4"]
    code, out, err = run("text", "a chair", "--model", checkpoint, "--out", "o", "--json", *TINY, *more)
    assert err == ""
    lines = lines_of(out)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    (start,) = of(lines, "start")
    assert (start["command"], start["version"], start["run"]) == ("text", __version__, "o")
    assert [line["phase"] for line in of(lines, "phase")] == ["build", "export"]
    steps = of(lines, "step")
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [line["metrics"] is not None for line in steps] == [step % 2 == 0 for step in range(1, 9)]
    assert steps[-1]["progress"] == 1.0
    assert steps[1]["memory_bytes"] > 0
    files = {(line["kind"], line["path"]) for line in of(lines, "file")}
    assert ("preview", "o/previews/main/step-000003.png") in files
    assert {path for kind, path in files if kind == "checkpoint"} == {
        f"o/checkpoints/main/step-{step:06d}.json" for step in (4, 8)
    }
    last = lines[-1]
    if code == 5:  # random weights can make too fine a texture for a faithful export
        assert (last["event"], last["exit_code"]) == ("error", 5)
        return
    assert (code, last["event"], last["status"], last["run"]) == (0, "end", "done", "o")
    assert last["files"] == ["o/asset.glb"]
    assert {path for kind, path in files if kind == "result"} == set(last["files"])


MISTAKES = {
    "option": (["text", "x", "--guidnce", "mini", "--json"], "No such option: --guidnce"),
    "missing": (["text", "--json"], "Missing argument 'PROMPT'."),
    "value": (["text", "x", "--steps", "0", "--json", "--guidance", "mini"], "steps must lie in"),
    "run": (["resume", "none", "--json"], "none must be the folder of a run"),
    "list": (["batch", "none.yaml", "--json"], "the list must be a file"),
    "both": (["text", "x", "--json", "--quiet"], "--json must not be given beside --quiet"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_the_last_line_with_the_exit_code(run, arguments, text):
    code, out, err = run(*arguments)
    last = lines_of(out)[-1]
    assert (code, err) == (2, "")
    assert (last["event"], last["exit_code"]) == ("error", 2)
    assert text in last["text"]


def test_a_quiet_run_prints_the_names_of_results(run, checkpoint):
    code, out, err = run("text", "a chair", "--model", checkpoint, "--out", "o", "--quiet", *TINY)
    assert (out, err) == ("o/asset.glb\n", "") if code == 0 else (code, err.count("\n")) == (5, 1)
    assert run("resume", "none", "--quiet")[2].startswith("error: none must be the folder")
    assert run("resume", "none", "--quiet")[1] == ""


def test_a_prompt_is_no_option(run):
    _, out, err = run("text", "--guidance", "mini", "--steps", "0", "--", "--json")
    assert out == ""
    assert err.splitlines()[-1].startswith("error: stages.main: steps must lie in")


def test_a_stop_is_an_end(capsys):
    lines = output.JsonLines("text", lambda: 5.0)
    lines.end(End("stopped", 143, "runs/a", ()), advice="continue with: pgc3d resume runs/a")
    found = lines_of(capsys.readouterr().out)
    assert [line["event"] for line in found] == ["message", "end"]
    assert (found[1]["status"], found[1]["exit_code"], found[1]["time"]) == ("stopped", 143, 5.0)


def test_events_of_a_batch_name_their_job(capsys):
    lines = output.JsonLines("batch", lambda: 5.0)
    lines.progress("chair")(Event("optimize", report=StepReport(1, 2), stage="main", seconds_left=3.0))
    lines.fail_job("table", "no memory")
    found = lines_of(capsys.readouterr().out)
    assert [(line["event"], line["job"]) for line in found] == [("step", "chair"), ("warning", "table")]
    assert found[0]["seconds_left"] == 3.0


def test_a_batch_with_a_failed_job_ends_as_failed(run, tmp_path):
    (tmp_path / "jobs.yaml").write_text("- {prompt: x, qualty: draft, name: a}\n")
    code, out, err = run("batch", "jobs.yaml", "--skip-invalid", "--json")
    lines = lines_of(out)
    assert (code, err) == (1, "")
    assert [line["event"] for line in (lines[0], lines[-2], lines[-1])] == ["start", "warning", "end"]
    assert (lines[0]["command"], lines[0]["run"]) == ("batch", "runs/jobs")
    (warning,) = of(lines, "warning")
    assert warning["job"].endswith("invalid") or warning["job"] == "a"
    assert "did you mean 'quality'" in warning["text"]
    assert (lines[-1]["status"], lines[-1]["exit_code"], lines[-1]["files"]) == ("failed", 1, [])
    code, out, err = run("batch", "jobs.yaml", "--skip-invalid", "--quiet", "--retry")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: [a] ")


def test_all_commands_that_make_an_asset_have_the_options():
    assert set(MAKERS) <= set(output.COMMANDS)


def test_a_failure_is_encoded_with_its_code():
    assert json.loads(encode(Error("x", 4), time=0.0))["exit_code"] == 4
