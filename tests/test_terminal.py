"""What the shell and the terminal get: completions, and no control characters where none fit."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from test_console import ROOT

from pgc3d.cli.completion import complete_alias, complete_model, complete_pipeline, complete_run
from pgc3d.diffusion.aliases import ALIASES
from pgc3d.pipelines import pipelines


class Command:
    """The part of a command's context that a completion uses."""

    def __init__(self, name: str) -> None:
        self.info_name = name


def completed(words: list[str]) -> list[str]:
    """What a shell offers for the last word."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_PGC3D_COMPLETE": "complete_bash",
    }
    code = "import sys; sys.argv = ['pgc3d']; from pgc3d.cli.app import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pgc3d", "te"], ["text", "texture"]),
        (["pgc3d", "texture", "a.glb", "x", "--qual"], ["--quality"]),
        (["pgc3d", "texture", "a.glb", "x", "--quality", "d"], ["draft"]),
        (["pgc3d", "text", "x", "--pipeline", "mag"], ["magic3d"]),
        (["pgc3d", "text", "x", "--model", "sdxl-"], ["sdxl-turbo"]),
    ],
)
def test_a_shell_completes_commands_options_and_their_values(words, offered):
    assert completed(words) == offered


def test_aliases_and_pipelines_are_all_offered():
    assert complete_alias("") == list(ALIASES)
    assert {"mini", "sdxl", "zero123"} <= set(complete_model(""))
    for command in ("text", "image", "texture"):
        assert complete_pipeline(Command(command), "") == [item.name for item in pipelines(command)]


def test_folders_of_runs_are_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/chair-0", "runs/table-0", "other", "mine"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/chair-0", "runs/table-0", "mine"):
        (tmp_path / name / "manifest.json").touch()
    assert complete_run("") == ["mine", "runs/chair-0", "runs/table-0"]
    assert complete_run("runs/c") == ["runs/chair-0"]
    assert complete_run("ru") == ["runs/chair-0", "runs/table-0"]
    assert complete_run(f"{tmp_path}/m") == [f"{tmp_path}/mine"]
    assert complete_run("oth") == complete_run("none/x") == []  # the shell lists files


PROGRESS = """
import sys
from pgc3d.cli.console import Bar, notify
from pgc3d.events import Event
from pgc3d.optimize import StepReport
bar = Bar()
bar(Event("build"))
for step in range(1, 4):
    bar(Event("optimize", report=StepReport(step, 3), seconds_left=65.0))
bar.close()
notify("done")
"""


def on_terminal(**environment: str) -> str:
    """What a process writes whose stderr is a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    clean = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRESS],
        stderr=theirs,
        env=clean | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    content = b""
    try:
        while part := os.read(ours, 4096):
            content += part
    except OSError:  # Linux' end of a terminal
        pass
    process.wait()
    os.close(ours)
    return content.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}], ids=str)
def test_a_terminal_gets_a_bar_and_no_colours(environment):
    text = on_terminal(**environment)
    assert "3/3" in text
    assert "1:05 left" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


def test_a_terminal_that_cannot_overwrite_gets_plain_lines():
    text = on_terminal(TERM="dumb")
    assert text == "build ...\noptimize: step 3 of 3, 1:05 left\ndone\n"
