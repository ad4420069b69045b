"""The planner's price of guidances that evaluate the UNet more than twice for an image."""

from dataclasses import replace
from itertools import pairwise

import pytest
from test_plan import GIB, SD, SDXL, models

from pgc3d.config import Config, ObjectiveConfig, RunConfig, StageConfig, load_config
from pgc3d.errors import OutOfMemoryError
from pgc3d.guidance.formulas import NfsdFormula
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.guidance.vsd import VsdConfig
from pgc3d.pipelines import find_pipeline
from pgc3d.planning import plan


def run_with(guidance, **settings):
    stage = StageConfig(
        resolution=(1024,), resolution_until=(), objectives={"color": ObjectiveConfig(guidance=guidance)}
    )
    return Config(models=models(**settings), stages={"main": stage})


@pytest.mark.parametrize("fast", ["auto", "never"])
def test_more_evaluations_cost_more(fast):
    guidances = [SdsConfig(), SdsConfig(formula=NfsdFormula()), SdsConfig(perp_neg=1.0),
                 SdsConfig(formula=NfsdFormula(), perp_neg=1.0)]  # fmt: skip
    costs = [plan.estimate_run(run_with(item, fast=fast), {"text": SDXL}) for item in guidances]
    for less, more in pairwise(costs):
        assert more.operations > less.operations
        assert more.bytes >= less.bytes
    assert costs[-1].bytes > costs[0].bytes


def test_the_network_alone_costs_in_proportion():
    """With an encoder that costs nothing."""
    costs = replace(plan.FAST, encoder_work=0.0)
    two, four = (
        plan.estimate(SDXL, costs, side=1024, render_side=64, batch=1, micro_batch=1, item=2, evaluations=n)
        for n in (2, 4)
    )
    assert four.operations == pytest.approx(2 * two.operations)


def test_training_needs_a_second_network_beside_an_accelerated_one():
    def cost(guidance, **settings):
        return plan.estimate_run(run_with(guidance, **settings), {"text": SDXL})

    network = 2 * SDXL.unet_parameters
    fast = cost(VsdConfig()).bytes - cost(SdsConfig()).bytes
    assert network < fast
    assert cost(VsdConfig(), fast="never").bytes < cost(SdsConfig(), fast="never").bytes + 3e10
    # SDXL at 1024 pixels keeps 7.8 GB for the backward pass of an image.
    one = replace(run_with(VsdConfig()), run=RunConfig(micro_batch=1))
    weights = 2 * network + plan.ADAPTER_BYTES
    assert 7.8e9 < plan.estimate_run(one, {"text": SDXL}).bytes - weights < 12e9
    low = replace(one, run=RunConfig(low_memory=True))
    assert plan.estimate_run(low, {"text": SDXL}).bytes < plan.estimate_run(one, {"text": SDXL}).bytes - 3e9
    assert cost(VsdConfig()).operations > 2 * cost(SdsConfig(guidance_scale=7.5)).operations


def test_training_costs_what_its_images_cost():
    """The adapters learn from the latents of the images that the guidance is for."""

    def training(side):
        both = (VsdConfig(resolution=side), SdsConfig(resolution=side, guidance_scale=7.5))
        return [plan.estimate_run(run_with(item), {"text": SDXL}).operations for item in both]

    (large, alone), (small, less) = training(1024), training(512)
    assert large - alone == pytest.approx(4 * (small - less))


def test_latents_that_are_rendered_are_not_encoded():
    latents, encoded = (
        plan.estimate_run(run_with(SdsConfig(as_latent=value)), {"text": SDXL}) for value in (True, False)
    )
    evaluations = replace(plan.FAST, encoder_work=0.0)
    alone = plan.estimate(SDXL, evaluations, side=1024, render_side=64, batch=4, micro_batch=1, item=2)
    assert latents.operations == pytest.approx(alone.operations)
    assert latents.operations < encoded.operations


def test_a_run_that_trains_is_lowered_like_others():
    fitting, expected = plan.fit(run_with(VsdConfig()), {"text": SDXL}, 24 * 2**30)
    assert expected.bytes < 24 * 2**30
    assert fitting.run.micro_batch == 1 or fitting.run.low_memory


def test_a_volume_that_does_not_fit_names_what_to_lower():
    config = load_config(find_pipeline("text", "magic3d").files)
    lowered = r"lower --resolution \(now 512\), stages\.coarse\.representation\.stations \(now 256\) or"
    with pytest.raises(OutOfMemoryError, match=lowered):
        plan.fit(config, {"text": SD}, GIB)
