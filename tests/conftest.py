"""Settings for all tests: few threads, no spinning, no network."""

import atexit
import gc
import os
import shutil
import tempfile

for name, value in {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "MKL_CBWR": "AUTO",  # as for runs, see `resolve_device`
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(name, value)

import pytest  # noqa: E402 - after the environment
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as numpy; read when triton is imported
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # with a GPU, compiled code is kept between tests
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A first call may import or compile; how long a test takes says nothing on a busy computer.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Garbage is looked for among a file's own objects.

    A run collects garbage several times. The libraries and the thousands of tests are millions of objects
    that stay, among which each collection would take half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_threads():
    """The numbers of torch's and numba's threads may change, and are put back."""
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
