"""Materials of representations: what is optimised, lit, regularised and exported."""

import dataclasses

import numpy as np
import pytest
import torch
from fakes import PullTowardColor
from meshes import write_cube
from PIL import Image
from steps import FIRST, render, show, steps
from test_textured_mesh import canvas_of

from pgc3d.cameras import orbit, turntable
from pgc3d.config import load_config
from pgc3d.errors import ConfigError
from pgc3d.exporting.export import export_asset
from pgc3d.exporting.textured_mesh import export_textured_mesh
from pgc3d.geometry.tangents import corner_tangents
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.lighting import EnvironmentShading
from pgc3d.representation.channels import ColorChannels, PbrChannels
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.fields import ColorFieldConfig, start_colors
from pgc3d.representation.headlight import HeadlightConfig
from pgc3d.representation.pbr import PbrConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import Views

CPU = CpuRasterizer()
FIELD = ColorFieldConfig(levels=4, log2_rows=10, finest=32)
FAST = dataclasses.replace(FIELD, lr_mlp=0.01)
SMALL = {"color_field": FIELD, "image_size": 64}
STUDIO = PbrConfig(lights=("studio", "sun"), smoothness=0.0)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    return canvas_of(write_cube(tmp_path_factory.mktemp("cube") / "cube.glb"))


def textured(prepared, material=STUDIO, **settings):
    config = TexturedMeshConfig(**{**SMALL, **settings}, material=material)
    return build_textured_mesh(config, prepared, rasterizer=CPU, generator=generator())


def shape(material=STUDIO, **settings):
    small = {key: value for key, value in SMALL.items() if key != "image_size"}
    config = DMTetConfig(**{"resolution": 16, **small, **settings}, material=material)
    return build_dmtet(config, rasterizer=CPU, generator=generator())


def disturb(model, scale=0.5):
    """Other values for the texture than those of the start."""
    drawn = generator()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "texture" in name or "color" in name:
                tensor.add_(scale * torch.randn(tensor.shape, generator=drawn))
    model.end_step(FIRST)
    return model


def test_the_headlight_is_the_default_and_stays_as_it_was(cube):
    """Three channels, no lights, and the same image as of the renderer's own shading."""
    for config in (TexturedMeshConfig(), DMTetConfig()):
        assert config.material == HeadlightConfig()
    model = textured(cube, HeadlightConfig())
    assert model.lighting is None
    assert model.texture.channels == ColorChannels()
    assert model.texture.mlp.layers[-1].out_features == 3
    assert model.regularizers(FIRST) == {}
    assert torch.equal(show(model, turntable(2), 32, torch.ones(2, 3)).color,
                       render(model, turntable(2), 32, torch.ones(2, 3)).color)  # fmt: skip


@pytest.mark.parametrize("texture", ["field", "image"])
@pytest.mark.parametrize("bump", [False, True])
def test_the_material_starts_as_configured_and_stays_in_its_bounds(cube, texture, bump):
    material = dataclasses.replace(STUDIO, bump=bump)
    model = textured(
        cube, material, texture=texture, color=(0.2, 0.5, 0.7), roughness=0.6, metallic=0.4, lr_image=1.0
    )
    uv = cube.uv
    points, sets = torch.zeros(len(uv), 3), torch.zeros(len(uv), dtype=torch.int64)
    values = model.texels(points, uv, sets, texture_size=64)
    start = torch.tensor([0.2, 0.5, 0.7, 0.6, 0.4] + [0.0, 0.0] * bump)
    torch.testing.assert_close(values, start.expand_as(values), atol=2e-3, rtol=0)
    disturb(model, scale=30.0)
    low, high = torch.tensor(PbrChannels(slope=0.5 * bump).bounds).unbind(1)
    values = model.texels(torch.randn(len(uv), 3, generator=generator()), uv, sets, texture_size=64)
    assert (values >= low - 1e-6).all()
    assert (values <= high + 1e-6).all()
    assert (values.amax(0) - values.amin(0) > 0.1 * (high - low)).all()


