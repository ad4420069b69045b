"""Laws of the image prior's training: cameras, start, conditions, folder, and going on after a stop."""

import json
import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
import train_image
from framing import BORDER_RATIO, FILL, FOVY_DEGREES, LARGEST, frame, view_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from image_prior import (
    IMAGE_MEAN,
    IMAGE_STD,
    POSE,
    WIDTH,
    load_text_prior,
    make_models,
    read_folder,
    warm_start,
)
from loop import Budget, load_state, save_state
from pairs import PairSettings, PairStore, build_pairs
from safetensors import safe_open
from store import posterior
from tiny import write_tiny_sdxl
from torch.testing import assert_close
from views import load_index, load_model, stretch

import pgc3d.mini
from pgc3d.cameras import fill_distance, orbit
from pgc3d.diffusion.zero123 import polar_pose
from pgc3d.rendering.cpu import CpuRasterizer

pytestmark = pytest.mark.scripts

SIZE, LATENT = 64, 8
azimuths = st.floats(-math.pi, math.pi)
elevations = st.floats(-1.0, 1.4)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("text"))


loaded = cache(load_text_prior)


def new_models(text):
    torch.manual_seed(0)
    text_unet, pooled = loaded(text)
    models = make_models(dict(text_unet.config), SIZE)
    warm_start(models["unet"], text_unet, pooled)
    return models, text_unet, pooled


def random_pairs(count=6, views=3):
    generator = torch.Generator().manual_seed(1)
    return PairStore(
        weight=torch.ones(count),
        image=torch.randint(256, (count, views, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        is_input=torch.tensor([[True, True, False]]).expand(count, -1),
        mean=torch.randn(count, views, 4, LATENT, LATENT, generator=generator).half(),
        std=torch.full((count, views, 4, LATENT, LATENT), 0.1).half(),
        azimuth=torch.rand(count, views, generator=generator) * 6,
        elevation=torch.rand(count, views, generator=generator),
    )


@given(azimuths, elevations, azimuths, elevations)
def test_pose_is_what_the_cameras_show(azimuth, elevation, target_azimuth, target_elevation):
    angles = torch.tensor([[azimuth, elevation], [target_azimuth, target_elevation]])
    cameras = orbit(angles[:, 0], angles[:, 1], torch.tensor([2.0, 2.0]), torch.tensor([0.7, 0.7]))
    x, y, z = (cameras.position / 2).double().unbind(-1)
    polar, turn = torch.acos(y), torch.atan2(x, z).diff()
    expected = torch.stack([polar.diff(), torch.sin(turn), torch.cos(turn), polar[:1]], -1).float()
    pose = polar_pose(angles[1:, 0] - angles[:1, 0], angles[1:, 1], angles[:1, 1])
    assert_close(pose, expected, atol=1e-4, rtol=0)


def test_a_view_from_the_right_and_above_has_a_positive_sine_and_a_smaller_polar_angle():
    front, right = torch.zeros(1), torch.tensor([math.pi / 2])
    camera = orbit(right, front + 0.5, front + 2, front + 0.7)
    assert camera.position[0, 0] > 1
    assert camera.position[0, 1] > 0
    pose = polar_pose(right, front + 0.5, front)
    assert_close(pose, torch.tensor([[-0.5, 1.0, 0.0, math.pi / 2]]))


def cloud(seed, stretch):
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [1.0, 1.0, stretch]
    )
    points = points - (points.amax(0) + points.amin(0)) / 2
    return points / points.norm(dim=-1).max()


def screen(points, cameras):
    clip = torch.nn.functional.pad(points, (0, 1), value=1.0) @ cameras.clip_from_world.transpose(-1, -2)
    return clip[..., :2] / clip[..., 3:]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.2, 4.0), azimuths, elevations)
def test_the_input_view_is_framed(seed, stretch, azimuth, elevation):
    points, angles = cloud(seed, stretch), torch.tensor([[azimuth], [elevation]])
    nearest = fill_distance(torch.tensor([FOVY_DEGREES]).deg2rad(), torch.tensor([FILL])) / LARGEST
    _, distance = frame(points, *angles)
    seen = screen(points, view_groups(points, angles[0][None], angles[1][None]))[0]
    low, high = seen.amin(0), seen.amax(0)
    half = float((high - low).max()) / 2
    assert float((low + high).abs().max()) < 0.02
    assert half < 1 - BORDER_RATIO + 0.01
    assert half > 1 - BORDER_RATIO - 0.01 or float(distance) == float(nearest)


