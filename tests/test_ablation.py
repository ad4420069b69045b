import json
from dataclasses import replace

import pytest
import torch
from fakes import PullTowardColor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import write_tiny_sdxl

from pgc3d import pgc
from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_objectives
from pgc3d.cli.app import main
from pgc3d.clip_rules import parse_rule
from pgc3d.colors import named_color
from pgc3d.config import load_config, preset
from pgc3d.errors import ConfigError, RunDirectoryError
from pgc3d.evaluation.ablation import (
    START,
    OptimizedImage,
    ablate,
    draw_start,
    make_image,
    optimize_image,
)
from pgc3d.evaluation.ablation_sheets import columns, heat_colors
from pgc3d.guidance.vsd import VsdConfig
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task
from pgc3d.types import Step

SETTINGS = ["run.steps=7", "run.resolution=[64]", "run.resolution_until=[]", "run.device=cpu"]

FOUR_STEPS = load_config(overrides=["run.steps=4"]).last


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")
    return load_config(options={"models": {"text": {"name": str(folder)}}}, overrides=SETTINGS)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablate") / "out"
    return ablate(Task("a red chair"), out=out, config=config, rules=["none", "0.001", "pngd=0.001"])


def image_toward(target):
    """A quadratic loss: half the squared distance to the target, summed."""
    return OptimizedImage(
        start=torch.full_like(target, 0.5),
        gradient=lambda image, _: image - target,
        decode=lambda image: image,
        limits=(0.0, 1.0),
    )


def draw_target(seed=0):
    return torch.rand((1, 12, 12, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", pgc.NoClip()),
        ("pixel", pgc.PixelClip()),
        ("pixel=0.3", pgc.PixelClip(threshold=0.3)),
        ("0.03", pgc.PixelClip(threshold=0.03)),
        (".5", pgc.PixelClip(threshold=0.5)),
        ("l2=1", pgc.PixelClip(threshold=1.0, norm="l2")),
        ("channel=0.2", pgc.ChannelClip(threshold=0.2)),
        ("pngd", pgc.PngdClip()),
        ("global=2", pgc.GlobalScale(threshold=2.0)),
        ("parameter=5", pgc.ParameterClip(max_norm=5.0)),
        ("adaptive=0.5", AdaptiveClip(quantile=0.5)),
    ],
)
def test_rules_in_short(text, expected):
    assert parse_rule(text) == expected


@pytest.mark.parametrize("text", ["", "pixels", "pixel=", "pixel=x", "-1", "0", "none=1", "adaptive=2", "1e"])
def test_a_wrong_rule_is_one_line(text):
    with pytest.raises(ConfigError) as caught:
        parse_rule(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["none", "pixel=0.05", "pngd=0.05", "channel=0.05", "parameter=1"])
def test_a_quadratic_wish_is_reached(rule):
    """Bounded steps change the way, not the place where the gradient is zero."""
    target = draw_target()
    stage = load_config(overrides=["run.steps=80", "optimizer.lr_scale=[0,1,1,0]"]).last
    result = optimize_image(image_toward(target), parse_rule(rule), stage=stage, learning_rate=0.05)
    assert (result.images[-1] - target).abs().max() < 0.02


@settings(max_examples=20)
@given(st.floats(0.01, 1.0), st.integers(0, 1000))
def test_heat_after_clipping_is_bounded_by_the_threshold(threshold, seed):
    clip = pgc.PixelClip(threshold=threshold)
    heat = optimize_image(image_toward(draw_target(seed)), clip, stage=FOUR_STEPS, learning_rate=0.05).heat
    for before, after in ((heat.last, heat.last_clipped), (heat.mean, heat.mean_clipped)):
        assert after.max() <= threshold * (1 + 1e-5)
        assert (after <= before * (1 + 1e-5)).all()
    # Where the bound never bound, nothing changed.
    free = heat.bound == 0
    assert torch.equal(heat.mean[free], heat.mean_clipped[free])


