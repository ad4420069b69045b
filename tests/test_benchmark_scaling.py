"""The benchmark of runs in several processes, at a tiny size."""

import json

import pytest
from tiny import _script

pytestmark = pytest.mark.scripts


def test_runs_of_one_and_two_processes_alternate_and_agree(tmp_path, capsys):
    script = _script("benchmark_scaling")
    out = tmp_path / "out"
    small = ["--tiny", "--device", "cpu", "--gpus", "1,2", "--steps", "4", "--rounds", "2"]
    script.main([str(out), *small, "--jobs", "sdxl+depth", "dmtet", "--views", "3", "--run-steps", "0"])
    found = json.loads((out / "scaling.json").read_text())
    assert [(row["job"], row["processes"]) for row in found["rows"]] == [
        (job, size) for job in ("dmtet", "sdxl+depth") for _ in range(2) for size in (1, 2)
    ]
    for row in found["rows"]:
        assert row["same_parameters"]
        assert row["moved"] > 0
        assert row["difference"] < 0.3  # Adam follows the rounding where gradients are near zero
        assert len(row["bytes"]) == len(row["of_each"]) == row["processes"]
        assert all(part["own"] > 0 and part["step"] > 0 for part in row["of_each"])
        assert (row["meet"] > 0) == (row["processes"] == 2)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found["rows"])


def test_a_killed_run_is_continued_by_one_process(tmp_path):
    script = _script("benchmark_scaling")
    out = tmp_path / "out"
    small = ["--tiny", "--device", "cpu", "--gpus", "2", "--views", "2", "--budget-seconds", "0"]
    script.main([str(out), *small, "--run-steps", "10"])
    run = json.loads((out / "scaling.json").read_text())["run"]
    assert run["code"] == 6
    assert len(run["errors"]) == 1
    assert not run["traceback"]
    assert 0 < run["kept_steps"] <= run["steps_done"] == 10
    assert run["resumed_code"] in {0, 5}
