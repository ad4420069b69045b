"""Variational score distillation: its gradient, what it trains, and its state in checkpoints."""

import copy
from dataclasses import replace

import pytest
import torch
from steps import at
from test_sds import draw_image, draw_inputs, rendering_of
from test_seams import require_equal, work_on
from tiny import tiny_score_distillation, write_tiny_sd, write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.config import load_config
from pgc3d.diffusion.adapters import AdaptedModel, camera_labels, share_weights
from pgc3d.diffusion.fast.accelerate import spare_memory
from pgc3d.diffusion.latent import select
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.guidance.distillation import NoiseSample
from pgc3d.guidance.vsd import VariationalDistillation, VsdConfig
from pgc3d.interfaces import Guidance, Stateful, SupportsMicroBatch
from pgc3d.schedules import add_noise, velocity
from pgc3d.types import Step, Views

BATCH = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vsd")
    return {
        "sdxl": write_tiny_sdxl(root / "sdxl"),
        "sd": write_tiny_sd(root / "sd"),
        "v": write_tiny_sd(root / "v", prediction_type="v_prediction"),
    }


def make(folder, seed=0, **options):
    frozen = tiny_score_distillation(folder, guidance_scale=7.5)
    text = select(frozen.positive, torch.zeros(1, dtype=torch.long))
    adapted = AdaptedModel(frozen.model, 4, torch.Generator().manual_seed(seed))
    return VariationalDistillation(frozen=frozen, adapted=adapted, text=text, **options)


def evaluate(guidance, step, batch=BATCH):
    image = draw_image(batch)
    rendering = rendering_of(image)
    return guidance(image, rendering, Views(turntable(batch), rendering.background), step)


def inputs_of(batch=BATCH):
    return {**draw_inputs(batch), "labels": camera_labels(turntable(batch))}


@pytest.mark.parametrize("layout", ["sdxl", "sd", "v"])
def test_before_training_the_adapted_model_is_the_frozen_one(folders, layout):
    guidance = make(folders[layout])
    frozen, inputs = guidance.frozen, inputs_of()
    latents = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    text = select(guidance.text, torch.zeros(BATCH, dtype=torch.long))
    with torch.no_grad():
        own = guidance.adapted.predict(
            latents, inputs["timesteps"], text, inputs["labels"], frozen.size_conditions(64)
        )
    (expected,) = frozen.model.predict_each(
        latents, inputs["timesteps"], [text], time_ids=frozen.size_conditions(64)
    )
    torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("layout", ["sdxl", "v"])
def test_gradient_is_that_of_guidance_less_the_adapted_prediction(folders, layout):
    guidance = make(folders[layout])
    with torch.no_grad():
        for index, parameter in enumerate(guidance.adapted.parameters.values()):
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            )
    image, inputs = draw_image(), inputs_of()
    seen = []
    found = guidance.gradient(image, **inputs, seen=seen).gradient
    frozen, model = guidance.frozen, guidance.frozen.model
    (latents,) = seen
    labels = inputs.pop("labels")
    sample, shown = NoiseSample.split(inputs)
    sds = frozen.predict(latents, sample, 64, **shown)
    abar = model.alphas_cumprod[sample.timesteps]
    text = select(guidance.text, torch.zeros(BATCH, dtype=torch.long))
    with torch.no_grad():
        own = guidance.adapted.predict(
            add_noise(latents, sample.noise, abar), sample.timesteps, text, labels, frozen.size_conditions(64)
        )
    u, c = sds.unconditional, sds.conditional
    pixels = image.clone().requires_grad_()
    target = (1 - abar)[:, None, None, None] * (u + 7.5 * (c - u) - own)
    (expected,) = torch.autograd.grad(model.encode(pixels, sample.posterior_noise), pixels, target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert (own - c).abs().max() > 1e-3


def test_only_adapters_are_trained_and_the_frozen_model_is_untouched(folders):
    guidance = make(folders["sdxl"])
    model = guidance.frozen.model
    names = {name for name, _ in model.unet.named_parameters()}
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    adapters = {name: value.clone() for name, value in guidance.adapted.parameters.items()}
    for index in range(3):
        output = evaluate(guidance, Step(index=index, total=9))
        assert output.metrics["lora_loss"] > 0
        assert not output.gradient.requires_grad
    require_equal(before, model.unet.state_dict())
    assert names == {name for name, _ in model.unet.named_parameters()}
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    own = {
        name: value for name, value in guidance.adapted.model.unet.named_parameters() if value.requires_grad
    }
    assert own.keys() == adapters.keys()
    assert all(value.dtype == torch.float32 for value in own.values())
    same = [name for name, value in adapters.items() if torch.equal(value, own[name])]
    assert not same
    shared = dict(model.unet.named_parameters())
    assert guidance.adapted.model.unet.conv_in.weight is shared["conv_in.weight"]


@pytest.mark.parametrize("layout", ["sd", pytest.param("v", marks=pytest.mark.slow)])
def test_training_lowers_the_error_on_a_fixed_image(folders, layout):
    guidance = make(folders[layout], lora_lr=3e-3)
    losses = []
    for index in range(40):
        step = Step(index=index % 4, total=1000)  # four draws, again and again
        losses.append(float(evaluate(guidance, step, batch=2).metrics["lora_loss"]))
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])


