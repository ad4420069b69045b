from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny_sdxl

from pgc3d import plan
from pgc3d.config import Config, ModelConfig, ObjectiveConfig, RunConfig
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.errors import OutOfMemoryError
from pgc3d.teachers import Models

SDXL = plan.Teacher(
    unet_parameters=2_567_463_684,
    unet_channels=320,
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    resolution=1024,
)
GIB = 2**30
COSTS = [plan.PLAIN, plan.PLAIN_LOW, plan.FAST, plan.FAST_LOW]


def estimate(costs=plan.FAST, *, side=1024, batch=1, micro_batch=1):
    return plan.estimate(
        SDXL, costs, side=side, render_side=side, batch=batch, micro_batch=micro_batch, item=2
    )


def config(batch=4, **run):
    return Config(
        run=RunConfig(resolution=(1024,), resolution_until=(), **run),
        model=ModelConfig(name="sdxl"),
        objectives={"color": ObjectiveConfig(batch=batch)},
    )


@given(st.sampled_from(COSTS), st.integers(8, 256), st.integers(1, 8), st.integers(1, 8))
def test_more_never_needs_less(costs, side, batch, micro_batch):
    side, micro_batch = 8 * side, min(batch, micro_batch)
    start = estimate(costs, side=side, batch=batch, micro_batch=micro_batch)
    for more in (
        estimate(costs, side=side + 8, batch=batch, micro_batch=micro_batch),
        estimate(costs, side=side, batch=batch + 1, micro_batch=micro_batch),
        estimate(costs, side=side, batch=batch + 1, micro_batch=micro_batch + 1),
    ):
        assert more.bytes > start.bytes
        assert more.operations > start.operations


def test_estimate_agrees_with_what_was_measured_for_diffusers_own_code():
    # UNet and encoder alone, eager, fp16, on an H100: 11.1 GiB for one picture, 28.9 GiB for four
    for batch, measured in ((1, 11.1), (4, 28.9)):
        without_renderer = replace(plan.PLAIN, render_bytes=0)
        expected = estimate(without_renderer, batch=batch, micro_batch=batch).bytes / GIB
        assert expected == pytest.approx(measured, rel=0.1)


def test_sizes_are_read_from_a_checkpoint(tmp_path):
    folder = resolve_model(write_tiny_sdxl(tmp_path / "tiny"))
    model = load_latent_diffusion(folder)
    teacher = plan.read_teacher(folder, {})
    assert teacher.unet_parameters == sum(parameter.numel() for parameter in model.unet.parameters())
    assert teacher.vae_channels == tuple(model.vae.config.block_out_channels)
    assert (teacher.resolution, teacher.downscale) == (model.resolution, model.downscale)
    assert teacher.unet_channels == model.unet.conv_in.out_channels


def test_every_alternative_needs_less_memory():
    for fast in (True, False):
        sizes = [
            plan.estimate_run(candidate, SDXL, fast=fast).bytes for candidate in plan.lowered(config(batch=8))
        ]
        assert len(sizes) == 5
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)


def test_a_run_that_fits_is_left_alone():
    fitting, expected = plan.fit(config(), SDXL, 80 * GIB, fast=True)
    assert fitting == config()
    assert expected.bytes < 80 * GIB


@pytest.mark.parametrize("share", [0.999, 0.9, 0.8])
def test_a_run_that_does_not_fit_is_lowered_as_little_as_it_takes(share):
    candidates = plan.lowered(config())
    sizes = [plan.estimate_run(candidate, SDXL, fast=True).bytes for candidate in candidates]
    free = int(sizes[0] * share / (1 - plan.RESERVE))
    fitting, expected = plan.fit(config(), SDXL, free, fast=True)
    index = candidates.index(fitting)
    assert expected.bytes <= free * (1 - plan.RESERVE) < sizes[index - 1]
    line = plan.describe(config(), fitting, expected, 0.5, free, "some GPU")
    assert "more would not fit" in line


def test_what_cannot_fit_is_refused():
    with pytest.raises(OutOfMemoryError, match=r"where 4\.3 GB are free.*even with --low-memory.*now 1024"):
        plan.fit(config(), SDXL, 4 * GIB, fast=True)


def test_low_memory_and_micro_batches_are_part_of_the_estimate():
    whole, halves, low = (
        plan.estimate_run(config(**options), SDXL, fast=True)
        for options in ({}, {"micro_batch": 2}, {"low_memory": True})
    )
    assert whole.bytes > halves.bytes > low.bytes
    assert whole.operations == halves.operations < low.operations


def test_nothing_is_planned_on_a_cpu():
    assert plan.plan_run(config(), Models(), torch.device("cpu")) == (config(), "")


def test_matmul_rate_is_a_rate():
    device = torch.device("cpu")
    assert 1e7 < plan.matmul_rate(device, torch.float32, size=128, repeats=3) < 1e15
