import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import trimesh
from fakes import PullTowardColor
from meshes import cube_arrays, letter_texture, lumpy, write, write_cube
from safetensors.torch import load_file, save_file
from steps import FIRST, render, show

from pgc3d.cameras import CloseUpConfig, orbit, sample_close_ups, turntable
from pgc3d.choices import AXES
from pgc3d.errors import InputError, OutOfMemoryError, RunDirectoryError
from pgc3d.exporting.textured_mesh import bake_texture, export_textured_mesh
from pgc3d.geometry.normals import crease_normals, vertex_normals
from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.geometry.placement import orientation
from pgc3d.geometry.sampling import sample_surface
from pgc3d.inputs.mesh import load_prepared, prepare_mesh_file, save_prepared
from pgc3d.interfaces import Representation
from pgc3d.memory import require_texture_memory
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import TextureSet, Views

CPU = CpuRasterizer()
PAIRS = [(up, front) for up in AXES for front in AXES if up[1] != front[1]]


def canvas_of(path, up="+y", front="auto", **options):
    return prepare_mesh_file(
        path, up=up, front=front, crease_degrees=40.0, texture_size=256, rasterizer=CPU, **options
    )


def textured(prepared, **settings):
    config = TexturedMeshConfig(**settings)
    return build_textured_mesh(config, prepared, rasterizer=CPU, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("up", "front"), PAIRS)
def test_axes_are_turned_without_a_mirror(up, front):
    rotation = orientation(up, front)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))
    for name, row in ((up, 1), (front, 2)):
        axis = torch.zeros(3, dtype=torch.float64)
        axis["xyz".index(name[1])] = 1.0 if name[0] == "+" else -1.0
        assert (rotation @ axis).tolist() == [float(index == row) for index in range(3)]


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
@pytest.mark.parametrize(("up", "front"), [("+y", "auto"), ("-z", "+x")])
def test_geometry_comes_back_as_it_was(tmp_path, kind, up, front):
    mesh = lumpy()
    source = write(mesh, tmp_path / f"given.{kind}")
    before = source.read_bytes()
    prepared = canvas_of(source, up, front)
    inside = prepared.in_world().vertices.norm(dim=1)
    assert inside.max() <= 1 + 1e-6
    export_textured_mesh(
        textured(prepared), tmp_path / f"out.{kind}", format=kind, rasterizer=CPU, texture_size=128
    )
    found, given = read_source(tmp_path / f"out.{kind}"), read_source(source)
    assert torch.equal(found.vertices[found.faces], given.vertices[given.faces])
    if kind != "glb":  # a new atlas splits vertices there
        assert torch.equal(found.vertices, given.vertices)
        assert torch.equal(found.faces, given.faces)
    assert source.read_bytes() == before


@pytest.mark.parametrize("kind", ["glb", "obj"])
@pytest.mark.parametrize("out", ["glb", "obj"])
def test_sane_texture_coordinates_survive(tmp_path, kind, out):
    prepared = canvas_of(write_cube(tmp_path / f"cube.{kind}"))
    assert prepared.uv_method == "own"
    export_textured_mesh(
        textured(prepared), tmp_path / f"out.{out}", format=out, rasterizer=CPU, texture_size=128
    )
    found, given = (read_source(tmp_path / name) for name in (f"out.{out}", f"cube.{kind}"))
    torch.testing.assert_close(
        found.uv[found.uv_faces], given.uv[given.uv_faces], atol=1.2e-7, rtol=0
    )  # glTF stores 1 - v
    assert torch.equal(found.vertices[found.faces], given.vertices[given.faces])


def broken_uv(kind):
    vertices, faces, uv = cube_arrays()
    if kind == "overlap on":
        uv = uv * np.array([1, 0.5]) + np.array([0, 0.2])
        uv[12:] = uv[:12]
    elif kind == "leave":
        uv = uv * 3
    elif kind == "give no area":
        uv[:4] = 0.5
    elif kind == "use":
        uv = uv * 0.01
    return vertices, faces, uv


