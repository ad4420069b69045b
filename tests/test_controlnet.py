import json
from dataclasses import replace

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST
from tiny import edit_json, tiny_score_distillation, write_tiny_controlnet, write_tiny_sd, write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.diffusion.controlnet import (
    Control,
    ControlConfig,
    condition_image,
    control_residuals,
    depth_image,
    load_control_network,
    normal_image,
    resolve_control,
)
from pgc3d.diffusion.hub import record_file
from pgc3d.diffusion.latent import select
from pgc3d.diffusion.models import resolve_model
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.types import Material, Mesh, Views


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("control")
    models = {"sdxl": write_tiny_sdxl(root / "sdxl"), "sd": write_tiny_sd(root / "sd")}
    return models | {
        f"{name}-net": write_tiny_controlnet(root / f"{name}-net", models[name]) for name in models
    }


@pytest.fixture(scope="module", params=["sdxl", "sd"])
def guidance(request, folders):
    return tiny_score_distillation(folders[request.param], guidance_scale=7.5)


@pytest.fixture(scope="module")
def network(guidance, folders):
    layout = guidance.model.layout
    source = resolve_model(folders[layout])
    return load_control_network(resolve_control(str(folders[f"{layout}-net"]), source), guidance.model)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(guidance, controls, conditions):
    noise, posterior = draw(2, 2, 4, 8, 8)
    guidance.controls = tuple(controls)
    output = guidance.gradient(
        draw(2, 64, 64, 3).sigmoid(),
        timesteps=torch.tensor([20, 900]),
        noise=noise,
        posterior_noise=posterior,
        texts=torch.arange(2),
        conditions=conditions,
    )
    return output.gradient


def test_scale_zero_is_no_control_at_all(guidance, network):
    shown = draw(2, 48, 48, 3, seed=5).sigmoid()
    expected = gradient(guidance, [], [])
    off, on = (
        gradient(guidance, [Control(network=network, condition="depth", scale=scale)], [shown])
        for scale in (0.0, 1.0)
    )
    assert torch.equal(off, expected)
    assert (on - expected).norm() > 0.01 * expected.norm()


def test_prediction_equals_the_librarys_calls_on_each_half(guidance, network):
    model, noisy, timesteps = guidance.model, draw(2, 4, 8, 8), torch.tensor([10, 900])
    controls = [
        (Control(network=network, condition="depth", scale=0.7), draw(2, 64, 64, 3, seed=1).sigmoid()),
        (Control(network=network, condition="normal", scale=0.3), draw(2, 64, 64, 3, seed=2).sigmoid()),
    ]
    texts = [select(guidance.negative, torch.zeros(2).long()), select(guidance.positive, torch.arange(2))]
    found = model.predict(
        noisy,
        timesteps,
        unconditional=texts[0],
        conditional=texts[1],
        time_ids=model.time_ids(64, 64),
        residuals=lambda *batch: control_residuals(controls, *batch),
    )
    for half, text in zip(found, texts, strict=True):
        added = {}
        if model.layout == "sdxl":
            added = {"text_embeds": text.pooled, "time_ids": model.time_ids(64, 64).expand(2, -1)}
        call = {"encoder_hidden_states": text.tokens, "added_cond_kwargs": added}
        first, second = (
            network(noisy, timesteps, controlnet_cond=shown.permute(0, 3, 1, 2), **call)
            for _, shown in controls
        )
        pairs = zip(first.down_block_res_samples, second.down_block_res_samples, strict=True)
        expected = model.unet(
            noisy,
            timesteps,
            down_block_additional_residuals=[0.7 * a + 0.3 * b for a, b in pairs],
            mid_block_additional_residual=0.7 * first.mid_block_res_sample
            + 0.3 * second.mid_block_res_sample,
            **call,
        ).sample
        torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_guided_each_by_its_own_condition(guidance, network):
    control, shown = Control(network=network, condition="depth"), draw(2, 48, 48, 3, seed=5).sigmoid()
    changed = torch.cat([shown[:1], 1 - shown[1:]])
    before, after = gradient(guidance, [control], [shown]), gradient(guidance, [control], [changed])
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).norm() > 0.001 * before[1].norm()


