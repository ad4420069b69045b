"""Where a run is, its random numbers, and the part of the views that a process computes."""

from itertools import pairwise

import pytest
import torch
from fakes import FlatColor, PullTowardColor
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.shard import Shard
from pgc3d.types import Step


def draw(step, name="noise"):
    return torch.randn(8, generator=step.generator(name)).tolist()


@given(batch=st.integers(0, 40), size=st.integers(1, 9))
def test_shards_cover_each_row_once_and_in_order(batch, size):
    parts = [list(range(batch))[Shard(rank, size).rows(batch)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(batch))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_computes_everything():
    assert list(range(7))[Shard().rows(7)] == list(range(7))


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0), (3, 2)])
def test_a_shard_lies_among_the_others(rank, size):
    with pytest.raises(ValueError, match=rf"rank must lie in \[0, {size}\), got {rank}"):
        Shard(rank, size)


@given(st.integers(2, 500))
def test_progress_runs_evenly_from_zero_to_one(total):
    progress = [Step(index, total).progress for index in range(total)]
    assert progress[0] == 0.0
    assert progress[-1] == 1.0
    assert all(0 < later - earlier < 1.5 / (total - 1) for earlier, later in pairwise(progress))


def test_a_run_of_one_step_is_at_its_beginning():
    assert Step(0, 1).progress == 0.0


def test_equal_steps_draw_equal_numbers_whatever_was_drawn_before():
    step = Step(3, 10, seed=5, stage="fine", scope="color")
    first = draw(step)
    draw(step, "cameras")
    torch.randn(100)
    assert draw(step) == first
    assert draw(Step(3, 10, seed=5, stage="fine", scope="color")) == first


def test_a_longer_run_and_another_process_draw_the_same_numbers():
    """So that a run can be continued beyond its end, and each process draws for all views."""
    assert draw(Step(3, 10)) == draw(Step(3, 20)) == draw(Step(3, 10, shard=Shard(1, 2)))


def test_every_index_seed_stage_scope_and_use_has_numbers_of_its_own():
    variants = [Step(index, 10, seed=seed, stage=stage, scope=scope)
                for index in (0, 1, 12) for seed in (0, 1, 2) for stage in ("main", "fine")
                for scope in ("", "color", "normal")]  # fmt: skip
    numbers = [tuple(draw(step, name)) for step in variants for name in ("noise", "cameras")]
    assert len(set(numbers)) == len(numbers)
    values = torch.tensor(numbers).flatten()
    assert abs(values.mean()) < 4 / len(values) ** 0.5  # as independent ones


def test_names_do_not_run_together():
    """Seed 1 and index 11 are not seed 11 and index 1, nor is a scope part of a stage."""
    assert draw(Step(11, 20, seed=1)) != draw(Step(1, 20, seed=11))
    assert draw(Step(0, 2, stage="a", scope="b")) != draw(Step(0, 2, stage="ab", scope=""))
    assert draw(Step(0, 2, stage="a", scope="b/c")) != draw(Step(0, 2, stage="a/b", scope="c"))


def test_within_changes_the_scope_alone():
    step = Step(4, 9, seed=2, stage="fine", shard=Shard(1, 3))
    assert step.within("color") == Step(4, 9, seed=2, stage="fine", scope="color", shard=Shard(1, 3))


def test_two_objectives_of_a_step_draw_different_numbers():
    cameras, images = [], {}

    def sample(step):
        cameras.append(sample_orbit(2, OrbitConfig(), step.generator("cameras")))
        return cameras[-1]

    class Keep(PullTowardColor):
        def __call__(self, image, rendering, views, step):
            output = super().__call__(image, rendering, views, step)
            images[step.scope] = output.gradient
            return output

    asset = FlatColor()
    asset.parameter_store().use_adam()
    objectives = {
        name: Objective(sample, Keep(noise=1.0), lambda gradient: gradient, ((1.0, 1.0, 1.0),))
        for name in ("color", "normal")
    }
    optimization_step(Problem(asset, objectives), Step(0, 10), resolution=4)
    first, second = cameras
    assert not torch.equal(first.azimuth, second.azimuth)
    assert set(images) == {"color", "normal"}
    assert not torch.equal(images["color"], images["normal"])


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
def test_objectives_take_turns_and_every_row_is_still_covered_once(batch, size):
    counts = torch.zeros(size, dtype=torch.int64)
    for turn in range(size):
        parts = [Shard(rank, size, turn=turn).rows(batch) for rank in range(size)]
        rows = sorted(row for part in parts for row in range(batch)[part])
        assert rows == list(range(batch))
        assert max(part.stop - part.start for part in parts) == Shard(0, size).largest(batch)
        counts += torch.tensor([part.stop - part.start for part in parts])
    assert counts.tolist() == [batch] * size  # of as many objectives as processes, each has the same share


@pytest.mark.parametrize("pixels", [1, 9])
def test_random_numbers_of_a_view_do_not_depend_on_the_number_of_processes(pixels):
    def drawn(shard, own):
        total, rows = Step(4, 9, scope="color", shard=shard, views=5).rows(own * pixels)
        return torch.randn(total, generator=Step(4, 9).generator("noise"))[rows]

    expected = drawn(Shard(), 5)
    for size in (2, 3):
        shards = [Shard(rank, size, turn=1) for rank in range(size)]
        parts = [(shard.rows(5), shard) for shard in shards]
        ordered = sorted(parts, key=lambda item: item[0].start)
        found = [drawn(shard, part.stop - part.start) for part, shard in ordered]
        assert torch.equal(torch.cat(found), expected)