@pytest.mark.parametrize("fault", ["overlap on", "leave", "give no area", "use", "are missing"])
def test_unusable_texture_coordinates_are_replaced_and_said(tmp_path, fault):
    vertices, faces, uv = broken_uv(fault)
    mesh, said = trimesh.Trimesh(vertices, faces, process=False), []
    if fault != "are missing":
        mesh.visual = trimesh.visual.TextureVisuals(uv=uv)
    prepared = canvas_of(write(mesh, tmp_path / "cube.glb"), notify=said.append)
    assert prepared.uv_method != "own"
    lines = [line for line in said if "coordinates" in line]
    assert len(lines) == 1
    assert f"cube.glb {fault}" in lines[0]


def test_atlas_in_another_tile_is_moved_by_whole_numbers(tmp_path):
    vertices, faces, uv = cube_arrays()
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv + np.array([2, -1]))
    prepared = canvas_of(write(mesh, tmp_path / "cube.obj"))
    assert prepared.uv_method == "own"
    torch.testing.assert_close(prepared.uv[prepared.uv_faces], torch.from_numpy(uv[faces]).float())


@pytest.mark.parametrize("texture", ["field", "image"])
def test_constant_wish_is_baked_into_every_texel(tmp_path, texture):
    wish = (0.8, 0.3, 0.1)
    prepared = canvas_of(write_cube(tmp_path / "cube.glb"))
    model = textured(
        prepared,
        texture=texture,
        image_size=64,
        shading=False,
        color_field=ColorFieldConfig(lr_mlp=0.05),
        lr_image=0.1,
    )
    model.parameter_store().use_adam()

    def cameras(step):
        azimuth, height = torch.rand(2, 4, generator=step.generator("cameras"))
        flat = torch.ones(4)
        return orbit(7 * azimuth, 2.4 * height - 1.2, 3 * flat, 0.8 * flat)

    problem = Problem(
        representation=model,
        objectives={
            "color": Objective(
                sample_cameras=cameras,
                guidance=PullTowardColor(wish),
                clip=lambda gradient: gradient,
                backgrounds=(wish,),
            )
        },
        lr_scale=lambda progress: 1 - 0.98 * progress,
    )
    list(optimize(problem, steps=150, resolution_at=lambda _: 64))
    image = bake_texture(model, 0, texture_size=64, rasterizer=CPU) / 255
    torch.testing.assert_close(image, torch.tensor(wish).expand(64, 64, 3), atol=0.02, rtol=0)


def letters(prepared):
    model = textured(prepared, texture="image", image_size=256, shading=False)
    with torch.no_grad():
        model.texture[0].image.copy_(letter_texture())
    return model


@pytest.mark.parametrize("texture", ["field", "image"])
def test_a_step_has_gradients_and_no_regularisers_and_evaluation_has_none(tmp_path, texture):
    model = textured(canvas_of(write_cube(tmp_path / "cube.glb")), texture=texture, image_size=64)
    assert isinstance(model, Representation)
    views = turntable(2), 32, torch.ones(2, 3)
    rendering, shown = render(model, *views), show(model, *views)
    assert torch.equal(shown.color, rendering.color)
    assert not shown.color.requires_grad
    torch.autograd.backward(rendering.color.sum())
    store = model.parameter_store()
    assert store is model.parameter_store()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in store.tensors()[:1])
    assert model.regularizers(FIRST) == {}


def test_texels_are_in_range_after_a_step_and_not_changed_by_a_render(tmp_path):
    model = textured(canvas_of(write_cube(tmp_path / "cube.glb")), texture="image", image_size=64)
    with torch.no_grad():
        model.texture[0].image.copy_(
            3 * torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) - 1
        )
    before = model.texture[0].image.detach().clone()
    model.begin_step(FIRST)
    for step in (FIRST, None):
        model.render(Views(turntable(1), torch.ones(1, 3)), 16, step)
    assert torch.equal(model.texture[0].image, before)
    model.end_step(FIRST)
    assert torch.equal(model.texture[0].image, before.clamp(0, 1))


