"""From a picture to an asset on the command line, with a tiny random Zero123."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_cli import run  # noqa: F401 - a fixture
from tiny import write_tiny_zero123

from pgc3d.config import load_config, preset
from pgc3d.errors import ConfigError
from pgc3d.evaluation.items import Item, write_items
from pgc3d.evaluation.procedural import procedural_asset
from pgc3d.export.mesh_file import write_mesh
from pgc3d.render.cpu import CpuRasterizer

TINY = [
    "--set", "representation.resolution=16", "--set", "representation.redistance_every=3",
    "--set", "objectives.novel.batch=1", "--set", "logging.log_every=2",
    "--set", "logging.preview_every=0", "--set", "logging.preview_resolution=32",
    "--steps", "4", "--resolution", "32", "--texture-size", "64", "--faces", "200",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_zero123(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def picture(tmp_path):
    rgba = np.zeros((80, 60, 4), np.uint8)
    rgba[10:70, 15:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "Red Thing.png")
    return tmp_path / "Red Thing.png"


def test_picture_becomes_a_mesh_and_more(run, checkpoint, picture, tmp_path):  # noqa: F811
    code, out, err = run("image", picture, "--model", checkpoint, "--elevation", "20", *TINY)
    assert code in (0, 5), err  # random weights make noise, which may be too fine for a tiny texture
    folder = tmp_path / "runs" / "red-thing-0"
    assert "input.png" in out
    assert (folder / "asset.glb").is_file()
    with Image.open(folder / "input.png") as kept:
        assert (kept.mode, kept.size) == ("RGBA", (512, 512))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["prompt"], manifest["image"]) == ("", "input.png")
    assert set(manifest["models"]) == {"image"}
    assert {"input.png", "asset.glb"} <= set(manifest["files"])
    assert "view:\n  elevation_degrees: 20.0" in (folder / "config.yaml").read_text()

    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    picture.unlink()  # the run has its own copy
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("steps: 4", "steps: 6"))
    assert run("resume", moved)[0] in (0, 5)
    assert json.loads((moved / "manifest.json").read_text())["steps_done"] == 6
    assert run("export", moved, "--format", "ply")[0] in (0, 5)
    assert run("render", moved)[0] == 0


def test_a_prompt_beside_the_picture_asks_both_models(run, checkpoint, picture, tmp_path):  # noqa: F811
    prompt = ["--prompt", "a red chair", "--set", "model.name=mini", "--steps", "1"]
    code, _, err = run("image", picture, "--model", checkpoint, "--out", "both", *TINY, *prompt)
    assert code in (0, 5), err
    manifest = json.loads((tmp_path / "both" / "manifest.json").read_text())
    assert set(manifest["models"]) == {"image", "text"}
    assert manifest["prompt"] == "a red chair"
    line = json.loads((tmp_path / "both" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name.split("/")[0] for name in line} >= {"novel", "reference", "prompt"}


ERRORS = {
    "no such file": (
        ["none.png", "--model", "MODEL"],
        2,
        "the picture must be a file, found none at none.png",
    ),
    "no model": (["none.png", "--model", "./none"], 3, "no folder ./none"),
    "model with mini": (["none.png", "--guidance", "mini", "--model", "m"], 2, "--model must go with"),
    "text model": (["none.png", "--model", "sdxl"], 2, "must be in the layout of zero123 here"),
    "nobody looks": (
        ["none.png", "--model", "MODEL", "--prompt", "a chair", "--config", "text.yaml"],
        2,
        "the picture none.png must be looked at, but no objective does that",
    ),
    "wrong border": (["none.png", "--border", "2"], 2, "border must lie in [0, 0.8], got 2.0"),
    "wrong elevation": (["none.png", "--elevation", "90"], 2, "elevation_degrees must lie in [-89, 89]"),
}


@pytest.mark.parametrize(("arguments", "code", "line"), ERRORS.values(), ids=ERRORS)
def test_mistake_is_one_line_and_leaves_no_folder(run, checkpoint, tmp_path, arguments, code, line):  # noqa: F811
    (tmp_path / "text.yaml").write_text("objectives: {color: {guidance: {kind: sds}}}\nmodel: {name: mini}")
    arguments = [str(checkpoint) if argument == "MODEL" else argument for argument in arguments]
    found, out, err = run("image", *arguments)
    lines = [text for text in err.splitlines() if not text.startswith("guidance:")]
    assert (found, out, len(lines)) == (code, "", 1), err
    assert line in lines[0]
    assert not (tmp_path / "runs").exists()


def test_zero123_is_no_text_model(run, checkpoint):  # noqa: F811
    code, _, err = run("text", "x", "--model", checkpoint)
    assert code == 2
    assert "must be in the layout of sdxl or sd here" in err


@pytest.mark.parametrize("name", ["mini", "zero123"])
@pytest.mark.parametrize("over", [(), ("draft",), ("high",), ("prompt",), ("high", "prompt")])
def test_novel_views_are_as_far_as_the_picture_is(name, over):
    layers = [preset(f"image-{name}"), *(preset(f"image-{name}-{part}") for part in over)]
    config = load_config(layers)
    assert set(config.objectives) == {"novel", "reference"} | ({"prompt"} if "prompt" in over else set())
    view = config.view
    for objective in (config.objectives[key] for key in config.objectives if key != "reference"):
        assert objective.cameras.fovy_degrees == (view.fovy_degrees, view.fovy_degrees)
        assert objective.cameras.fill == (view.fill, view.fill)
    assert config.objectives["reference"].clip.kind == "none"


def test_stable_zero123_is_a_file_over_the_preset():
    config = load_config([preset("image-zero123"), preset("image-zero123-stable")])
    assert config.image_model.name == "stable-zero123"
    assert set(config.objectives) == {"novel", "reference"}
    assert config.objectives["novel"].guidance.t_max[1] == 0.98


def test_text_configurations_need_no_picture():
    with pytest.raises(ConfigError, match="kind must be one of orbit, reference"):
        load_config(overrides=["objectives.color.cameras.kind=refernce"])


def test_a_benchmark_makes_its_image_items(run, checkpoint, picture, tmp_path):  # noqa: F811
    """Made in the frame of the truth: seen from the elevation that the list says."""
    truth = tmp_path / "truth.glb"
    write_mesh(truth, procedural_asset("box", rasterizer=CpuRasterizer()), "glb")
    item = Item("thing", image=picture, truth=truth, elevation_degrees=25.0)
    write_items(tmp_path / "items.jsonl", [item])
    arguments = ["--run", "--model", checkpoint, "--set", "export.format=stl", "--out", tmp_path / "numbers"]
    code, out, err = run("eval", tmp_path / "items.jsonl", tmp_path / "ours", *arguments, *TINY)
    folder = tmp_path / "ours" / "thing-0"
    assert "elevation_degrees: 25.0" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "manifest.json").read_text())["steps_done"] == 4
    if code == 0:  # random weights make noise, which may be too fine to be exported faithfully
        assert "| chamfer" in out, err
    else:
        assert code == 5, err
