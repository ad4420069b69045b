"""Jobs in one process or several: the same answers, the cores shared, and an end after an error."""

import math
import os

import pytest
import torch

from pgc3d.evaluation.processes import in_processes


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_answered_under_its_key(processes):
    tasks = {f"root of {number}": (number,) for number in range(9)}
    found = list(in_processes(math.isqrt, tasks, processes=processes))
    assert len(found) == 9
    assert dict(found) == {key: math.isqrt(number) for key, (number,) in tasks.items()}
    if processes == 1:
        assert [key for key, _ in found] == list(tasks)


def test_one_process_works_as_it_is_asked():
    worked = []
    answers = in_processes(worked.append, {number: (number,) for number in range(3)}, processes=1)
    next(answers)
    assert worked == [0]


def test_processes_share_the_cores():
    (answer,) = dict(in_processes(torch.get_num_threads, {"threads": ()}, processes=2)).values()
    assert answer == max(1, (os.cpu_count() or 1) // 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_ends_the_rest(processes):
    tasks = {number: (1, number) for number in (1, 0, *range(2, 2000))}
    answered = []
    with pytest.raises(ZeroDivisionError):
        answered.extend(key for key, _ in in_processes(divmod, tasks, processes=processes))
    assert len(answered) < len(tasks) - 1
