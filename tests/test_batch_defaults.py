"""Options of all entries of a list, and lists of prompts alone."""

from pathlib import Path

import pytest
from test_batch import write_inputs, write_list
from test_cli import run  # noqa: F401 - a fixture

from pgc3d.cli.batch_rows import Defaults, read_jobs
from pgc3d.cli.options import RunOptions, configurations_of


def read(path, **options):
    return read_jobs(path, lambda line: None, Defaults.of("mini", RunOptions(**options)))


def test_each_line_of_a_text_file_is_a_prompt(tmp_path):
    text = "\ufeff# chairs\r\na red chair\r\n\n  a (blue:1.2) chair, # 2 \n#a car\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    jobs = read(tmp_path / "list.txt", quality="draft")
    assert [job.task.prompt for job in jobs] == ["a red chair", "a (blue:1.2) chair, # 2"]
    assert [job.name for job in jobs] == ["a-red-chair", "a-blue-1-2-chair-2"]
    assert [job.config for job in jobs] == 2 * configurations_of("text x --guidance mini --quality draft")


CASES = {  # an entry's own values, and the options that it then stands for
    "nothing": ({}, "--guidance mini --steps 20 --seed 4 --set run.resolution=[64,128] --low-memory"),
    "the same option": (
        {"steps": 9},
        "--guidance mini --steps 9 --seed 4 --set run.resolution=[64,128] --low-memory",
    ),
    "what a setting is too": (
        {"resolution": 32, "low_memory": False},
        "--guidance mini --steps 20 --seed 4 --resolution 32",
    ),
    "settings": (
        {"set": ["steps=8", "run.resolution=[96,128]"]},
        "--guidance mini --steps 8 --seed 4 --set run.resolution=[96,128] --low-memory",
    ),
}


@pytest.mark.parametrize(("own", "line"), CASES.values(), ids=CASES)
def test_an_option_of_the_batch_holds_for_entries_without_their_own(tmp_path, own, line):
    path = write_list(tmp_path / "list.yaml", [{"prompt": "x", **own}])
    overrides = ["run.resolution=[64,128]"]
    jobs = read(path, steps=20, seed=4, low_memory=True, set_=overrides)
    assert [job.error for job in jobs] == [""]
    assert [jobs[0].config] == configurations_of(f"text {line}")


def test_other_defaults_make_another_job(tmp_path):
    """So that a batch is not resumed with other options than it began with."""
    path = write_list(tmp_path / "list.yaml", [{"prompt": "x"}, {"prompt": "y", "steps": 3}])
    digests = [[job.digest for job in read(path, steps=steps)] for steps in (20, 20, 30)]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] == digests[2][1]  # its own steps are left


def test_files_of_defaults_are_relative_to_the_current_folder(run, tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "my.yaml").write_text("run: {steps: 7}")
    path = write_list(tmp_path / "in" / "list.yaml", [{"mesh": "crate.glb", "prompt": "x"}])
    jobs = read(path, config=[Path("my.yaml")])
    assert [(job.error, job.config.last.steps) for job in jobs] == [("", 7)]
    code, _, err = run("batch", path, "--guidance", "mini", "--steps", "0")
    assert (code, "steps must lie in" in err) == (2, True)