def test_loss_is_the_models_own(folders):
    """The error of the noise, or of v where the model predicts that; and its gradient, in float64."""
    for layout in ("sd", "v"):
        guidance = make(folders[layout])
        guidance.adapted.model = replace(
            guidance.adapted.model, unet=torch.nn.Module.to(guidance.adapted.model.unet, dtype=torch.float64)
        )
        model = guidance.frozen.model
        latents, noise = torch.randn((2, BATCH, 4, 8, 8), generator=torch.Generator().manual_seed(5))
        times, labels = torch.tensor([20, 500, 950]), camera_labels(turntable(BATCH))
        parameters = [*guidance.adapted.parameters.values()]
        total = guidance._add_gradients(latents, noise, times, labels.double(), 64)
        found = [parameter.grad for parameter in parameters]
        abar = model.alphas_cumprod[times]
        noisy = add_noise(latents, noise, abar)
        raw = guidance.adapted.model.unet(
            noisy.double(),
            times,
            encoder_hidden_states=guidance.text.tokens.expand(BATCH, -1, -1).double(),
            class_labels=labels.double(),
        ).sample
        loss = (raw - (velocity(latents, noise, abar) if layout == "v" else noise)).square().sum()
        torch.testing.assert_close(total.double(), loss.detach(), rtol=1e-4, atol=0)
        for one, other in zip(found, torch.autograd.grad(loss / 2, parameters), strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-5)
        parameters[0].data = parameters[0].data.float()


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_train_and_score_alike(folders, micro_batch):
    whole, parts = make(folders["sdxl"]), make(folders["sdxl"])
    parts.micro_batch = micro_batch
    assert isinstance(parts, SupportsMicroBatch)
    for index in range(2):
        step = Step(index=index, total=5)
        one, other = evaluate(whole, step), evaluate(parts, step)
        torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.metrics["lora_loss"], other.metrics["lora_loss"])
    for name, value in whole.adapted.parameters.items():
        torch.testing.assert_close(value, parts.adapted.parameters[name], rtol=0, atol=2e-5)


def loaded(folder, dtype):
    frozen = tiny_score_distillation(folder, guidance_scale=7.5)
    return replace(frozen.model, unet=load_latent_diffusion(folder, dtype=dtype).unet), frozen


def test_adapters_of_a_model_in_half_precision_are_trained_in_single(folders):
    model, frozen = loaded(folders["sdxl"], torch.bfloat16)
    text = select(frozen.positive, torch.zeros(1, dtype=torch.long))
    adapted = AdaptedModel(model, 4, torch.Generator().manual_seed(0))
    guidance = VariationalDistillation(frozen=frozen, adapted=adapted, text=text)
    single = make(folders["sdxl"])
    before = {name: value.clone() for name, value in adapted.parameters.items()}
    for index in range(2):
        step = Step(index=index, total=9)
        found, expected = (evaluate(each, step).metrics["lora_loss"] for each in (guidance, single))
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
    assert all(value.dtype == torch.float32 for value in adapted.parameters.values())
    assert all(not torch.equal(value, before[name]) for name, value in adapted.parameters.items())


