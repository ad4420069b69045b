"""Whatever is raised between steps or inside one loses no finished step."""

import dataclasses
import signal

import pytest
import torch
from fakes import PullTowardColor
from sessions import Gone, built, finish, no_preview, raise_at, session, whole  # noqa: F401 - fixtures

from pgc3d.errors import RunDirectoryError


@pytest.mark.parametrize("step", [1, 5, 7, 12])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), Gone("mine")], ids=lambda e: type(e).__name__
)
def test_whatever_a_caller_raises_between_steps_loses_none(session, whole, step, error):
    session.on_event = raise_at(step, error)
    with pytest.raises(type(error)) as raised, session.recorded():
        session.optimize("main", built(), None, no_preview)
    assert raised.value is error
    assert session.run.load_checkpoint("main").step == step
    manifest = session.run.read_manifest()
    assert manifest["status"] == f"stopped by {type(error).__name__}"
    assert manifest["stages"]["main"]["steps"] == step
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["preview", "metrics"])
def test_an_error_while_something_is_written_loses_no_step(session, whole, monkeypatch, kind):
    def broken(*_):
        raise Gone

    if kind == "metrics":
        monkeypatch.setattr(session.run, "log_metrics", broken)
    with pytest.raises(Gone):
        session.optimize("main", built(), None, broken)
    assert session.run.load_checkpoint("main").step == {"preview": 5, "metrics": 4}[kind]
    monkeypatch.undo()
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


class Interrupted(PullTowardColor):
    """Interrupts a step in its middle, after it has drawn from its generators."""

    error: BaseException | None = None
    at = 7
    times = 1

    def __call__(self, image, rendering, cameras, progress):
        output = super().__call__(image, rendering, cameras, progress)
        if self.calls == self.at:
            if self.error is not None:
                raise self.error
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return output


def interrupted(error=None):
    parts = built()
    objective = parts.problem.objectives["color"]
    guidance = Interrupted(noise=0.3)
    guidance.error = error
    problem = dataclasses.replace(
        parts.problem, objectives={"color": dataclasses.replace(objective, guidance=guidance)}
    )
    return dataclasses.replace(parts, problem=problem), guidance


@pytest.fixture
def python_handles_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
def test_an_interrupt_waits_for_the_end_of_the_step(session, whole):
    """As from a notebook's stop button."""
    parts, guidance = interrupted()
    with pytest.raises(KeyboardInterrupt):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == guidance.at
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


@pytest.mark.usefixtures("python_handles_sigint")
def test_a_second_interrupt_waits_for_nothing(session):
    parts, guidance = interrupted()
    guidance.at, guidance.times = 3, 2
    with pytest.raises(KeyboardInterrupt):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 2


@pytest.mark.parametrize("error", [Gone(), KeyboardInterrupt(), ValueError()], ids=lambda e: type(e).__name__)
def test_an_error_inside_a_step_takes_that_step_back(session, whole, error):
    parts, guidance = interrupted(error)
    with pytest.raises(type(error)):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == guidance.at - 1
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


def test_a_step_that_had_changed_parameters_is_not_saved(session, whole):
    """It is between two states; the last checkpoint counts."""
    parts, guidance = interrupted(Gone())
    asset = parts.problem.representation
    render = asset.render

    def render_and_change(*arguments, **named):
        if guidance.calls == guidance.at - 1:
            with torch.no_grad():
                asset.color.add_(1.0)
        return render(*arguments, **named)

    asset.render = render_and_change
    with pytest.raises(Gone):
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 5
    torch.testing.assert_close(finish(session, built(seed=99)), whole, rtol=0, atol=0)


def test_the_first_error_is_told_where_saving_fails_too(session, monkeypatch, caplog):
    def full(*_):
        raise RunDirectoryError("the disk must have room")

    monkeypatch.setattr(session.run, "save_checkpoint", full)
    session.on_event = raise_at(2, Gone())
    with pytest.raises(Gone):
        session.optimize("main", built(), None, no_preview)
    assert "step 2 could not be saved: the disk must have room" in caplog.text
