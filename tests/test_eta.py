"""The estimate of the time that is left: exact where steps follow the plan, and robust where they do not."""

from dataclasses import dataclass, replace

import pytest
import torch
from sessions import CONFIG

from pgc3d.build.models import locate_models
from pgc3d.config import Config, ExportConfig, LoggingConfig, StageConfig, load_config, preset
from pgc3d.planning.eta import POWER, WARM_UP, Eta, export_seconds, operations_of, phases_of
from pgc3d.presets import TEXT, configure
from pgc3d.representation.nerf_config import NerfConfig

TWO = StageConfig(steps=100, resolution=(32, 64), resolution_until=(0.6,))
LOGGING = LoggingConfig(preview_every=0)
RUN = Config(
    stages={"coarse": TWO, "fine": replace(TWO, steps=50, resolution=(128,), resolution_until=())},
    logging=LOGGING,
)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def operations(stage):
    return stage.resolution[-1] ** 2 + 500.0


def run_of(config, seconds, *, power=1.0, aside=0.0, first=0.0, guidance=None, work=operations):
    """Progress, estimate and true time left after each step of a run, whose steps take `seconds(stage)`."""
    clock, found = Clock(), []
    device = "cuda" if power == 1.0 else "cpu"
    eta = Eta(config, work, device=device, clock=clock)
    for name, stage in config.stages.items():
        eta.begin(name, 0)
        for step in range(1, stage.steps + 1):
            side = stage.resolution_at((step - 1) / max(stage.steps - 1, 1))
            bare = replace(stage, resolution=(side,), resolution_until=())
            clock.now += seconds(bare) + (first if step == 1 else 0.0)
            eta.stepped(step, None if guidance is None else guidance(bare))
            found.append((eta.progress, eta.seconds_left(), clock.now))
            if config.logging.has_preview(step, stage.steps):
                clock.now += aside
                eta.spent("preview", aside)
    end = clock.now + export_seconds(config, device)
    return [(progress, left, end - now) for progress, left, now in found]


def test_phases_are_the_resolutions_of_the_stages():
    found = [(phase.stage, phase.first, phase.last, phase.work) for phase in phases_of(RUN, operations)]
    assert found == [
        ("coarse", 1, 60, 1524.0),
        ("coarse", 61, 100, 4596.0),
        ("fine", 1, 50, 16884.0),
    ]
    pixels = [phase.work for phase in phases_of(RUN)]
    assert pixels == [4 * side**2 for side in (32, 64, 128)]


@pytest.mark.parametrize("ends", [(0.0, 0.3), (0.25, 0.25), (0.5, 1.0), (1 / 3, 2 / 3)])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_phases_are_those_of_the_steps(ends, steps):
    stage = replace(TWO, steps=steps, resolution=(32, 64, 128), resolution_until=ends)
    found = {
        number: phase.work
        for phase in phases_of(replace(RUN, stages={"main": stage}))
        for number in range(phase.first, phase.last + 1)
    }
    sides = [stage.resolution_at((number - 1) / max(steps - 1, 1)) for number in range(1, steps + 1)]
    assert found == {number: 4.0 * side**2 for number, side in enumerate(sides, 1)}


@pytest.mark.parametrize("power", POWER.values())
def test_an_estimate_is_exact_where_steps_follow_the_plan(power):
    steps = run_of(RUN, lambda stage: operations(stage) ** power, power=power)
    assert [left for _, left, _ in steps[:WARM_UP]] == [None] * WARM_UP
    for _, left, truth in steps[WARM_UP:]:
        assert left == pytest.approx(truth, rel=1e-6)


def test_guidances_and_renders_grow_apart():
    stages = RUN.stages | {"coarse": replace(TWO, representation=NerfConfig())}

    def render(stage):
        return 3.0 * stage.resolution[0] ** 2 * stage.representation.render_work()

    steps = run_of(
        replace(RUN, stages=stages), lambda stage: operations(stage) + render(stage), guidance=operations
    )
    for _, left, truth in steps[WARM_UP:]:
        assert left == pytest.approx(truth, rel=1e-6)


