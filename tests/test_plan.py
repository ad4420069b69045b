import importlib
from dataclasses import replace

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROOT, write_tiny_controlnet, write_tiny_sdxl

from pgc3d.build.models import LocatedModel
from pgc3d.config import Config, ModelConfig, ObjectiveConfig, RunConfig, StageConfig, load_config
from pgc3d.diffusion.controlnet import ControlConfig, load_control_network, resolve_control
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.errors import OutOfMemoryError
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.pipelines import find_pipeline
from pgc3d.planning import plan
from pgc3d.planning.plan_times import SIZES

SDXL = SIZES["sdxl"]
SD = SIZES["sd"]
SDXL_DEPTH = replace(SDXL, controls={"sdxl-depth": 1_251_014_160})
SD_DEPTH = replace(SD, controls={"sd-depth": 361_279_120})
CONTROLLED = replace(SDXL, controls={"sdxl-depth": 1_251_014_160, "small": 125_690_640})
GIB = 2**30
COSTS = [plan.PLAIN, plan.PLAIN_LOW, plan.FAST, plan.FAST_LOW]


def estimate(costs=plan.FAST, *, side=1024, batch=1, micro_batch=1):
    return plan.estimate(
        SDXL, costs, side=side, render_side=side, batch=batch, micro_batch=micro_batch, item=2
    )


def config(batch=4, controls=(), **run):
    asked = {str(number): ControlConfig(model=name) for number, name in enumerate(controls)}
    objective = ObjectiveConfig(batch=batch, guidance=SdsConfig(controls=asked))
    stage = StageConfig(resolution=(1024,), resolution_until=(), objectives={"color": objective})
    return Config(run=RunConfig(**run), models=models(), stages={"main": stage})


def models(**settings):
    return {"text": ModelConfig(name="sdxl", **settings)}


def plain(config):
    """As diffusers runs it."""
    return replace(config, models=models(fast="never"))


def size_of_run(config, size):
    return plan.estimate_run(config, {"text": size})


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


@pytest.mark.parametrize(
    ("size", "costs", "least", "most", "measured"),
    [
        (SDXL, plan.PLAIN, 0.95, 1.05, (11.96, 17.98, 32.85)),
        (SDXL, plan.FAST, 1.0, 1.25, (8.41, 10.28, 17.92)),
        (SDXL, plan.FAST_LOW, 1.0, 1.25, (7.38,)),
        (SDXL_DEPTH, plan.PLAIN, 0.95, 1.1, (14.37, 20.58, 35.97)),
        (SDXL_DEPTH, plan.FAST, 1.0, 1.25, (11.15, 14.29, 22.34)),
        (SDXL_DEPTH, plan.FAST_LOW, 1.0, 1.25, (10.39,)),
        (SD, plan.PLAIN, 0.95, 1.05, (3.32, 4.97, 8.77)),
        (SD, plan.FAST, 1.0, 1.25, (2.36, 3.10, 4.56)),
        (SD, plan.FAST_LOW, 1.0, 1.25, (2.26,)),
        (SD_DEPTH, plan.PLAIN, 0.95, 1.1, (4.05, 5.47, 9.50)),
        (SD_DEPTH, plan.FAST, 1.0, 1.25, (3.25, 4.02, 5.75)),
        (SD_DEPTH, plan.FAST_LOW, 1.0, 1.25, (3.27,)),
    ],
)
def test_estimate_agrees_with_what_was_measured(size, costs, least, most, measured):
    # UNet, encoder and ControlNet, fp16, on an H100, with low memory on an H200: GiB that torch held for one,
    # two and four images at once, by `scripts/benchmark_step.py --control`.
    for batch, found in zip((1, 2, 4), measured, strict=False):
        expected = plan.estimate(
            size, costs, side=size.resolution, render_side=0, batch=batch, micro_batch=batch, item=2,
            controls=tuple(size.controls),
        )  # fmt: skip
        assert least * found <= expected.bytes / GIB <= most * found


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"micro_batch": 2}, 15.97e9),
        ({"micro_batch": 2, "controls": ("sdxl-depth",)}, 19.18e9),
    ],
)
def test_a_whole_run_needs_no_more_than_was_said(options, measured):
    # `pgc3d texture`, SDXL, four views at 1024 px, on an H100: all that torch held, the renderer included.
    size = SDXL_DEPTH if "controls" in options else SDXL
    expected = size_of_run(config(batch=4, **options), size).bytes
    assert measured <= expected <= 1.25 * measured


