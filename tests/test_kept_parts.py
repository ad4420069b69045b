"""Parts of a mesh that keep their look: --only, --keep, --mask and --refine on the command line."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gltf_builder import Gltf, box, box_arrays
from PIL import Image
from steps import show
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_mesh_painting import CPU
from test_mesh_prepared import canvas_of
from test_refine import disturb, half, noise, textured_cube
from test_texture_command import TINY

from pgc3d.cameras import turntable
from pgc3d.cli.refine_options import timesteps
from pgc3d.errors import InputError
from pgc3d.exporting.refined import refined_texture
from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.geometry.selection import select_faces
from pgc3d.inputs.mesh import load_prepared, save_prepared
from pgc3d.inputs.source_texture import SourceRequest, prepare_sources
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.representation.source_config import SourceConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh

SIDES = {"seat": (32, 64), "cushion": (20, 12)}


def furniture(*, one_image=False):
    """Two boxes at nodes of their own, each with an image, or side by side in one."""
    gltf, nodes = Gltf(), []
    shared = gltf.material({"index": gltf.texture(noise(64, 64).numpy())}, name="all") if one_image else None
    for index, (name, size) in enumerate(SIDES.items()):
        material = shared
        if material is None:
            material = gltf.material({"index": gltf.texture(noise(*size).numpy())}, name=f"{name} fabric")
        primitive = box(gltf) | {"material": material}
        if one_image:
            uv = box_arrays()[2] * [0.4, 0.9] + [0.05 + 0.5 * index, 0.05]
            primitive["attributes"]["TEXCOORD_0"] = gltf.accessor(uv)
        gltf.mesh(primitive)
        nodes.append({"name": name, "mesh": index, "translation": [0.0, 3.0 * index, 0.0]})
    return gltf.nodes(*nodes)


def parts(path, **options):
    """The prepared mesh and its sources, some of its faces kept."""
    prepared, _ = canvas_of(path)
    kept = ~select_faces(prepared.labels, **options) if options else None
    prepared, said = replace(prepared, kept=kept), []
    request = SourceRequest(sampled=64)
    return prepared, tuple(prepare_sources(path, prepared, request, rasterizer=CPU, notify=said.append)), said


def model_of(prepared, sources, texture="image"):
    config = TexturedMeshConfig(
        texture=texture, shading=False, source=SourceConfig(use="start" if texture == "image" else "keep")
    )
    return build_textured_mesh(
        config, prepared, rasterizer=CPU, generator=torch.Generator().manual_seed(0), sources=sources
    )


def test_each_set_has_the_image_of_its_material(tmp_path):
    prepared, sources, said = parts(furniture().write(tmp_path / "a.glb"))
    assert [part.name for part in prepared.sets] == ["seat fabric", "cushion fabric"]
    for source, size in zip(sources, SIDES.values(), strict=True):
        assert torch.equal(source.image, noise(*size))
        assert source.mask is None
    assert "keep their bytes (64 x 32, 12 x 20)" in said[0]


@pytest.mark.parametrize("texture", ["image", "field"])
def test_a_kept_material_keeps_its_image_and_is_rendered_with_it(tmp_path, texture):
    prepared, sources, _ = parts(furniture().write(tmp_path / "a.glb"), keep=["cushion*"])
    assert not sources[1].mask.any()
    assert sources[0].mask is None
    model = model_of(prepared, sources, texture)
    disturb(model)
    results = [
        refined_texture(model, part, index, rasterizer=CPU)
        for index, part in enumerate(model.refinement.parts)
    ]
    assert torch.equal(results[1], sources[1].image)
    assert (results[0] != sources[0].image).any(dim=-1).float().mean() > 0.5
    views = turntable(3), 48, torch.ones(3, 3)
    before = show(model_of(prepared, sources), *views).color
    after = show(model, *views).color
    changed = (before - after).abs().amax(-1) > 1e-3
    assert changed.any()
    assert not changed[:, :20].any()  # the cushion is above the seat


@pytest.mark.parametrize("texture", ["image", "field"])
def test_kept_faces_of_a_shared_image_keep_their_texels(tmp_path, texture):
    """And the texels beside them, which a look-up at their edge reads."""
    path = furniture(one_image=True).write(tmp_path / "a.glb")
    prepared, (source,), said = parts(path, only=["seat"])
    assert len(prepared.sets) == 1
    mask = source.mask
    assert set(mask.unique().tolist()) == {0, 255}
    shown = draw_atlas(prepared.uv, prepared.uv_faces[prepared.kept], 64, CPU).mask[0, ..., 0] > 0
    assert not mask[shown].any()
    assert mask[:, :28].all()
    assert "of the texels of the surface may change" in said[-1]
    model = model_of(prepared, (source,), texture)
    disturb(model)
    found = refined_texture(model, model.refinement.parts[0], rasterizer=CPU)
    assert torch.equal(found[mask == 0], source.image[mask == 0])
    assert not torch.equal(found, source.image)


def test_a_mesh_comes_back_with_its_kept_faces(tmp_path):
    prepared, _, _ = parts(furniture().write(tmp_path / "a.glb"), keep=["seat"])
    save_prepared(tmp_path / "stored", prepared)
    assert torch.equal(load_prepared(tmp_path / "stored").kept, prepared.kept)
    everything = replace(prepared, kept=torch.ones_like(prepared.kept))
    with pytest.raises(InputError, match="must leave texels of the surface"):
        prepare_sources(tmp_path / "a.glb", everything, SourceRequest(sampled=64), rasterizer=CPU)


def test_strength_1_has_the_timesteps_of_a_run_without_refinement():
    assert timesteps(1.0) == [0.0, 0.98, 1.0, 0.4]
    first, last = timesteps(0.5)[1::2]
    assert (round(first, 2), last) == (0.40, 0.05)
    ends = [timesteps(strength / 10) for strength in range(11)]
    assert all(low[1] <= high[1] and low[3] <= high[3] for low, high in pairwise(ends))


def test_the_command_keeps_what_is_not_painted(run, checkpoint, tmp_path):
    """With a mask and a strength, then of two parts one; resumed exports have the same texture."""
    path, mask = textured_cube(tmp_path / "cube.glb", noise(50, 70)), half(50, 70)
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    options = ["--model", checkpoint, *TINY, "--set", "representation.lr_image=0.1"]
    options = [option for option in options if option not in ("--texture-size", "64")]
    arguments = ["texture", path, "a red chair", *options]
    code, said, err = run(
        *arguments, "--refine", "--strength", "0.2", "--mask", tmp_path / "mask.png", "--out", "a"
    )
    assert code == 0, err
    found = read_mesh(tmp_path / "a" / "asset.glb").base_color
    assert torch.equal(found[mask == 0], noise(50, 70)[mask == 0])
    difference = (found.int() - noise(50, 70).int()).abs()
    assert 0 < int(difference.max()) <= 51
    assert "by at most" in said + err
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["export"]["texture"]["bound"] == 51
    assert manifest["inputs"]["mask"]["name"] == "mask.png"
    (tmp_path / "mask.png").unlink()
    code, _, err = run("export", tmp_path / "a", "--format", "obj")
    assert code == 0, err
    assert torch.equal(read_mesh(tmp_path / "a" / "asset.obj").base_color, found)
    small = ("--texture-size", "128")
    chair = furniture().write(tmp_path / "chair.glb")
    code, said, err = run("texture", chair, "a red chair", *options, *small, "--only", "seat", "--out", "b")
    assert code in (0, 5), err  # fresh colours of random weights may be too fine for a tiny texture
    assert "12 of 24 faces are textured" in said + err
    images = [look.image for look in read_mesh(tmp_path / "b" / "asset.glb").materials]
    assert torch.equal(images[1], noise(*SIDES["cushion"]))
    assert not torch.equal(images[0], noise(*SIDES["seat"]))


ERRORS = {
    "strength alone": (["--strength", "0.3"], "--strength must go with --refine or --init, got 0.3 without"),
    "strength": (["--refine", "--strength", "2"], "Invalid value for '--strength'"),
    "no mask": (["--mask", "none.png"], "the image must be a file, got none at none.png"),
    "no init": (["--init", "cube.glb"], "an image must be one of PNG"),
    "unknown part": (["--only", "seet"], "--only must name a node or a material with faces, got 'seet'"),
    "smaller": (["--refine", "--texture-size", "64"], "--texture-size must not be less than the longer side"),
    "not used": (
        ["--refine", "--set", "representation.source.use=none", "--mask", "m.png"],
        "a mask must go with",
    ),
}


@pytest.mark.parametrize(("options", "line"), ERRORS.values(), ids=ERRORS)
def test_options_that_cannot_be_used_are_one_line(run, checkpoint, tmp_path, options, line):
    textured_cube(tmp_path / "cube.glb", noise(80, 80))
    Image.fromarray(half(16, 16).numpy()).save(tmp_path / "m.png")
    arguments = [option for option in TINY if option not in ("--texture-size", "64")]
    code, out, err = run("texture", "cube.glb", "a chair", "--model", checkpoint, *arguments, *options)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_mesh_without_colours_cannot_be_refined(run, checkpoint, tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    code, _, err = run("texture", "a.obj", "a chair", "--model", checkpoint, *TINY, "--refine")
    assert (code, "--refine must have colours to start from" in err.splitlines()[-1]) == (2, True)
    code, _, err = run("texture", "a.obj", "a chair", "--model", checkpoint, *TINY, "--init", "a.png")
    assert code == 2