def test_guidance_shows_its_render_to_the_network(guidance, network):
    guidance.controls = (Control(network=network, condition="depth"),)
    gradients = []
    for scale in (1.0, 0.5):
        picture, cameras = ball(96, scale=scale)  # conditions are resized, as the rendering is
        views = Views(cameras, picture.background)
        gradients.append(guidance(draw(1, 64, 64, 3).sigmoid(), picture, views, FIRST).gradient)
    assert gradients[0].shape == (1, 64, 64, 3)
    assert (gradients[0] - gradients[1]).norm() > 0.001 * gradients[0].norm()


def test_a_few_images_at_a_time_have_their_own_conditions(guidance, network):
    guidance.controls = (Control(network=network, condition="depth"),)
    picture, cameras = ball(96, views=2, elevation=20.0)
    views, image = Views(cameras, picture.background), draw(2, 64, 64, 3).sigmoid()
    shown = replace(picture, depth=torch.cat([picture.depth[:1], 0 * picture.depth[1:]]))
    together = guidance(image, shown, views, FIRST).gradient
    guidance.micro_batch = 1
    try:
        alone = guidance(image, shown, views, FIRST).gradient
    finally:
        guidance.micro_batch = 0
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4 * float(together.abs().max()))


def test_control_without_its_condition_is_refused(guidance, network):
    with pytest.raises(ValueError, match="zip"):
        gradient(guidance, [Control(network=network, condition="depth")], [])


# What a network is shown.


def ball(resolution, *, scale=1.0, views=1, elevation=0.0):
    """A render of a sphere around the origin, and its cameras."""

    def gray(points):
        return Material(0 * points + 0.5, 0 * points[:, :1], 0 * points[:, :1])

    shape = trimesh.creation.icosphere(subdivisions=4)
    normals = torch.tensor(shape.vertices, dtype=torch.float32)
    mesh = Mesh(scale * normals, torch.tensor(shape.faces), normals)
    cameras = turntable(views, elevation_degrees=elevation)
    picture = render_mesh(
        mesh, cameras, resolution, torch.ones(views, 3), rasterizer=CpuRasterizer(), material=gray
    )
    return picture, cameras


def depths(*rows):
    """One view for each row, two pixels high."""
    return torch.tensor(rows)[:, None, :, None].expand(-1, 2, -1, -1)


DEPTH = st.floats(0.5, 50.0, width=32)


@given(st.lists(DEPTH, min_size=2, max_size=5), st.floats(0.125, 8.0, width=32))
def test_nearer_is_brighter_and_the_unit_of_length_does_not_matter(values, unit):
    shown = depth_image(depths([0.0, *values]))[0, 0, :, 0]
    assert shown[0] == 0
    assert 0 <= shown.min() <= shown.max() <= 1
    assert shown[1 + values.index(min(values))] == 1
    order = sorted(range(len(values)), key=values.__getitem__)
    assert (shown[1:][order].diff() <= 0).all()
    span = 1 / min(values) - 1 / max(values)
    if span > 1e-2 / min(values):  # else rounding is stretched over the whole range
        scaled = depth_image(unit * depths([0.0, *values]))[0, 0, :, 0]
        torch.testing.assert_close(shown, scaled, atol=1e-3, rtol=0)
        assert shown[1 + values.index(max(values))] < 1e-3


