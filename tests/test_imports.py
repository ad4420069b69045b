"""What a process of the command line imports, and that what it leaves out changes nothing."""

import gc
import hashlib
import json
import subprocess
import sys
from contextlib import suppress

import pytest
from meshes import write_cube
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_texture_command import TINY

from pgc3d.imports import importing

HEAVY = {"diffusers", "transformers", "peft"}
# Prints those of the libraries that the process has imported by its end, behind the end of its output.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("imported", *sorted(set({heavy}) & set(sys.modules))))
sys.argv = {arguments}
from pgc3d.cli.app import main
main()
"""
VSD = ["--set", "objectives.color.guidance.kind=vsd", "--set", "objectives.color.guidance.rank=2"]


def in_a_process_of_its_own(*arguments):
    """The exit code of `pgc3d ARGUMENTS`, the libraries that it imported, and its standard error."""
    code = PROGRAM.format(heavy=HEAVY, arguments=["pgc3d", *map(str, arguments)])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return found.returncode, set(found.stdout.splitlines()[-1].split()[1:]), found.stderr


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def seconds(folder):
    return manifest(folder)["seconds"]


def digest(folder):
    return hashlib.sha256((folder / "asset.glb").read_bytes()).hexdigest()


def test_a_second_start_imports_neither_transformers_nor_peft(run, checkpoint, tmp_path):
    """And its asset is that of the first start, in a process that has imported them."""
    mesh = write_cube(tmp_path / "cube.glb")
    arguments = ["texture", mesh, "a red chair", "--model", checkpoint, "--device", "cpu", *TINY]
    first = run(*arguments, "--out", tmp_path / "first")
    assert set(sys.modules) >= HEAVY
    code, imported, err = in_a_process_of_its_own(*arguments, "--out", tmp_path / "second")
    assert (code, imported) == (first[0], {"diffusers"}), err
    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    assert "start" not in seconds(tmp_path / "first")  # that of the tests says nothing about the run
    parts = manifest(tmp_path / "second")["start_parts"]
    assert seconds(tmp_path / "second")["start"] > parts["imports"] + parts["configuration"] + parts["mesh"]
    assert seconds(tmp_path / "second")["build"] > parts["network classes"] + parts["weights"]


@pytest.mark.slow
def test_libraries_that_diffusers_was_imported_without_are_there_for_what_needs_them(checkpoint, tmp_path):
    """Adapters are made by peft, which imports transformers."""
    arguments = ["text", "a red chair", "--model", checkpoint, "--device", "cpu", *TINY, *VSD]
    code, imported, err = in_a_process_of_its_own(*arguments, "--out", tmp_path / "run")
    assert code in (0, 5), err
    assert imported == HEAVY


@pytest.mark.slow
def test_a_program_that_uses_the_library_has_all_of_diffusers():
    code = (
        "from pgc3d.imports import importing_diffusers\n"
        "with importing_diffusers(): import diffusers.models.unets.unet_2d_condition\n"
        "from diffusers.utils import is_peft_available, is_transformers_available\n"
        "print(is_peft_available(), is_transformers_available())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True True\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_leave_the_collector_as_it_was(enabled):
    before, within = gc.isenabled(), None
    (gc.enable if enabled else gc.disable)()
    try:
        with suppress(ImportError), importing():
            within = gc.isenabled()
            raise ImportError
        assert (within, gc.isenabled()) == (False, enabled)
    finally:
        (gc.enable if before else gc.disable)()
