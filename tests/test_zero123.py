import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from steps import FIRST, at
from tiny import edit_json, write_tiny_sdxl, write_tiny_zero123

from pgc3d.cameras import orbit
from pgc3d.diffusion.folder import open_folder
from pgc3d.diffusion.hub import files_to_fetch
from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.zero123 import clip_pixels, load_zero123, relative_pose, require_zero123
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.geometry.normals import vertex_normals
from pgc3d.guidance.distillation import draw
from pgc3d.guidance.zero123 import NovelViewDistillation, Zero123Config
from pgc3d.images import resize
from pgc3d.interfaces import Guidance, SupportsMicroBatch
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Material, Mesh, Step, Views


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_zero123(tmp_path_factory.mktemp("models") / "tiny", pose="polar")


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def draw_photo(size=80, seed=0):
    rgba = torch.rand((size, size, 4), generator=torch.Generator().manual_seed(seed))
    return torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)


@pytest.fixture(scope="module")
def model(original):
    return load_zero123(resolve_model(original), draw_photo())


def views(azimuth, elevation, distance=3.0, fovy=40.0):
    azimuth, elevation = torch.tensor(azimuth).deg2rad(), torch.tensor(elevation).deg2rad()
    distance = torch.as_tensor(distance).expand_as(azimuth)
    return orbit(azimuth, elevation, distance, torch.full_like(azimuth, math.radians(fovy)))


# Folders


def test_pose_comes_from_the_folder_unless_it_is_said(folder, original):
    assert resolve_model(original).layout == "zero123"
    assert require_zero123(resolve_model(folder)).pose == "polar"
    assert require_zero123(resolve_model(folder), "radius").pose == "radius"
    assert open_folder("x", folder, pose="radius").pose == "polar"
    (folder / "zero123.json").unlink()
    assert open_folder("x", folder, pose="radius").pose == "radius"
    with pytest.raises(ConfigError, match=r"--set models\.image\.pose=radius"):
        require_zero123(resolve_model(folder))


def test_wrong_folders_are_one_line(folder, tmp_path):
    edit_json(folder / "zero123.json", pose="sideways")
    with pytest.raises(
        ConfigError, match=r"zero123\.json: pose must be one of radius, polar, got 'sideways'"
    ):
        resolve_model(folder)
    edit_json(folder / "zero123.json", pose="polar")
    (folder / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"must hold feature_extractor/preprocessor_config\.json"):
        resolve_model(folder)
    shutil.rmtree(folder / "clip_camera_projection")
    with pytest.raises(WeightsNotFoundError, match="must hold clip_camera_projection or cc_projection"):
        resolve_model(folder)
    with pytest.raises(ConfigError, match=r"must be in Zero123 layout, got .* in sdxl's"):
        require_zero123(resolve_model(write_tiny_sdxl(tmp_path / "sdxl")))


def test_the_other_converters_names_give_the_same_model(folder, model):
    old, new = folder / "clip_camera_projection", folder / "cc_projection"
    tensors = load_file(old / "diffusion_pytorch_model.safetensors")
    tensors = {name.replace("proj.", "projection."): tensor for name, tensor in tensors.items()}
    save_file(tensors, old / "diffusion_pytorch_model.safetensors")
    old.rename(new)
    edit_json(folder / "model_index.json", cc_projection=["zero123", "CCProjection"])
    other = load_zero123(resolve_model(folder), draw_photo())
    torch.testing.assert_close(other.projection.state_dict(), model.projection.state_dict())