def test_pixels_that_are_not_finite_stay_as_they_are():
    target = draw_target()
    variable = image_toward(target)
    broken = torch.zeros_like(target, dtype=torch.bool)
    broken[:, 3, 4, 1] = True
    poisoned = OptimizedImage(
        start=variable.start,
        gradient=lambda image, step: variable.gradient(image, step).masked_fill(broken, torch.nan),
        decode=variable.decode,
        limits=variable.limits,
    )
    stage = load_config(overrides=["run.steps=5"]).last
    result = optimize_image(poisoned, pgc.NoClip(), stage=stage, learning_rate=0.05)
    assert (result.images[-1][:, 3, 4] == 0.5).all()
    assert result.images[-1].isfinite().all()
    assert result.metrics["nonfinite_fraction"] == pytest.approx(1 / 144)


def test_a_strip_shows_the_way(config):
    target = draw_target()
    result = optimize_image(image_toward(target), pgc.NoClip(), stage=config.last, learning_rate=0.02)
    distances = [(image - target).abs().mean().item() for image in result.images]
    assert len(distances) == len(columns(7))
    assert distances == sorted(distances, reverse=True)
    assert len(set(distances)) == len(distances)


@given(st.integers(1, 3000))
def test_columns_end_with_the_last_step(steps):
    shown = columns(steps)
    assert shown[-1] == steps
    assert shown == sorted(set(shown))
    assert shown[0] >= 1


def test_heat_colors_grow_brighter_and_end_where_they_should():
    luma = heat_colors(torch.linspace(0, 1, 50)[None]) @ torch.tensor([0.299, 0.587, 0.114])
    assert (luma.diff() > 0).all()
    ends = heat_colors(torch.tensor([[-1.0, 0.0, 1.0, 7.0]]))[0]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[2], ends[3])


def test_everything_is_written(finished, config):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics) == ["none", "0.001", "pngd=0.001"]
    assert metrics["none"]["clipped_fraction"] == 0
    assert 0 < metrics["0.001"]["clipped_fraction"] <= metrics["pngd=0.001"]["clipped_fraction"] <= 1
    assert load_config([finished / "config.yaml"]) == config
    with Image.open(finished / "strip.png") as strip, Image.open(finished / "gradients.png") as gradients:
        assert strip.size[0] == 6 * 192
        assert gradients.size == (5 * 192, strip.size[1])
    assert {path.name for path in (finished / "final").iterdir()} == {
        "none.png",
        "0.001.png",
        "pngd-0.001.png",
    }


def test_the_same_seed_gives_the_same_strip(finished, config, tmp_path):
    """Also for a rule that comes in other company: every rule sees the same noise."""
    again = ablate(Task("a red chair"), out=tmp_path / "out", config=config, rules=["0.001", "none"])
    for name in ("none.png", "0.001.png"):
        assert (again / "final" / name).read_bytes() == (finished / "final" / name).read_bytes()
    whole = ablate(
        Task("a red chair"), out=tmp_path / "whole", config=config, rules=["none", "0.001", "pngd=0.001"]
    )
    assert (whole / "strip.png").read_bytes() == (finished / "strip.png").read_bytes()


def test_a_guidance_that_trains_starts_anew_for_every_rule(config, tmp_path):
    objective = replace(config.first.objectives["color"], guidance=VsdConfig(lora_lr=0.5, rank=2))
    stage = replace(config.first, objectives={"color": objective})
    rules = ["none", "pixel=1000"]  # the second one clips nothing
    out = ablate(
        Task("a red chair"), out=tmp_path / "out", config=replace(config, stages={"main": stage}), rules=rules
    )
    first, second = (path.read_bytes() for path in (out / "final").glob("*.png"))
    assert first == second


def test_latents_are_painted_without_the_encoder(config, tmp_path):
    out = ablate(Task("a red chair"), out=tmp_path / "out", config=config, rules=["none"], space="latents")
    with Image.open(out / "final" / "none.png") as image:
        assert image.size == (64, 64)


@pytest.fixture(scope="module")
def mini():
    """The bundled prior's guidance."""
    config, device = load_config([preset("mini")], overrides=["run.device=cpu"]), torch.device("cpu")
    task = Task("a red chair")
    models = LoadedModels(locate_models(config, device), device)
    context = RunContext.of(config, task, build_rasterizer("cpu", device), device, models)
    return build_objectives(context, "main")["color"].guidance


