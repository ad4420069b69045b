from pathlib import Path

import pytest

from pgc3d.config import PRESETS, Config, RunConfig, dump_config, load_config, preset, read_yaml
from pgc3d.errors import ConfigError
from pgc3d.pgc import AdaptiveClip, NoClip, PixelClip


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


ROUND_TRIPS = {
    "defaults": [],
    "another clip": ["objectives.color.clip.kind=adaptive"],
    "second objective": ["objectives.normal.target=normal", "objectives.normal.clip.kind=none"],
    "numbers": ["run.steps=7", "run.resolution=[64,128]", "optimizer.betas=[0.5,0.9]", "optimizer.eps=1e-8"],
    "controls": [
        "objectives.color.guidance.controls.depth.model=sdxl-depth",
        "objectives.color.guidance.controls.depth.scale=0.7",
        "objectives.color.guidance.controls.shape={model: ./net, condition: normal}",
        "objectives.color.guidance.controls.old={model: ./net, polarity: far_bright}",
    ],
    "LoRA files": ["model.loras=[style.safetensors:0.5,./more.safetensors]"],
    "view prompts": ["model.view_prompts.template='{prompt}, seen from {azimuth}'"],
}


@pytest.mark.parametrize("overrides", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_config_comes_back_from_its_yaml(overrides, write):
    config = load_config(overrides=overrides)
    assert load_config([write(dump_config(config))]) == config


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_comes_back(path, write):
    config = load_config([path])
    assert load_config([write(dump_config(config))]) == config


def test_defaults_need_no_file():
    assert load_config() == Config()


def test_later_layers_win(write):
    path = write("run: {steps: 1, seed: 1}\nexport: {faces: 100}\n")
    config = load_config([path], options={"run": {"steps": 2, "seed": None}}, overrides=["run.steps=3"])
    assert (config.run.steps, config.run.seed, config.export.faces) == (3, 1, 100)


def test_new_kind_brings_its_own_defaults():
    overrides = ["objectives.color.clip.threshold=0.5", "objectives.color.clip.kind=adaptive"]
    assert load_config(overrides=overrides).objectives["color"].clip == AdaptiveClip()


def test_same_kind_keeps_what_was_set():
    overrides = ["objectives.color.clip.threshold=0.5", "objectives.color.clip.kind=pixel"]
    assert load_config(overrides=overrides).objectives["color"].clip == PixelClip(threshold=0.5)


def test_file_that_names_objectives_replaces_the_default_ones(write):
    config = load_config([write("objectives:\n  normal: {target: normal, clip: {kind: none}}\n")])
    assert list(config.objectives) == ["normal"]
    assert config.objectives["normal"].clip == NoClip()


def test_set_adds_an_objective():
    assert set(load_config(overrides=["objectives.normal.target=normal"]).objectives) == {"color", "normal"}


ERRORS = {
    "run.stepz=3": "--set: run.stepz: Key 'stepz' not in 'RunConfig'. Did you mean: 'steps'?",
    "rn.steps=3": "--set: rn: Key 'rn' not in 'Config'. Did you mean: 'run'?",
    "run.steps=many": "--set: run.steps: Value 'many' of type 'str' could not be converted to Integer",
    "run.steps=0": "run: steps must lie in [1, 10000000], got 0",
    "run.steps": "--set must be key=value, got 'run.steps'",
    "run=3": "--set: run must hold keys and values, got 3",
    "run.device=gpu": "--set: run.device: Invalid value 'gpu', expected one of ['auto', 'cpu', 'cuda']",
    "run.rasterizer=gl": (
        "--set: run.rasterizer: Invalid value 'gl', expected one of ['auto', 'nvdiffrast', 'triton', 'cpu']"
    ),
    "run.resolution=[1]": "run: resolution must lie in [16, 4096], got [1]",
    "run.resolution=[32,64,128]": (
        "run: resolution_until must grow within [0, 1] and have one entry less than resolution, "
        "got [0.6] for [32, 64, 128]"
    ),
    "objectives.color.clip.kind=adaptve": (
        "--set: objectives.color.clip.kind must be one of pixel, channel, pngd, global, parameter, none, "
        "adaptive, got 'adaptve'; did you mean 'adaptive'?"
    ),
    "objectives.color.clip.treshold=1": (
        "--set: objectives.color.clip.treshold: Key 'treshold' not in 'PixelClip'. Did you mean: 'threshold'?"
    ),
    "objectives.color.backgrounds=[whte]": (
        "objectives.color: backgrounds must be of white, gray, black, red, green, blue, random, image or "
        "#rrggbb, got 'whte'; did you mean 'white'?"
    ),
    "objectives.color.backgrounds=['#ff80']": (
        "objectives.color: backgrounds must be of white, gray, black, red, green, blue, random, image or "
        "#rrggbb, got '#ff80'"
    ),
    "export.texture_size=1": "export: texture_size must lie in [64, 8192], got 1",
}


@pytest.mark.parametrize(("override", "line"), ERRORS.items(), ids=ERRORS)
def test_wrong_value_is_one_line_with_its_place(override, line):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "text", ["run: [", "- 1", "3", "run: 3", "objectives: null", "objectives:\n  a: null"]
)
def test_wrong_file_is_one_line_with_its_name(text, write):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"none\.yaml does not"):
        read_yaml(Path("none.yaml"))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mini'"):
        preset("mni")


def test_stages_follow_each_other():
    run = RunConfig(resolution=(64, 128, 256), resolution_until=(0.25, 0.5))
    assert [run.resolution_at(progress) for progress in (0.0, 0.2, 0.25, 0.49, 0.5, 1.0)] == [
        64, 64, 128, 128, 256, 256,
    ]  # fmt: skip


def test_scaling_keeps_the_proportion_of_the_stages():
    assert RunConfig(resolution=(128, 256)).scaled_to(512) == (256, 512)
    assert RunConfig(resolution=(128, 256)).scaled_to(16) == (16, 16)


def test_what_saves_memory_is_off_unless_asked_for():
    config = load_config()
    assert (config.run.low_memory, config.run.micro_batch, config.model.fast) == (False, 0, "auto")
    assert load_config(overrides=["model.fast=never"]).model.fast == "never"
    with pytest.raises(ConfigError, match=r"run: micro_batch must lie in \[0, 1024\], got -1"):
        load_config(overrides=["run.micro_batch=-1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("representation.kind=textured_mesh", "objectives.color.target=normal"),
            "must have the target color",
        ),
        (("objectives.color.cameras.fovy_degrees=[1,40]",), r"within 99 of the origin, got 1\d\d\.\d"),
        (("view.fill=0.02",), "within 99 of the origin"),
    ],
)
def test_what_could_not_show_anything_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)