@pytest.mark.parametrize(("up", "front"), [("+y", "+z"), ("+z", "-y"), ("-x", "+y")])
@pytest.mark.parametrize("out", ["glb", "obj"])
def test_letters_read_correctly_from_every_side(tmp_path, up, front, out):
    """In the run's render and, read by another program, in the file: the F is neither mirrored nor turned."""
    matrix = np.eye(4)
    matrix[:3, :3] = orientation(up, front).numpy().T * 5
    matrix[:3, 3] = (100, -20, 3)
    prepared = canvas_of(write_cube(tmp_path / "cube.glb", matrix=matrix), up, front)
    model = letters(prepared)
    turn = torch.tensor([0.0, 90, 180, 270]).deg2rad()
    flat = torch.ones(4)
    cameras = orbit(turn, 0 * flat, 4 * flat, 0.5 * flat)
    shown = show(model, cameras, 96, torch.zeros(4, 3)).color
    for picture in shown:
        rows, columns = (picture[..., 0] > 0.1).nonzero().unbind(1)
        box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0]
        tenth = len(box) // 10
        assert box[2 * tenth, 2 * tenth] > 0.8  # the F's stem and upper arm
        assert box[2 * tenth, 7 * tenth] > 0.8
        assert box[7 * tenth, 2 * tenth] > 0.8
        assert box[6 * tenth, 6 * tenth] < 0.5
        assert box[8 * tenth, 8 * tenth] < 0.5
    path = tmp_path / f"out.{out}"
    report = export_textured_mesh(model, path, format=out, rasterizer=CPU, texture_size=256)
    assert report.faithful
    baked = read_mesh(path).base_color.float() / 255
    assert (baked - letter_texture()).abs().mean() < 0.03


def test_canvas_comes_back_from_its_file(tmp_path):
    prepared = canvas_of(write_cube(tmp_path / "cube.glb"), "+z")
    save_prepared(tmp_path / "prepared", prepared)
    found = load_prepared(tmp_path / "prepared")
    for name, value in vars(prepared).items():
        same = torch.equal(value, getattr(found, name)) if isinstance(value, torch.Tensor) else True
        assert same, name
    assert prepared.sets == found.sets
    points = prepared.vertices
    assert torch.equal(prepared.placement.to_world(points), found.placement.to_world(points))
    world = found.in_world()
    assert torch.equal(world.in_world().vertices, world.vertices)
    assert torch.equal(world.in_world().normals, world.normals)
    (tmp_path / "prepared").write_bytes(b"damaged")
    with pytest.raises(RunDirectoryError, match="missing or damaged"):
        load_prepared(tmp_path / "prepared")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("faces", lambda faces: faces + 100),
        ("faces", lambda faces: faces - 1),
        ("faces", lambda faces: faces.int()),
        ("joined", lambda joined: joined[:2]),
        ("uv_faces", lambda faces: faces[:, :2]),
        ("vertices", lambda vertices: vertices.reshape(-1)),
        ("vertices", lambda vertices: vertices * float("nan")),
        ("uv", lambda uv: torch.cat([uv, uv], dim=1)),
        ("normals", lambda normals: normals[:1]),
        ("rotation", lambda rotation: rotation[0]),
        ("scale", lambda scale: -scale),
        ("scale", lambda scale: scale / 0),
        ("centre", None),
        ("face_set", lambda sets: sets + 1),
        ("face_set", lambda sets: sets[1:]),
    ],
)
def test_canvas_of_someone_else_is_checked(tmp_path, name, change):
    save_prepared(tmp_path / "prepared", canvas_of(write_cube(tmp_path / "cube.glb")))
    tensors = load_file(tmp_path / "prepared")
    value = tensors.pop(name)
    if change is not None:
        tensors[name] = change(value).contiguous()
    save_file(tensors, tmp_path / "prepared", metadata={"sets": json.dumps([asdict(TextureSet())])})
    with pytest.raises(RunDirectoryError, match=rf"missing or damaged.*{name}"):
        load_prepared(tmp_path / "prepared")


def test_seams_are_no_outlines_and_creases_are_sharp(tmp_path):
    prepared = canvas_of(write_cube(tmp_path / "cube.glb"))
    assert len(torch.unique(prepared.welded_faces)) == 8
    mesh = prepared
    sides = mesh.normals[mesh.normal_faces]
    assert torch.equal(sides, sides.round())  # flat sides, although the corners are shared in space


def test_smooth_surface_has_the_mean_normals():
    mesh = lumpy()
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
    normals, normal_faces = crease_normals(vertices, faces, crease=3.14159)
    expected = vertex_normals(vertices, faces)[faces].float()
    torch.testing.assert_close(normals[normal_faces], expected, atol=1e-5, rtol=0)
    flat, flat_faces = crease_normals(vertices, faces, crease=0.0)
    assert len(flat) == faces.numel()
    assert torch.equal(flat_faces.unique(), torch.arange(faces.numel()))