def cameras(step):
    azimuth, height = torch.rand(2, 2, generator=step.generator("cameras"))
    flat = torch.ones(2)
    return orbit(7 * azimuth, 2.4 * height - 1.2, 3 * flat, 0.8 * flat)


@pytest.mark.parametrize("make", ["field", "image", "dmtet"])
def test_all_channels_get_gradients_and_steps_reduce_the_loss(cube, make):
    material = dataclasses.replace(STUDIO, bump=make != "dmtet", smoothness=1.0)
    model = (
        shape(material, color_field=FAST)
        if make == "dmtet"
        else textured(cube, material, texture=make, lr_image=0.05, color_field=FAST)
    )
    model.parameter_store().use_adam()
    objective = Objective(
        sample_cameras=cameras,
        guidance=PullTowardColor((0.9, 0.5, 0.2)),
        clip=lambda gradient: gradient,
        backgrounds=((0.0, 0.0, 0.0),),
    )
    problem = Problem(representation=model, objectives={"color": objective})
    before = error(model)
    reports = list(optimize(problem, steps=12, resolution_at=lambda _: 32, log_every=1))
    assert all(report.metrics["skipped_steps"] == 0 for report in reports)
    assert "regularizers/smoothness" in reports[-1].metrics
    assert error(model) < 0.9 * before
    field = model.color if make == "dmtet" else model.texture
    last = field[0].image.grad if make == "image" else field.mlp.layers[-1].weight.grad
    channels = last.flatten(0, 1).T if make == "image" else last
    assert (channels.abs().amax(1) > 0).all()


def error(model):
    shown = show(model, turntable(4), 32, torch.zeros(4, 3))
    target = torch.tensor([0.9, 0.5, 0.2])
    inside = shown.alpha[..., 0] > 0.99
    return float((shown.color[inside] - target).square().mean())


def test_views_of_a_step_have_lights_of_their_own_and_evaluation_the_first(cube):
    model = textured(cube)
    views = Views(turntable(1), torch.ones(1, 3))
    first, again = (model.render(views, 24, FIRST).color for _ in range(2))
    other = model.render(views, 24, steps(5)[3]).color
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    studio = textured(cube, dataclasses.replace(STUDIO, lights=("studio",)))
    alone, first = (show(asset, views.cameras, 24, views.background).color for asset in (studio, model))
    assert torch.equal(first, alone)


def test_light_mesh_and_camera_turned_together_show_the_same(cube):
    """About y, by a quarter and by an odd angle: what is turned is the world."""
    model = disturb(textured(cube, dataclasses.replace(STUDIO, bump=True), texture="image"), 0.2)
    angle = 0.7
    flat, sine, cosine = torch.ones(1), np.sin(angle), np.cos(angle)
    turn = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]]).double()
    prepared = dataclasses.replace(
        cube, placement=dataclasses.replace(cube.placement, rotation=turn @ cube.placement.rotation)
    )
    turned = textured(prepared, dataclasses.replace(STUDIO, bump=True), texture="image")
    turned.texture.load_state_dict(model.texture.state_dict())

    def shown(asset, azimuth, light):
        shading = EnvironmentShading(
            asset.lighting.lights, asset.lighting.table, torch.tensor([1]), torch.tensor([light])
        )
        asset.lighting = Fixed(shading)
        view = orbit(torch.tensor([azimuth]), 0.3 * flat, 3 * flat, 0.8 * flat)
        return show(asset, view, 48, torch.ones(1, 3)).color

    before, after = shown(model, 0.4, 0.2), shown(turned, 0.4 + angle, 0.2 + angle)
    assert (before - after).abs().mean() < 1e-3
    assert before[before < 1].std() > 0.05
    assert (before - shown(turned, 0.4 + angle, 0.2)).abs().mean() > 2e-3


@dataclasses.dataclass
class Fixed:
    """Lighting by one shading."""

    shading: EnvironmentShading

    @property
    def lights(self):
        return self.shading.lights

    @property
    def table(self):
        return self.shading.table

    def for_views(self, count, step):
        return self.shading


