"""Every preset that ships: it loads, comes back from its own YAML, builds, makes two steps and resumes."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from meshes import write_cube
from PIL import Image
from tiny import write_tiny_controlnet, write_tiny_sd, write_tiny_sdxl, write_tiny_zero123

from pgc3d.build.inputs import prepare_mesh, require_fitting
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_stage
from pgc3d.checkpoint import pack, unpack
from pgc3d.checkpoint_files import read_newest_checkpoint, write_checkpoint
from pgc3d.config import PRESETS, dump_config, load_config, preset
from pgc3d.inputs.image import frame_image
from pgc3d.inputs.mesh import prepare_surface, save_prepared
from pgc3d.optimize import optimize
from pgc3d.rendering import build_rasterizer
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.run_directory import RunDirectory
from pgc3d.task import Task

CPU = torch.device("cpu")
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
INPUTS = {"image": {"image"}, "texture": {"mesh"}}  # by what a preset's name begins with
LAYOUTS = {"sdxl": "sdxl", "sd": "sd", "mini": "sd"}  # of the tiny checkpoint in a text model's place
SMALL_FIELD = {"color_field": ColorFieldConfig(levels=2, log2_rows=8, base=8, finest=16, hidden=4)}
SMALL_VOLUME = SMALL_FIELD | {"levels": 2, "base": 4, "finest": 8, "stations": 16, "mesh_resolution": 8}
SMALL = {
    "nerf": SMALL_VOLUME,
    "dmtet": SMALL_FIELD | {"resolution": 8},
    "textured_mesh": SMALL_FIELD | {"image_size": 64},
}


def layers(name):
    """A preset with the one that it stands over, whose name its own begins with."""
    base = next((other for other in NAMES if name.startswith(f"{other}-")), None)
    return [preset(part) for part in (base, name) if part is not None]


@cache
def made(name):
    return load_config(layers(name))


def shrunk(config, folders):
    """The same configuration as small and as quick as it can be; what it consists of stays."""

    def objective(found):
        own = getattr(found.guidance, "resolution", 0)
        guidance = replace(found.guidance, resolution=64) if own > 64 else found.guidance
        return replace(found, batch=1, guidance=guidance)

    def initial(found):
        if found is None:
            return None
        net = str(folders[f"{LAYOUTS[config.models[found.model].name]}-net"])
        controls = {key: replace(control, model=net) for key, control in found.controls.items()}
        return replace(found, controls=controls, views=2, more_elevation_degrees=(), steps=2, fit_steps=2)

    stages = {
        name: replace(
            stage,
            steps=2,
            resolution=(16,),
            resolution_until=(),
            representation=replace(stage.representation, **SMALL[stage.representation.kind]),
            objectives={key: objective(found) for key, found in stage.objectives.items()},
            init=initial(stage.init),
        )
        for name, stage in config.stages.items()
    }
    models = {
        name: replace(model, name=str(folders[name if name == "image" else LAYOUTS[model.name]]), vae=None)
        for name, model in config.models.items()
    }
    run = replace(config.run, device="cpu", rasterizer="cpu")
    return replace(config, run=run, models=models, stages=stages, image=replace(config.image, size=64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny checkpoints by layout, and for the entry `image`."""
    parent = tmp_path_factory.mktemp("models")
    models = {"sdxl": write_tiny_sdxl(parent / "sdxl"), "sd": write_tiny_sd(parent / "sd")}
    nets = {f"{name}-net": write_tiny_controlnet(parent / f"{name}-net", models[name]) for name in models}
    return {
        **models,
        **nets,
        "image": write_tiny_zero123(parent / "zero123"),
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A prepared picture and a prepared mesh."""
    folder = tmp_path_factory.mktemp("inputs")
    picture = Image.new("RGBA", (96, 96))
    picture.paste((200, 40, 40, 255), (24, 24, 72, 72))
    picture.save(folder / "picture.png")
    (folder / "image.png").write_bytes(frame_image(folder / "picture.png", size=64).png())
    write_cube(folder / "cube.glb")
    config = load_config([preset("texture-mini")], overrides=["export.texture_size=64", "run.rasterizer=cpu"])
    save_prepared(folder / "mesh.safetensors", prepare_mesh(config, folder / "cube.glb", CPU))
    return {"image": folder / "image.png", "mesh": folder / "mesh.safetensors"}


@pytest.fixture(scope="module")
def store(folders):
    """Located and loaded models, once for presets that use the same ones in the same way."""
    known = {}

    def load(config):
        key = repr(config.models), repr(config.requires().models)
        if key not in known:
            known[key] = LoadedModels(locate_models(config, CPU), CPU)
        return known[key]

    return load


def needs(name):
    return INPUTS.get(name.removeprefix("pipeline-").split("-", maxsplit=1)[0], set())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_needs_what_its_command_gives(name):
    """Its models by entries that it has, and the input that its name says."""
    found = made(name).requires()
    assert found.models.keys() <= made(name).models.keys()
    assert found.inputs == needs(name)
    assert found.prompt == ("image" not in needs(name) or "text" in found.models)
    task = Task("a chair", **dict.fromkeys(needs(name), PRESETS))
    require_fitting(made(name), task)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_over_its_own_comes_back(name, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(made(name)))
    assert load_config([tmp_path / "config.yaml"]) == made(name)


def copied(built, step):
    """What a checkpoint would hold now."""
    return {key: tensor.clone() for key, tensor in pack(built, step).tensors.items()}


def reports(built, config, stage, *, start=0):
    """The steps of a stage from `start` on, one at a time."""
    settings = config.stages[stage]
    return optimize(
        built.problem,
        steps=settings.steps,
        resolution_at=settings.resolution_at,
        start=start,
        seed=config.run.seed,
        stage=stage,
        log_every=1,
    )


def with_a_miniature(name):
    """Slow where its miniature, which has the same stages, is tried by default."""
    return pytest.param(name, marks=pytest.mark.slow if f"{name}-mini" in NAMES else ())


@pytest.mark.parametrize("name", [with_a_miniature(name) for name in NAMES])
def test_a_preset_makes_two_steps_and_resumes(name, folders, inputs, store, tmp_path):
    config = shrunk(made(name), folders)
    task = Task("a red chair", **{key: inputs[key] for key in needs(name)})
    run = RunDirectory(tmp_path)
    context = RunContext.of(config, task, build_rasterizer("cpu", CPU), CPU, store(config), run)
    start = None
    for stage in config.stages:
        folder = tmp_path / "checkpoints" / stage
        folder.mkdir(parents=True)
        if config.stages[stage].representation.requires().start:
            surface = prepare_surface(start.surface, faces=300, texture_size=64)
            save_prepared(run.stage_mesh(stage), surface)
        whole = build_stage(context, stage, start)
        before = copied(whole, 0)
        if whole.initialize is not None:
            whole.initialize()
        running = reports(whole, config, stage)
        next(running)
        write_checkpoint(folder, pack(whole, 1))
        metrics = next(running).metrics
        assert metrics["skipped_steps"] == 0
        assert {key.split("/")[0] for key in metrics} >= set(config.stages[stage].objectives)
        after = copied(whole, 2)
        assert any(not torch.equal(after[key], tensor) for key, tensor in before.items() if key in after)

        resumed = build_stage(context, stage, start, begun=True)
        unpack(read_newest_checkpoint(folder), resumed)
        list(reports(resumed, config, stage, start=1))
        again = copied(resumed, 2)
        assert again.keys() == after.keys()
        for key, tensor in after.items():
            assert torch.equal(tensor, again[key]), key
        start = whole.problem.representation.handover()
