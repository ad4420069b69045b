"""From an image to an asset on the command line, with a tiny random Zero123."""

import json
import pickle
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from test_cli import run  # noqa: F401 - a fixture
from tiny import edit_json, write_tiny_zero123

from pgc3d.config import load_config, preset
from pgc3d.errors import ConfigError
from pgc3d.evaluation import benchmark, protocol
from pgc3d.evaluation.items import Item, write_items
from pgc3d.evaluation.procedural import procedural_asset
from pgc3d.evaluation.processes import in_processes
from pgc3d.evaluation.protocol import Protocol
from pgc3d.mesh_io.mesh_file import write_mesh
from pgc3d.presets import IMAGE, configure
from pgc3d.rendering.cpu import CpuRasterizer

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
def input_image(tmp_path):
    rgba = np.zeros((80, 60, 4), np.uint8)
    rgba[10:70, 15:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "Red Thing.png")
    return tmp_path / "Red Thing.png"


def test_an_image_becomes_a_mesh_and_more(run, checkpoint, input_image, tmp_path):
    code, out, err = run("image", input_image, "--model", checkpoint, "--elevation", "20", *TINY)
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
    input_image.unlink()  # the run has its own copy
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("steps: 4", "steps: 6"))
    assert run("resume", moved)[0] == 2
    assert run("resume", moved, "--edited")[0] in (0, 5)
    assert json.loads((moved / "manifest.json").read_text())["stages"]["main"]["steps"] == 6
    assert run("export", moved, "--format", "ply")[0] in (0, 5)
    assert run("render", moved)[0] == 0


