"""What all kernels share."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from pgc3d.kernels import share_cores, use_threads


@pytest.mark.usefixtures("own_threads")
def test_threads_are_few_for_torch_and_for_numba() -> None:
    use_threads(1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)


FIRST = "import torch; torch.get_num_threads()\n"  # as every kernel of torch does at first
AFTER_USE = """
from pgc3d.kernels import use_threads
use_threads(1)
"""
AFTER_A_KERNEL = """
torch.set_num_threads(1)
import numba, numpy
from pgc3d.kernels.compiled import compiled

@compiled(parallel=True)
def total(values):
    found = 0.0
    for index in numba.prange(len(values)):
        found += values[index]
    return found

assert total(numpy.ones(10)) == 10
"""


@pytest.mark.parametrize("code", [AFTER_USE, AFTER_A_KERNEL])
def test_numba_leaves_torch_its_number_of_threads_as_it_starts_its_own(code: str) -> None:
    command = [sys.executable, "-c", f"{FIRST}{code}print(torch.get_num_threads())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1


@pytest.mark.usefixtures("own_threads")
def test_more_threads_than_numba_has_are_no_error() -> None:
    use_threads(10_000)
    assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS


@pytest.mark.usefixtures("own_threads")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_processes_share_the_cores_that_this_one_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    share_cores(1)
    assert torch.get_num_threads() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        share_cores(1)
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    share_cores(10_000)
    assert torch.get_num_threads() == 1
