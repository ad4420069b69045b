"""A run's views divided over processes: the result is that of one process, and they decide alike."""

import json
from functools import cache

import process_laws as laws
import pytest
import torch
from meshes import write_cube
from tiny import _script, write_tiny_controlnet, write_tiny_sdxl

from pgc3d.inputs.mesh import prepare_mesh_file, save_prepared
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.run_directory import RunDirectory

RULES = ("none", "pixel", "l2=0.05", "channel", "pngd", "global", "adaptive=0.7", "relative=1.5")
CLOSE = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}


@pytest.fixture(scope="module")
def group():
    group = _script("process_group").ProcessGroup(2)
    yield group
    group.close()


@pytest.fixture(scope="module")
def three():
    group = _script("process_group").ProcessGroup(3)
    yield group
    group.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    write_tiny_controlnet(folder / "control", write_tiny_sdxl(folder / "model"))
    write_cube(folder / "cube.glb")
    prepared = prepare_mesh_file(
        folder / "cube.glb", up="+y", front="auto", crease_degrees=40.0, texture_size=64,
        rasterizer=CpuRasterizer(),
    )  # fmt: skip
    save_prepared(folder / "mesh.safetensors", prepared)
    return folder


def require_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def alone(group, folder):
    """The parameters of a case before and after the steps of one process, and its measurements."""

    @cache
    def of(case):
        [before] = group.call(1, laws.start, case, folder)
        [(after, _, metrics)] = group.call(1, laws.take_steps, case, folder)
        return before, after, metrics

    return of


def require_the_result_of_one_process(group, size, folder, case, alone):
    before, expected, metrics = alone(case)
    trained = [name for name in before if ".mlp." in name or ".image" in name]
    assert max((expected[name] - before[name]).abs().max() for name in trained) > 3e-4
    answers = group.call(size, laws.take_steps, case, folder)
    for tensors, marks, measured in answers:
        assert marks == answers[0][1]  # after every step, to the last bit
        require_close(tensors, expected)
        assert names(measured) == names(metrics)


def names(metrics):
    return {name for name in metrics if not name.startswith("seconds/")}


def slow_but(fast):
    """All cases, of which one is fast."""
    return [case if case == fast else pytest.param(case, marks=pytest.mark.slow) for case in laws.CASES]


@pytest.mark.parametrize("case", slow_but("short"))
def test_parameters_after_all_steps_are_those_of_one_process(group, folder, case, alone):
    require_the_result_of_one_process(group, 2, folder, case, alone)


@pytest.mark.slow
@pytest.mark.parametrize("case", laws.CASES)
def test_parameters_of_three_processes_are_those_of_one(three, folder, case, alone):
    require_the_result_of_one_process(three, 3, folder, case, alone)


@pytest.mark.parametrize("case", slow_but("short"))
def test_processes_with_adam_have_the_same_parameters_to_the_last_bit(group, folder, case):
    answers = group.call(2, laws.with_adam, case, folder)
    assert len(answers[0][1]) == laws.steps_of(case)
    for tensors, marks, _ in answers:
        assert marks == answers[0][1]
        for name, value in answers[0][0].items():
            torch.testing.assert_close(tensors[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_initial_views_are_those_of_one_process_in_all_of_them(group, folder, tmp_path):
    """The first process computes them, the others receive its parameters, and have no ControlNet."""
    [(before, _), (expected, notes)] = [
        group.call(1, law, folder, tmp_path / name)[0]
        for name, law in (("without", laws.no_initial_views), ("one", laws.initial_views))
    ]
    assert notes == ["initial views: 2, sampled together on the surface in 3 steps"]
    assert any(not torch.equal(before[name], value) for name, value in expected.items())
    for tensors, _ in group.call(2, laws.initial_views, folder, tmp_path / "two"):
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(tensors[name], value), name


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_clips_the_views_of_all_processes_as_those_of_one(group, rule):
    generator = torch.Generator().manual_seed(1)
    gradients = [
        scale * torch.randn(batch, 40, 40, 3, generator=generator)
        for batch, scale in ((5, 1.0), (1, 4.0), (2, 0.1), (80, 1.0), (4, 0.0))
    ]
    gradients[0][2, :8] = torch.nan
    [expected] = group.call(1, laws.clip, rule, gradients)
    assert rule == "none" or not torch.equal(expected[1], gradients[1])
    for found in group.call(2, laws.clip, rule, gradients):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def require_continued(group, size, folder, alone, case):
    _, expected, _ = alone(case)
    (half, _, _), _ = group.call(2, laws.first_half, case, folder)
    for tensors, _, _ in group.call(size, laws.second_half, case, folder, half):
        require_close(tensors, expected)


@pytest.mark.parametrize("case", slow_but("short"))
def test_a_checkpoint_of_two_processes_is_continued_by_one(group, folder, alone, case):
    require_continued(group, 1, folder, alone, case)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_continued_by_three(three, folder, alone):
    require_continued(three, 3, folder, alone, "mesh")


def checkpoint(folder):
    return RunDirectory(folder).load_checkpoint("main")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_any_process_stops_all_after_the_same_step_with_one_checkpoint(group, tmp_path, rank):
    answers = group.call(2, laws.session, tmp_path / "run", 3, None, laws.Signal(rank, 7, 15))
    assert [answer["stopped_by"] for answer in answers] == [15, 15]
    assert torch.equal(answers[0]["color"], answers[1]["color"])
    assert checkpoint(tmp_path / "run").step == 7
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped by signal 15"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_take_back_a_step_in_which_one_runs_out_of_memory(group, tmp_path, rank):
    expected, _ = group.call(2, laws.session, tmp_path / "whole", 8, laws.Bounded(-1, 1, 1))
    answers = group.call(2, laws.session, tmp_path / "run", 8, laws.Bounded(rank, 5, 1))
    for answer in answers:
        assert answer["error"] is None
        assert answer["micro_batch"] == 1
        assert [entry["micro_batch"] for entry in answer["out_of_memory"]] == [2, 1]
        torch.testing.assert_close(answer["color"], expected["color"], rtol=0, atol=0)
    assert answers[0]["told"] == [
        f"out of memory in step 5: saved, continuing with {views} views at a time" for views in (2, 1)
    ]


def test_a_run_that_does_not_fit_one_process_ends_in_all_with_the_last_good_state(group, tmp_path):
    answers = group.call(2, laws.session, tmp_path / "run", 4, laws.Bounded(1, 3, 0))
    assert [answer["error"][0] for answer in answers] == ["OutOfMemoryError"] * 2
    assert checkpoint(tmp_path / "run").step == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_is_told_by_the_first(group, tmp_path, rank):
    fault = laws.Faulty(rank, 6, laws.DivergedError("the shape must stay closed, but is not; stop"))
    answers = group.call(2, laws.session, tmp_path / "run", 2, fault)
    own, other = answers[rank]["error"], answers[1 - rank]["error"]
    assert own == ("DivergedError", "the shape must stay closed, but is not; stop")
    assert other == ("ProcessError", f"process {rank} of 2: the shape must stay closed, but is not; stop")
    assert checkpoint(tmp_path / "run").step == 5


def test_a_fault_of_the_program_in_another_process_is_shown_with_its_traceback(group, tmp_path):
    answers = group.call(2, laws.session, tmp_path / "run", 2, laws.Faulty(1, 3, RuntimeError("shape")))
    assert answers[0]["error"] == ("RuntimeError", "process 1 of 2 failed:")
    assert answers[1]["error"] == ("RuntimeError", "shape")