def test_sizes_are_read_from_a_checkpoint(tmp_path):
    folder = resolve_model(write_tiny_sdxl(tmp_path / "tiny"))
    model = load_latent_diffusion(folder)
    size = plan.read_size(folder, {})
    assert size.unet_parameters == sum(parameter.numel() for parameter in model.unet.parameters())
    assert size.vae_channels == tuple(model.vae.config.block_out_channels)
    assert (size.resolution, size.downscale) == (model.resolution, model.downscale)
    assert size.unet_channels == model.unet.conv_in.out_channels


@pytest.mark.parametrize("controls", [(), ("small",)], ids=["alone", "controlled"])
def test_every_alternative_needs_less_memory(controls):
    candidates = plan.lowered(config(batch=8, controls=controls))
    for way in (replace, plain):
        sizes = [size_of_run(way(candidate), CONTROLLED).bytes for candidate in candidates]
        assert len(sizes) == 5
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)


def test_a_run_that_fits_is_left_alone():
    fitting, expected = plan.fit(config(), {"text": SDXL}, 80 * GIB)
    assert fitting == config()
    assert expected.bytes < 80 * GIB


@pytest.mark.parametrize("share", [0.999, 0.9, 0.8])
def test_a_run_that_does_not_fit_is_lowered_as_little_as_it_takes(share):
    candidates = plan.lowered(config())
    sizes = [size_of_run(candidate, SDXL).bytes for candidate in candidates]
    free = int(sizes[0] * share / (1 - plan.RESERVE))
    fitting, expected = plan.fit(config(), {"text": SDXL}, free)
    index = candidates.index(fitting)
    assert expected.bytes <= free * (1 - plan.RESERVE) < sizes[index - 1]
    line = plan.describe(config(), fitting, expected, 0.5 * 500, free, "some GPU")
    assert "more would not fit" in line


def test_a_time_is_told_where_arithmetic_takes_it():
    _, expected = plan.fit(config(), {"text": SDXL}, 80 * GIB)
    long, short = (
        plan.describe(config(), config(), expected, 500 * seconds, 80 * GIB, "some GPU")
        for seconds in (0.5, 1e-4)
    )
    assert "0.50 s a step" in long
    assert "s a step" not in short
    assert long.startswith(short)


def test_what_cannot_fit_is_refused():
    with pytest.raises(OutOfMemoryError, match=r"where 4\.3 GB are free.*even with --low-memory.*now 1024"):
        plan.fit(config(), {"text": SDXL}, 4 * GIB)


def test_low_memory_and_micro_batches_are_part_of_the_estimate():
    whole, halves, low = (
        size_of_run(config(**options), SDXL) for options in ({}, {"micro_batch": 2}, {"low_memory": True})
    )
    assert whole.bytes > halves.bytes > low.bytes
    assert whole.operations == halves.operations < low.operations


