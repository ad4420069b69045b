"""What is written on the terminal, and what happens where nobody can read it."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgc3d.cli import console
from pgc3d.cli.console import SECONDS, Bar, plain_line
from pgc3d.errors import InputError
from pgc3d.events import Event
from pgc3d.optimize import StepReport

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\nc\x85d\u2028e", r"a\nb\r\nc\x85d\u2028e"),
        ("\x1b[31mred\x07\0", r"\x1b[31mred\x07\x00"),
        (os.fsdecode(b"a\xffb"), r"a\udcffb"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("Grüße 箱 \U0001f468\u200d\U0001f469 ok", "Grüße 箱 \U0001f468\u200d\U0001f469 ok"),
    ],
)
def test_a_message_is_one_line(text, line):
    assert plain_line(text) == line


def test_a_long_message_keeps_both_ends():
    line = plain_line(f"start {'x' * 10_000} end")
    assert len(line) < 2100
    assert (line[:5], line[-3:]) == ("start", "end")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def progress(capsys, *, seconds: float, steps: int) -> list[str]:
    """The lines of a run whose steps take so long, with metrics at every tenth step."""
    clock = Clock()
    bar = Bar(clock)
    for step in range(1, steps + 1):
        clock.now += seconds
        metrics = {"color/clipped_fraction": 0.25, "other/clipped_fraction": 0.75} if step % 10 == 0 else None
        bar(Event("optimize", report=StepReport(step, steps, metrics), memory=1_500_000_000))
    bar.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\r" not in captured.err
    return captured.err.splitlines()


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    lines = progress(capsys, seconds=0.125, steps=1000)
    assert 1000 * 0.125 / SECONDS - 2 <= len(lines) <= 1000 * 0.125 / SECONDS + 1
    assert lines[0] == "optimize: step 41 of 1000, clipped 50 %, memory 1.50 GB, 2:00 left"
    assert lines[-1] == "optimize: step 1000 of 1000, clipped 50 %, memory 1.50 GB, 0:00 left"


def test_slow_steps_are_told_one_by_one_with_the_hours_left(capsys):
    lines = progress(capsys, seconds=60.0, steps=100)
    assert len(lines) == 99  # the first one starts the clock
    assert lines[0] == "optimize: step 2 of 100, 1:38:00 left"


def test_the_clock_of_a_stage_starts_with_its_first_step(capsys):
    """What lies between two stages, as an hour here, is no part of a step."""
    clock = Clock()
    bar = Bar(clock)
    for stage in ("coarse", "fine"):
        for step in range(1, 4):
            clock.now += 60.0
            bar(Event("optimize", report=StepReport(step, 3), stage=stage))
        clock.now += 3600.0
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"optimize {stage}: step {step} of 3, {3 - step}:00 left"
        for stage in ("coarse", "fine")
        for step in (2, 3)
    ]


def test_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(console, "_draws_bars", lambda: True)
    bar = Bar()
    for step in range(1, 4):
        bar(Event("optimize", report=StepReport(step, 3)))
    bar.close()
    assert "3/3" in capsys.readouterr().err


class Full(io.StringIO):
    """A stream on a full disk, or whose reader has left."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error(28, "No space left on device")


def test_full_stdout_ends_a_command_but_not_a_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full(OSError))
    with pytest.raises(InputError, match="standard output must be writable, got: No space left on device"):
        console.deliver("text\n")
    monkeypatch.setattr(sys, "stdout", Full(OSError))
    Bar()(Event("export", file=Path("runs/asset.glb")))
    assert capsys.readouterr().err.count("runs/asset.glb") == 1


def test_a_reader_that_left_ends_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full(BrokenPipeError))
    console.deliver("text\n")
    console.emit("more")
    monkeypatch.setattr(sys, "stderr", Full(BrokenPipeError))
    console.notify("message")
    console.notify("another")


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A script in which `pgc3d` is the command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    function = f'pgc3d() {{ "{sys.executable}" -m pgc3d "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", function + script], env=environment, cwd=folder, capture_output=True, check=False
    )


TINY = (
    "--guidance mini --steps 2 --resolution 16 --texture-size 64 --faces 100 "
    "--set representation.resolution=8 --set objectives.color.batch=1"
)


def test_configuration_for_an_ascii_terminal_comes_back(tmp_path):
    prompt = "schöne Möbel"
    setting = f"objectives.color.guidance.negative_prompt={prompt}"
    shown = shell(f"pgc3d config show --guidance mini --set '{setting}'", tmp_path, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout.isascii()
    from pgc3d.config import load_config, read_yaml

    (tmp_path / "shown.yaml").write_bytes(shown.stdout)
    found = load_config([tmp_path / "shown.yaml"]).last.objectives["color"].guidance.negative_prompt
    assert found == prompt
    assert read_yaml(tmp_path / "shown.yaml")["stages"]["main"]["steps"] == 360


def test_full_device_is_one_line(tmp_path):
    ended = shell("pgc3d config show --guidance mini > /dev/full", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == b"error: standard output must be writable, got: No space left on device\n"


def test_a_reader_that_left_leaves_no_word_at_the_end(tmp_path):
    ended = shell("pgc3d config show --guidance mini | true", tmp_path)
    assert ended.stderr == b""


REDIRECTIONS = ("| true", "> /dev/full", ">&-", ">&- 2>&-", "2>&1 | head -1")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_run_ends_well_wherever_its_output_goes(redirection, tmp_path):
    ended = shell(f"pgc3d text 'a red chair' {TINY} --out chair {redirection}", tmp_path)
    assert b"Traceback" not in ended.stderr
    assert b"Exception ignored" not in ended.stderr
    assert ended.returncode in (0, 5), ended.stderr  # two steps may be too few for a faithful export
    assert (tmp_path / "chair" / "asset.glb").is_file()


def test_paths_that_are_no_text_work_and_are_one_line(tmp_path):
    ended = shell(f"pgc3d text 'a red chair' {TINY} --out $'by\\xff\\ntes'", tmp_path)
    assert ended.returncode in (0, 5), ended.stderr
    assert (tmp_path / os.fsdecode(b"by\xff\ntes") / "asset.glb").is_file()
    assert rb"by\udcff\ntes" in ended.stdout
    assert len(ended.stdout.splitlines()) <= 4