def test_moving_the_camera_is_scaling_the_object():
    points, angles = cloud(3, 2.0), torch.tensor([[0.4, 2.0, -1.0], [0.3, 0.2, 1.2]])
    center, distance = frame(points, angles[0, :1], angles[1, :1])
    fovy = torch.full((3,), math.radians(FOVY_DEGREES))
    away = fill_distance(fovy, torch.full((3,), FILL))
    seen = screen(points, view_groups(points, angles[0][None], angles[1][None]))
    scaled = (points - center) * (away[0] / distance)
    assert_close(seen, screen(scaled, orbit(angles[0], angles[1], away, fovy)), atol=1e-4, rtol=1e-4)


def test_the_untrained_model_is_the_text_prior_of_an_empty_prompt(text):
    models, text_unet, pooled = new_models(text)
    noisy, condition = torch.randn(2, 2, 4, LATENT, LATENT).unbind(0)
    t, token = torch.tensor([30, 900]), torch.randn(2, 1, WIDTH)
    with torch.no_grad():
        expected = text_unet(
            noisy, t, torch.zeros(2, 5, text_unet.config.cross_attention_dim),
            added_cond_kwargs={"text_embeds": pooled.expand(2, -1),
                               "time_ids": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2)},
        ).sample  # fmt: skip
        for conditions, tokens in ((0 * condition, 0 * token), (condition, token)):
            assert_close(models["unet"](torch.cat([noisy, conditions], 1), t, tokens).sample, expected)


def test_new_conditions_receive_gradients_from_the_start(text):
    models, _, _ = new_models(text)
    trainer = train_image.Trainer(models, torch.device("cpu"), 0)
    torch.autograd.backward(trainer.loss(random_pairs(), 4))
    assert models["unet"].conv_in.weight.grad[:, 4:].abs().max() > 0
    values = [p.grad for name, p in models["unet"].named_parameters() if name.endswith("attn2.to_v.weight")]
    assert all(grad.abs().max() > 0 for grad in values)
    for step in range(2):  # the token enters by values of zero, which the first update changes
        trainer.step(random_pairs(), step, 4, 1e-3)
    torch.autograd.backward(trainer.loss(random_pairs(), 4))
    assert all(p.grad.abs().max() > 0 for p in models["clip_camera_projection"].parameters())
    assert models["image_encoder"].vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0


def test_what_is_compiled_is_what_the_loss_asks_for(text):
    """Any other shape, type or layout would be compiled again in the first update."""
    models, _, _ = new_models(text)
    trainer = train_image.Trainer(models, torch.device("cpu"), 0)
    seen = []

    def look(_, inputs):
        seen.append([(i.shape, i.dtype, i.stride(), i.requires_grad) for i in inputs])

    models["unet"].register_forward_pre_hook(look)
    trainer.compile(4, SIZE)
    assert all(p.grad is None for p in models.parameters())
    trainer.loss(random_pairs(), 4)
    assert seen[0] == seen[1]


def test_a_dropped_condition_is_zeros(text):
    models, _, _ = new_models(text)
    for parameter in models.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    trainer = train_image.Trainer(models, torch.device("cpu"), 0)
    noisy, condition = torch.randn(2, 2, 4, LATENT, LATENT).unbind(0)
    t, picture, pose = torch.tensor([30, 900]), torch.rand(2, 3, SIZE, SIZE), torch.randn(2, POSE)
    with torch.no_grad():
        output = trainer.predict(noisy, t, condition, picture, pose, torch.tensor([1.0, 0.0]))
        other = trainer.predict(noisy, t, -condition, 1 - picture, -pose, torch.tensor([1.0, 0.0]))
        dropped = models["unet"](torch.cat([noisy, 0 * noisy], 1), t, torch.zeros(2, 1, WIDTH)).sample
    assert_close(output[1], dropped[1])
    assert_close(other[1], dropped[1])
    assert (output[0] - dropped[0]).abs().max() > 1e-3
    assert (output[0] - other[0]).abs().max() > 1e-3


