"""What a new member of a family takes: a class that describes itself, defined here, and nothing else.

In the package its class is also named in the family's union in `stage_config`, for what files may say.
"""

from dataclasses import replace

import pytest
import torch
from members import CPU, SHAPE, STEPS, VolumeConfig, folders, make_config, require_equal, work_on  # noqa: F401 - fixtures

from pgc3d import assets
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_representation, build_stage
from pgc3d.cameras import turntable
from pgc3d.checkpoint import unpack_representation
from pgc3d.interfaces import Guidance, Representation, Stateful, SupportsMicroBatch
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session
from pgc3d.signals import StopFlag
from pgc3d.task import Task
from pgc3d.types import Views


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
@pytest.mark.parametrize("representation", [SHAPE, VolumeConfig()], ids=["dmtet", "volume"])
def test_new_members_run_stop_and_go_on_as_if_nothing_had_been(folders, tmp_path, representation, layout):
    config = make_config(getattr(folders, layout), representation)
    built, whole, _ = work_on(tmp_path / "whole", config)
    _, begun, _ = work_on(tmp_path / "parts", config, stop_at=2)
    assert (begun.step, whole.step) == (2, STEPS)
    _, done, _ = work_on(tmp_path / "parts", config)
    require_equal(whole.tensors, done.tensors)
    guidance = built.problem.objectives["color"].guidance
    assert isinstance(guidance, Guidance)
    assert isinstance(guidance, Stateful)
    assert isinstance(built.problem.representation, Representation)
    assert built.states.keys() == {"guidance.color", "clip.color"}
    for part in ("representation", "optimizer", "state.guidance.color.adapter", "state.clip.color"):
        names = [name for name in done.tensors if name.startswith(f"{part}.")]
        assert names, part
        assert any(not torch.equal(done.tensors[n], begun.tensors[n]) for n in names) or "clip" in part
    assert done.tensors["state.guidance.color.adam.0.step"] == STEPS
    assert done.tensors["state.clip.color.limit"] > 0


def test_a_step_that_is_done_again_trains_once(folders, tmp_path):
    config = make_config(folders.sd, VolumeConfig())
    _, whole, _ = work_on(tmp_path / "whole", config)
    built, done, record = work_on(tmp_path / "again", make_config(folders.sd, VolumeConfig(), fails_at=2))
    assert isinstance(built.problem.objectives["color"].guidance, SupportsMicroBatch)
    assert [entry["step"] for entry in record["out_of_memory"]] == [3]
    require_equal(whole.tensors, done.tensors)


def test_first_weights_of_guidances_follow_the_seed(folders):
    def weights(seed, stage="main"):
        config = make_config(folders.sd)
        run = replace(config.run, seed=seed)
        config = replace(config, run=run, stages={stage: config.last})
        models = LoadedModels(locate_models(config, CPU), CPU)
        context = RunContext.of(config, Task("a chair"), CpuRasterizer(), CPU, models)
        return build_stage(context, stage).problem.objectives["color"].guidance.adapter.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), weights(1, "fine"))


def test_volume_is_shown_from_its_checkpoint_alone(folders, tmp_path):
    config = make_config(folders.sd, VolumeConfig())
    built, done, _ = work_on(tmp_path / "run", config)
    shown = build_representation(RunContext.of(config, Task("a chair"), CpuRasterizer(), CPU), "main")
    views = Views(turntable(2), torch.ones(2, 3))
    fresh = shown.render(views, 24, None)
    unpack_representation(done, shown)
    found, expected = (asset.render(views, 24, None) for asset in (shown, built.problem.representation))
    assert torch.equal(found.color, expected.color)
    assert not torch.equal(found.color, fresh.color)
    assert found.alpha.max() > 0.1


def test_a_run_of_something_without_a_surface_ends_without_an_export(folders, tmp_path):
    config, messages = make_config(folders.sd, VolumeConfig()), []
    built, _, record = work_on(tmp_path / "run", config)
    session = Session(RunDirectory(tmp_path / "run"), config, CPU, messages.append, StopFlag(), record)
    assert assets.export_run(session, built.problem.representation, CpuRasterizer()) == []
    assert "no surface" in messages[-1].message
