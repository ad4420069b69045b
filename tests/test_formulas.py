"""Formulas of score distillation against their definitions in float64, written image by image."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import at
from test_sds import draw_image, draw_inputs
from tiny import tiny_score_distillation, write_tiny_sd

from pgc3d.config import load_config
from pgc3d.errors import ConfigError
from pgc3d.guidance import score
from pgc3d.guidance.formulas import (
    CleanFormula,
    CsdFormula,
    NfsdFormula,
    Predictions,
    SdsFormula,
    SsdFormula,
)
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.guidance.timesteps import DreamTimeConfig, timestep_range
from pgc3d.schedules import PiecewiseLinear, add_noise, dream_time, sample_timesteps

BATCH, TIMES = 3, torch.tensor([0.05, 0.15, 0.7])
ABAR = torch.tensor([0.95, 0.6, 0.1])
FORMULAS = [
    SdsFormula(),
    CsdFormula(),
    CsdFormula(negative=(0.0, 0.0, 1.0, -1.0), empty=(0.0, -1.0, 1.0, 0.0)),
    NfsdFormula(),
    SsdFormula(),
    CleanFormula(),
]


def predictions(seed=0):
    latents, noise, uncond, cond, other = torch.randn(
        (5, BATCH, 4, 5, 6), generator=torch.Generator().manual_seed(seed)
    )
    return Predictions(
        latents=latents,
        noisy=add_noise(latents, noise, ABAR),
        noise=noise,
        alphas_cumprod=ABAR,
        time=TIMES,
        unconditional=uncond,
        conditional=cond,
        others=(other,),
    )


def expected(formula, found, scale, progress):
    """One image at a time, as vectors of float64."""
    rows = []
    for row in range(BATCH):
        z, z_t, eps, u, c, other = (
            values[row].double().flatten()
            for values in (found.latents, found.noisy, found.noise, found.unconditional, found.conditional,
                           found.others[0])
        )  # fmt: skip
        abar, time = float(ABAR[row]), float(TIMES[row])
        if formula.kind == "sds":
            g = u + scale * (c - u) - eps
        elif formula.kind == "csd":
            g = c + PiecewiseLinear(formula.negative)(progress) * u
            g = g + PiecewiseLinear(formula.empty)(progress) * other
        elif formula.kind == "nfsd":
            g = (u if time < 0.2 else u - other) + 7.5 * (c - u)
        elif formula.kind == "ssd":
            g = c - u
            if time <= 0.1:
                n = c - (c @ eps) / (eps @ eps) * eps
                g = g.norm() / n.norm() * n
        else:
            guided, plain = ((z_t - math.sqrt(1 - abar) * e) / math.sqrt(abar) for e in (u + 50 * (c - u), c))
            g = z - (0.5 * guided * plain.std() / guided.std() + 0.5 * guided)
        rows.append((1 - abar) * g)
    return torch.stack(rows).reshape(found.latents.shape)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: f"{formula.kind}{len(formula.texts)}")
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_formulas_equal_their_definitions(formula, progress):
    found = predictions()
    if not formula.texts and formula.kind == "csd":
        found = Predictions(**(vars(found) | {"others": ()}))
    weights = score.weight(ABAR, "sigma2")
    result = formula.gradient(found, weights, guidance_scale=7.0, progress=progress)
    target = expected(formula, predictions(), 7.0, progress)
    assert ((result - target).norm() / target.norm()) < 1e-5


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: f"{formula.kind}{len(formula.texts)}")
def test_images_of_a_batch_do_not_influence_each_other(formula):
    found = predictions()
    weights = score.weight(ABAR, "sigma2")
    both = formula.gradient(found, weights, guidance_scale=7.0, progress=0.3)
    for row in range(BATCH):
        one = {
            name: tuple(item[row : row + 1] for item in value) if name == "others" else value[row : row + 1]
            for name, value in vars(found).items()
        }
        alone = formula.gradient(Predictions(**one), weights[row : row + 1], guidance_scale=7.0, progress=0.3)
        torch.testing.assert_close(both[row : row + 1], alone)


def test_reconstruction_without_rescaling_is_sds_by_another_weight():
    found = predictions()
    guided = score.classifier_free_guidance(found.unconditional, found.conditional, 50.0)
    scaled = CleanFormula(rescale=0.0).gradient(found, torch.ones(BATCH), guidance_scale=1.0, progress=0.0)
    torch.testing.assert_close(
        scaled, score.sds_gradient(guided, found.noise, ((1 - ABAR) / ABAR).sqrt()), rtol=1e-4, atol=1e-4
    )


def test_rescaled_latents_have_the_deviation_of_the_plain_prediction():
    found = predictions()
    gradient = CleanFormula(rescale=1.0).gradient(found, torch.ones(BATCH), guidance_scale=1.0, progress=0.0)
    clean, plain = found.latents - gradient, found.clean(found.conditional)
    torch.testing.assert_close(clean.std((1, 2, 3)), plain.std((1, 2, 3)))


def test_low_noise_direction_is_orthogonal_to_the_noise_and_as_long_as_the_classifiers():
    found = predictions()
    weights = score.weight(ABAR, "sigma2")
    gradient = SsdFormula().gradient(found, weights, guidance_scale=1.0, progress=0.0)
    classifier = CsdFormula().gradient(found, weights, guidance_scale=1.0, progress=0.0)
    assert abs((gradient[0] * found.noise[0]).sum()) < 1e-4 * gradient[0].norm() * found.noise[0].norm()
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), classifier.flatten(1).norm(dim=1))
    torch.testing.assert_close(gradient[1:], classifier[1:])


@given(st.integers(0, 1000))
def test_perpendicular_components_are_orthogonal_and_complete(seed):
    vector, direction = torch.randn((2, 2, 4, 3, 3), generator=torch.Generator().manual_seed(seed)).double()
    across = score.perpendicular(vector, direction)
    assert (across * direction).sum((1, 2, 3)).abs().max() < 1e-9
    torch.testing.assert_close(score.perpendicular(across, direction), across)
    assert torch.equal(score.perpendicular(vector, torch.zeros_like(vector)), vector)


# Timesteps.


def test_dream_time_is_that_of_the_released_code():
    falling = dream_time(0.2, 0.681)
    found = [round(1000 * falling(progress)) for progress in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)]
    assert found == [680, 650, 605, 528, 450, 385, 200]


def test_dream_time_takes_weights_that_vanish():
    """Beside a narrow plateau all other timesteps have no part of the run."""
    falling = dream_time(0.02, 0.98, spread=(1e-3, 1e-3))
    found = [falling(progress / 100) for progress in range(101)]
    assert all(later <= earlier for earlier, later in pairwise(found))
    assert 0.49 <= found[50] <= 0.81


def test_dream_time_never_rises_and_spends_steps_by_weight():
    falling, steps = dream_time(0.02, 0.98), 20_000
    times = [round(1000 * falling(index / steps)) for index in range(steps + 1)]
    assert sorted(times, reverse=True) == times
    weights = [math.exp(-0.5 * (max(500 - t, 0) / 100) ** 2 - 0.5 * (max(t - 800, 0) / 300) ** 2)
               for t in range(20, 980)]  # fmt: skip
    for t in (250, 400, 600, 900):
        assert times.count(t) / steps == pytest.approx(weights[t - 20] / sum(weights), abs=1.5 / steps)


@pytest.mark.parametrize("progress", [0.0, 0.37, 1.0])
def test_equal_ends_give_every_image_the_same_timestep(progress):
    for ends in (
        timestep_range((0.0, 0.98, 1.0, 0.02), (0.0, 0.98, 1.0, 0.02), None),
        timestep_range((0.02,), (0.98,), DreamTimeConfig()),
    ):
        low, high = ends["t_min"](progress), ends["t_max"](progress)
        drawn = sample_timesteps(8, low, high, train_steps=1000, generator=torch.Generator().manual_seed(0))
        assert set(drawn.tolist()) == {round(1000 * low)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sd(tmp_path_factory.mktemp("formulas") / "sd")


def test_progress_reaches_the_formula(folder):
    ramp = CsdFormula(negative=(0.0, -1.0, 1.0, -3.0))
    guidance = tiny_score_distillation(folder, formula=ramp)
    one, two = (tiny_score_distillation(folder, formula=CsdFormula(negative=(k,))) for k in (-1.0, -3.0))
    image, inputs = draw_image(1), draw_inputs(1)
    for progress, other in ((0.0, one), (1.0, two)):
        found = guidance.gradient(image, **inputs, progress=progress).gradient
        assert torch.equal(found, other.gradient(image, **inputs).gradient)
    assert at(1.0).progress == 1.0


# Configuration.


def formula_of(*overrides):
    config = load_config(overrides=[f"objectives.color.guidance.{override}" for override in overrides])
    return config.last.objectives["color"].guidance


@pytest.mark.parametrize("kind", ["sds", "csd", "nfsd", "ssd", "x0"])
def test_a_kind_alone_names_a_formula(kind, tmp_path):
    assert formula_of(f"formula={kind}").formula.kind == kind
    path = tmp_path / "run.yaml"
    path.write_text(f"objectives: {{color: {{guidance: {{formula: {kind}}}, clip: none}}}}\n")
    objective = load_config([path]).last.objectives["color"]
    assert (objective.guidance.formula.kind, objective.clip.kind) == (kind, "none")


def test_a_kind_alone_keeps_settings_of_that_kind():
    both = formula_of("formula={kind: nfsd, guidance_scale: 3}", "formula=nfsd")
    assert both.formula == NfsdFormula(guidance_scale=3.0)
    assert formula_of("formula={kind: nfsd, guidance_scale: 3}", "formula=sds").formula == SdsFormula()


def test_unknown_formulas_are_refused():
    with pytest.raises(ConfigError, match=r"formula.kind must be one of sds, csd, .*did you mean 'nfsd'"):
        formula_of("formula=nfds")


def test_costs_are_stated():
    assert [SdsConfig(formula=formula).evaluations for formula in FORMULAS] == [2, 2, 3, 3, 2, 2]
    own = {"sds": 1, "csd": 2, "nfsd": 3, "ssd": 2}
    assert {kind: formula_of(f"formula={kind}", "guidance_scale=1").evaluations for kind in own} == own
    config = SdsConfig(formula=NfsdFormula(), perp_neg=1.0)
    assert config.evaluations == config.requires().models["text"].evaluations == 5


def test_dream_time_is_a_setting():
    found = formula_of("dreamtime={}").dreamtime
    assert found == DreamTimeConfig()
    with pytest.raises(ConfigError, match="range must cover"):
        formula_of("dreamtime={range: [0.5, 0.5]}")