def test_projection_that_does_not_fit_the_encoder_is_named(folder):
    save_file(
        {"proj.weight": torch.zeros(32, 20), "proj.bias": torch.zeros(32)},
        folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(WeightsNotFoundError, match=r"must take 36 numbers, .* got 20"):
        load_zero123(resolve_model(folder), draw_photo())


def test_vae_may_lie_in_another_checkpoint(folder, tmp_path, model):
    (folder / "vae").rename(tmp_path / "vae")
    with pytest.raises(WeightsNotFoundError, match=r"must hold vae/config\.json"):
        resolve_model(folder)
    shared = load_zero123(open_folder("x", folder, vae=tmp_path / "vae"), draw_photo())
    assert torch.equal(shared.latents, model.latents)


def test_download_takes_the_parts_of_the_layout_once():
    names = [
        "model_index.json", "README.md", "zero123.json", "clip_camera_projection/config.json",
        "clip_camera_projection/zero123.py", "clip_camera_projection/diffusion_pytorch_model.safetensors",
        "clip_camera_projection/diffusion_pytorch_model.fp16.safetensors", "image_encoder/config.json",
        "image_encoder/model.fp16.safetensors", "image_encoder/model.safetensors", "image_encoder/model.bin",
        "feature_extractor/preprocessor_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    wanted = files_to_fetch(names, half=True)
    assert len(set(wanted)) == len(wanted)
    assert not {name for name in wanted if name.endswith((".py", ".md", ".bin"))}
    assert "image_encoder/model.fp16.safetensors" in wanted
    assert "image_encoder/model.safetensors" not in wanted
    assert {"zero123.json", "feature_extractor/preprocessor_config.json"} <= set(wanted)


def test_bundled_image_prior_that_is_missing_is_one_line(monkeypatch, tmp_path):
    from pgc3d import mini

    monkeypatch.setattr(mini, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(WeightsNotFoundError, match=r"bundled image prior must lie in .*--guidance zero123"):
        mini.image_model()


# Conditions


def test_clip_sees_what_its_own_image_processor_makes(original):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    processor = CLIPImageProcessorPil.from_pretrained(original / "feature_extractor")
    expected = processor(picture, return_tensors="pt").pixel_values
    found = clip_pixels(torch.from_numpy(np.array(picture))[None].float() / 255, processor.to_dict())
    assert found.shape == expected.shape == (1, 3, 32, 32)
    assert (found - expected).abs().max() < 0.03  # Pillow rounds to 8 bits: 1 / 255 over a deviation of 0.26


def test_condition_is_the_unscaled_mode_on_white(model):
    photo = resize(draw_photo()[None], 64)
    white = photo[..., :3] + 1 - photo[..., 3:]
    with torch.no_grad():
        mode = model.diffusion.vae.encode(white.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(model.latents, mode, rtol=1e-4, atol=1e-5)


def test_prediction_agrees_with_the_plain_unet(model):
    generator = torch.Generator().manual_seed(1)
    noisy, timesteps = torch.randn((2, 4, 8, 8), generator=generator), torch.tensor([100, 900])
    pose = relative_pose(views([30.0, -60.0], [0.0, 20.0]), views([0.0], [10.0]), "polar")
    unconditional, conditional = model.predict(noisy, timesteps, pose)
    weight, bias = model.projection.weight, model.projection.bias
    for row in range(2):
        token = weight @ torch.cat([model.embedding[0], pose[row]]) + bias
        seen = torch.cat([noisy[row], model.latents[0]])
        blind = torch.cat([noisy[row], torch.zeros_like(model.latents[0])])
        for found, picture, hidden in (
            (conditional, seen, token),
            (unconditional, blind, torch.zeros_like(token)),
        ):
            with torch.no_grad():
                expected = model.diffusion.unet(
                    picture[None], timesteps[row], encoder_hidden_states=hidden[None, None]
                ).sample
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-3, atol=1e-4)


# Pose


def pose_of_zero123s_data(cameras, reference):
    """As Zero123's training data has it: z up, polar angle from +z, azimuth atan2(y, x), target - condition.

    Its world is ours with the axes renamed in a circle, which mirrors nothing: our front +z is its +x.
    """

    def spherical(position):
        x, y, z = position[:, [2, 0, 1]].unbind(-1)
        return torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x), position.norm(dim=-1)

    (polar, azimuth, radius), (polar_0, azimuth_0, radius_0) = map(
        spherical, (cameras.position.double(), reference.position.double())
    )
    turn = azimuth - azimuth_0
    first = torch.stack([polar - polar_0, turn.sin(), turn.cos()], dim=-1)
    return first, radius - radius_0, polar_0


azimuths = st.floats(-180, 180)
elevations = st.floats(-80, 80)


@given(azimuths, elevations, st.floats(1.5, 5), azimuths, elevations, st.floats(1.5, 5))
def test_pose_is_that_of_zero123s_training_data(azimuth, elevation, distance, azimuth_0, elevation_0, near):
    cameras, reference = views([azimuth], [elevation], distance), views([azimuth_0], [elevation_0], near)
    first, radius, polar = pose_of_zero123s_data(cameras, reference)
    for kind, last in (("radius", 0.5 * radius), ("polar", polar)):
        found = relative_pose(cameras, reference, kind).double()
        expected = torch.cat([first, last[:, None]], dim=-1)
        # float32 positions give the polar angle to about 1e-6 / sin(polar angle)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def asymmetric_mesh():
    """A box with another one on its +x side; all its views differ."""
    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = ([0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3])
    faces = torch.tensor([[a, b, c] for a, b, c, _ in quads] + [[a, c, d] for a, _, c, d in quads])
    low = torch.tensor([[-0.5, -0.4, -0.4], [0.3, -0.2, -0.1]])[:, None]
    high = torch.tensor([[0.3, 0.4, 0.4], [0.8, 0.2, 0.4]])[:, None]
    vertices = (low + corners * (high - low)).reshape(-1, 3)
    faces = torch.cat([faces, faces + 8])
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def paint(cameras):
    def material(points):
        ones = torch.ones(len(points), 1)
        return Material(base_color=torch.sigmoid(6 * points), roughness=ones, metallic=0 * ones)

    rasterizer = build_rasterizer("auto", torch.device("cpu"))
    white = torch.ones(len(cameras), 3)
    return render_mesh(asymmetric_mesh(), cameras, 64, white, rasterizer=rasterizer, material=material)


TARGETS = ([30.0, -30.0, 0.0, 0.0], [10.0, 10.0, 40.0, -20.0])  # azimuths and elevations
OPPOSITE = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def fitted(original, tmp_path_factory):
    """A model that has learnt four views of an object as Zero123 did: from renders and its own data's poses.

    The network predicts v at high noise levels, where that is nearly the picture: it is learnt in seconds.
    """
    folder = tmp_path_factory.mktemp("models") / "fitted"
    shutil.copytree(original, folder)
    edit_json(folder / "vae" / "config.json", scaling_factor=4.0)  # latents of the random VAE to unit size
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    cameras, reference = views(*TARGETS), views([0.0], [10.0])
    first = paint(reference)
    photo = torch.cat([first.color - 1 + first.alpha, first.alpha], dim=-1)[0]
    model = load_zero123(resolve_model(folder), photo)
    latents = model.diffusion.encode(paint(cameras).color, torch.zeros(4, 4, 8, 8)).detach()
    directions, _, polar = pose_of_zero123s_data(cameras, reference)
    pose = torch.cat([directions, polar.expand(4)[:, None]], dim=-1).float()
    token = model.projection(torch.cat([model.embedding.expand(4, -1), pose], dim=1))[:, None]
    fit(model.diffusion, latents, token, model.latents.expand(4, -1, -1, -1))
    return model


def fit(diffusion, latents, token, beside):
    unet, generator = diffusion.unet.requires_grad_(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-3)
    for _ in range(60):
        timesteps = torch.randint(950, 1000, (4,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal = diffusion.alphas_cumprod[timesteps][:, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        found = unet(torch.cat([noisy, beside], dim=1), timesteps, encoder_hidden_states=token).sample
        optimizer.zero_grad()
        (found - velocity).square().mean().backward()
        optimizer.step()
    unet.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("timestep", [950, 999])
def test_gradient_draws_the_view_that_our_camera_renders(fitted, timestep):
    # Each picture is half its own view and half the opposite one (+30 and -30 degrees): following the
    # gradient must bring out the former.
    cameras = views(*TARGETS)
    guidance = NovelViewDistillation(model=fitted, reference=views([0.0], [10.0]), guidance_scale=1.0)
    own = paint(cameras).color
    other = own[OPPOSITE]
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)).expand(4, -1, -1, -1)
    output = guidance.gradient(
        (own + other) / 2,
        pose=relative_pose(cameras, views([0.0], [10.0]), fitted.pose),
        timesteps=torch.full((4,), timestep),
        noise=noise,
        posterior_noise=torch.zeros(4, 4, 8, 8),
    )
    assert ((output.gradient * (own - other)).sum(dim=(1, 2, 3)) < 0).all()


def test_sampled_view_is_the_one_that_our_camera_renders(fitted):
    cameras = views(*TARGETS)
    generator = torch.Generator().manual_seed(0)
    found = fitted.sample(cameras, views([0.0], [10.0]), generator=generator, guidance_scale=1.0, steps=1)
    latents = fitted.diffusion.encode(paint(cameras).color, torch.zeros(4, 4, 8, 8))
    rendered = fitted.diffusion.decode(latents)  # by the same VAE, which is random
    distance = (found[:, None] - rendered[None]).square().mean(dim=(2, 3, 4))
    assert distance.argmin(dim=1).tolist() == [0, 1, 2, 3]


# Guidance


def make_guidance(model, **options):
    return NovelViewDistillation(model=model, reference=views([0.0], [10.0]), **options)


def evaluate(guidance, image, cameras, step=FIRST):
    rendering = paint(cameras)
    return guidance(image, rendering, Views(cameras, rendering.background), step)


def test_guidance_satisfies_the_protocol_and_draws_the_steps_noise(model):
    image = torch.rand((2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    cameras, guidance = views([0.0, 90.0], [0.0, 0.0]), make_guidance(model)
    assert isinstance(guidance, Guidance)
    assert isinstance(guidance, SupportsMicroBatch)
    assert guidance.input_resolution(48) == guidance.input_resolution(200) == 64
    step = Step(index=3, total=10, scope="novel")
    first, again = (evaluate(make_guidance(model), image, cameras, step) for _ in range(2))
    assert first.gradient.shape == image.shape
    assert torch.equal(first.gradient, again.gradient)
    assert not first.gradient.requires_grad
    for other in (replace(step, index=4), step.within("color"), replace(step, seed=1)):
        assert not torch.allclose(evaluate(guidance, image, cameras, other).gradient, first.gradient)


def test_a_call_asks_about_its_own_views_with_its_own_scale(model):
    cameras, reference = views([10.0, 100.0, -60.0], [5.0, 40.0, -10.0]), views([0.0], [10.0])
    image = torch.rand((3, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    found = evaluate(make_guidance(model, guidance_scale=5.0), image, cameras, at(0.5)).gradient
    sample = draw(model.diffusion, 3, model.diffusion.resolution, (0.02, 0.98), at(0.5))
    poses = relative_pose(cameras, reference, model.pose)
    for row in range(3):  # each picture by itself
        one = {name: value[row : row + 1] for name, value in vars(sample).items()}
        plain, scaled = (
            make_guidance(model, guidance_scale=scale)
            .gradient(image[row : row + 1], pose=poses[row : row + 1], **one).gradient
            for scale in (0.0, 1.0)
        )  # fmt: skip
        assert (scaled - plain).norm() > 0.01 * plain.norm()
        expected = plain + 5.0 * (scaled - plain)
        torch.testing.assert_close(
            found[row : row + 1], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


def test_noise_levels_follow_their_schedule(model):
    guidance = make_guidance(
        model, t_min=PiecewiseLinear((0.0, 0.7, 1.0, 0.2)), t_max=PiecewiseLinear((0.0, 0.7, 1.0, 0.2))
    )
    cameras = views([0.0], [0.0])
    for progress, level in ((0.0, 700.0), (1.0, 200.0)):
        output = evaluate(guidance, paint(cameras).color, cameras, at(progress))
        assert output.metrics["timestep"] == level


def test_wrong_settings_are_refused(model):
    with pytest.raises(ValueError, match=r"guidance_scale must lie in \[0, 10000\]"):
        Zero123Config(guidance_scale=-1.0)
    with pytest.raises(ValueError, match="t_min must not exceed t_max"):
        Zero123Config(t_min=(0.9,), t_max=(0.5,))
    with pytest.raises(ValueError, match="reference must be one camera, got 2"):
        NovelViewDistillation(model=model, reference=views([0.0, 0.0], [0.0, 0.0]))
