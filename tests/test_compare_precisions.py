"""`scripts/compare_precisions.py`: how products of eight bits are rounded and compared."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_sdxl

pytestmark = pytest.mark.scripts
ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    """Imported by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import compare_precisions

    return compare_precisions


@pytest.mark.parametrize(("kind", "bits"), [("int8", 7), ("fp8", 3)])
def test_numbers_are_rounded_to_the_nearest_of_the_type_in_each_row(script, kind, bits):
    values = (
        torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 6)[:, None]
    )
    found = script.round_rows(values, kind=kind)
    largest = values.abs().amax(1)
    # INT8 has steps of the largest number / 127, FP8 has 3 bits behind the leading one.
    step = (
        (largest / 127)[:, None]
        if kind == "int8"
        else values.abs() * 2.0**-bits + largest[:, None] * 2.0**-17
    )
    assert ((found - values).abs() <= 0.5001 * step).all()
    torch.testing.assert_close(found.abs().amax(1), largest)
    torch.testing.assert_close(script.round_rows(found, kind=kind), found)
    assert torch.equal(script.round_rows(torch.zeros(2, 4), kind=kind), torch.zeros(2, 4))


def test_fewer_rounded_layers_and_finer_types_are_nearer(script, tmp_path, monkeypatch):
    folder = write_tiny_sdxl(tmp_path / "tiny")
    monkeypatch.setattr(script, "LEVELS", (0.2, 0.6))
    arguments = [tmp_path / "found.json", "--model", folder, "--images", 2, "--side", 64, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments), "--sampling-steps", "2"])
    script.main()
    cosines = json.loads((tmp_path / "found.json").read_text())["cosines"]
    assert len(cosines) == len(script.SCALES) * 4
    for scale in script.SCALES:
        mean = {
            name: cosines[f"scale {scale:g}, {name}"]["mean"]
            for name in ("int8 all", "fp8 all", "fp8 feed-forward")
        }
        assert 0.9 < mean["fp8 all"] < mean["fp8 feed-forward"] < 1
        assert mean["fp8 all"] < mean["int8 all"] < 1
