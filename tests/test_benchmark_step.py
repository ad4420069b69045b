import importlib
import json
import sys

import pytest
from tiny import ROOT

pytestmark = pytest.mark.scripts


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield importlib.import_module("benchmark_step")
    for name in ("benchmark_step", "make_random_sdxl"):
        sys.modules.pop(name, None)


def rows_of(script, tmp_path, *arguments):
    path = tmp_path / "step.json"
    script.main(["--tiny", "--device", "cpu", "--repeats", "2", "--json", str(path), *arguments])
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def test_both_codes_are_measured_on_the_same_inputs(script, tmp_path, capsys):
    rows = rows_of(script, tmp_path, "--batches", "1", "2")
    assert len(rows) == 2 * 2 * 3
    assert {(row["model"], row["batch"]) for row in rows} == {(m, b) for m in ("sdxl", "sd") for b in (1, 2)}
    for row in rows:
        assert row["cosine_gradient"] > 0.9999
        assert row["cosine_prediction"] > 0.9999
        assert all(row["ms"][part] > 0 for part in (*script.PARTS, "step"))
        assert row["operations"] > 1e6
        assert row["planned_bytes"] > 1e5
    assert [row["faster"] for row in rows if row["code"] == "diffusers"] == [1.0] * 4
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 2 + len(rows)


def test_controls_are_measured_where_asked_for(script, tmp_path):
    rows = rows_of(script, tmp_path, "--batches", "1", "--models", "sdxl", "--control")
    plain, controlled = ([row for row in rows if row["control"] == control] for control in (False, True))
    assert len(plain) == len(controlled) == 3
    assert controlled[0]["operations"] > plain[0]["operations"]
    for first, second in zip(plain, controlled, strict=True):
        assert second["planned_bytes"] > first["planned_bytes"]
    assert all(row["cosine_prediction"] > 0.9999 for row in controlled)


def test_no_row_starts_when_the_time_is_used_up(script, tmp_path, capsys):
    assert rows_of(script, tmp_path, "--budget-seconds", "0") == []
    assert "out of time before sdxl" in capsys.readouterr().out
