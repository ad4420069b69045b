"""The device of a run."""

import os

import pytest
import torch

from pgc3d.build.run import resolve_device
from pgc3d.errors import BackendUnavailableError


def test_a_missing_device_is_refused_and_auto_takes_what_is_there():
    assert resolve_device("cpu") == torch.device("cpu")
    there = torch.cuda.is_available()
    assert resolve_device("auto").type == ("cuda" if there else "cpu")
    if not there:
        with pytest.raises(BackendUnavailableError, match="--device cuda must have a CUDA device"):
            resolve_device("cuda")


@pytest.mark.parametrize(("before", "after"), [(None, "AUTO"), ("AVX2", "AVX2")])
def test_products_are_reproducible_unless_the_user_has_chosen(monkeypatch, before, after):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    if before is not None:
        monkeypatch.setenv("MKL_CBWR", before)
    resolve_device("cpu")
    assert os.environ["MKL_CBWR"] == after
