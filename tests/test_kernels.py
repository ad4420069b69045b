"""What all kernels share."""

import numba
import pytest
import torch

from pgc3d.kernels import use_threads


@pytest.mark.usefixtures("own_threads")
def test_threads_are_few_for_torch_and_for_numba() -> None:
    use_threads(1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)


@pytest.mark.usefixtures("own_threads")
def test_more_threads_than_numba_has_are_no_error() -> None:
    use_threads(10_000)
    assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
