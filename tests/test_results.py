"""Intervals cover what they claim, differences are paired, and JSON keeps every value."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.errors import InputError
from pgc3d.evaluation.results import (
    Record,
    bootstrap,
    from_json,
    interval,
    read_results,
    summarize,
    table,
    to_json,
    write_results,
)


def records(method, values, metric="chamfer"):
    """One record for each object and seed."""
    return [
        Record(method, f"object{k}", seed, {metric: value})
        for k, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
    ]


values = st.floats(allow_nan=False, width=64) | st.just(math.nan)


@given(st.dictionaries(st.text(), values), st.text(), st.integers(0, 2**31))
def test_json_keeps_a_record(metrics, error, seed):
    record = Record("m", "i", seed, metrics, error, "k")
    found = from_json(json.loads(json.dumps(to_json(record), allow_nan=False)))
    assert found.metrics.keys() == metrics.keys()
    np.testing.assert_array_equal(list(found.metrics.values()), list(metrics.values()))
    assert (found.error, found.seed, found.key) == (error, seed, "k")


def test_files_hold_the_records(tmp_path):
    path, written = tmp_path / "results.json", records("a", [[1.0, math.inf], [2.0]])
    write_results(path, written, {"views": 3})
    assert read_results(path) == written
    assert json.loads(path.read_text())["protocol"] == {"views": 3}
    path.write_text('{"records": [{"method": "a"}]}')
    with pytest.raises(InputError, match="must hold its fields"):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="must be the results"):
        read_results(path)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """30 objects and 3 seeds; 200 repetitions, 5 deviations of the binomial below 95 % less 3 % of bias."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        objects = 0.5 + generator.normal(size=(30, 1)) + 0.5 * generator.normal(size=(30, 3))
        low, high = interval(bootstrap([list(objects)], resamples=500)[:, 0])
        covered += low <= 0.5 <= high
    assert covered / 200 > 0.92 - 5 * math.sqrt(0.92 * 0.08 / 200)
    assert covered < 200


def test_bootstrap_means_have_the_right_moments():
    """Objects with one seed: the variance of the mean is the population's over n."""
    data = np.arange(20.0)
    means = bootstrap([[np.array([value]) for value in data]], resamples=20_000)[:, 0]
    assert means.mean() == pytest.approx(data.mean(), abs=0.05)
    assert means.var() == pytest.approx(data.var() / 20, rel=0.05)


def test_an_object_counts_once_however_many_seeds_it_has():
    many = [np.zeros(50), np.ones(1)]
    means = bootstrap([many], resamples=20_000)[:, 0]
    assert means.mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(means)) == {0.0, 0.5, 1.0}


def test_seeds_widen_the_interval():
    tight, wide = ([np.array([k - spread, k + spread]) for k in range(10)] for spread in (0.0, 3.0))
    assert np.ptp(interval(bootstrap([wide])[:, 0])) > np.ptp(interval(bootstrap([tight])[:, 0]))


def test_one_object_has_no_interval():
    found = table(records("a", [[1.0]]) + records("b", [[1.5]]), "own")
    assert "| 1 | 1.5 | +0.5 |" in found
    assert "*" not in found


def test_differences_are_paired():
    """Objects differ a lot, methods by little but always: only a paired interval sees it."""
    spread = np.linspace(0, 10, 20)
    found = records("a", [[value] for value in spread]) + records("b", [[v + 0.1] for v in spread])
    summary = summarize(found)
    assert summary["a"]["chamfer"]["high"] > summary["b"]["chamfer"]["low"]
    assert "+0.1 [+0.1, +0.1] *" in table(found, "own")


def test_infinite_and_missing_values_are_told():
    found = [*records("a", [[math.inf], [30.0]], "psnr"), Record("a", "object2", 0, error="no mesh")]
    summary = summarize(found)["a"]
    assert summary["psnr"]["mean"] == "inf"
    assert (summary["psnr"]["objects"], summary["failed"]) == (2, 1)
    text = table(found + records("b", [[20.0], [25.0]], "psnr"), "own")
    assert "| psnr ↑ | inf [30, inf] | 22.5 [20, 25] | - |" in text
    assert "| 2 / 1 | 2 / 0 |" in text


def test_arrows_say_which_way_is_better():
    metrics = {"psnr": 1.0, "visible_f_score_0.1": 1.0, "volume_iou": 1.0, "r_precision": 1.0}
    metrics |= {"chamfer": 1.0, "vae_distance": 1.0, "normal_degrees": 1.0, "rotation_degrees": 1.0}
    lines = table([Record("a", "x", 0, metrics)], "own").splitlines()[2:-1]
    assert [line.split(" |")[0][-1] for line in lines] == ["↑"] * 4 + ["↓"] * 3 + ["s"]