def test_smoothness_is_zero_for_one_color_and_grows_with_differences(cube):
    material = dataclasses.replace(STUDIO, smoothness=2.0)
    for make in ("field", "image", "dmtet"):
        model = shape(material) if make == "dmtet" else textured(cube, material, texture=make)
        model.begin_step(FIRST)
        flat = model.regularizers(FIRST)["smoothness"].item()
        disturb(model)
        model.begin_step(FIRST)
        assert flat < 1e-3
        assert model.regularizers(FIRST)["smoothness"].item() > 10 * flat + 1e-3


def test_tangents_point_along_u_and_survive_a_mirrored_atlas(cube):
    mesh = cube
    tangents = corner_tangents(mesh)
    corners, uv = mesh.vertices[mesh.faces], mesh.uv[mesh.uv_faces]
    for start, end in ((0, 1), (1, 2), (2, 0)):
        edge, change = corners[:, end] - corners[:, start], uv[:, end] - uv[:, start]
        along = tangents[mesh.uv_faces[:, start], :3]
        level = change[:, 1].abs() < 1e-6
        assert ((edge[level] * along[level]).sum(1) * change[level, 0] > 0).all()
    assert (tangents[:, 3] == 1).all()
    mirrored = dataclasses.replace(mesh, uv=mesh.uv * torch.tensor([-1.0, 1]) + torch.tensor([1.0, 0]))
    opposite = corner_tangents(mirrored)
    torch.testing.assert_close(opposite, -tangents)


@pytest.mark.parametrize("out", ["glb", "obj"])
@pytest.mark.parametrize("texture", ["field", "image"])
def test_everything_is_exported_and_comes_back(cube, tmp_path, out, texture):
    model = disturb(textured(cube, dataclasses.replace(STUDIO, bump=True), texture=texture), 0.1)
    path = tmp_path / f"out.{out}"
    report = export_textured_mesh(model, path, format=out, rasterizer=CPU, texture_size=128)
    assert report.lost == ()
    found = read_mesh(path)
    values = model.texels(*corners(cube, model), texture_size=128)
    for image, expected in (
        (found.base_color, values[:, :3]),
        (found.metallic_roughness[..., 1:], values[:, 3:5]),
        (found.normal_map[..., :2] * 2.0 - 255, 255 * flat_normals(values[:, 5:])),
    ):
        assert image.shape[:2] == (128, 128)
        texels = image.float().reshape(-1, image.shape[-1])
        scale = 1 if image.dtype == torch.float32 else 255
        mean, own = texels.mean(0), scale * expected.mean(0)
        assert (mean - own).abs().max() < 30
    assert (found.metallic_roughness[..., 0] == 255).all()
    if out == "glb":
        document, _ = unpack_glb(path.read_bytes())
        surface = document["materials"][0]
        assert surface["normalTexture"]["index"] == 2
        assert surface["pbrMetallicRoughness"]["metallicRoughnessTexture"]["index"] == 1
        attributes = document["meshes"][0]["primitives"][0]["attributes"]
        assert document["accessors"][attributes["TANGENT"]]["type"] == "VEC4"
    else:
        lines = path.with_suffix(".mtl").read_text().splitlines()
        assert [line.split()[0] for line in lines[-4:]] == ["map_Kd", "map_Pr", "map_Pm", "norm"]


def corners(cube, model):
    mesh = model.mesh
    sets = mesh.face_set.repeat_interleave(3)
    return mesh.vertices[mesh.faces].flatten(0, 1), mesh.uv[mesh.uv_faces].flatten(0, 1), sets


def flat_normals(slope):
    normal = torch.cat([slope, torch.ones_like(slope[:, :1])], dim=1)
    return torch.nn.functional.normalize(normal, dim=1)[:, :2]


