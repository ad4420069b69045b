import pytest
import torch

from pgc3d.cameras import turntable
from pgc3d.geometry.normals import vertex_normals
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import project, render_mesh, render_textured, sample_texture
from pgc3d.types import Cameras, Material, Mesh

BOX = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
QUADS = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
BOX_FACES = torch.cat([QUADS[:, [0, 1, 2]], QUADS[:, [0, 2, 3]]])


def plain(points):
    return Material(0.5 + 0.4 * torch.sin(3 * points), 0 * points[:, :1], 0 * points[:, :1])


def box(dtype=torch.float32):
    vertices = BOX.to(dtype)
    return Mesh(vertices, BOX_FACES, vertex_normals(vertices, BOX_FACES))


def double(cameras):
    return Cameras(**{name: value.double() for name, value in vars(cameras).items()})


def test_rendering_has_the_promised_ranges_and_backgrounds():
    background = torch.tensor([[0.2, 0.4, 0.6], [1.0, 1.0, 1.0]])
    picture = render_mesh(box(), turntable(2), 32, background, rasterizer=CpuRasterizer(), material=plain)
    assert picture.color.shape == picture.normal.shape == (2, 32, 32, 3)
    assert picture.alpha.shape == picture.depth.shape == (2, 32, 32, 1)
    torch.testing.assert_close(picture.color[:, 0, 0], background)
    torch.testing.assert_close(picture.normal[:, 0, 0], torch.full((2, 3), 0.5))
    for image in (picture.color, picture.normal, picture.alpha):
        assert image.min() >= 0
        assert image.max() <= 1
    partly = (picture.alpha > 0.01) & (picture.alpha < 0.99)
    assert partly.any()
    torch.testing.assert_close(picture.alpha[:, 16, 16], torch.ones(2, 1))


def test_box_is_shown_at_its_depth_with_its_normal():
    cameras = turntable(1, elevation_degrees=0.0)
    mesh = Mesh(BOX, BOX_FACES, torch.nn.functional.normalize(BOX, dim=1))
    picture = render_mesh(mesh, cameras, 33, torch.zeros(1, 3), rasterizer=CpuRasterizer(), material=plain)
    torch.testing.assert_close(picture.depth[0, 16, 16], cameras.distance - 0.5, atol=1e-4, rtol=0)
    assert picture.depth[0, 0, 0] == 0
    torch.testing.assert_close(picture.normal[0, 16, 16], torch.tensor([0.5, 0.5, 1.0]), atol=1e-2, rtol=0)


def test_material_is_asked_about_covered_surface_points_only():
    asked = []

    def material(points):
        asked.append(points)
        return plain(points)

    render_mesh(box(), turntable(1), 32, torch.zeros(1, 3), rasterizer=CpuRasterizer(), material=material)
    assert 0 < len(asked[0]) < 32 * 32
    torch.testing.assert_close(asked[0].abs().amax(1), torch.full((len(asked[0]),), 0.5))


def test_unlit_picture_shows_the_base_color():
    def red(points):
        return Material(torch.tensor([0.9, 0.1, 0.2]).expand_as(points), 0 * points[:, :1], 0 * points[:, :1])

    options = {"rasterizer": CpuRasterizer(), "material": red}
    flat = render_mesh(box(), turntable(1), 16, torch.zeros(1, 3), shading=False, **options)
    lit = render_mesh(box(), turntable(1), 16, torch.zeros(1, 3), **options)
    torch.testing.assert_close(flat.color[0, 8, 8], torch.tensor([0.9, 0.1, 0.2]))
    assert (lit.color[0, 8, 8] < flat.color[0, 8, 8]).all()