@given(st.lists(DEPTH, min_size=2, max_size=5))
def test_the_original_codes_polarity_is_the_other_way_round(values):
    shown = depth_image(depths([0.0, *values]), "far_bright")[0, 0, :, 0]
    assert shown[0] == 1
    assert shown[1 + values.index(min(values))] == 0
    order = sorted(range(len(values)), key=values.__getitem__)
    assert (shown[1:][order].diff() >= 0).all()
    expected = (torch.tensor(values) - min(values)) / (1.2 * max(values) - min(values))
    torch.testing.assert_close(shown[1:], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("polarity", ["near_bright", "far_bright"])
def test_empty_and_flat_views_have_a_picture(polarity):
    shown = depth_image(depths([0.0, 0.0], [0.0, 2.0]), polarity)[:, 0, :, 0]
    background = 0.0 if polarity == "near_bright" else 1.0
    assert shown.tolist() == [[background, background], [background, 1.0 - background]]


@pytest.mark.parametrize("condition", ["depth", "normal"])
def test_condition_does_not_depend_on_the_batch_and_carries_no_gradient(network, condition):
    control = Control(network=network, condition=condition)
    picture, cameras = ball(32, views=3)
    picture = replace(picture, depth=picture.depth * torch.tensor([1.0, 2.0, 0.5])[:, None, None, None])
    picture = replace(picture, depth=picture.depth.requires_grad_(), normal=picture.normal.requires_grad_())
    together = condition_image(control, picture, cameras)
    assert not together.requires_grad
    assert 0 <= together.min() <= together.max() <= 1
    for row in range(3):
        fields = ("color", "normal", "depth", "alpha", "background")
        one = replace(picture, **{name: getattr(picture, name)[row : row + 1] for name in fields})
        lone = replace(cameras, **{name: value[row : row + 1] for name, value in vars(cameras).items()})
        torch.testing.assert_close(condition_image(control, one, lone)[0], together[row])


def test_render_of_a_ball_is_brightest_in_its_middle():
    shown = depth_image(ball(65)[0].depth)[0, ..., 0]
    assert shown[32, 32] == shown.max() == 1
    assert shown[0, 0] == 0
    assert shown[32, 32] > shown[32, 48] > shown[32, 56] > 0


@pytest.mark.parametrize("views", [1, 5])
def test_normals_of_a_ball_look_at_the_viewer_in_its_middle(views):
    shown = normal_image(*ball(65, views=views, elevation=20.0))
    middle = torch.tensor([0.5, 0.5, 1.0]).expand(views, 3)
    torch.testing.assert_close(shown[:, 32, 32], middle, atol=0.02, rtol=0)
    torch.testing.assert_close(shown[:, 0, 0], middle)
    left, right, top, bottom = shown[:, 32, 12], shown[:, 32, 52], shown[:, 12, 32], shown[:, 52, 32]
    assert (left[:, 0] > 0.7).all()
    assert (right[:, 0] < 0.3).all()
    assert (top[:, 1] > 0.7).all()
    assert (bottom[:, 1] < 0.3).all()
    torch.testing.assert_close((2 * shown - 1).norm(dim=-1), torch.ones(views, 65, 65))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"scale": -0.5}, r"scale must lie in \[0, 100\], got -0.5"),
        ({"condition": "normal", "polarity": "far_bright"}, "polarity must be near_bright for a normal"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        ControlConfig(model="sd-depth", **settings)


# Finding and loading.


def test_network_of_another_layout_is_refused(folders):
    source = resolve_model(folders["sdxl"])
    with pytest.raises(ConfigError, match=r"sd-net must fit the model .* layout there are sdxl-depth"):
        resolve_control(str(folders["sd-net"]), source)


def test_a_unet_is_no_control(folders):
    with pytest.raises(ConfigError, match=r"must be a ControlNetModel .* got UNet2DConditionModel"):
        resolve_control(str(folders["sd"] / "unet"), resolve_model(folders["sd"]))


def test_missing_network_is_one_line(folders, tmp_path):
    source = resolve_model(folders["sd"])
    with pytest.raises(WeightsNotFoundError, match=r"the ControlNet must be a folder, .* got \./none"):
        resolve_control("./none", source)
    with pytest.raises(WeightsNotFoundError, match=r"lllyasviel/control_v11f1p_sd15_depth .*HF_HUB_OFFLINE"):
        resolve_control("sd-depth", source)


def test_network_in_the_hubs_cache_is_recorded(folders, tmp_path, monkeypatch):
    commit, cache = "c" * 40, tmp_path / "hub" / "models--someone--net"
    write_tiny_controlnet(cache / "snapshots" / commit, folders["sd"])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = resolve_control("someone/net", resolve_model(folders["sd"]))
    assert (found.name, found.commit) == ("someone/net", commit)
    assert json.loads(record_file().read_text()) == {"someone/net": {"commit": commit}}


def test_pickled_network_is_never_loaded(folders, tmp_path):
    folder = write_tiny_controlnet(tmp_path / "net", folders["sd"])
    file = folder / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(WeightsNotFoundError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        resolve_control(str(folder), resolve_model(folders["sd"]))


def test_network_without_text_needs_no_layout_of_the_text(folders, tmp_path):
    # The smallest SDXL ControlNets have convolutions only.
    folder = write_tiny_controlnet(tmp_path / "net", folders["sdxl"])
    edit_json(
        folder / "config.json",
        addition_embed_type=None,
        cross_attention_dim=None,
        down_block_types=["DownBlock2D", "DownBlock2D"],
        mid_block_type="UNetMidBlock2D",
    )
    assert resolve_control(str(folder), resolve_model(folders["sdxl"])).layout == "sdxl"
