import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.errors import ConfigError
from pgc3d.schedules import (
    PiecewiseLinear,
    add_noise,
    alphas_cumprod,
    check_timestep_range,
    ddim_step,
    epsilon_from_velocity,
    rescale_to_zero_terminal,
    sample_timesteps,
    velocity,
)

SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def test_noise_levels_agree_with_ddpm_scheduler():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    expected = DDPMScheduler(**SDXL).alphas_cumprod
    torch.testing.assert_close(alphas_cumprod(SDXL), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_noise_levels_fall_from_one_towards_zero(kind):
    signal = alphas_cumprod(SDXL | {"beta_schedule": kind})
    assert (signal.diff() < 0).all()
    assert 0.99 < signal[0] < 1.0
    assert 0.0 < signal[-1] < 0.01


@pytest.mark.parametrize(
    "change",
    [{"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.1]}],
)
def test_unknown_noise_schedule_is_refused(change):
    with pytest.raises(ConfigError, match="bet"):
        alphas_cumprod(SDXL | change)


def test_zero_terminal_levels_agree_with_the_library_but_for_the_last():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    settings = SDXL | {"rescale_betas_zero_snr": True}
    expected = DDPMScheduler(**settings).alphas_cumprod
    found = alphas_cumprod(settings)
    assert expected[-1] < 1e-6
    torch.testing.assert_close(found, expected[:-1], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_zero_terminal_levels_are_a_shift_and_a_scale_of_the_signal(kind):
    plain = alphas_cumprod(SDXL | {"beta_schedule": kind}).double()
    root = rescale_to_zero_terminal(plain).sqrt()
    assert root[-1] == 0
    torch.testing.assert_close(root[0], plain[0].sqrt())
    # An affine map keeps the proportions of differences.
    steps, before = root.diff(), plain.sqrt().diff()
    torch.testing.assert_close(steps / steps.sum(), before / before.sum(), rtol=1e-6, atol=1e-12)
    left = alphas_cumprod(SDXL | {"beta_schedule": kind, "rescale_betas_zero_snr": True})
    assert len(left) == len(plain) - 1
    assert left[-1] > 0
    assert (left.diff() < 0).all()


def test_v_prediction_gives_back_the_noise_at_every_level_that_is_left():
    signal = alphas_cumprod(SDXL | {"rescale_betas_zero_snr": True}).double()
    latents, noise = torch.randn(2, len(signal), 1, 2, 2, dtype=torch.float64)
    noisy = add_noise(latents, noise, signal)
    found = epsilon_from_velocity(velocity(latents, noise, signal), noisy, signal)
    torch.testing.assert_close(found, noise)


@pytest.mark.parametrize("name", ["beta_schedule", "beta_start", "beta_end"])
def test_a_scheduler_that_does_not_say_its_levels_is_refused(name):
    other = {key: value for key, value in SDXL.items() if key != name}
    with pytest.raises(ConfigError, match=f"must state {name}, but its EDMEulerScheduler does not"):
        alphas_cumprod(other | {"_class_name": "EDMEulerScheduler"})


def test_schedules_that_touch_never_cross_by_rounding():
    low = PiecewiseLinear((0.0, 0.37, 1.0, 0.72))
    high = PiecewiseLinear((0.0, 0.37, 0.5, 0.5449999999999999, 1.0, 0.72))
    check_timestep_range(low, high)
    for step in range(101):
        levels = low(step / 100), high(step / 100)
        assert sample_timesteps(1, *levels, train_steps=1000, generator=torch.Generator()).item() >= 0


def test_add_noise_to_zero_gives_the_noise_level():
    # The level must grow with t: samplers' own add_noise has been seen to reverse it.
    signal = alphas_cumprod(SDXL)
    t = torch.tensor([0, 20, 500, 999])
    shape = (4, 4, 2, 2)
    noisy = add_noise(torch.zeros(shape), torch.ones(shape), signal[t])
    expected = (1 - signal[t]).sqrt()[:, None, None, None].expand(shape)
    torch.testing.assert_close(noisy, expected)
    torch.testing.assert_close(noisy[1, 0, 0, 0].item(), 0.137, rtol=0.02, atol=0)


def test_add_noise_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 3, 4, 64, 64), generator=generator)
    noisy = add_noise(latents, noise, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(noisy.flatten(1).var(dim=1), torch.ones(3), rtol=0.05, atol=0)


def test_piecewise_linear_meets_its_knots_and_is_constant_outside():
    schedule = PiecewiseLinear((0.2, 0.9, 0.6, 0.5))
    found = [schedule(progress) for progress in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([0.9, 0.9, 0.7, 0.5, 0.5])
    assert PiecewiseLinear((0.3,))(0.7) == 0.3


@given(
    knots=st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True).map(sorted),
    values=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    progress=st.floats(0, 1),
)
def test_piecewise_linear_never_leaves_the_range_of_its_values(knots, values, progress):
    flat = tuple(number for pair in zip(knots, values, strict=False) for number in pair)
    schedule = PiecewiseLinear(flat)
    assert min(schedule.values) - 1e-9 <= schedule(progress) <= max(schedule.values) + 1e-9


@pytest.mark.parametrize(
    "knots", [(), (0.0, 1.0, 0.5), (0.5, 1.0, 0.5, 2.0), (0.0, 1.0, 2.0, 1.0), (float("nan"),)]
)
def test_malformed_schedule_is_refused(knots):
    with pytest.raises(ValueError, match="schedule"):
        PiecewiseLinear(knots)


def test_timestep_range_that_crosses_is_refused():
    with pytest.raises(ValueError, match=r"t_min must not exceed t_max, got 0.5 > 0.4 at progress 1.0"):
        check_timestep_range(PiecewiseLinear((0.5,)), PiecewiseLinear((0.0, 0.98, 1.0, 0.4)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        check_timestep_range(PiecewiseLinear((0.1,)), PiecewiseLinear((1.5,)))


def test_timesteps_reach_both_ends_and_repeat_with_the_generator():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    steps = sample_timesteps(4000, 0.02, 0.03, train_steps=1000, generator=generator)
    assert (steps.min().item(), steps.max().item()) == (20, 30)
    generator.set_state(state)
    assert torch.equal(steps, sample_timesteps(4000, 0.02, 0.03, train_steps=1000, generator=generator))
    assert sample_timesteps(64, 0.9, 1.0, train_steps=10, generator=generator).max().item() == 9


def test_velocity_of_known_noise_gives_that_noise():
    clean, noise = torch.randn(
        (2, 3, 4, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    signal = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    a, s = signal.sqrt()[:, None, None, None], (1 - signal).sqrt()[:, None, None, None]
    noisy = a * clean + s * noise
    torch.testing.assert_close(epsilon_from_velocity(velocity(clean, noise, signal), noisy, signal), noise)


def test_ddim_step_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    noisy, noise = torch.randn((2, 1, 4, 8, 8), generator=generator)
    for level in (900, 100, 0):
        expected = scheduler.step(noise, level, noisy).prev_sample
        signal = scheduler.alphas_cumprod[level]
        lower = scheduler.alphas_cumprod[level - 100] if level else torch.tensor(1.0)
        torch.testing.assert_close(ddim_step(noisy, noise, signal[None], lower[None]), expected)
