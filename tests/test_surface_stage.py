"""A stage that textures the surface of the stage before it, with a material under lights."""

import dataclasses
import json
import shutil

import pytest
import torch
from meshes import write_cube
from PIL import Image
from test_pipeline import noisy_export
from tiny import write_tiny_sdxl

from pgc3d import pipeline
from pgc3d.config import load_config
from pgc3d.errors import ConfigError, InputError, RunDirectoryError
from pgc3d.inputs.mesh import load_prepared, prepare_surface
from pgc3d.mesh_io.reader import read_source
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.run_directory import RunDirectory
from pgc3d.task import Task

SMALL = {"color_field": {"levels": 4, "log2_rows": 8}}
STAGE = {
    "steps": 2,
    "resolution": [16],
    "resolution_until": [],
    "representation": {"resolution": 12, **SMALL},
    "objectives": {"color": {"batch": 1}},
}
LOOK = {"kind": "textured_mesh", "mesh": "start", **SMALL, "material": {"kind": "pbr", "bump": True}}
LAYER = {
    "run": {"device": "cpu"},
    "stages": {"shape": STAGE, "look": {**STAGE, "steps": 3, "start": "shape", "representation": LOOK}},
    "logging": {"log_every": 1, "checkpoint_every": 2, "preview_every": 0, "preview_resolution": 32},
    "export": {"texture_size": 64, "faces": 300},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")
    return load_config([LAYER], options={"models": {"text": {"name": str(model)}}})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("runs") / "whole", []
    with noisy_export():
        pipeline.generate(Task("a vase"), out=out, config=config, on_event=lambda e: lines.append(e.message))
    assert any("stage look textures the surface of shape" in line for line in lines)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_the_mesh_of_the_stage_is_the_surface_and_stays_as_it_is(whole):
    prepared = load_prepared(RunDirectory.open(whole).stage_mesh("look"))
    exported = read_source(whole / "asset.glb")
    assert len(prepared.faces) <= 300
    found = exported.vertices[exported.faces]
    torch.testing.assert_close(found, prepared.vertices[prepared.faces], atol=1e-6, rtol=0)
    assert json.loads((whole / "manifest.json").read_text())["stages"]["look"]["status"] == "done"


def test_it_resumes_to_the_same_result_and_exports_and_renders_without_the_first_stage(whole, copy):
    folder = copy / "checkpoints" / "look"
    for file in folder.glob("step-000003*"):
        file.unlink()
    (copy / "asset.glb").unlink()
    shutil.rmtree(copy / "checkpoints" / "shape")
    with noisy_export():
        pipeline.resume(copy)
    first, second = (RunDirectory.open(run).load_checkpoint("look").tensors for run in (whole, copy))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (copy / "asset.glb").read_bytes() == (whole / "asset.glb").read_bytes()
    pipeline.render(copy)
    with Image.open(copy / "views.png") as image:
        assert image.convert("L").getextrema()[0] < 128
    (folder / "mesh.safetensors").unlink()
    with pytest.raises(RunDirectoryError, match=r"mesh\.safetensors must be the run's prepared mesh"):
        pipeline.render(copy)


def test_its_faces_cannot_be_changed_later(copy):
    with pytest.raises(InputError, match="--faces must not be given"):
        pipeline.export(copy, faces=100)
    with noisy_export():
        pipeline.export(copy, faces=100, stage="shape")


def test_a_new_run_starts_from_the_surface_of_another_one(whole, config, tmp_path):
    look = dataclasses.replace(config.stages["look"], start=f"{whole}:look", steps=1)
    again = dataclasses.replace(config, stages={"look": look})
    with noisy_export():
        pipeline.generate(Task("a vase"), out=tmp_path / "again", config=again)
    first, second = (
        load_prepared(RunDirectory.open(run).stage_mesh("look")) for run in (whole, tmp_path / "again")
    )
    assert len(first.faces) == len(second.faces)


def test_settings_that_do_not_fit_are_refused_before_the_first_step(config, tmp_path):
    stl = dataclasses.replace(config, export=dataclasses.replace(config.export, format="stl"))
    with pytest.raises(InputError, match="got stl, which has no colours"):
        pipeline.generate(Task("a vase"), out=tmp_path / "stl", config=stl)
    with pytest.raises(ConfigError, match="for a mesh, got dmtet, textured_mesh"):
        pipeline.generate(
            Task("a vase", mesh=write_cube(tmp_path / "a.glb")), out=tmp_path / "x", config=config
        )
    lights = ["stages.look.representation.material.lights=[room.png]"]
    missing = load_config([LAYER], overrides=lights)
    with pytest.raises(ConfigError, match=r"material\.lights must be a file, got none at room\.png"):
        pipeline.generate(Task("a vase"), out=tmp_path / "x", config=missing)
    assert not (tmp_path / "x").exists()


def test_a_prepared_surface_lies_where_it_was():
    from pgc3d.rendering.cpu import CpuRasterizer

    shape = build_dmtet(
        DMTetConfig(resolution=16), rasterizer=CpuRasterizer(), generator=torch.Generator().manual_seed(0)
    )
    surface = shape.handover().surface
    prepared = prepare_surface(surface, faces=None, texture_size=128)
    world = prepared.in_world()
    assert torch.equal(world.vertices, prepared.vertices)
    torch.testing.assert_close(world.vertices.norm(dim=1).mean(), surface.vertices.norm(dim=1).mean())
    assert (world.uv >= 0).all()
    assert (world.uv <= 1).all()
