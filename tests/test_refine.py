"""Refinement of a source texture: what must not change is the same to the byte, and bounds are kept."""

from functools import partial

import numpy as np
import pytest
import torch
from fakes import PullTowardColor
from meshes import cube_arrays, write_cube
from PIL import Image
from steps import FIRST, show, steps

from pgc3d.cameras import orbit, turntable
from pgc3d.errors import InputError
from pgc3d.exporting.refined import bound_in_levels, measured, refined_texture
from pgc3d.exporting.textured_mesh import export_textured_mesh
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.inputs.source_texture import (
    SourceRequest,
    load_sources,
    own_image,
    pack_sources,
    prepare_sources,
)
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.colors import colored
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.mesh_io.reader import read_source
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.source_config import SourceConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import SourceTexture

CPU = CpuRasterizer()
SMALL = ColorFieldConfig(levels=4, log2_rows=10, base=4, finest=32)


def seeded():
    return torch.Generator().manual_seed(0)


def noise(height, width):
    """An image without two texels alike, by chance."""
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def half(height, width):
    """A mask that is white on the left, grey on a line, and black on the right."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:, : width // 2] = 255
    mask[:, width // 2] = 100
    return mask


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    return prepare(write_cube(tmp_path_factory.mktemp("cube") / "cube.glb"))


def refined(prepared, source, texture="image", **settings):
    config = TexturedMeshConfig(
        texture=texture,
        color_field=SMALL,
        shading=False,
        lr_image=0.1,
        source=SourceConfig(**({"use": "start" if texture == "image" else "keep"} | settings)),
    )
    return build_textured_mesh(config, prepared, rasterizer=CPU, generator=seeded(), sources=(source,))


def result(model):
    """The exported image of the only texture set, and the report of the change."""
    found = refined_texture(model, model.refinement.parts[0], rasterizer=CPU)
    return found, measured([found], model.refinement)


def disturb(model):
    """Move all parameters at random, as far as optimisation could."""
    with torch.no_grad():
        for tensor in model.parameter_store().tensors():
            tensor.add_(torch.randn(tensor.shape, generator=seeded()))
    model.end_step(FIRST)


SIZES = [(64, 64), (48, 100), (130, 20)]


@pytest.mark.parametrize("texture", ["image", "field"])
@pytest.mark.parametrize("size", SIZES)
def test_at_strength_0_nothing_changes(cube, texture, size):
    source = noise(*size)
    model = refined(cube, SourceTexture(source), texture, strength=0.0)
    disturb(model)
    found, change = result(model)
    assert torch.equal(found, source)
    assert (change.changed, change.largest, change.bound) == (0.0, 0, 0)


@pytest.mark.parametrize("texture", ["image", "field"])
@pytest.mark.parametrize("size", SIZES)
def test_texels_that_are_not_painted_keep_their_bytes(cube, texture, size):
    source, mask = noise(*size), half(*size)
    model = refined(cube, SourceTexture(source, mask), texture)
    disturb(model)
    found, change = result(model)
    assert torch.equal(found[mask == 0], source[mask == 0])
    assert (found[mask == 255] != source[mask == 255]).any(dim=1).float().mean() > 0.5
    assert change.included == pytest.approx(float((mask > 0).float().mean()))


@pytest.mark.parametrize("texture", ["image", "field"])
@pytest.mark.parametrize("settings", [{"strength": 0.1}, {"bound": 0.05}, {"strength": 0.3, "bound": 0.2}])
def test_no_texel_leaves_its_bound(cube, texture, settings):
    source = noise(64, 64)
    model = refined(cube, SourceTexture(source), texture, **settings)
    disturb(model)
    found, change = result(model)
    difference = int((found.int() - source.int()).abs().max())
    assert 0 < difference == change.largest <= change.bound == int(255 * min(settings.values()) + 1e-6)
    assert bound_in_levels(model.refinement.parts[0]) == change.bound
    random = [torch.rand(500, width, generator=seeded()) for width in (3, 2)]
    colors = model.texels(*random, torch.zeros(500, dtype=torch.int64))
    limit = min(settings.values()) + 1e-4
    still = refined(cube, SourceTexture(source), strength=0.0).texels(*random, torch.zeros(500).long())
    assert (colors - still).abs().max() <= limit


@pytest.mark.parametrize("texture", ["image", "field"])
def test_what_the_mask_leaves_out_is_rendered_as_it_was(cube, texture):
    """With a black mask renders are those of the source, whatever the parameters are."""
    source = SourceTexture(noise(64, 64), torch.zeros(64, 64, dtype=torch.uint8))
    model, views = refined(cube, source, texture), (turntable(3), 48, torch.ones(3, 3))
    before = show(model, *views).color
    disturb(model)
    torch.testing.assert_close(show(model, *views).color, before, atol=1e-6, rtol=0)
    plain = refined(cube, SourceTexture(source.image), "image")
    torch.testing.assert_close(before, show(plain, *views).color, atol=1e-5, rtol=0)


def optimized(model, cameras, *, total=6, keep=None):
    """A model after some steps towards red, its renders of 64 pixels."""
    model.parameter_store().use_adam()
    pull = Objective(
        sample_cameras=lambda step: cameras,
        guidance=PullTowardColor((1.0, 0.0, 0.0)),
        clip=lambda gradient: gradient,
        backgrounds=("white",) if keep is None else keep,
    )
    problem = Problem(representation=model, objectives={"color": pull})
    list(optimize(problem, steps=total, resolution_at=lambda _: 64))
    return model


def test_masked_texels_have_no_moments_and_unseen_ones_keep_their_bytes(cube):
    """Seen from the front alone, with a weight on low frequencies, the back stays as it is."""
    source = noise(64, 96)
    mask = torch.full((64, 96), 255, dtype=torch.uint8)
    mask[:, :16] = 0
    flat = torch.ones(1)
    front = orbit(0 * flat, 0 * flat, 4 * flat, 0.6 * flat)
    model = refined(cube, SourceTexture(source, mask), strength=0.5, keep=10.0, cells=2)
    before = model.texture[0].image.detach().clone()
    background = ((1.0, 1.0, 1.0),)
    optimized(model, front, keep=background)
    black = model.refinement.parts[0].painted[..., 0] == 0
    assert bool(black.any())
    assert torch.equal(model.texture[0].image[black], before[black])
    state = model.parameter_store().optimizer.state[model.texture[0].image]
    assert not state["exp_avg"][black].any()
    assert not state["exp_avg_sq"][black].any()
    found, _ = result(model)
    moved = (found != source).any(dim=-1)
    assert not moved[:, :16].any()
    assert moved[32:, 17:31].any()  # the front is at the lower left
    square = refined(cube, SourceTexture(noise(64, 64)), keep=10.0, cells=2)
    optimized(square, front, keep=background)
    found, _ = result(square)
    back = torch.zeros(64, 64, dtype=torch.bool)
    back[33:, 46:] = True
    assert torch.equal(found[back], noise(64, 64)[back])


@pytest.mark.parametrize("kind", ["glb", "obj"])
@pytest.mark.parametrize("size", SIZES)
def test_an_export_without_steps_has_the_source_texel_for_texel(cube, tmp_path, kind, size):
    source = noise(*size)
    model = refined(cube, SourceTexture(source))
    path = tmp_path / f"out.{kind}"
    report = export_textured_mesh(model, path, format=kind, rasterizer=CPU, texture_size=32)
    assert torch.equal(read_mesh(path).base_color, source)
    assert report.change.changed == 0.0
    assert report.psnr > 60  # also along seams, where vertices are split
    assert "0.0% of the texels changed" in report.remarks
    assert (
        report.record()["texture"] | {"bound": 255, "texels": size[0] * size[1]} == report.record()["texture"]
    )


def test_padding_follows_the_change_and_ends(cube):
    """Beside the charts the source stays, except for the texels that continue a change."""
    source = noise(256, 256)
    model = refined(cube, SourceTexture(source))
    with torch.no_grad():
        model.texture[0].image += 0.25
    found = refined_texture(model, model.refinement.parts[0], rasterizer=CPU, padding=1)
    _, _, uv = cube_arrays()
    inner, outer = (np.zeros((256, 256), dtype=bool) for _ in range(2))
    for side in range(6):
        corners = uv[4 * side : 4 * side + 4]
        low, high = corners.min(0) * 256, corners.max(0) * 256
        for mask, grow in ((inner, 0.5), (outer, 1.6)):
            rows = slice(max(0, round(256 - high[1] - grow)), round(256 - low[1] + grow))
            mask[rows, max(0, round(low[0] - grow)) : round(high[0] + grow)] = True
    moved = (found != source).any(dim=-1).numpy()
    assert moved[inner & (source.numpy() < 180).any(-1)].mean() > 0.95
    assert not moved[~outer].any()
    assert (~outer).any()


def test_low_frequencies_are_those_of_the_formula(cube):
    source = SourceTexture(noise(64, 64))
    model = refined(cube, source, strength=0.5, keep=2.0, cells=4)
    refinement, texture = model.refinement.parts[0], model.texture[0]
    everywhere = torch.ones_like(texture.weight)
    image = refinement.image + 0.1
    expected = 2.0 * 256**2 * 3 * 0.1**2
    assert float(refinement.low_frequencies(image, everywhere)) == pytest.approx(expected, rel=1e-4)
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 0.2 - 0.1
    assert (
        float(refinement.low_frequencies(refinement.image + checks[..., None], everywhere)) < 1e-6 * expected
    )
    assert float(refinement.low_frequencies(refinement.image, everywhere)) == 0.0
    moved = (refinement.image + 0.2 * torch.rand(64, 64, 3, generator=seeded())).requires_grad_()
    loss = partial(refinement.low_frequencies, weight=texture.weight)
    (gradient,) = torch.autograd.grad(loss(moved), moved)
    direction = torch.randn(moved.shape, generator=seeded())
    with torch.no_grad():
        difference = (loss(moved + 1e-2 * direction) - loss(moved - 1e-2 * direction)) / 2e-2
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-2, atol=1e-3)


def test_strength_scales_the_weight_of_low_frequencies():
    weights = [SourceConfig(keep=3.0, strength=strength).keep_weight for strength in (0.0, 0.25, 0.5, 1.0)]
    assert weights == [0.0, 9.0, 3.0, 0.0]


def test_low_frequencies_of_a_field_are_estimated_without_bias(cube):
    model = refined(cube, SourceTexture(noise(64, 64)), "field", strength=0.5, keep=1.0, cells=16)
    cells = model.field_cells()
    place = {tuple(point): row for row, point in enumerate(cells.points.tolist())}
    shifted = cells.source[:, :3] + 0.1

    def values(points):
        return shifted[[place[tuple(point)] for point in points.tolist()]]

    found = [float(cells.loss(values, step)) for step in steps(10)]
    assert np.mean(found) == pytest.approx(256**2 * 3 * 0.1**2, rel=0.05)


def test_a_field_starts_near_its_source(cube):
    smooth = torch.linspace(40, 200, 64).to(torch.uint8)[:, None, None].expand(64, 64, 3).contiguous()
    model = refined(cube, SourceTexture(smooth), "field", use="start")
    plain = refined(cube, SourceTexture(smooth), "field")
    cells = model.field_cells()
    target = cells.source[:, :3]
    errors = [
        float((made.texture.values(cells.points) - target).detach().abs().mean()) for made in (model, plain)
    ]
    assert errors[0] < 0.03 < errors[1]


def textured_cube(path, image, **changes):
    vertices, faces, uv = (torch.from_numpy(values) for values in cube_arrays())
    asset = MeshAsset(
        vertices.float(), faces, torch.nn.functional.normalize(vertices.float(), dim=1),
        uv=uv.float(), uv_faces=faces, base_color=image, **changes,
    )  # fmt: skip
    write_mesh(path, asset, "glb")
    return path


def prepare(path, *, uv="auto"):
    return prepare_mesh_file(
        path, up="+y", front="auto", crease_degrees=40.0, texture_size=128, rasterizer=CPU, uv=uv
    )


def prepared_files(path, tmp_path, *, uv="auto", mask=None, init=None, sizes=(0, 128), starts=True):
    prepared = prepare(path, uv=uv)
    paths = {}
    for name, image in (("mask", mask), ("image", init)):
        paths[name] = None if image is None else tmp_path / f"{name}.png"
        if image is not None:
            Image.fromarray(image.numpy()).save(paths[name])
    said = []
    request = SourceRequest(**paths, starts=starts, side=sizes[0], sampled=sizes[1])
    made = prepare_sources(path, prepared, request, rasterizer=CPU, notify=said.append)
    (tmp_path / "sources").write_bytes(pack_sources(made))
    (found,) = load_sources(tmp_path / "sources", 1)
    return {"texture": found.image, "mask": found.mask}, said


def test_the_file_s_own_image_is_taken_texel_for_texel(tmp_path):
    image = noise(40, 72)
    path = textured_cube(tmp_path / "cube.glb", image)
    files, said = prepared_files(path, tmp_path)
    assert torch.equal(files["texture"], image)
    assert "keep their bytes (72 x 40)" in said[0]
    larger, _ = prepared_files(path, tmp_path, sizes=(144, 48))
    expected = Image.fromarray(image.numpy()).resize((144, 80), Image.Resampling.BICUBIC)
    assert torch.equal(larger["texture"], torch.from_numpy(np.array(expected)))
    other, _ = prepared_files(path, tmp_path, init=noise(30, 30).flip(0))
    assert torch.equal(other["texture"], noise(30, 30).flip(0))
    with pytest.raises(InputError, match="must not be less than the longer side"):
        prepared_files(path, tmp_path, sizes=(71, 48))


def test_new_coordinates_have_the_same_colours_in_space(tmp_path):
    """Sampled into another atlas, a point has the colour that it had."""
    gradient = torch.linspace(0, 255, 96).to(torch.uint8)
    image = torch.stack(
        [gradient.expand(96, 96), gradient[:, None].expand(96, 96), 0 * gradient.expand(96, 96)], -1
    )
    path = textured_cube(tmp_path / "cube.glb", image.contiguous())
    prepared = prepare(path, uv="new")
    assert own_image(colored(read_source(path)), prepared, 0) is None
    files, said = prepared_files(path, tmp_path, uv="new")
    assert "sampled into 1 of 1 textures (128 x 128)" in said[0]
    model = refined(prepared, SourceTexture(files["texture"]))
    truth = refined(prepare(path), SourceTexture(image.contiguous()))
    views = turntable(4), 64, torch.ones(4, 3)
    difference = (show(model, *views).color - show(truth, *views).color).abs()
    assert difference.mean() < 0.01


@pytest.mark.parametrize("size", [(5, 9), (40, 72), (200, 100)])
def test_black_texels_of_a_mask_of_any_size_are_black(tmp_path, size):
    """A texel that touches black ones alone stays, and one that touches white ones alone is painted."""
    path = textured_cube(tmp_path / "cube.glb", noise(40, 72))
    mask = torch.from_numpy(np.random.default_rng(2).integers(0, 2, size).astype(np.uint8) * 255)
    files, said = prepared_files(path, tmp_path, mask=mask)
    assert files["mask"].shape == (40, 72)
    assert "of the texels of the surface may change" in said[1]
    rows, columns = (
        [np.unique((np.array([index, index + 0.999]) * given / own).astype(int)) for index in range(own)]
        for given, own in zip(size, (40, 72), strict=True)
    )
    for row, column in np.ndindex(40, 72):
        touched = mask[rows[row][0] : rows[row][-1] + 1, columns[column][0] : columns[column][-1] + 1]
        if bool((touched == touched[0, 0]).all()):
            assert files["mask"][row, column] == touched[0, 0]


MASKS = {
    "black": (torch.zeros(8, 8, dtype=torch.uint8), "is black everywhere"),
    "coloured": (noise(8, 8), "must hold grey levels"),
    "transparent": (torch.full((8, 8, 4), 7, dtype=torch.uint8), "must be an opaque image"),
}


@pytest.mark.parametrize(("mask", "line"), MASKS.values(), ids=MASKS)
def test_a_mask_that_cannot_be_used_is_one_line(tmp_path, mask, line):
    path = textured_cube(tmp_path / "cube.glb", noise(16, 16))
    with pytest.raises(InputError, match=line):
        prepared_files(path, tmp_path, mask=mask)


def test_a_mask_beside_the_charts_paints_nothing(tmp_path):
    path = textured_cube(tmp_path / "cube.glb", noise(128, 128))
    mask = torch.zeros(128, 128, dtype=torch.uint8)
    mask[63:65] = 255
    with pytest.raises(InputError, match="must leave texels of the surface"):
        prepared_files(path, tmp_path, mask=mask)