def test_recomputed_activations_give_the_same_step(folders):
    model, frozen = loaded(folders["sd"], torch.float32)
    spare_memory(model)
    text = select(frozen.positive, torch.zeros(1, dtype=torch.long))
    adapted = AdaptedModel(model, 4, torch.Generator().manual_seed(0))
    assert adapted.model.unet.down_blocks[1].gradient_checkpointing
    low = VariationalDistillation(frozen=frozen, adapted=adapted, text=text)
    whole = make(folders["sd"])
    try:
        for each in (low, whole):
            evaluate(each, Step(index=0, total=9))
        for name, value in whole.adapted.parameters.items():
            torch.testing.assert_close(value, adapted.parameters[name], rtol=0, atol=1e-6)
    finally:
        frozen.model.vae.disable_gradient_checkpointing()


def test_first_values_come_from_the_generator_alone(folders):
    state = torch.get_rng_state()
    one, two, other = (make(folders["sd"], seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    require_equal(one, two)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_cameras_change_the_prediction_once_it_is_trained(folders):
    guidance = make(folders["sd"], lora_lr=1e-2)
    for index in range(3):
        evaluate(guidance, Step(index=index, total=9))
    inputs = inputs_of()
    text = select(guidance.text, torch.zeros(BATCH, dtype=torch.long))
    latents = torch.randn(1, 4, 8, 8).expand(BATCH, -1, -1, -1)
    times = torch.full((BATCH,), 500)
    with torch.no_grad():
        found = guidance.adapted.predict(latents, times, text, inputs["labels"])
    assert (found[0] - found[1]).abs().max() > 1e-5
    labels = inputs["labels"].reshape(-1, 4, 4)
    torch.testing.assert_close(labels @ turntable(BATCH).camera_from_world, torch.eye(4).expand(BATCH, 4, 4),
                               atol=1e-5, rtol=0)  # fmt: skip


# State.


def test_state_is_that_of_the_adapters_and_their_optimiser_alone(folders):
    guidance = make(folders["sd"])
    assert isinstance(guidance, Guidance)
    assert isinstance(guidance, Stateful)
    first = copy.deepcopy(guidance.state_dict())
    assert all(name.startswith("network.") for name in first)
    evaluate(guidance, at(0.1))
    state = guidance.state_dict()
    count = len(guidance.adapted.parameters)
    assert len(state) == 4 * count == len(first) + 3 * count
    guidance.load_state_dict(first)
    require_equal(guidance.state_dict(), first)
    evaluate(guidance, at(0.1))
    require_equal(guidance.state_dict(), state)


def config_of(folder, stop_steps=5):
    return load_config(
        overrides=[
            f"models.text.name={folder}", "representation.resolution=8", "run.resolution=[32]",
            "run.resolution_until=[]", f"run.steps={stop_steps}", "objectives.color.batch=2",
            "objectives.color.guidance={kind: vsd, lora_lr: 0.001}", "logging.preview_every=0",
            "logging.log_every=2",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(folders, tmp_path, layout):
    config = config_of(folders[layout])
    built, whole, _ = work_on(tmp_path / "whole", config)
    _, begun, _ = work_on(tmp_path / "parts", config, stop_at=2)
    _, done, _ = work_on(tmp_path / "parts", config)
    require_equal(whole.tensors, done.tensors)
    assert built.states.keys() == {"guidance.color"}
    names = [name for name in done.tensors if name.startswith("state.guidance.color.")]
    assert len(names) == 4 * len(built.problem.objectives["color"].guidance.adapted.parameters)
    assert any(not torch.equal(done.tensors[name], begun.tensors[name]) for name in names)


def test_settings_reach_the_guidance(folders):
    config = config_of(folders["sd"])
    guidance = config.last.objectives["color"].guidance
    assert guidance == VsdConfig(lora_lr=0.001)
    use = guidance.requires().models["text"]
    assert (use.trains, use.evaluations, guidance.input_resolution(32, 64)) == (True, 2, 64)


def test_copies_share_their_weights_and_not_their_structure():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    other = share_weights(network)
    other.append(torch.nn.ReLU())
    assert len(network) == 2
    assert other[0] is not network[0]
    assert other[0].weight is network[0].weight
    assert other[1].running_mean is network[1].running_mean