@pytest.mark.parametrize("turned", [slice(None), slice(None, None, 2)], ids=["inside out", "every second"])
def test_faces_that_are_wound_the_wrong_way_look_the_same(tmp_path, turned):
    mesh, pictures = trimesh.creation.icosphere(3), []
    for name, some in (("right", slice(0)), ("wrong", turned)):
        faces = np.array(mesh.faces)
        faces[some] = faces[some][:, ::-1]
        trimesh.Trimesh(mesh.vertices, faces, process=False).export(tmp_path / f"{name}.stl")
        asset = textured(canvas_of(tmp_path / f"{name}.stl"))
        pictures.append(show(asset, turntable(3), 64, torch.ones(3, 3)))
    right, wrong = pictures
    assert right.alpha.mean() > 0.2
    for part in ("color", "normal"):
        difference = (getattr(wrong, part) - getattr(right, part)).abs()
        assert difference.max() < 0.1  # only faces that are wound alike share their normals


def test_image_follows_the_atlas_cell_by_cell(tmp_path):
    prepared = canvas_of(write_cube(tmp_path / "cube.glb"))
    image = bake_texture(letters(prepared), 0, texture_size=256, rasterizer=CPU)
    covered = draw_atlas(prepared.uv, prepared.uv_faces, 256, CPU).triangle[0] >= 0
    torch.testing.assert_close(image[covered] / 255, letter_texture()[covered], atol=0.5 / 255, rtol=0)


def test_formats_without_colours_are_refused(tmp_path):
    model = textured(canvas_of(write_cube(tmp_path / "cube.glb")))
    with pytest.raises(InputError, match="got stl, which has no colours"):
        export_textured_mesh(model, tmp_path / "out.stl", format="stl", rasterizer=CPU)


def test_texture_that_does_not_fit_is_one_line(monkeypatch):
    monkeypatch.setattr("pgc3d.memory.free_memory", lambda _: 10**9)
    require_texture_memory(1024, 0, torch.device("cpu"))
    with pytest.raises(OutOfMemoryError, match=r"texture of 4096 must fit .* of 1\.0 GB free; lower"):
        require_texture_memory(4096, 4096, torch.device("cpu"))


def test_all_points_at_one_place_are_refused(tmp_path):
    (tmp_path / "a.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    with pytest.raises(InputError, match="must have an extent"):
        canvas_of(tmp_path / "a.obj")


@pytest.mark.parametrize("extents", [(1e-5, 10.0, 1e-5), (0.0, 1.0, 0.0)])
def test_what_no_camera_could_see_is_refused(tmp_path, extents):
    mesh = trimesh.creation.box((1.0, 1.0, 1.0))
    mesh.vertices *= extents
    mesh.export(tmp_path / "needle.ply")
    with pytest.raises(InputError, match=r"almost no area: .*needle\.ply"):
        canvas_of(tmp_path / "needle.ply")
    mesh.vertices = trimesh.creation.box((0.02, 10.0, 0.02)).vertices
    mesh.export(tmp_path / "stick.ply")
    canvas_of(tmp_path / "stick.ply")


def test_close_ups_look_at_the_surface_from_outside(tmp_path):
    mesh = canvas_of(write_cube(tmp_path / "cube.glb")).in_world()
    config = CloseUpConfig(share=(0.5, 0.0, 0.6, 1.0), zoom=(2.0,), spread_degrees=0.0)

    def sample(progress):
        generator = torch.Generator().manual_seed(3)
        return sample_close_ups(
            16,
            config,
            lambda count, stream: sample_surface(mesh.vertices, mesh.faces, count, stream),
            progress,
            generator,
        )

    whole, close = sample(0.0), sample(1.0)
    focal = 1 / torch.tan(torch.tensor(40.0).deg2rad() / 2)
    torch.testing.assert_close(whole.clip_from_camera[:, 1, 1], focal.expand(16))
    torch.testing.assert_close(close.clip_from_camera[:, 1, 1], 2 * focal.expand(16))
    target = close.position + close.distance[:, None] * -close.camera_from_world[:, 2, :3]
    torch.testing.assert_close(target.abs().amax(dim=1), torch.full((16,), 3**-0.5), atol=1e-4, rtol=0)
    assert (close.position.norm(dim=1) > 1).all()
    assert (whole.camera_from_world[:, 0, 3].abs() < 1e-5).all()  # those look at the centre
