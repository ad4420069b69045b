from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes import FlatColor, PullTowardColor

from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.errors import DivergedError
from pgc3d.optimize import Objective, Problem, optimization_step, optimize
from pgc3d.pgc import NoClip, PixelClip
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Step

GREY = ((0.5, 0.5, 0.5),)
FIRST = Step(index=0, total=10)


def identity(gradient):
    return gradient


def sampler(step, batch=2):
    return sample_orbit(batch, OrbitConfig(), step.generator("cameras"))


def objective(guidance, **settings):
    settings = {"sample_cameras": sampler, "clip": identity, "backgrounds": GREY} | settings
    return Objective(guidance=guidance, **settings)


def problem(asset, objectives, **settings):
    asset.parameter_store().use_adam()
    return Problem(representation=asset, objectives=objectives, **settings)


def step(asset, objectives, *, percentiles=False, **settings):
    return optimization_step(
        problem(asset, objectives, **settings), FIRST, resolution=4, percentiles=percentiles
    )


def run(asset, guidance, *, steps=20, resolution_at=lambda progress: 4, **settings):
    task = problem(asset, {"color": objective(guidance)})
    return list(optimize(task, steps=steps, resolution_at=resolution_at, **settings))


def test_parameter_gradient_is_the_image_gradient_through_the_renderer():
    asset = FlatColor()
    step(asset, {"color": objective(PullTowardColor())})
    pixels = 2 * 4 * 4
    expected = pixels * (torch.tensor([0.5, 0.5, 0.5]) - torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(asset.color.grad, expected)


def test_weights_and_objectives_add_up():
    asset = FlatColor()
    step(
        asset,
        {
            "a": objective(PullTowardColor(), weight=PiecewiseLinear((2.0,))),
            "b": objective(PullTowardColor(), weight=PiecewiseLinear((0.5,))),
        },
    )
    expected = 2.5 * 32 * (torch.tensor([0.5, 0.5, 0.5]) - torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(asset.color.grad, expected)


def test_a_weight_counts_for_other_buffers_too():
    class WithNormals(PullTowardColor):
        def __call__(self, *inputs):
            output = super().__call__(*inputs)
            return replace(output, buffers={"normal": 2.0 * output.gradient})

    asset = FlatColor()
    step(asset, {"a": objective(WithNormals(), weight=PiecewiseLinear((0.5,)))})
    expected = 0.5 * 3.0 * 32 * (torch.tensor([0.5, 0.5, 0.5]) - torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(asset.color.grad, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_regularisers_weigh_the_same_for_any_number_of_objectives(count):
    asset = FlatColor(decay=2.0)
    silent = {str(index): objective(PullTowardColor(color=(0.5, 0.5, 0.5))) for index in range(count)}
    step(asset, silent)
    torch.testing.assert_close(asset.color.grad, torch.tensor([2.0, 2.0, 2.0]))


def test_clip_stands_between_guidance_and_renderer():
    asset = FlatColor()
    clip = partial(torch.clamp, min=-0.1, max=0.1)
    output = step(asset, {"color": objective(PullTowardColor(), clip=clip)}, percentiles=True)
    torch.testing.assert_close(asset.color.grad, 32 * torch.tensor([-0.1, 0.1, 0.1]))
    torch.testing.assert_close(output.metrics["color/clipped_fraction"], torch.tensor(1.0))
    torch.testing.assert_close(output.metrics["color/gradient_p99"], torch.tensor(0.5))


def test_guidance_gets_an_image_without_a_graph():
    guidance = PullTowardColor()
    step(FlatColor(), {"color": objective(guidance)})
    assert guidance.seen[0]["requires_grad"] is False


def test_every_view_draws_one_of_the_backgrounds():
    guidance = PullTowardColor()
    colors = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    batch = partial(sampler, batch=64)
    step(FlatColor(), {"color": objective(guidance, sample_cameras=batch, backgrounds=colors)})
    drawn = {tuple(row) for row in guidance.seen[0]["background"].tolist()}
    assert drawn == set(colors)


def test_loop_reaches_the_colour_that_is_asked_for():
    asset = FlatColor()
    reports = run(asset, PullTowardColor(), steps=80)
    torch.testing.assert_close(asset.color.data, torch.tensor([1.0, 0.0, 0.0]), atol=0.03, rtol=0)
    assert [report.step for report in reports] == list(range(1, 81))


def test_metrics_come_at_the_log_interval_only():
    reports = run(FlatColor(), PullTowardColor(), steps=25, log_every=10)
    assert [report.step for report in reports if report.metrics] == [10, 20, 25]
    metrics = reports[-1].metrics
    parts = {"seconds/render", "seconds/guidance", "seconds/backward", "seconds/optimizer"}
    assert parts <= set(metrics)
    assert {"color/loss", "regularizers/size", "color/gradient_p50", "color/gradient_max"} <= set(metrics)


def test_progress_runs_from_zero_to_one_and_picks_the_resolution():
    asset, guidance = FlatColor(), PullTowardColor()
    run(asset, guidance, steps=5, resolution_at=lambda progress: 2 if progress < 0.6 else 8)
    assert [seen["progress"] for seen in guidance.seen] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert asset.resolutions == [2, 2, 2, 8, 8]


def test_learning_rates_follow_their_schedule():
    asset = FlatColor()
    task = problem(asset, {"color": objective(PullTowardColor())}, lr_scale=lambda progress: 1.0 - progress)
    optimizer = asset.parameter_store().optimizer
    first, rates = optimizer.param_groups[0]["lr"], []
    for _ in optimize(task, steps=3, resolution_at=lambda progress: 4):
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([first, 0.5 * first, 0.0])


def test_non_finite_step_changes_nothing_and_is_counted():
    broken, whole = FlatColor(), FlatColor()
    reports = run(broken, PullTowardColor(broken=frozenset({1, 3})), steps=6)
    run(whole, PullTowardColor(), steps=4)
    torch.testing.assert_close(broken.color, whole.color, rtol=0, atol=0)
    assert reports[-1].metrics["skipped_steps"] == 2


def test_image_without_a_finite_pixel_is_skipped_though_clipping_zeroes_it():
    asset = FlatColor()
    task = problem(asset, {"color": objective(PullTowardColor(broken=frozenset({0})), clip=NoClip().build())})
    output = optimization_step(task, FIRST, resolution=4)
    assert not output.finite
    torch.testing.assert_close(asset.color.data, torch.tensor([0.5, 0.5, 0.5]))


def test_many_non_finite_steps_stop_the_run_at_the_last_good_state():
    asset, whole = FlatColor(), FlatColor()
    with pytest.raises(DivergedError, match="gradients must be finite"):
        run(asset, PullTowardColor(broken=frozenset(range(5, 100))), steps=100, max_skipped=8)
    run(whole, PullTowardColor(), steps=5)
    torch.testing.assert_close(asset.color, whole.color, rtol=0, atol=0)


def test_good_step_resets_the_count_of_skipped_steps():
    broken = frozenset(step for step in range(30) if step % 3)
    reports = run(FlatColor(), PullTowardColor(broken=broken), steps=30, max_skipped=3)
    assert reports[-1].metrics["skipped_steps"] == len(broken)


def test_whole_parameters_are_clipped_after_all_objectives():
    asset = FlatColor()

    def halve(tensors):
        for tensor in tensors:
            tensor.grad.mul_(0.5)

    step(asset, {"a": objective(PullTowardColor()), "b": objective(PullTowardColor())}, clip_parameters=halve)
    torch.testing.assert_close(asset.color.grad, 32 * torch.tensor([-0.5, 0.5, 0.5]))


def test_interrupted_loop_ends_like_an_uninterrupted_one():
    asset, other = FlatColor(), FlatColor()
    run(asset, PullTowardColor(noise=0.1), steps=12)
    task = problem(other, {"color": objective(PullTowardColor(noise=0.1))})
    for report in optimize(task, steps=12, resolution_at=lambda progress: 4):
        if report.step == 5:
            break
    list(optimize(task, start=5, steps=12, resolution_at=lambda progress: 4))
    torch.testing.assert_close(asset.color, other.color, rtol=0, atol=0)


def test_each_step_is_begun_and_ended_once_for_any_number_of_objectives():
    asset = FlatColor()
    task = problem(asset, {name: objective(PullTowardColor()) for name in "abc"})
    list(optimize(task, steps=4, resolution_at=lambda progress: 4))
    assert asset.begun == asset.ended == [0, 1, 2, 3]


@pytest.mark.parametrize("rendered", [8, 16, 32])
def test_a_threshold_means_the_same_at_every_resolution_of_the_rendering(rendered):
    guidance = PullTowardColor(side=32)
    asset = FlatColor()
    task = problem(asset, {"a": objective(guidance, clip=PixelClip(threshold=0.1).build())})
    output = optimization_step(task, FIRST, resolution=rendered)
    torch.testing.assert_close(asset.color.grad, 2 * 32**2 * torch.tensor([-0.1, 0.1, 0.1]))
    torch.testing.assert_close(output.metrics["a/clipped_fraction"], torch.tensor(1.0))


class HalfVisible(FlatColor):
    """The left half of every image shows the object."""

    def render(self, views, resolution, step):
        rendering = super().render(views, resolution, step)
        alpha = rendering.alpha.clone()
        alpha[:, :, resolution // 2 :] = 0.0
        background = rendering.background[:, None, None]
        return replace(rendering, alpha=alpha, color=torch.where(alpha > 0, rendering.color, background))


def test_only_pixels_of_the_object_are_clipped_and_counted():
    far = PullTowardColor(color=(0.9, 0.9, 0.9))  # the background is black, the object nearly there
    asset = HalfVisible(color=(0.89, 0.89, 0.89))
    clip = PixelClip(threshold=0.1).build()
    settings = {"clip": clip, "backgrounds": ((0.0, 0.0, 0.0),)}
    task = problem(asset, {"a": objective(far, **settings)})
    output = optimization_step(task, FIRST, resolution=16, percentiles=True)
    # of the background only the column along the silhouette counts: 1 of 9
    torch.testing.assert_close(output.metrics["a/clipped_fraction"], torch.tensor(1 / 9))
    torch.testing.assert_close(output.metrics["a/gradient_p50"], torch.tensor(0.01), atol=1e-4, rtol=0)


def test_weight_and_threshold_follow_their_schedules():
    """With a gradient of length 1 everywhere, weight * min(1, scale * c) arrives."""
    halves = PiecewiseLinear((0.0, 1.0, 1.0, 0.5))
    for index, expected in ((0, 1.0 * 0.5), (10, 0.5 * 0.25)):
        asset = FlatColor()
        pulled = objective(
            PullTowardColor(color=(-0.5, -0.5, -0.5)),
            clip=PixelClip(threshold=0.5).build(),
            weight=halves,
            threshold_scale=halves,
        )
        task = problem(asset, {"a": pulled})
        optimization_step(task, Step(index=index, total=11, seed=0), resolution=4)
        torch.testing.assert_close(asset.color.grad, torch.full((3,), expected * 2 * 16))
