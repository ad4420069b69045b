import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.config import (
    PRESETS,
    Config,
    ModelConfig,
    StageConfig,
    dump_config,
    load_config,
    preset,
    read_yaml,
)
from pgc3d.errors import ConfigError
from pgc3d.pgc import NoClip, PixelClip


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
    "LoRA files": ["models.text.loras=[style.safetensors:0.5,./more.safetensors]"],
    "view prompts": ["models.text.view_prompts.template='{prompt}, seen from {azimuth}'"],
}


@pytest.mark.parametrize("overrides", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_config_comes_back_from_its_yaml(overrides, write):
    config = load_config(overrides=overrides)
    assert load_config([write(dump_config(config))]) == config


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_comes_back(path, write):
    whole = path.with_stem(path.stem.removesuffix("-mini"))  # below the miniature of a pipeline
    config = load_config([whole, path] if path.stem.startswith("pipeline-") and whole != path else [path])
    assert load_config([write(dump_config(config))]) == config


def test_defaults_need_no_file():
    assert load_config() == Config()


def test_later_layers_win(write):
    path = write("run: {steps: 1, seed: 1}\nexport: {faces: 100}\n")
    config = load_config([path], options={"run": {"steps": 2, "seed": None}}, overrides=["run.steps=3"])
    assert (config.last.steps, config.run.seed, config.export.faces) == (3, 1, 100)


def test_new_kind_brings_its_own_defaults():
    overrides = ["objectives.color.clip.threshold=0.5", "objectives.color.clip.kind=adaptive"]
    assert load_config(overrides=overrides).last.objectives["color"].clip == AdaptiveClip()


def test_same_kind_keeps_what_was_set():
    overrides = ["objectives.color.clip.threshold=0.5", "objectives.color.clip.kind=pixel"]
    assert load_config(overrides=overrides).last.objectives["color"].clip == PixelClip(threshold=0.5)


def test_file_that_names_objectives_replaces_the_default_ones(write):
    config = load_config([write("objectives:\n  normal: {target: normal, clip: {kind: none}}\n")])
    assert list(config.last.objectives) == ["normal"]
    assert config.last.objectives["normal"].clip == NoClip()


def test_set_adds_an_objective():
    assert set(load_config(overrides=["objectives.normal.target=normal"]).last.objectives) == {
        "color",
        "normal",
    }


ERRORS = {
    "run.stepz=3": "--set: run.stepz: Key 'stepz' not in 'RunConfig'. Did you mean: 'steps'?",
    "rn.steps=3": "--set: rn: Key 'rn' not in 'Config'. Did you mean: 'run'?",
    "run.steps=many": (
        "--set: stages.main.steps: Value 'many' of type 'str' could not be converted to Integer"
    ),
    "run.steps=0": "stages.main: steps must lie in [1, 10000000], got 0",
    "run.steps": "--set must be key=value, got 'run.steps'",
    "run=3": "--set: run must hold keys and values, got 3",
    "run.device=gpu": "--set: run.device: Invalid value 'gpu', expected one of ['auto', 'cpu', 'cuda']",
    "run.rasterizer=gl": (
        "--set: run.rasterizer: Invalid value 'gl', expected one of ['auto', 'nvdiffrast', 'triton', 'cpu']"
    ),
    "run.resolution=[1]": "stages.main: resolution must lie in [16, 4096], got [1]",
    "run.resolution=[32,64,128]": (
        "stages.main: resolution_until must grow within [0, 1] and have one entry less than resolution, "
        "got [0.6] for [32, 64, 128]"
    ),
    "objectives.color.clip.kind=adaptve": (
        "--set: stages.main.objectives.color.clip.kind must be one of pixel, channel, pngd, global, "
        "parameter, none, adaptive, relative, got 'adaptve'; did you mean 'adaptive'?"
    ),
    "objectives.color.clip.treshold=1": (
        "--set: stages.main.objectives.color.clip.treshold: Key 'treshold' not in 'PixelClip'. "
        "Did you mean: 'threshold'?"
    ),
    "objectives.color.backgrounds=[whte]": (
        "stages.main.objectives.color: backgrounds must be of white, gray, black, red, green, blue, random, "
        "image or #rrggbb, got 'whte'; did you mean 'white'?"
    ),
    "objectives.color.backgrounds=['#ff80']": (
        "stages.main.objectives.color: backgrounds must be of white, gray, black, red, green, blue, random, "
        "image or #rrggbb, got '#ff80'"
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
    run = StageConfig(resolution=(64, 128, 256), resolution_until=(0.25, 0.5))
    assert [run.resolution_at(progress) for progress in (0.0, 0.2, 0.25, 0.49, 0.5, 1.0)] == [
        64, 64, 128, 128, 256, 256,
    ]  # fmt: skip


def test_scaling_keeps_the_proportion_of_the_stages():
    assert StageConfig(resolution=(128, 256)).scaled_to(512) == (256, 512)
    assert StageConfig(resolution=(128, 256)).scaled_to(16) == (16, 16)


def test_what_saves_memory_is_off_unless_asked_for():
    config = load_config()
    assert (config.run.low_memory, config.run.micro_batch, config.models["text"].fast) == (False, 0, "auto")
    assert load_config(overrides=["models.text.fast=never"]).models["text"].fast == "never"
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


def named(text):
    return f"models:\n  text: \n    name: {text}\n"


REFUSED_FILES = {
    "interpolation": (named("${oc.env:HOME}"), "line 3 must be written out, since ${...} is not replaced"),
    "interpolation in a list": (
        "models: {text: {loras: ['${oc.env:HOME}']}}\n",
        "line 1 must be written out",
    ),
    "interpolation in a name": ("objectives:\n  ${run.seed}: {batch: 1}\n", "line 2 must be written out"),
    "missing": (named("???"), "must be given, got '???'"),
    "wrong tag": ("run: {low_memory: !!bool maybe}\n", "must have no tags, got 'tag:yaml.org,2002:bool'"),
    "tag of Python": ("run: !!python/object/apply:os.getcwd []\n", "must have no tags, got 'tag:yaml.org"),
    "own tag": (named("!mine mini"), "must have no tags, got '!mine'"),
    "5000 digits": (f"run: {{seed: {5000 * chr(57)}}}\n", "at most 1000 digits, got 5000 in line 1"),
    "deep": (f"run: {'[' * 400}{']' * 400}\n", "nested at most 16 deep, got more in line 1"),
    "deep mappings": ("".join(f"{'  ' * depth}a:\n" for depth in range(400)), "nested at most 16 deep"),
    "deep without an end": ("run: " + "[" * 100_000, "nesting depth"),
    "many": ("".join(f"k{index}: 1\n" for index in range(6_000)), "at most 10000 values"),
    "aliases of aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")),
        "at most 10000 values",
    ),
    "alias of itself": ("run: &a\n  steps: *a\n", "recursive aliases"),
    "twice": ("run:\n  steps: 5\n  steps: 6\n", "duplicate key steps"),
    "two documents": ("run: {steps: 2}\n---\nrun: {steps: 3}\n", "expected a single document"),
    "number as a key": ("1: 2\n", "a key must be text, got 1; put it in quotes"),
    "number as a stage": ("stages: {1: {steps: 2}}\n", "a key of stages must be text, got 1"),
    "steps in two places": (
        "steps: 2\nstages: {main: {steps: 3}}\n",
        "steps must be set in one place, got it for the last stage",
    ),
    "steps at the top and below run": ("steps: 2\nrun: {steps: 2}\n", "got it at the top and below run"),
    "no stages": ("stages: {}\n", "stages must hold at least one entry"),
    "a list of stages": ("stages: [{steps: 2}]\n", "stages must hold keys and values"),
    "a stage of nothing": ("stages: {main: null}\n", "stages.main must hold keys and values, got None"),
    "a stage that is a number": ("steps: 2\nstages: {main: 3}\n", "stages.main must hold keys and values"),
    "a name of a stage that is a path": ("stages: {a/b: {steps: 2}}\n", "the names of stages must be up to"),
    "an unknown model": (
        "objectives: {color: {guidance: {model: txt}}}\n",
        "did you mean 'text'?",
    ),
    "nothing as a key": ("run:\n  ~: 2\n", "run: Incompatible key type 'NoneType'"),
    "list in a list": ("models: {text: {loras: [[a]]}}\n", "models.text.loras[0] must be text, got ['a']"),
    "text for a list": (
        "models: {text: {loras: a.safetensors}}\n",
        "models.text.loras must be a list, got 'a.safetensors'",
    ),
    "number for a text": (named("1e5"), "models.text.name must be text, got 100000.0; put it in quotes"),
    "truth for a text": (named("on"), "models.text.name must be text, got True; put it in quotes"),
    "truth for a number": ("run: {steps: true}\n", "stages.main.steps must be a number, got true"),
    "number for a truth": ("run: {low_memory: 3}\n", "run.low_memory must be true or false, got 3"),
    "date": ("run: {seed: 2020-01-01}\n", "run.seed"),
    "a name that is a path": ("objectives: {a/b: {batch: 1}}\n", "the names of objectives must be up to 64"),
    "no name": (named("''"), "models.text: name must be a model, got an empty text"),
    "lone surrogate": (named('"\\uDC80"'), "must be YAML"),
}