def first_gradients(guidance, start, calls=3):
    """The mean length of the first gradients, and the share of their energy at high frequencies."""
    variable = make_image(guidance, "pixels", start=start, background=torch.ones(1, 3))
    gradient = torch.cat([variable.gradient(start, Step(index=call, total=calls)) for call in range(calls)])
    energy = torch.fft.fft2(gradient, dim=(1, 2)).abs().square().sum(dim=(0, 3))
    frequency = torch.fft.fftfreq(start.shape[1]).abs()
    high = torch.maximum(frequency[:, None], frequency[None]) > 0.25
    return gradient.abs().amax(-1).mean().item(), (energy[high].sum() / energy.sum()).item()


def test_the_start_is_no_singular_point_of_the_encoder(mini):
    """From the middle grey the first gradients are many times as long, and mostly of high frequency."""
    generator = torch.Generator().manual_seed(0)
    gray, usual, noise = (
        first_gradients(mini, draw_start(color, 64, generator))
        for color in (named_color("gray"), named_color(START), None)
    )
    assert gray[0] > 3 * usual[0]
    assert gray[1] > 0.4
    for length, share in (usual, noise):
        assert length < 4 * noise[0]
        assert share < 0.2


def test_the_middle_grey_as_a_start_is_reported_and_kept(config, tmp_path):
    for number, (start, said) in enumerate(
        {"gray": 1, "#808080": 1, "white": 0, "noise": 0, START: 0}.items()
    ):
        events = []
        out = ablate(
            Task("a red chair"), out=tmp_path / str(number), config=config, rules=["none"], start=start,
            on_event=events.append,
        )  # fmt: skip
        assert sum("singular point" in (event.message or "") for event in events) == said
        assert json.loads((out / "manifest.json").read_text())["start"] == start


def test_latents_need_a_guidance_that_has_them():
    start = torch.full((1, 16, 16, 3), 0.5)
    with pytest.raises(ConfigError, match="use --space pixels"):
        make_image(PullTowardColor(), "latents", start=start, background=torch.ones(1, 3))


def test_any_guidance_can_paint():
    start = torch.full((1, 16, 16, 3), 0.5)
    variable = make_image(
        PullTowardColor((0.0, 1.0, 0.25)), "pixels", start=start, background=torch.ones(1, 3)
    )
    stage = load_config(overrides=["run.steps=80", "optimizer.lr_scale=[0,1,1,0]"]).last
    result = optimize_image(variable, pgc.PixelClip(), stage=stage, learning_rate=0.05)
    expected = torch.tensor([0.0, 1.0, 0.25]).expand(1, 16, 16, 3)
    torch.testing.assert_close(result.images[-1], expected, atol=0.02, rtol=0)


def test_a_folder_that_holds_something_is_left_alone(finished, config):
    with pytest.raises(RunDirectoryError, match="choose another --out"):
        ablate(Task("a red chair"), out=finished, config=config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "none,pixle"], "a rule must be one of none, pixel"),
        (["--start", "pink"], "--start must be one of white"),
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["--space", "voxels"], "Invalid value for '--space'"),
        (["--set", "objectives.color.backgrounds=[image]"], "backgrounds must be colours where an image"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["ablate", "a red chair", "--guidance", "mini", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_command_line_paints(config, capsys, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(
            ["ablate", "a red chair", "--model", config.models["text"].name, "--steps", "2",
             "--resolution", "64", "--device", "cpu", "--rules", "none, 0.1", "--out", str(out),
             "--set", "objectives.color.backgrounds=[random]"]
        )  # fmt: skip
    assert ended.value.code == 0
    assert str(out / "strip.png") in capsys.readouterr().out


@pytest.mark.parametrize("command", ["resume", "render", "export"])
def test_what_was_painted_is_no_run(finished, command, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main([command, str(finished)])
    assert ended.value.code == 2
    assert "must be the folder of a run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
