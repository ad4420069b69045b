"""What a configuration says reaches the objects that are built from it."""

import pytest
import torch
from tiny import write_tiny_sdxl, write_tiny_zero123

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_objectives, build_stage
from pgc3d.cameras import reference_view
from pgc3d.config import load_config
from pgc3d.context import GuidanceContext
from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.formulas import CsdFormula
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.guidance.zero123 import Zero123Config
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task
from pgc3d.view_config import ViewConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("composition"))


def context(config):
    models = LoadedModels(locate_models(config, CPU), CPU)
    return RunContext.of(config, Task("a red chair"), build_rasterizer("cpu", CPU), CPU, models)


def settings(folder, seed=1):
    return load_config(
        overrides=[
            f"models.text.name={folder}",
            f"run.seed={seed}",
            "representation.resolution=8",
            "optimizer.lr_scale=[0,1,1,0.2]",
            "optimizer.betas=[0.5,0.6]",
            "optimizer.eps=0.001",
            "objectives.color.weight=0.3",
            "objectives.color.target=normal",
            "objectives.color.backgrounds=[black,white,'#ff8000']",
            "objectives.color.clip={kind: parameter, max_norm: 5}",
            "objectives.color.guidance={guidance_scale: 7.0, formula: csd, weighting: uniform,"
            " resolution: 32, original_size: 48, target_size: 40, t_min: [0.1], t_max: [0.0, 0.9, 1.0, 0.3],"
            " negative_prompt: ugly}",
        ]
    )


def test_settings_of_a_text_guidance_arrive(folder):
    config, source = settings(folder), resolve_model(folder)
    guidance = build_objectives(context(config), "main")["color"].guidance
    assert (guidance.guidance_scale, guidance.formula, guidance.weighting) == (7.0, CsdFormula(), "uniform")
    assert (guidance.resolution, guidance._sizes) == (32, (48, 40))
    assert (guidance.t_min(0.5), guidance.t_max(0.0), guidance.t_max(1.0)) == (0.1, 0.9, 0.3)
    torch.testing.assert_close(guidance.negative.tokens, encode_prompts(source, ["ugly"]).tokens)


def test_settings_of_the_optimisation_arrive_and_every_seed_counts(folder):
    one, two = (build_stage(context(settings(folder, seed)), "main") for seed in (1, 2))
    problem = one.problem
    objective = problem.objectives["color"]
    assert (objective.weight(0.5), objective.target) == (0.3, "normal")
    assert objective.backgrounds == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 128 / 255, 0.0))
    assert problem.lr_scale(1.0) == 0.2
    defaults = problem.representation.parameter_store().optimizer.defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.5, 0.6), 0.001)
    parameter = torch.zeros(100)
    parameter.grad = torch.ones(100)
    problem.clip_parameters([parameter])
    torch.testing.assert_close(parameter.grad.norm(), torch.tensor(5.0))
    tables = [made.problem.representation.color.grid.table for made in (one, two)]
    assert not torch.equal(*tables)  # the first weights; steps carry the seed themselves


def test_settings_of_picture_guidances_arrive(tmp_path):
    photo = torch.rand(64, 64, 4, generator=torch.Generator().manual_seed(0))
    maps = {"depth": torch.rand(64, 64, 1), "normal": torch.rand(64, 64, 3)}
    asked = load_config(
        [{"objectives": {"color": {"guidance": {"kind": "zero123"}}}}],
        overrides=[f"models.image.name={write_tiny_zero123(tmp_path / 'tiny')}"],
    )
    novel = Zero123Config(guidance_scale=7.0, weighting="uniform", t_min=(0.2,), t_max=(0.0, 0.9, 1.0, 0.5))
    compared = ReferenceConfig(color=0.1, mask=0.2, depth=0.3, normal=0.4)
    given = GuidanceContext(
        models=LoadedModels(locate_models(asked, CPU), CPU),
        prompt="",
        image=lambda: photo,
        map=maps.get,
        reference=reference_view(ViewConfig(elevation_degrees=25.0)),
        generator=torch.Generator(),
    )
    found = novel.build(given)
    assert (found.guidance_scale, found.weighting) == (7.0, "uniform")
    assert (found.t_min(1.0), found.t_max(0.0), found.t_max(1.0)) == (0.2, 0.9, 0.5)
    assert found.reference is given.reference
    found = compared.build(given)
    assert (found.color, found.mask, found.depth, found.normal) == (0.1, 0.2, 0.3, 0.4)
