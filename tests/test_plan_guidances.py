"""The planner's price of guidances that evaluate the UNet more than twice for an image."""

from dataclasses import replace
from itertools import pairwise

import pytest
from test_plan import SDXL, models

from pgc3d import plan
from pgc3d.config import Config, ObjectiveConfig, StageConfig
from pgc3d.guidance.formulas import NfsdFormula
from pgc3d.guidance.sds import SdsConfig


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