def test_a_prompt_beside_the_image_uses_both_models(run, checkpoint, input_image, tmp_path):
    prompt = ["--prompt", "a red chair", "--set", "models.text.name=mini", "--steps", "1"]
    code, _, err = run("image", input_image, "--model", checkpoint, "--out", "both", *TINY, *prompt)
    assert code in (0, 5), err
    manifest = json.loads((tmp_path / "both" / "manifest.json").read_text())
    assert set(manifest["models"]) == {"image", "text"}
    assert manifest["prompt"] == "a red chair"
    line = json.loads((tmp_path / "both" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name.split("/")[0] for name in line} >= {"novel", "reference", "prompt"}


@pytest.fixture
def maps(tmp_path):
    """Depth and normals for `input_image`: nearer and turned to the right, the further to the right."""
    right = np.broadcast_to(np.linspace(0, 1, 60), (80, 60))
    Image.fromarray(np.rint(right * 65535).astype(np.uint16)).save(tmp_path / "near.png")
    normals = np.stack([0.5 + 0.3 * right, np.full_like(right, 0.5), np.full_like(right, 0.9)], axis=-1)
    np.save(tmp_path / "normals.npy", normals)
    return ["--depth", tmp_path / "near.png", "--normal", tmp_path / "normals.npy"]


def test_maps_beside_the_image_are_kept_and_used(run, checkpoint, input_image, maps, tmp_path):
    code, out, err = run("image", input_image, "--model", checkpoint, "--out", "mapped", *maps, *TINY)
    assert code in (0, 5), err
    folder = tmp_path / "mapped"
    assert {"depth.png", "normal.png"} <= {line.split("/")[-1] for line in out.split()}
    with Image.open(folder / "depth.png") as depth, Image.open(folder / "normal.png") as normal:
        assert (depth.mode, depth.size) == ("I;16", (512, 512))
        assert (normal.mode, normal.size) == ("RGB", (512, 512))
        assert np.asarray(depth)[256, 330] > np.asarray(depth)[256, 180] + 10_000
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["depth"], manifest["normal"]) == ("depth.png", "normal.png")
    assert {"depth.png", "normal.png"} <= set(manifest["files"])
    assert {"depth", "normal"} <= set(manifest["inputs"])
    for path in (input_image, tmp_path / "near.png", tmp_path / "normals.npy"):
        path.unlink()  # the run has its own copies
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("steps: 4", "steps: 6"))
    assert run("resume", folder, "--edited")[0] in (0, 5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {2, 4, 6}
    for name in ("loss_depth", "loss_normal"):
        assert all(line[f"reference/{name}"] > 0 for line in lines)


MAP_ERRORS = {
    "of another size": ([], (60, 80), "a depth map must have the size of the input image, 60 x 80, but"),
    "without a weight": (
        ["--set", "objectives.reference.guidance.depth=0"],
        (80, 60),
        "a depth map must be used by an objective of kind 'reference' with a weight for it",
    ),
}


@pytest.mark.parametrize(("options", "shape", "line"), MAP_ERRORS.values(), ids=MAP_ERRORS)
def test_a_map_that_does_not_belong_to_the_image_is_one_line(
    run,
    checkpoint,
    input_image,
    tmp_path,
    options,
    shape,
    line,
):
    np.save(tmp_path / "depth.npy", np.random.default_rng(0).random(shape))
    arguments = ["--model", checkpoint, "--depth", tmp_path / "depth.npy", *TINY, *options]
    code, out, err = run("image", input_image, *arguments)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_what_was_left_out_of_the_image_is_said(run, checkpoint, input_image, tmp_path):
    with Image.open(input_image) as opened:
        rgba = np.array(opened)
    rgba[:60, 58] = rgba[75, 3] = (200, 60, 30, 255)
    rgba[60:, 58] = 0
    Image.fromarray(rgba[:, :-1]).save(input_image)
    np.save(tmp_path / "depth.npy", np.ones((3, 3)))  # ends before there is anything to wait for
    code, _, err = run("image", input_image, "--model", checkpoint, "--depth", tmp_path / "depth.npy", *TINY)
    assert code == 2
    lines = err.splitlines()
    assert any(f"left out 1 speck apart from the object of {input_image}" in line for line in lines)
    assert any("reaches the right border of the image" in line for line in lines)


@pytest.fixture
def trained_otherwise(checkpoint, tmp_path):
    """A checkpoint that says its training cameras."""
    folder = shutil.copytree(checkpoint, tmp_path / "otherwise")
    edit_json(folder / "zero123.json", fovy_degrees=33, fill=0.8, border=0.3)
    return folder


def configured(model, **layers):
    return configure(IMAGE, guidance="zero123", model=str(model), **layers)[0]


@pytest.mark.parametrize("prompted", [False, True])
def test_cameras_are_those_that_the_model_folder_names(trained_otherwise, checkpoint, prompted):
    config = configured(trained_otherwise, prompted=prompted)
    assert (config.view.fovy_degrees, config.view.fill, config.image.border) == (33.0, 0.8, 0.3)
    for objective in config.last.objectives.values():
        if objective.cameras.kind == "orbit":
            assert objective.cameras.fovy_degrees == (33.0, 33.0)
            assert objective.cameras.fill == (0.8, 0.8)
    preset_only = configured(checkpoint, prompted=prompted)
    assert preset_only == load_config(
        [preset("image-zero123"), *([preset("image-zero123-prompt")] if prompted else [])],
        options={"models": {"image": {"name": str(checkpoint)}}},
    )
    edit_json(trained_otherwise / "zero123.json", fovy_degrees=preset_only.view.fovy_degrees)
    partly = configured(trained_otherwise)
    assert (partly.view.fovy_degrees, partly.view.fill) == (preset_only.view.fovy_degrees, 0.8)


def test_what_the_user_says_of_the_cameras_wins_over_the_model_folder(trained_otherwise, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("view: {fill: 0.9}\nobjectives: {novel: {cameras: {fill: [0.9, 0.9]}}, reference: {}}\n")
    config = configured(
        trained_otherwise,
        files=[file],
        options={"image": {"border": 0.1}},
        overrides=["view.fovy_degrees=50"],
    )
    assert (config.view.fovy_degrees, config.view.fill, config.image.border) == (50.0, 0.9, 0.1)
    assert config.last.objectives["novel"].cameras.fill == (0.9, 0.9)
    assert config.last.objectives["novel"].cameras.fovy_degrees == (33.0, 33.0)


def test_cameras_of_the_model_folder_stand_in_the_run(run, trained_otherwise, input_image, tmp_path):
    other = ["--border", "0.25", "--steps", "1"]
    code, _, err = run("image", input_image, "--model", trained_otherwise, "--out", "run", *TINY, *other)
    assert code in (0, 5), err
    kept = load_config([tmp_path / "run" / "config.yaml"])
    assert (kept.view.fovy_degrees, kept.view.fill, kept.image.border) == (33.0, 0.8, 0.25)
    assert "was trained with border 0.3, this run has 0.25" in err
    assert "fovy_degrees" not in err


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"fovy_degrees": 200}, "zero123.json: fovy_degrees must lie in (0, 150), got 200"),
        ({"fill": "all"}, "zero123.json: "),
        ({"border": -1}, "zero123.json: border must lie in [0, 0.8], got -1"),
    ],
)
def test_impossible_cameras_of_a_model_folder_are_one_line(trained_otherwise, entry, line):
    edit_json(trained_otherwise / "zero123.json", **entry)
    with pytest.raises(ConfigError) as error:
        configured(trained_otherwise)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


ERRORS = {
    "no such file": (
        ["none.png", "--model", "MODEL"],
        2,
        "the image must be a file, got none at none.png",
    ),
    "no model": (["input.png", "--model", "./none"], 3, "got ./none"),
    "model with mini": (["input.png", "--guidance", "mini", "--model", "m"], 2, "--model must go with"),
    "text model": (["input.png", "--model", "sdxl"], 2, "must be in the layout of zero123 here"),
    "unused": (
        ["input.png", "--model", "MODEL", "--prompt", "a chair", "--config", "text.yaml"],
        2,
        "an objective must use the input image input.png, but none does",
    ),
    "wrong border": (["input.png", "--border", "2"], 2, "border must lie in [0, 0.8], got 2.0"),
    "wrong elevation": (["input.png", "--elevation", "90"], 2, "elevation_degrees must lie in [-89, 89]"),
}


