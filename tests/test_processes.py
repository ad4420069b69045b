"""Jobs in one process or several: the same answers, the cores shared, and an end after an error."""

import math
import operator
import os

import pytest
import torch

from pgc3d.evaluation.processes import in_processes


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_answered_under_its_key(processes):
    """And processes share the cores."""
    tasks = {f"root of {number}": (math.isqrt, number) for number in range(9)}
    answers = in_processes(operator.call, tasks | {"threads": (torch.get_num_threads,)}, processes=processes)
    found = list(answers)
    assert len(found) == 10
    answered = dict(found)
    threads = answered.pop("threads")
    assert answered == {key: math.isqrt(number) for key, (_, number) in tasks.items()}
    if processes == 1:
        assert [key for key, _ in found] == [*tasks, "threads"]
    else:
        assert threads == max(1, (os.cpu_count() or 1) // 2)


def test_one_process_works_as_it_is_asked():
    worked = []
    answers = in_processes(worked.append, {number: (number,) for number in range(3)}, processes=1)
    next(answers)
    assert worked == [0]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_ends_the_rest(processes):
    tasks = {number: (1, number) for number in (1, 0, *range(2, 2000))}
    answered = []
    with pytest.raises(ZeroDivisionError):
        answered.extend(key for key, _ in in_processes(divmod, tasks, processes=processes))
    assert len(answered) < len(tasks) - 1
