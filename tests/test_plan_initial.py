"""The plan counts what initial views need beside the steps."""

from dataclasses import replace

import pytest
from test_plan import SDXL, config, size_of_run

from pgc3d.diffusion.controlnet import ControlConfig
from pgc3d.guidance.synchronized import SyncConfig

SMALL = replace(SDXL, controls={"small": 160_000_000})
INITIAL = SyncConfig(controls={"depth": ControlConfig(model="small")})


def with_views(plain, init=INITIAL):
    return replace(plain, stages={"main": replace(plain.stages["main"], init=init)})


@pytest.mark.parametrize(
    ("settings", "measured"), [({"micro_batch": 2}, 19_214_106_624), ({"low_memory": True}, 13_247_709_184)]
)
def test_initial_views_need_no_more_than_was_said(settings, measured):
    """Peaks of whole runs on an H200, with four views a step."""
    planned = size_of_run(with_views(config(**settings)), SMALL).bytes
    assert measured <= planned <= 1.15 * measured


def test_without_a_controlnet_there_is_nothing_to_count():
    plain = config(micro_batch=2)
    assert size_of_run(with_views(plain, SyncConfig()), SDXL) == size_of_run(plain, SDXL)


def test_smaller_micro_batches_need_less():
    sizes = [
        size_of_run(with_views(config(**settings)), SMALL).bytes
        for settings in ({"micro_batch": 0}, {"micro_batch": 4}, {"micro_batch": 2}, {"low_memory": True})
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