@pytest.mark.parametrize(("arguments", "code", "line"), ERRORS.values(), ids=ERRORS)
def test_mistake_is_one_line_and_leaves_no_folder(run, checkpoint, tmp_path, arguments, code, line):
    (tmp_path / "text.yaml").write_text(
        "objectives: {color: {guidance: {kind: sds}}}\nmodels: {text: {name: mini}}"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "input.png")
    arguments = [str(checkpoint) if argument == "MODEL" else argument for argument in arguments]
    found, out, err = run("image", *arguments)
    lines = [text for text in err.splitlines() if not text.startswith("guidance:")]
    assert (found, out, len(lines)) == (code, "", 1), err
    assert line in lines[0]
    assert not (tmp_path / "runs").exists()


def test_zero123_is_no_text_model(run, checkpoint):
    code, _, err = run("text", "x", "--model", checkpoint)
    assert code == 2
    assert "must be in the layout of sdxl or sd here" in err


@pytest.mark.parametrize("name", ["mini", "zero123"])
@pytest.mark.parametrize("over", [(), ("draft",), ("high",), ("prompt",), ("high", "prompt")])
def test_novel_views_are_as_far_as_the_image_is(name, over):
    layers = [preset(f"image-{name}"), *(preset(f"image-{name}-{part}") for part in over)]
    config = load_config(layers)
    assert set(config.last.objectives) == {"novel", "reference"} | ({"prompt"} if "prompt" in over else set())
    view = config.view
    for objective in (config.last.objectives[key] for key in config.last.objectives if key != "reference"):
        assert objective.cameras.fovy_degrees == (view.fovy_degrees, view.fovy_degrees)
        assert objective.cameras.fill == (view.fill, view.fill)
    assert config.last.objectives["reference"].clip.kind == "none"


def test_stable_zero123_is_a_file_over_the_preset():
    config = load_config([preset("image-zero123"), preset("image-zero123-stable")])
    assert config.models["image"].name == "stable-zero123"
    assert set(config.last.objectives) == {"novel", "reference"}
    assert config.last.objectives["novel"].guidance.t_max[1] == 0.98


def test_text_configurations_need_no_image():
    with pytest.raises(ConfigError, match="kind must be one of orbit, reference"):
        load_config(overrides=["objectives.color.cameras.kind=refernce"])


@dataclass(frozen=True)
class Coarse(Protocol):
    """Quick numbers; which ones they are does not matter here."""

    views: int = 3
    resolution: int = 64
    points: int = 1024
    surface_views: int = 8
    grid: int = 24


def in_pickles(work, tasks, *, processes):
    """As in so many processes, but here: what goes to them goes through pickle."""
    assert processes == 2
    return in_processes(*pickle.loads(pickle.dumps((work, dict(tasks)))), processes=1)


def make_image_items(run, checkpoint, input_image, folder):
    """Two at once, in the frame of the truth: seen from the elevation that the list says."""
    truth = folder / "truth.glb"
    write_mesh(truth, procedural_asset("box", rasterizer=CpuRasterizer()), "glb")
    item = Item("thing", image=input_image, truth=truth, elevation_degrees=25.0)
    write_items(folder / "items.jsonl", [item])
    arguments = ["--run", "--model", checkpoint, "--set", "export.format=stl", "--out", folder / "numbers"]
    two = ["--seed", 3, "--seeds", 2, "--jobs", 2]
    code, out, err = run("eval", folder / "items.jsonl", folder / "ours", *arguments, *two, *TINY)
    for seed in (3, 4):
        made = folder / "ours" / f"thing-{seed}"
        config = (made / "config.yaml").read_text()
        assert "elevation_degrees: 25.0" in config
        assert f"seed: {seed}" in config
        assert json.loads((made / "manifest.json").read_text())["stages"]["main"]["steps"] == 4
    if code == 0:  # random weights make noise, which may be too fine to be exported faithfully
        assert "| chamfer" in out, err
    else:
        assert code == 5, err


def test_a_benchmark_makes_its_image_items(run, checkpoint, input_image, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "in_processes", in_pickles)
    monkeypatch.setattr(protocol, "Protocol", Coarse)
    make_image_items(run, checkpoint, input_image, tmp_path)


@pytest.mark.slow
def test_a_benchmark_makes_its_image_items_in_processes(run, checkpoint, input_image, tmp_path):
    make_image_items(run, checkpoint, input_image, tmp_path)
