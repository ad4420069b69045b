"""Laws of the readers that build the data set of the bundled prior."""

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = pytest.mark.scripts

FOLDER = Path(__file__).parents[1] / "scripts" / "mini"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


wavefront = load("wavefront")
build_dataset = load("build_dataset")

IDENTITY = np.eye(3)
L_SHAPE = "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 1 1 0\nv 1 3 0\nv 0 3 0\nf 1 2 3 4 5 6\n"
CUBE = """
v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1
f 4 3 2 1\nf 5 6 7 8\nf 1 2 6 5\nf 3 4 8 7\nf 2 3 7 6\nf 4 1 5 8
"""


def signed_areas(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)[:, 2] / 2


def star(corner_count: int, seed: int) -> np.ndarray:
    """A star-shaped polygon around the origin, mostly concave."""
    random = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(corner_count) + 0.8 * random.random(corner_count)) / corner_count
    radius = 0.2 + random.random(corner_count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], -1)


@settings(deadline=None, max_examples=50)
@given(corner_count=st.integers(5, 24), seed=st.integers(0, 10_000))
def test_concave_polygon_is_covered_once(corner_count: int, seed: int) -> None:
    points = star(corner_count, seed)
    triangles, owner = wavefront.triangulate(points, np.array([corner_count]))
    areas = signed_areas(points, triangles)
    following = np.roll(points, -1, 0)
    expected = (points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum() / 2
    assert len(triangles) == corner_count - 2
    assert (owner == 0).all()
    assert (areas > -1e-12).all()
    np.testing.assert_allclose(areas.sum(), expected, rtol=1e-9)


@pytest.mark.parametrize("first", range(4))
def test_concave_quad_is_cut_at_its_notch(first: int) -> None:
    arrow = np.roll(np.array([[0, 0, 0], [2, 1, 0], [0, 2, 0], [0.5, 1, 0]], float), first, 0)
    triangles, _ = wavefront.triangulate(arrow, np.array([4]))
    areas = signed_areas(arrow, triangles)
    assert (areas > 0).all()
    np.testing.assert_allclose(areas.sum(), 1.5)


def test_polygon_with_a_bridged_hole_keeps_its_area() -> None:
    outer = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)]
    hole = [(1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    points = np.array([(*point, 0) for point in outer + hole], float)
    triangles, _ = wavefront.triangulate(points, np.array([len(points)]))
    areas = signed_areas(points, triangles)
    np.testing.assert_allclose([areas.sum(), np.abs(areas).sum()], [12, 12])


def test_polygons_of_all_sizes_keep_their_owner() -> None:
    polygons = wavefront.parse_obj(L_SHAPE + "f 1 2 3\nf 1 2 3 4\n")
    points = polygons.positions[polygons.corner_position]
    triangles, owner = wavefront.triangulate(points, polygons.sizes)
    areas = np.bincount(owner, signed_areas(points, triangles))
    np.testing.assert_allclose(areas, [4, 1, 1.5])


def test_negative_indices_count_from_the_end() -> None:
    backwards = L_SHAPE.replace("f 1 2 3 4 5 6", "f -6 -5 -4 -3 -2 -1") + "v 9 9 9\n"
    expected = wavefront.parse_obj(L_SHAPE).corner_position
    np.testing.assert_array_equal(wavefront.parse_obj(backwards).corner_position, expected)


@pytest.mark.parametrize("face", ["f 1 2 4", "f 0 1 2", "f 1/1 2/2 3/3", "f 1 2 -4"])
def test_index_out_of_range_is_named(face: str) -> None:
    with pytest.raises(ValueError, match=r"a face names (vertex|texture coordinate)"):
        wavefront.parse_obj("v 0 0 0\nv 1 0 0\nv 0 1 0\n" + face)


@pytest.mark.parametrize("corner", ["{0}", "{0}/{0}", "{0}//{0}", "{0}/{0}/{0}"])
def test_every_way_to_write_a_corner(corner: str) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\n"
    polygons = wavefront.parse_obj(text + "f " + " ".join(corner.format(k) for k in (1, 2, 3)))
    np.testing.assert_array_equal(polygons.corner_position, [0, 1, 2])
    has_uv = corner.startswith("{0}/{0}")
    np.testing.assert_array_equal(polygons.corner_uv, [0, 1, 2] if has_uv else [-1, -1, -1])


def dress(
    text: str, library: str = "", textures: dict | None = None, rotation: np.ndarray = IDENTITY
) -> dict:
    materials = wavefront.parse_mtl(library)
    return build_dataset.model_arrays(wavefront.parse_obj(text), materials, textures or {}, rotation)


def face_normals(arrays: dict) -> np.ndarray:
    corners = arrays["vertices"][arrays["faces"]]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def sphere(smoothing: str) -> str:
    rows = [(np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)) for t in np.linspace(0.2, 2.9, 10)
            for p in np.arange(24) * 2 * np.pi / 24]  # fmt: skip
    faces = [(i * 24 + j, (i + 1) * 24 + j, (i + 1) * 24 + (j + 1) % 24, i * 24 + (j + 1) % 24)
             for i in range(9) for j in range(24)]  # fmt: skip
    lines = [f"v {x} {y} {z}" for x, y, z in rows]
    return "\n".join([*lines, smoothing, *("f " + " ".join(str(k + 1) for k in face) for face in faces)])


def test_smooth_normals_follow_a_sphere_and_flat_ones_its_faces() -> None:
    smooth, flat = dress(sphere("s 1")), dress(sphere("s off"))
    radial = smooth["vertices"][smooth["faces"]]
    inner = np.abs(radial[..., 2]) < 0.8
    assert ((smooth["normals"] * radial).sum(-1)[inner] > 0.99).all()
    np.testing.assert_allclose(flat["normals"], np.repeat(face_normals(flat)[:, None], 3, 1), atol=1e-5)


def test_edges_sharper_than_the_crease_stay_sharp() -> None:
    cube = dress("s 1\n" + CUBE)
    np.testing.assert_allclose(cube["normals"], np.repeat(face_normals(cube)[:, None], 3, 1), atol=1e-6)


def test_linear_colours_are_encoded_and_display_colours_kept() -> None:
    library = "newmtl linear\nKa 1 1 1\nKd 0.5 0 1\nnewmtl display\nKa 0 0 0\nKd 0.5 0 1\nd 0.25\n"
    materials = wavefront.parse_mtl(library)
    np.testing.assert_allclose(materials["linear"].color, [0.735357, 0, 1], atol=1e-5)
    np.testing.assert_allclose(materials["display"].color, [0.5, 0, 1])
    assert materials["display"].alpha == 0.25


TEXTURED = "vt 0 0\nvt 1 0\nvt 1 1\nusemtl paint\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1/1 2/2 3/3\n"
PAINT = "newmtl paint\nKd 0.1 0.2 0.3\nmap_Kd paint.png\n"
PICTURE = np.full((2, 2, 4), (255, 51, 0, 255), np.uint8)


def test_texture_replaces_the_colour() -> None:
    arrays = dress(TEXTURED, PAINT, {"paint.png": PICTURE})
    np.testing.assert_array_equal(arrays["material_color"], [[1, 1, 1, 1]])
    np.testing.assert_array_equal(arrays["material_texture"], [0])
    np.testing.assert_array_equal(arrays["texture_0"], PICTURE)
    np.testing.assert_array_equal(arrays["uv"], [[[0, 0], [1, 0], [1, 1]]])


@pytest.mark.parametrize("size", [64, 700])
def test_clear_pixels_of_a_texture_do_not_darken_it(size: int) -> None:
    pixels = np.zeros((size, size // 2, 4), np.uint8)
    pixels[size // 3 : size // 2, ::3] = (250, 200, 10, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    texture = build_dataset.read_texture(file.getvalue())
    assert max(texture.shape) == min(size, 256)
    seen = (texture[..., 3] > 64) | (texture[..., 3] == 0)
    assert np.abs(texture[seen][:, :3].astype(int) - (250, 200, 10)).max() <= 5  # premultiplied in 8 bits


def test_missing_texture_leaves_the_colour() -> None:
    arrays = dress(TEXTURED, PAINT)
    np.testing.assert_allclose(arrays["material_color"], [[0.1, 0.2, 0.3, 1]], atol=1e-6)
    np.testing.assert_array_equal(arrays["material_texture"], [-1])
    assert not arrays["uv"].any()


def test_texture_without_coordinates_shows_its_mean() -> None:
    text = TEXTURED.replace("f 1/1 2/2 3/3", "f 1 2 3")
    arrays = dress(text, PAINT, {"paint.png": PICTURE})
    np.testing.assert_allclose(arrays["material_color"], [[1, 0.2, 0, 1]], atol=1e-6)
    np.testing.assert_array_equal(arrays["material_texture"], [-1])


def test_hidden_doubled_and_degenerate_faces_are_left_out() -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 5 5 5\nv 1 0 0\nf 1 2 3\nf 3 5 1\nf 1 2 2\nusemtl glass\nf 1 2 4\n"
    arrays = dress(text, "newmtl glass\nd 0.0\n")
    assert arrays["faces"].shape == (1, 3)
    assert arrays["vertices"].shape == (3, 3)


def test_rotation_comes_before_normalising() -> None:
    quarter_turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], float)  # +x to -z
    long_box = "\n".join("v {} {} {}".format(*(np.array(line.split()[1:], float) * (3, 1, 2) + 10))
                         for line in CUBE.splitlines() if line.startswith("v"))  # fmt: skip
    box = long_box + CUBE[CUBE.index("\nf") :]
    plain, turned = dress(box), dress(box, rotation=quarter_turn)
    for arrays in (plain, turned):
        np.testing.assert_allclose(arrays["vertices"].min(0), -arrays["vertices"].max(0), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(arrays["vertices"], axis=1).max(), 1, atol=1e-6)
    np.testing.assert_allclose(turned["vertices"], plain["vertices"] @ quarter_turn.T, atol=1e-6)
    np.testing.assert_allclose(
        np.ptp(plain["vertices"], 0) / np.ptp(plain["vertices"]), [1, 1 / 3, 2 / 3], rtol=1e-5
    )


def test_labels_are_complete() -> None:
    labels = json.loads((FOLDER / "labels.json").read_text())
    kept = [label for label in labels.values() if "drop" not in label]
    fields = {"label", "cls", "caption", "colors", "materials", "glass", "split", "family"}
    assert len(kept) == 737
    assert all(label.keys() == fields for label in kept)
    assert sum(label["split"] == "test" for label in kept) == 74
    families = {
        split: {(x["cls"], x["family"]) for x in kept if x["split"] == split} for split in ("train", "test")
    }
    assert families["train"].isdisjoint(families["test"])