def test_the_whole_prior_takes_at_most_40_megabytes():
    config = json.loads((pgc3d.mini.text_model() / "unet" / "config.json").read_text())
    with torch.device("meta"):
        models = make_models(config, 256)
    headers_and_configs = 120_000
    assert 2 * sum(p.numel() for p in models.parameters()) + headers_and_configs <= 40e6


def test_going_on_after_a_stop_changes_nothing(text, tmp_path):
    def trainer():
        models, _, _ = new_models(text)
        return train_image.Trainer(models, torch.device("cpu"), 0), Budget(1.0, torch.device("cpu"))

    straight, _ = trainer()
    for number in range(4):
        straight.step(random_pairs(), number, 4, 1e-3 / (1 + number))
    stopped, budget = trainer()
    for number in range(2):
        stopped.step(random_pairs(), number, 4, 1e-3 / (1 + number))
    budget.used, budget.step = 12.5, 2
    save_state(tmp_path / "state.pt", stopped.models, stopped.optimizer, stopped.average, budget)
    resumed, later = trainer()
    load_state(tmp_path / "state.pt", resumed.models, resumed.optimizer, resumed.average, later)
    assert (later.used, later.step) == (12.5, 2)
    for number in range(later.step, 4):
        resumed.step(random_pairs(), number, 4, 1e-3 / (1 + number))
    assert resumed.average.updates == straight.average.updates
    for a, b in zip(straight.average.source, resumed.average.source, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(straight.average.average, resumed.average.average, strict=True):
        assert torch.equal(a, b)


def write_dataset(folder):
    """Three boxes as `build_dataset.py` writes models, one of them held out."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32)
    (folder / "models").mkdir(parents=True)
    index = []
    for number, size in enumerate([(1.0, 1.5, 0.6), (2.0, 0.7, 1.0), (1.0, 1.0, 1.3)]):
        vertices = corners * np.array(size, np.float32)
        vertices /= np.linalg.norm(vertices, axis=1).max()
        edges = vertices[faces]
        normal = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        np.savez(
            folder / "models" / f"{number}.npz", vertices=vertices, faces=faces,
            normals=np.repeat(normal[:, None], 3, 1).astype(np.float32),
            uv=np.zeros((12, 3, 2), np.float32), face_material=np.arange(12, dtype=np.int32) // 2 % 3,
            material_color=np.array([[0.8, 0.1, 0.1, 1], [0.1, 0.6, 0.2, 1], [0.2, 0.2, 0.7, 1]], np.float32),
            material_texture=np.full(3, -1, np.int32),
        )  # fmt: skip
        index.append({"id": str(number), "label": "box", "cls": "box or bin", "colors": [["red", 0.5]],
                      "materials": [], "glass": 0.0, "split": "test" if number == 2 else "train",
                      "file": f"models/{number}.npz"})  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@given(st.tuples(*[st.floats(0.7, 1.4)] * 3), st.booleans())
def test_stretched_shapes_keep_their_radius_and_right_angles_to_the_normals(dataset, factors, mirrored):
    model = load_model(dataset, load_index(dataset)[0], torch.device("cpu"))
    scale = torch.tensor([-factors[0] if mirrored else factors[0], *factors[1:]])
    stretched = stretch(model, scale)
    corners = stretched.vertices[stretched.faces.long()]
    edges = corners[:, 1:] - corners[:, :1]
    assert float(stretched.vertices.norm(dim=-1).max()) == pytest.approx(1.0)
    assert (edges @ stretched.normals[:, 0, :, None]).abs().max() < 1e-6
    assert ((corners.mean(1) * stretched.normals[:, 0]).sum(-1) > 0).all()  # outwards, as before


def vae_of(folder):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae").eval()


def test_first_views_are_framed_and_inputs_are_whole(text, dataset):
    settings, vae = PairSettings(4, 3, 1, SIZE, 7, None), vae_of(text)
    pairs = build_pairs(dataset, settings, vae, CpuRasterizer())
    shapes, models, colours, views = 4, 2, 3, 3  # colours: own, one, wood
    assert pairs.mean.shape == (shapes * models * colours, views, 4, LATENT, LATENT)
    shown = (pairs.image < 250).any(2)
    for picture in shown[:, 0]:
        rows, columns = (torch.nonzero(picture.any(axis))[:, 0] for axis in (1, 0))
        extents = [float(line.max() - line.min() + 1) for line in (rows, columns)]
        middles = [float(line.max() + line.min() + 1) / 2 for line in (rows, columns)]
        assert max(extents) == pytest.approx((1 - BORDER_RATIO) * SIZE, abs=2)
        assert middles == pytest.approx([SIZE / 2, SIZE / 2], abs=1.5)
    inner = shown[..., 1:-1, 1:-1].sum((-1, -2))
    whole = inner == shown.sum((-1, -2))
    assert pairs.is_input[:, 0].all()
    assert torch.equal(pairs.is_input, whole & (pairs.elevation <= math.radians(50.0)))
    assert 0 < pairs.is_input[:, 1:].sum() < pairs.is_input[:, 1:].numel()


def test_groups_show_one_object_from_their_cameras(text, dataset):
    """The latents and images of a view are those of the same camera, in every colour."""
    settings, vae = PairSettings(1, 6, 1, SIZE, 7, 1), vae_of(text)
    pairs = build_pairs(dataset, settings, vae, CpuRasterizer())
    own, textured = pairs.azimuth[0], pairs.azimuth[1]
    assert torch.equal(own, textured)
    assert not torch.equal(pairs.image[0], pairs.image[1])
    assert torch.equal((pairs.image[0] < 250).any(1), (pairs.image[1] < 250).any(1))
    mean, std = posterior(vae, pairs.image.flatten(0, 1) / 255)
    assert_close(pairs.mean.flatten(0, 1).float(), mean.float(), atol=2e-2, rtol=0)
    assert_close(pairs.std.flatten(0, 1).float(), std.float(), atol=2e-2, rtol=0)
    again = build_pairs(dataset, settings, vae, CpuRasterizer())
    for name, value in vars(pairs).items():
        assert torch.equal(getattr(again, name), value)


@pytest.fixture(scope="module")
def folder(text, dataset, tmp_path_factory):
    """What the command writes, in two calls."""
    out = tmp_path_factory.mktemp("image")
    command = ["train_image.py", str(dataset), str(out), "--text", str(text), "--batch", "2",
               "--resolution", str(SIZE), "--shapes", "1", "--views", "2",
               "--paints", "0"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--minutes", "0.01", "--call-seconds", "0"])
        train_image.main()
        assert (out / "state.pt").exists()
        assert not (out / "image_report.json").exists()
        patch.setattr(sys, "argv", [*command, "--minutes", "0.001"])
        train_image.main()
    return out


def test_the_command_ends_with_a_report_and_a_sheet(folder):
    from PIL import Image

    report = json.loads((folder / "image_report.json").read_text())
    assert report["models"] == 1
    assert len(report["psnr_of_each_turn"]) == 6
    assert math.isfinite(report["psnr"])
    with Image.open(folder / "image_samples.png") as sheet:
        assert sheet.size == (7 * 128, 2 * 128)


def test_the_folder_loads_with_the_real_classes(folder, text):
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert (unet.config.in_channels, unet.config.cross_attention_dim) == (8, WIDTH)
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    assert encoder.config.projection_dim == WIDTH
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.prediction_type == "v_prediction"
    projection = read_folder(folder)["clip_camera_projection"]
    assert projection.weight.shape == (WIDTH, WIDTH + POSE)
    picture = torch.randint(256, (SIZE, SIZE, 3), dtype=torch.uint8)
    processor = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")
    pixels = processor(picture.numpy(), return_tensors="pt")["pixel_values"]
    expected = (picture / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    assert_close(pixels, expected.permute(2, 0, 1)[None], atol=1e-5, rtol=0)


def test_the_folder_names_its_parts_and_no_path(folder, text, dataset):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "Zero123Pipeline"
    assert {name for name in index if not name.startswith("_")} == {
        path.name for path in folder.iterdir() if path.is_dir()
    }
    settings = json.loads((folder / "zero123.json").read_text())
    assert settings == {
        "pose": "polar", "fovy_degrees": FOVY_DEGREES, "fill": FILL, "border": BORDER_RATIO,
    }  # fmt: skip
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".json":
            assert not any(str(used.parent) in path.read_text() for used in (folder, text, dataset))
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118
