"""Checkpoints that do not fit, and rates that are the configuration's."""

import dataclasses
import json

import pytest
import torch
from sessions import Gone, built, finish, no_preview, raise_at, session, stop_at  # noqa: F401 - fixtures

from pgc3d.checkpoint import pack, unpack
from pgc3d.errors import RunDirectoryError


def changed(tensors, name, change):
    tensors = dict(tensors)
    value = tensors.pop(name)
    return tensors if change is None else tensors | {name: change(value)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("representation.color", lambda t: t * float("nan")),
        ("representation.color", lambda t: t.double()),
        ("representation.color", lambda t: t[:2]),
        ("representation.color", None),
        ("optimizer.color.0.exp_avg", lambda t: t[:1]),
        ("optimizer.color.0.exp_avg_sq", lambda t: t * float("inf")),
        ("optimizer.color.0.step", lambda t: t.expand(3)),
        ("optimizer.color.0.step", None),
        ("state.clip.color.total", lambda t: torch.zeros(7)),
    ],
)
def test_a_checkpoint_of_other_tensors_is_one_line(session, name, change):
    parts = built()
    session.on_event = stop_at(session, 3)
    session.optimize("main", parts, None, no_preview)
    found = session.run.load_checkpoint("main")
    other = dataclasses.replace(found, tensors=changed(found.tensors, name, change))
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(other, built())


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.color.7.step",
        "optimizer.color.x.step",
        "optimizer.color.-9.step",
        "optimizer.sdf.0.step",
        "optimizer.color.scale",
        "optimizer.step",
        "representation.more",
    ],
)
def test_a_checkpoint_with_more_tensors_is_one_line(session, name):
    found = pack(built(), 3)
    more = dataclasses.replace(found, tensors={**found.tensors, name: torch.zeros(3)})
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(more, built())


def test_a_checkpoint_of_other_parameters_is_one_line(session):
    parts = built()
    session.on_event = stop_at(session, 3)
    session.optimize("main", parts, None, no_preview)
    found = session.run.load_checkpoint("main")
    tensors = {name.replace("optimizer.color", "optimizer.sdf"): t for name, t in found.tensors.items()}
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(dataclasses.replace(found, tensors=tensors), built())


@pytest.mark.parametrize("values", [{}, {"param_groups": [{"lr": float("nan")}]}])
def test_learning_rates_are_the_configurations(values):
    """Those in records are not looked at."""
    found = dataclasses.replace(pack(built(), 3), values=values)
    parts = built()
    unpack(found, parts)
    assert parts.problem.representation.parameter_store().optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Gone()], ids=lambda e: type(e).__name__)
def test_a_step_whose_report_raises_has_its_metrics_written(session, error):
    session.on_event = raise_at(8, error)
    with pytest.raises(type(error)):
        session.optimize("main", built(), None, no_preview)
    finish(session, built(seed=99))
    lines = (session.run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