# Measured on one thread of a processor: seconds of a step, and of its guidance, by stage and resolution.
MEASURED = {
    "magic3d": {("coarse", 64): (0.40, 0.19), ("fine", 128): (0.25, 0.185), ("fine", 256): (0.90, 0.745)},
    "fantasia3d": {
        ("latent", 128): (0.145, 0.099), ("geometry", 128): (0.275, 0.215),
        ("appearance", 128): (0.262, 0.218), ("appearance", 256): (1.04, 0.90),
    },
    "prolificdreamer": {
        ("volume", 64): (0.65, 0.43), ("geometry", 128): (0.32, 0.229), ("texture", 256): (1.55, 1.42),
    },
    "stable-dreamfusion": {
        ("latent", 64): (0.28, 0.093), ("coarse", 64): (0.46, 0.222), ("fine", 128): (0.297, 0.217),
        ("fine", 256): (0.98, 0.813),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_of_several_stages_is_within_a_fifth(name):
    config, _ = configure(TEXT, guidance="mini", pipeline=name, overrides=["logging.preview_every=0"])
    work = operations_of(config, locate_models(config, torch.device("cpu")))
    names = {id(stage.objectives): key for key, stage in config.stages.items()}

    def measured(stage):
        return MEASURED[name][names[id(stage.objectives)], stage.resolution[-1]]

    steps = run_of(
        config,
        lambda stage: measured(stage)[0],
        guidance=lambda stage: measured(stage)[1],
        work=work,
        power=0.85,
    )
    for progress, left, truth in steps:
        if progress >= 0.1:
            assert left == pytest.approx(truth, rel=0.2), progress


def test_progress_counts_the_steps_of_all_stages():
    found = [progress for progress, _, _ in run_of(RUN, operations)]
    assert found == pytest.approx([(number + 1) / 150 for number in range(150)])


def test_what_is_compiled_in_the_first_step_does_not_count():
    steps = run_of(RUN, operations, first=1e6)
    _, left, _ = steps[20]
    _, truth, _ = run_of(RUN, operations)[20]
    assert left == pytest.approx(truth)


@pytest.mark.parametrize(("every", "from_step"), [(5, 6), (40, 11)])
def test_previews_count_once_they_were_made(every, from_step):
    config = replace(RUN, logging=replace(LOGGING, preview_every=every))
    for _, left, truth in run_of(config, operations, aside=3000.0)[from_step:]:
        assert left == pytest.approx(truth, rel=0.01, abs=3001.0)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (0, []),
        (7, [7, 14, 21, 28, 35, 39]),
        (13, [10, 13, 26, 39]),
        (35, [10, 30, 35, 39]),
        (100, [10, 30, 39]),
    ],
)
def test_a_run_has_previews_early_and_of_its_end(every, steps):
    logging = LoggingConfig(preview_every=every)
    assert [step for step in range(1, 40) if logging.has_preview(step, 39)] == steps


@pytest.mark.parametrize("every", [0, 7, 30, 50, 1000])
def test_the_previews_still_to_come_are_those_that_are_made(every):
    config = replace(RUN, logging=replace(LOGGING, preview_every=every))
    eta = Eta(config, operations, clock=Clock())
    names = list(config.stages)
    for name in names:
        steps = config.stages[name].steps
        later = [config.stages[other].steps for other in names[names.index(name) + 1 :]]
        eta.begin(name, 0)
        eta.spent("preview", 1.0)
        for step in range(1, steps + 1):
            eta.stepped(step)
            left = [(number, steps) for number in range(step + 1, steps + 1)]
            left += [(number, other) for other in later for number in range(1, other + 1)]
            made = sum(config.logging.has_preview(*pair) for pair in left)
            assert eta._periodic_seconds() == made


def test_a_phase_of_another_cost_than_planned_is_corrected_once_it_begins():
    steps = run_of(RUN, lambda stage: 1.0)
    _, left, truth = steps[100 + WARM_UP]
    assert left == pytest.approx(truth)


def test_a_run_that_continues_measures_from_its_step():
    clock = Clock()
    eta = Eta(RUN, operations, device="cuda", clock=clock)
    eta.begin("fine", 40)
    for step in (41, 42, 43):
        clock.now += 2.0
        eta.stepped(step)
    assert eta.progress == pytest.approx(143 / 150)
    assert eta.seconds_left() == pytest.approx(7 * 2.0 + export_seconds(RUN, "cuda"))


def test_an_export_takes_longer_for_more_texels():
    large = replace(CONFIG, export=ExportConfig(texture_size=4096))
    for device in ("cpu", "cuda"):
        assert export_seconds(large, device) > export_seconds(CONFIG, device) > 0


@pytest.mark.parametrize(
    ("size", "faces", "seconds"),
    [(512, 5000, 1.3), (1024, 10000, 2.6), (1024, 20000, 3.5), (2048, 20000, 6.8)],
)
def test_an_export_on_two_cores_takes_what_was_measured(size, faces, seconds):
    config = load_config([preset("mini")], options={"export": {"texture_size": size, "faces": faces}})
    assert export_seconds(config) == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize(("size", "seconds"), [(2048, 3.6), (1024, 1.8)])
def test_an_export_of_a_given_mesh_on_a_gpu_takes_what_was_measured(size, seconds):
    # `scripts/acceptance.py`, SDXL (median of eleven) and SD, H200.
    config = load_config([preset("texture-sdxl")], options={"export": {"texture_size": size}})
    assert export_seconds(config, "cuda") == pytest.approx(seconds, rel=0.2)
