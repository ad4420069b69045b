"""A prompt from a file or the standard input; every mistake is one line."""

import io
import sys

import pytest
from test_cli import run  # noqa: F401 - a fixture

from pgc3d.cli.batch_rows import read_jobs
from pgc3d.cli.prompt_file import LARGEST, read_prompt
from pgc3d.errors import InputError


def test_a_file_is_one_prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfa (red:1.3)\r\n  chair\n\n")
    assert read_prompt(f"@{path}") == "a (red:1.3) chair"
    assert read_prompt("a chair @ home") == "a chair @ home"
    assert read_prompt(" @home") == " @home"


def test_the_standard_input_is_one_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ein Stühlchen\n".encode())))
    assert read_prompt("-") == "ein Stühlchen"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="must be open"):
        read_prompt("-")


WRONG = {
    "missing": (None, "must name a file that can be read, got: No such file"),
    "empty": (b" \n", "must not be empty, got no text in"),
    "not UTF-8": (b"a \xff", "must be UTF-8 text, got byte 2 of"),
    "too large": (b"a " * LARGEST, f"must have at most {LARGEST} bytes"),
}


@pytest.mark.parametrize(("content", "text"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("command", [["text"], ["texture", "mesh.glb"]], ids=lambda command: command[0])
def test_a_mistake_is_one_line(run, tmp_path, command, content, text):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    code, out, err = run(*command, "@p.txt", "--guidance", "mini")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_no_prompt(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_prompt(f"@{tmp_path}")


def test_a_list_names_files_beside_it(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.txt").write_text("a red chair")
    (tmp_path / "lists" / "jobs.yaml").write_text(
        "- {prompt: '@a.txt', guidance: mini, name: a}\n- {prompt: '-', guidance: mini, name: b}\n"
    )
    monkeypatch.chdir(tmp_path)
    first, second = read_jobs(tmp_path / "lists" / "jobs.yaml", lambda line: None)
    assert first.task.prompt == "a red chair"
    assert "must be text or @FILE, got '-'" in second.error