@pytest.mark.parametrize("channel", [3, 4, 5])
def test_an_export_without_a_part_of_the_material_is_not_faithful(cube, tmp_path, monkeypatch, channel):
    """The comparison reads roughness, metallic and bump back, and not the base colour alone."""
    model = textured(cube, dataclasses.replace(STUDIO, bump=True), texture="image")
    path = tmp_path / "out.glb"
    assert export_textured_mesh(model, path, format="glb", rasterizer=CPU, texture_size=64).faithful
    original = type(model).texels

    def damaged(self, *arguments, **options):
        values = original(self, *arguments, **options)
        values[:, channel] += 0.4
        return values

    monkeypatch.setattr(type(model), "texels", damaged)
    assert not export_textured_mesh(model, path, format="glb", rasterizer=CPU, texture_size=64).faithful


def test_a_dmtet_exports_its_material_and_reports_what_a_format_lacks(tmp_path):
    model = disturb(shape())
    reports = {
        kind: export_asset(
            model, tmp_path / f"out.{kind}", format=kind, rasterizer=CPU, texture_size=128, uv_time_limit=0.0
        )
        for kind in ("glb", "obj", "ply")
    }
    assert reports["glb"].lost == reports["obj"].lost == ()
    assert reports["ply"].lost == ("roughness and metallic",)
    assert "without roughness and metallic" in reports["ply"].remarks
    for kind in ("glb", "obj"):
        assert reports[kind].psnr > 20
        surface = read_mesh(tmp_path / f"out.{kind}").metallic_roughness
        assert surface[..., 1:].float().std(dim=(0, 1)).min() > 2
    with Image.open(tmp_path / "out_roughness.png") as image:
        assert image.mode == "L"


def test_a_field_starts_from_another_material(cube):
    source, target = disturb(textured(cube)), textured(cube)
    start_colors(target.texture, source.handover(), generator())
    points = source.mesh.vertices
    for name in ("base_color", "roughness", "metallic"):
        assert torch.equal(getattr(target.texture(points), name), getattr(source.texture(points), name))
    narrow = textured(cube, dataclasses.replace(STUDIO, roughness=(0.3, 0.9)))
    start_colors(narrow.texture, source.handover(), generator(), steps=150, batch=2048)
    found, expected = narrow.texture(points), source.texture(points)
    assert (found.base_color - expected.base_color).abs().mean() < 0.05
    assert (found.metallic - expected.metallic).abs().mean() < 0.08
    assert (found.roughness >= 0.3).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("material.lights=[]", "lights must name 1 to 16 lights, got 0"),
        ("material.lights=[stdio]", "lights must be of studio, softbox, .*got 'stdio'"),
        ("material.roughness=[0.5, 0.5]", "roughness must be .*low < high, got"),
        ("material.metallic=[0.5, 0.2]", "metallic must be"),
        ("material.bump=true", "material.bump must be false for a dmtet"),
        ("material.brightness=0", "brightness must lie in"),
    ],
)
def test_settings_that_cannot_be_are_one_line(override, message):
    place = "stages.main.representation."
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides=[f"{place}material.kind=pbr", place + override])
    assert "\n" not in str(caught.value)


def test_a_material_with_lights_must_be_shaded_and_a_start_must_be_there():
    place = "stages.main.representation."
    kind = f"{place}kind=textured_mesh"
    with pytest.raises(ConfigError, match="shading must be true for a material of kind pbr, got false"):
        load_config(overrides=[kind, f"{place}shading=false", f"{place}material.kind=pbr"])
    with pytest.raises(ConfigError, match=r"representation\.mesh 'start' must go with a stage to start from"):
        load_config(overrides=[kind, f"{place}mesh=start"])


def test_a_configuration_comes_back_from_its_file():
    config = load_config(
        overrides=[
            "stages.main.representation.material.kind=pbr",
            "stages.main.representation.material.lights=[sun, studio]",
        ]
    )
    material = config.last.representation.material
    assert material == PbrConfig(lights=("sun", "studio"))
    assert not config.requires().files
    files = PbrConfig(lights=("sun", "a/room.png")).requires().files
    assert files == {("representation.material.lights", "a/room.png")}
