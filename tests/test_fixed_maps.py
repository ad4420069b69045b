"""Maps of a file's materials while its base colours are optimised: renders show them, lit as by an engine."""

import dataclasses

import numpy as np
import pytest
import torch
from gltf_builder import Gltf, box
from meshes import wavy_strip
from steps import show
from test_mesh_prepared import canvas_of
from test_textured_mesh import textured

from pgc3d.cameras import turntable
from pgc3d.inputs.mesh import load_prepared, save_prepared
from pgc3d.representation.pbr import PbrConfig


def image(*color: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), color, dtype=np.uint8)


def with_maps(tmp_path, name: str, **material):
    """A box with a material whose images are given as colours."""
    gltf = Gltf()
    surface = {key: material.pop(key) for key in list(material) if key in SURFACE}
    colors = {key: value for key, value in (surface | material).items() if isinstance(value, tuple)}
    made = {key: gltf.texture(image(*value)) for key, value in colors.items()}
    entry = {key: {"index": made[key]} if key in made else value for key, value in material.items()}
    number = gltf.material(**entry)
    gltf.document["materials"][number]["pbrMetallicRoughness"] = {
        key: {"index": made[key]} if key in made else value[0] for key, value in surface.items()
    }
    gltf.mesh(box(gltf) | {"material": number})
    return canvas_of(gltf.nodes({"mesh": 0}).write(tmp_path / f"{name}.glb"))[0]


SURFACE = ("metallicRoughnessTexture", "roughnessFactor", "metallicFactor")
FLAT = {"normalTexture": (128, 128, 255)}
CASES = {
    "smooth": {"metallicRoughnessTexture": (0, 20, 0)},
    "metal": {"metallicRoughnessTexture": (0, 90, 255)},
    "tilted": {"normalTexture": (220, 128, 220)},
    "dark": {"occlusionTexture": (60, 0, 0), **FLAT},
}


def look(prepared, **settings):
    model = textured(prepared, texture="image", image_size=64, **settings)
    return show(model, turntable(2), 48, torch.ones(2, 3))


@pytest.mark.parametrize("name", CASES)
def test_maps_change_the_render(tmp_path, name):
    plain = look(with_maps(tmp_path, "plain", **FLAT, metallicFactor=[0.0]))
    found = look(with_maps(tmp_path, name, **CASES[name]))
    assert torch.equal(found.alpha, plain.alpha)
    assert (found.color - plain.color).abs()[plain.alpha[..., 0] > 0].mean() > 0.01
    tilted = (found.normal - plain.normal).abs().max() > 0.05
    assert tilted == (name == "tilted")


def test_a_map_of_constants_is_the_material_of_these_constants(tmp_path):
    """The renderer of fixed maps and that of learned materials agree."""
    prepared = with_maps(tmp_path, "a", metallicRoughnessTexture=(0, 128, 51))
    learned = PbrConfig(roughness=(0.0, 1.0), metallic=(0.0, 1.0), base_color=(0.0, 1.0))
    own = look(prepared)
    expected = look(prepared, material=learned, roughness=128 / 255, metallic=0.2)
    torch.testing.assert_close(own.color, expected.color, atol=2e-3, rtol=0)


def test_emission_adds_light_and_files_without_maps_are_lit_as_before(tmp_path):
    glowing = with_maps(tmp_path, "b", emissiveTexture=(0, 255, 0), emissiveFactor=[0.0, 1.0, 0.0])
    dull = with_maps(tmp_path, "c", **FLAT)
    assert glowing.maps is not None
    assert (look(glowing).color - look(dull).color)[..., 1].mean() >= 0
    bare = with_maps(tmp_path, "d", roughnessFactor=[0.3])
    assert bare.maps is None
    assert torch.equal(look(bare).color, look(bare, maps="ignore").color)


def test_maps_can_be_ignored_and_come_back_from_the_file_of_the_run(tmp_path):
    prepared = with_maps(tmp_path, "e", **CASES["metal"])
    save_prepared(tmp_path / "prepared", prepared)
    found = load_prepared(tmp_path / "prepared")
    for name, value in vars(prepared.maps).items():
        assert torch.equal(value, getattr(found.maps, name)), name
    without = dataclasses.replace(prepared, maps=None)
    assert torch.equal(look(prepared, maps="ignore").color, look(without).color)
    assert torch.equal(look(prepared).color, look(found).color)
    assert wavy_strip().maps is None