def test_vertex_gradient_matches_finite_differences():
    cameras, weights = (
        double(turntable(1)),
        torch.rand(1, 24, 24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    background = torch.zeros(1, 3, dtype=torch.float64)

    def loss(vertices):
        mesh = Mesh(vertices, BOX_FACES, vertex_normals(vertices, BOX_FACES))
        picture = render_mesh(mesh, cameras, 24, background, rasterizer=CpuRasterizer(), material=plain)
        return (torch.cat([picture.color, picture.alpha], dim=-1) * weights).sum()

    vertices = (BOX.double() + 0.013).requires_grad_()
    loss(vertices).backward()
    direction = torch.randn(BOX.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        step = 1e-6
        difference = (loss(vertices + step * direction) - loss(vertices - step * direction)) / (2 * step)
    torch.testing.assert_close((vertices.grad * direction).sum(), difference, rtol=1e-3, atol=1e-3)


def test_optimising_a_mask_finds_position_and_size():
    cameras, rasterizer = turntable(1, elevation_degrees=0.0), CpuRasterizer()
    background = torch.zeros(1, 3)

    def alpha(scale, shift):
        mesh = Mesh(BOX * scale + shift, BOX_FACES, BOX)
        return render_mesh(mesh, cameras, 32, background, rasterizer=rasterizer, material=plain).alpha

    target = alpha(torch.tensor(1.1), torch.tensor([0.1, -0.07, 0.0])).detach()
    scale = torch.tensor(0.8, requires_grad=True)
    shift = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([scale, shift], lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        (alpha(scale, shift * torch.tensor([1.0, 1.0, 0.0])) - target).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(scale.detach(), torch.tensor(1.1), atol=0.01, rtol=0)
    torch.testing.assert_close(shift.detach()[:2], torch.tensor([0.1, -0.07]), atol=0.01, rtol=0)


def test_empty_mesh_shows_the_background():
    mesh = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    background = torch.tensor([[0.1, 0.2, 0.3]])
    picture = render_mesh(mesh, turntable(1), 8, background, rasterizer=CpuRasterizer(), material=plain)
    torch.testing.assert_close(picture.color, background[:, None, None].expand(1, 8, 8, 3))
    assert (picture.alpha == 0).all()


def test_texture_reads_upright_from_the_front():
    # Red top left, green top right, blue bottom left, white bottom right, on the face towards +z.
    texture = torch.ones(2, 2, 3)
    texture[0, 0], texture[0, 1], texture[1, 0] = torch.eye(3)
    square = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    picture = render_textured(
        square,
        faces,
        square[:, :2] + 0.5,
        faces,
        texture,
        turntable(1, elevation_degrees=0.0),
        32,
        torch.zeros(1, 3),
        rasterizer=CpuRasterizer(),
        shading=False,
    )
    found = picture.color[0][[11, 11, 21, 21], [11, 21, 11, 21]]
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("uv", "row", "column"), [((0.125, 0.875), 0, 0), ((0.875, 0.125), 3, 3)])
def test_texture_lookup_hits_texel_centres(uv, row, column):
    texture = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_texture(texture, torch.tensor([uv]))[0], texture[row, column])


def test_projection_agrees_with_the_camera_matrices():
    cameras = turntable(2)
    point = torch.tensor([[0.1, 0.2, 0.3]])
    clip = project(point, cameras)
    expected = cameras.clip_from_world @ torch.tensor([0.1, 0.2, 0.3, 1.0])
    torch.testing.assert_close(clip[:, 0], expected)


def test_asking_everywhere_shows_and_pulls_the_same():
    results = []
    for everywhere in (False, True):
        vertices = (BOX + 0.013).requires_grad_()
        mesh = Mesh(vertices, BOX_FACES, vertex_normals(vertices, BOX_FACES))
        slope = torch.tensor(3.0, requires_grad=True)

        def waves(points, slope=slope):
            return Material(0.5 + 0.4 * torch.sin(slope * points), 0 * points[:, :1], 0 * points[:, :1])

        background = torch.tensor([[0.2, 0.4, 0.6], [1.0, 1.0, 1.0]])
        options = {"rasterizer": CpuRasterizer(), "material": waves, "everywhere": everywhere}
        picture = render_mesh(mesh, turntable(2), 32, background, **options)
        images = [picture.color, picture.normal, picture.depth, picture.alpha]
        weights = [torch.rand(i.shape, generator=torch.Generator().manual_seed(0)) for i in images]
        sum((image * weight).sum() for image, weight in zip(images, weights, strict=True)).backward()
        results.append([*images, vertices.grad, slope.grad])
    assert results[0][4].abs().max() > 0
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)
