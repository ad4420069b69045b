"""Where numba keeps its results: the program works wherever it is installed and whoever runs it."""

import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import pgc3d
from pgc3d.kernels.compiled import compiled, temporary_folder

PACKAGE = Path(pgc3d.__file__).parent
NOBODY = 61_234  # a user of no name, as containers have
PARTS = ("__init__.py", "errors.py", "kernels")

PROGRAM = """
import os, sys, tempfile
place, temporary = sys.argv[1:]
import jaxtyping, numba, numpy as np, torch  # before: this Python itself may lie in a home of someone else
numba.njit(lambda x: x + 1)(2.0)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(61234)
    os.setuid(61234)
if not temporary:
    tempfile._candidate_tempdir_list = lambda: ["/nonexistent"]
sys.path.insert(0, place)
from pgc3d.kernels import compiled, regions_numba, voxels_numba
assert compiled.__file__.startswith(place), compiled.__file__
triangle = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
solid = voxels_numba.solid_voxels(triangle, np.array([[0, 1, 2]]), resolution=4, extent=1.0)
assert regions_numba.label_regions(np.eye(3, dtype=bool), diagonal=True)[1] == 1
print(int(solid.sum()), numba.config.CACHE_DIR)
"""


@pytest.fixture
def installed(tmp_path_factory):
    """A copy of the package that nobody may write to; in a folder that everybody may enter."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "pgc3d").mkdir()
        for part in PARTS:
            source = PACKAGE / part
            if source.is_dir():
                shutil.copytree(source, place / "pgc3d" / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place / "pgc3d" / part)
        for path in [*place.rglob("*"), place]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield place
        for path in [place, *(path for path in place.rglob("*") if path.is_dir())]:
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("home", "temporary"),
    [
        pytest.param("/nonexistent", "own", id="temporary folder"),
        pytest.param(None, "", id="nowhere", marks=pytest.mark.slow),
    ],
)
def test_a_user_of_no_name_runs_an_installation_that_nobody_may_write_to(installed, home, temporary):
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": home} if home else {}
    command = [sys.executable, "-c", PROGRAM, str(installed), temporary]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert (found.returncode, found.stderr) == (0, ""), found.stderr[-2000:]
    solid, _, cache = found.stdout.strip().partition(" ")
    assert int(solid) > 0
    assert bool(cache) == bool(temporary)
    if cache and os.getuid() == 0:
        status = Path(cache).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o700)
        shutil.rmtree(cache)


@pytest.mark.parametrize("fault", ["link", "writable", "file"])
def test_a_folder_that_others_could_have_filled_is_not_used(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = temporary_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    if fault == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif fault == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    assert temporary_folder() is None


def test_a_full_disk_costs_the_kept_code_only(caplog):
    @compiled()
    def double(x):
        return 2 * x

    def full(*_):
        raise OSError(28, "No space left on device")

    double._cache._cache_file.save = full
    with caplog.at_level(logging.DEBUG, logger="pgc3d"):
        assert double(np.float64(4.0)) == 8.0
    assert "No space left" in caplog.text
    assert numba.extending.is_jitted(double)
