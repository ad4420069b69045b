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


ONE_THREAD = """
import torch
torch.get_num_threads()  # as every kernel of torch does at first
from pgc3d.kernels import use_threads
use_threads(1)
print(torch.get_num_threads())
"""


def test_threads_are_few_in_a_process_where_numba_has_not_started_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_THREAD], capture_output=True, text=True, check=True)
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
