"""The study of time to quality: its arms, its curves, and one small run."""

import sys

import numpy as np
import pytest
from tiny import ROOT

from pgc3d.evaluation.procedural import write_procedural_set
from pgc3d.evaluation.results import interval
from pgc3d.pgc import NoClip, PixelClip
from pgc3d.relative_clip import RelativeClip
from pgc3d.rendering.cpu import CpuRasterizer

BUDGETS = (40, 80, 160)


@pytest.fixture
def scripts(monkeypatch):
    """Import by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


def test_a_target_is_reached_between_budgets_by_their_logarithm(scripts):
    from time_summary import images_to_reach

    curve = np.array([0.0, 1.0, 3.0])
    assert images_to_reach(curve, BUDGETS, 0.5) == pytest.approx(40 * 2**0.5)
    assert images_to_reach(curve, BUDGETS, 1.0) == pytest.approx(80)
    assert images_to_reach(curve, BUDGETS, -1.0) == 40
    assert images_to_reach(curve, BUDGETS, 3.1) == float("inf")


def test_an_arm_that_is_twice_as_fast_needs_half_the_images(scripts):
    from time_summary import ratios, resampled_t90

    generator, gray = np.random.default_rng(0), np.zeros(12)
    size = generator.uniform(0.5, 1.0, (12, 1))
    slow, fast = size * [0.25, 0.5, 1.0], size * [0.5, 1.0, 1.0]
    first, second = [resampled_t90(arm, slow[:, -1], gray, BUDGETS) for arm in (slow, fast)]
    for needed in (first, second):
        low, high = interval(needed[1:])
        assert low <= needed[0] <= high
    assert ratios(first, second) == pytest.approx(2)  # in all resamples: they are of the same meshes
    assert ratios(first, first) == pytest.approx(1)
    missing = fast.copy()
    missing[3, 1] = np.nan
    assert np.isfinite(resampled_t90(missing, slow[:, -1], gray, BUDGETS)).all()
    without = fast.copy()
    without[:, 1] = np.nan  # a budget that was not run: between the others
    assert second[0] < resampled_t90(without, slow[:, -1], gray, BUDGETS)[0] < 160
    unreached = resampled_t90(slow / 4, slow[:, -1], gray, BUDGETS)
    assert np.isinf(unreached).all()
    assert np.isinf(ratios(unreached, second)).all()
    assert ratios(unreached, unreached) == pytest.approx(1)


def test_differences_are_of_the_same_meshes_and_seeds_and_of_one_variant(scripts):
    from time_summary import PAIRED, QUALITIES, summarize

    values = {"none": 0.5, "0.1": 0.625, "none+rate=2": 0.25, "0.1+rate=2": 0.5}
    lines = [
        {"item": item, "arm": arm, "images": images, "seed": seed, "error": "",
         "metrics": dict.fromkeys(QUALITIES, value + step + 0.1 * seed)}
        for item, step in (("chair", 0.0), ("lamp", 0.25)) for seed in range(2) for images in (40, 80)
        for arm, value in values.items()
        if (item, seed, arm) != ("lamp", 1, "0.1")  # a run that is not there yet changes nothing
    ]  # fmt: skip
    lines += [{**line, "arm": "gray", "images": 0} for line in lines if line["arm"] == "none"]
    table = summarize(lines, list(values), (40, 80)).split("## ")[-len(PAIRED)]
    assert "similarity minus that of none" in table
    assert "| 0.1 | 0.125 [0.125, 0.125] | 0.125 [0.125, 0.125] |" in table
    assert "| 0.1+rate=2 | 0.250 [0.250, 0.250] | 0.250 [0.250, 0.250] |" in table
    assert "| none+rate=2 | - | - |" in table
    table = summarize(lines, list(values), (40, 80), "none:80").split("## ")[-len(PAIRED)]
    assert "| none+rate=2 | -0.250 [-0.250, -0.250] | -0.250 [-0.250, -0.250] |" in table
    assert "| none | 0.000 [0.000, 0.000] | - |" in table


def test_arms_change_what_they_name_and_nothing_else(scripts, tmp_path):
    from time_jobs import Job, Settings, job_config

    settings = Settings(out=tmp_path, meshes={}, captions={}, device="cpu")

    def last(arm, images=80):
        return job_config(Job("chair", arm, images, 3), settings).last

    base = last("0.1")
    assert (base.steps, base.objectives["color"].clip) == (40, PixelClip(threshold=0.1))
    assert last("none").objectives["color"].clip == NoClip()
    assert last("relative=2").objectives["color"].clip == RelativeClip(factor=2.0)
    faster = last("0.1+rate=2").optimizer.lr_scale
    assert faster[1::2] == pytest.approx([2 * rate for rate in base.optimizer.lr_scale[1::2]])
    assert faster[::2] == base.optimizer.lr_scale[::2]
    level = last("0.1+level").objectives["color"].guidance
    assert level.t_min == level.t_max
    assert last("none+csd+views=4").objectives["color"].guidance.formula.kind == "csd"
    assert last("none+views=4").steps == 20
    assert last("0.1+sync").init.controls["depth"].model == "mini-depth"
    assert base.init is None
    assert last("0.1+t=0.6").objectives["color"].guidance.t_max == (0.0, 0.6, 1.0, 0.05)


@pytest.mark.parametrize(
    ("arm", "images", "message"),
    [
        ("0.1+fast", 80, "behind a rule there may be rate=F, .*, got 'fast' in '0.1\\+fast'"),
        ("nonne", 80, "a rule must be one of"),
        ("0.1", 81, "a number of images must be a multiple of the 2 of a step, got 81"),
    ],
)
def test_wrong_arms_are_refused(scripts, tmp_path, arm, images, message):
    from time_jobs import Job, Settings, job_config

    from pgc3d.errors import Pgc3dError

    with pytest.raises(Pgc3dError, match=message):
        job_config(Job("chair", arm, images, 0), Settings(out=tmp_path, meshes={}, captions={}, device="cpu"))


@pytest.mark.scripts
def test_a_small_study_runs_goes_on_and_is_summed_up(scripts, tmp_path, monkeypatch, capsys):
    import study_time

    items = write_procedural_set(tmp_path / "benchmark", rasterizer=CpuRasterizer())
    command = [
        "study_time.py",
        str(items),
        str(tmp_path / "out"),
        "--arms",
        "none,relative",
        "--budgets",
        "2,4",
    ]
    command += ["--count", "1", "--seeds", "1", "--samples", "1", "--sampling-steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    study_time.main()
    assert "5 runs to do, 0 lines are there already" in capsys.readouterr().out
    study_time.main()
    printed = capsys.readouterr().out
    assert "0 runs to do, 5 lines are there already" in printed
    assert "## T90, images" in printed
    assert printed.count("| relative |") == 12
    assert len(list((tmp_path / "out" / "views").glob("*.png"))) == 4
