"""`--style` on the command line, with tiny random checkpoints: recorded, priced, resumable, refused."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from meshes import write_cube
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_plan import SDXL
from test_plan_guidances import run_with
from test_texture_command import TINY, wall
from tiny import write_tiny_adapter

from pgc3d.build.models import locate_models
from pgc3d.config import load_config
from pgc3d.errors import RunDirectoryError
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.guidance.vsd import VsdConfig
from pgc3d.model_record import require_same_models
from pgc3d.planning import plan


def test_a_style_is_used_and_recorded_and_a_changed_adapter_is_refused(run, checkpoint, tmp_path):
    adapter = write_tiny_adapter(tmp_path / "adapter", checkpoint)
    mesh, image = write_cube(tmp_path / "cube.glb"), wall(tmp_path / "wall.png")
    arguments = ["texture", mesh, "a red chair", "--model", checkpoint, *TINY]
    styled = ["--style", image, "--style-adapter", tmp_path / "adapter", "--style-weight", "0.5"]
    assert run(*arguments, "--out", tmp_path / "plain")[0] in (0, 5)
    code, _, err = run(*arguments, *styled, "--out", tmp_path / "styled")
    assert code in (0, 5), err
    manifest = json.loads((tmp_path / "styled" / "manifest.json").read_text())
    assert manifest["inputs"]["style"] == {
        "name": "wall.png",
        "sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
    }
    entry = manifest["models"]["text style"]
    assert (entry["path"], len(entry["sha256"])) == (str(adapter), 64)
    assert "weight: 0.5" in (tmp_path / "styled" / "config.yaml").read_text()
    gradients = [
        [
            json.loads(line)["color/latent_gradient"]
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (tmp_path / "plain", tmp_path / "styled")
    ]
    assert gradients[0] != gradients[1]
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    config = load_config([tmp_path / "styled" / "config.yaml"])
    with pytest.raises(RunDirectoryError, match=r"text style model .* its files have changed"):
        require_same_models(manifest, config, locate_models(config, torch.device("cpu"), styled=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["texture", "cube.glb", "x", "--style", "wall.png"], "got mini; use --guidance sdxl"),
        (["texture", "cube.glb", "x", "--style-weight", "2"], "--style-weight must go with --style IMAGE"),
        (["text", "x", "--style-adapter", "a/b"], "--style-adapter must go with --style IMAGE, got a/b"),
        (["text", "x", "--style", "cube.glb", "--model", "MODEL", "--style-adapter", "ADAPTER"], "cube.glb"),
    ],
)
def test_what_cannot_be_is_one_line(run, checkpoint, tmp_path, arguments, message):
    write_cube(tmp_path / "cube.glb"), wall(tmp_path / "wall.png")
    if "ADAPTER" in arguments:
        write_tiny_adapter(tmp_path / "adapter", checkpoint)
    places = {"MODEL": checkpoint, "ADAPTER": tmp_path / "adapter"}
    names = {"cube.glb": tmp_path / "cube.glb", "wall.png": tmp_path / "wall.png"} | places
    code, _, err = run(*[names.get(item, item) for item in arguments])
    assert code != 0
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert err.rstrip().endswith(errors[0])  # without a traceback


@pytest.mark.parametrize("guidance", [SdsConfig(), VsdConfig()])
def test_an_adapter_costs_its_weights(guidance):
    with_style = replace(SDXL, style=340_000_000)
    costs = [plan.estimate_run(run_with(guidance), {"text": size}) for size in (SDXL, with_style)]
    copies = 2 if guidance.kind == "vsd" else 1
    assert costs[1].bytes - costs[0].bytes == pytest.approx(copies * 2 * with_style.style)
    assert costs[1].operations == costs[0].operations