def test_on_a_cpu_the_renders_must_fit(monkeypatch):
    cpu = torch.device("cpu")
    assert plan.plan_run(config(), {}, cpu) == (config(), "")
    volume = load_config(find_pipeline("text", "prolificdreamer").files)  # 512 px: 61 GB, or 1.1 with little
    monkeypatch.setattr(plan, "free_memory", lambda device: 8 * GIB)
    found, line = plan.plan_run(volume, {}, cpu)
    assert found == replace(volume, run=replace(volume.run, low_memory=True))
    assert line == "more memory is not free, so this run is as with --low-memory"
    monkeypatch.setattr(plan, "free_memory", lambda device: GIB // 2)
    message = (
        r"need about 1\.\d GB even with --low-memory; lower --resolution \(now 512\), stages.volume.*stations"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        plan.plan_run(volume, {}, cpu)


def test_matmul_rate_is_a_rate():
    device = torch.device("cpu")
    assert 1e7 < plan.matmul_rate(device, torch.float32, size=128, repeats=3) < 1e15


@given(st.sampled_from(COSTS), st.integers(8, 256), st.integers(1, 8), st.integers(1, 8))
def test_a_control_costs_its_weights_and_more_and_another_one_too(costs, side, batch, micro_batch):
    sizes = {
        "side": 8 * side,
        "render_side": 8 * side,
        "batch": batch,
        "micro_batch": min(batch, micro_batch),
    }
    small = replace(SDXL, controls={"small": 125_690_640})
    found = [
        plan.estimate(size, costs, **sizes, item=2, controls=controls)
        for size, controls in (
            (SDXL, ()),
            (small, ("small",)),
            (CONTROLLED, ("small",)),
            (CONTROLLED, ("small", "sdxl-depth")),
        )
    ]
    alone, one, idle, two = found
    assert one.bytes > alone.bytes + 2 * 125_690_000
    assert idle.bytes == pytest.approx(one.bytes + 2 * 1_251_014_160, rel=1e-9)
    assert two.bytes >= idle.bytes
    assert two.operations > idle.operations == one.operations > alone.operations


def choice(asked, size, free):
    """How far a run is lowered; beyond the last step where it is refused."""
    candidates = plan.lowered(asked)
    try:
        return candidates.index(plan.fit(asked, {"text": size}, free)[0])
    except OutOfMemoryError:
        return len(candidates)


@given(st.integers(0, 100 * GIB), st.integers(1, 8))
def test_a_plan_never_rises_when_a_control_is_added(free, batch):
    choices = [
        choice(config(batch, controls), CONTROLLED if controls else SDXL, free)
        for controls in ((), ("small",), ("small", "sdxl-depth"))
    ]
    assert choices == sorted(choices)


def test_a_control_that_fits_no_longer_lowers_the_run_or_refuses_it():
    whole, least = (
        size_of_run(plan.lowered(config())[index], SDXL).bytes / (1 - plan.RESERVE) + 1e6 for index in (0, -1)
    )
    controlled = config(controls=("sdxl-depth",))
    assert choice(config(), SDXL, int(whole)) == 0
    assert choice(controlled, CONTROLLED, int(whole)) > 0
    assert choice(config(), SDXL, int(least)) == len(plan.lowered(config())) - 1
    with pytest.raises(OutOfMemoryError, match="use fewer ControlNets, lower --resolution"):
        plan.fit(controlled, {"text": CONTROLLED}, int(least))


@pytest.mark.parametrize("name", ["unet_config", "sd_unet_config"])
def test_what_controls_keep_is_as_large_as_their_answers(name, monkeypatch):
    """The constant covers the answers of a full-size ControlNet and its float32 condition, and not twice."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    settings = getattr(importlib.import_module("make_random_sdxl"), name)(full_size=True)
    side = settings["sample_size"]
    with torch.device("meta"), torch.no_grad():
        network = ControlNetModel.from_unet(UNet2DConditionModel(**settings), load_weights_from_unet=False)
        down, middle = network(
            torch.empty(2, 4, side, side),  # one picture, in both halves of guidance
            torch.empty(2),
            encoder_hidden_states=torch.empty(2, 77, settings["cross_attention_dim"]),
            controlnet_cond=torch.empty(2, 3, 8 * side, 8 * side),
            added_cond_kwargs={"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)},
            return_dict=False,
        )
    kept = sum(tensor.numel() for tensor in (*down, middle)) + 2 * 3 * (8 * side) ** 2  # in half precision
    share = kept / (2 * settings["block_out_channels"][0] * side**2) / plan.FAST.control_tensors
    assert 0.6 < share < 1


def located(folder, controls=None):
    return {"text": LocatedModel(config=ModelConfig(name="sdxl"), folder=folder, controls=controls or {})}


def test_the_controls_of_a_run_are_in_its_plan(tmp_path, monkeypatch):
    folder = write_tiny_sdxl(tmp_path / "tiny")
    source = resolve_model(folder)
    name = str(write_tiny_controlnet(tmp_path / "net", folder))
    control = resolve_control(name, source)
    network = load_control_network(control, load_latent_diffusion(source))
    size = plan.read_size(source, {name: control})
    assert size.controls == {name: sum(parameter.numel() for parameter in network.parameters())}

    asked = config(controls=(name,))
    alone = size_of_run(config(), plan.read_size(source, {})).bytes
    free = int(alone / (1 - plan.RESERVE)) + 1
    monkeypatch.setattr(plan, "free_memory", lambda device: free)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(plan, "matmul_rate", lambda device, dtype: 1e14)
    cuda = torch.device("cuda")
    assert plan.plan_run(config(), located(source), cuda)[0] == config()
    fitting, line = plan.plan_run(asked, located(source, {name: control}), cuda)
    assert fitting in plan.lowered(asked)[1:]
    assert "more would not fit" in line