@pytest.mark.parametrize(("text", "line"), REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_hostile_file_is_one_short_line(text, line, write):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError):
        load_config([path, path])


def hostile(name):
    return ModelConfig(name=name)


def test_nothing_of_the_environment_reaches_a_configuration(write, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    text = "${oc.env:SECRET}"
    path = write(named(text))
    attempts = [
        lambda: load_config([path]),
        lambda: read_yaml(path),
        lambda: load_config([{"models": {"text": {"name": text}}}]),
        lambda: load_config(options={"models": {"text": {"loras": [text]}}}),
        lambda: load_config(overrides=[f"models.text.name={text}"]),
        lambda: load_config(overrides=[f"models.text={{name: '{text}'}}"]),
        lambda: dump_config(
            replace(load_config(), models={"text": ModelConfig(name=text), "image": ModelConfig()})
        ),
    ]
    for attempt in attempts:
        with pytest.raises((ConfigError, ValueError), match="must be written out") as caught:
            attempt()
        assert "hunter2" not in str(caught.value)


def test_dollar_signs_and_braces_are_text(write):
    prompts = ["costs $5", "$HOME", "a $ {b}", "{x}", "\\$", "100 %"]
    for prompt in prompts:
        path = write(f"objectives: {{color: {{guidance: {{negative_prompt: {prompt!r}}}}}}}\n")
        config = load_config([path])
        assert load_config([write(dump_config(config))]) == config


FILES = {
    "UTF-8 with a mark": "run: {steps: 7}\n".encode("utf-8-sig"),
    "UTF-16 as PowerShell writes it": "run: {steps: 7}\r\n".encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + "run: {steps: 7}\n".encode("utf-16-be"),
    "anchors": b"x: &a 7\n".replace(b"x: &a 7\n", b"run: {seed: &a 7, steps: *a}\n"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_readable_encodings_are_read(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert load_config([path]).last.steps == 7


BROKEN_FILES = {
    "Latin-1": ("models: {text: {name: caf\xe9}}\n".encode("latin-1"), "must be UTF-8 text"),
    "NUL": (b"run: {steps: 7}\n\0", "must be YAML"),
    "binary": (bytes(range(256)) * 8, "must be UTF-8 text"),
    "half of UTF-16": (b"\xff\xfer", "must be UTF-8 text"),
    "large": (b"# " + b"x" * (2 << 20), "must have at most 1 MiB"),
}


@pytest.mark.parametrize(("content", "line"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_unreadable_file_is_one_line(content, line, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert line in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_path_that_is_no_file_says_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a device or a pipe",
        Path("/dev/zero"): "is a device or a pipe",
        tmp_path / "loop": "does not; give a YAML file",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "none.yaml" / "x": "does not; give a YAML file",
    }
    for path, line in expected.items():
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert line in str(caught.value), path


REFUSED_OVERRIDES = {
    "too many names": (".".join(["a"] * 2000) + "=1", "at most 16 names with dots between, got 2000"),
    "too many entries": (f"run={{{','.join(f'k{i}: 1' for i in range(2000))}}}", "at most 256 entries"),
    "an empty name": ("run..steps=3", "--set must be key=value, got 'run..steps=3'"),
    "too few entries": ("optimizer.betas=[]", "stages.main.optimizer.betas must have 2 entries, got 0"),
    "a long value": (f"run.steps={'x' * 100_000}", "could not be converted to Integer"),
    "a long name": (f"{'x' * 100_000}=1", "--set: xxx"),
    "a large number": (f"run.seed={'9' * 5000}", "--set"),
    "a number beyond floats": (f"run.seed=1{'0' * 400}", "seed must lie in [0, 2^63 - 1], got 1000"),
    "a weight beyond floats": (f"objectives.color.weight=1{'0' * 400}", "objectives.color"),
    "slots with a width": (
        "models.text.view_prompts.template='{prompt:>999999999}'", "must have plain slots",
    ),
    "thousands of sectors": (
        "models.text.view_prompts.azimuth_step_degrees=1e-7", "lie in [1, 360], or be 0",
    ),
    "too many pixels": ("run={resolution: [4096], resolution_until: []}", ""),
    "close-ups of nothing": (
        "objectives.color.cameras.kind=close_up",
        "close_up must go with a representation of a given mesh, got representation.kind dmtet",
    ),
    "a surface in no cell": ("representation.radii=[0.01,0.5,0.5]", "radii must be at least a cell"),
    "a large table": ("representation.color_field={log2_rows: 24, levels: 16, features: 8}", "2^28"),
    "a finest below the base": ("representation.color_field={base: 64, finest: 32}", "not be less than"),
}  # fmt: skip


@pytest.mark.parametrize(("override", "line"), REFUSED_OVERRIDES.values(), ids=REFUSED_OVERRIDES)
def test_hostile_override_is_one_short_line(override, line):
    more = ["objectives.color.batch=32"] if "4096" in override else []
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override, *more])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_number_stands_for_a_constant_schedule():
    config = load_config(overrides=["objectives.color.weight=2", "optimizer.lr_scale=0.5"])
    assert config.last.objectives["color"].weight == (2.0,)
    assert config.last.optimizer.lr_scale == (0.5,)
