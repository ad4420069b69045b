"""The wheel: what it holds, and a job from it without the checkout."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from tiny import ROOT

import pgc3d

SMALL = [
    "--quality", "draft", "--steps", "2", "--resolution", "32", "--texture-size", "64", "--faces", "0",
    "--set", "representation.resolution=16", "--set", "logging.preview_every=0",
]  # fmt: skip
RECORD = "pgc3d-1.dist-info"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import build_wheel

    return build_wheel


@pytest.fixture(scope="module")
def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_of_the_package_that_is_no_module_is_package_data(settings, script):
    files = {name for name in script.package_files() if not name.endswith(".py")}
    patterns = settings["tool"]["setuptools"]["package-data"]["pgc3d"]
    matched = {path for pattern in patterns for path in (ROOT / "pgc3d").glob(pattern) if path.is_file()}
    named = {path.relative_to(ROOT).as_posix() for path in matched if path.parent.name != "__pycache__"}
    assert files <= named


def test_the_version_is_written_once(settings):
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pgc3d.__version__"}
    assert "version" not in settings["project"]


def test_the_licences_are_those_that_the_build_checks(settings, script):
    assert set(settings["project"]["license-files"]) == script.LICENCES
    assert all((ROOT / name).is_file() for name in script.LICENCES)


def wheel_of(tmp_path, script, *, lacks="", more=()):
    names = {
        "pgc3d/__init__.py",
        *(f"{RECORD}/licenses/{name}" for name in script.LICENCES),
        f"{RECORD}/METADATA",
    }
    with zipfile.ZipFile(tmp_path / "pgc3d-1-py3-none-any.whl", "w") as archive:
        for name in (names - {lacks}) | set(more):
            archive.writestr(name, name)
    return tmp_path / "pgc3d-1-py3-none-any.whl"


def test_a_complete_wheel_passes(script, tmp_path):
    script.check_wheel(wheel_of(tmp_path, script), {"pgc3d/__init__.py"})


@pytest.mark.parametrize(
    "change",
    [{"lacks": "pgc3d/__init__.py"}, {"lacks": f"{RECORD}/licenses/LICENSE"}, {"more": ["tests/test_a.py"]}],
)
def test_a_wheel_with_other_files_is_refused(change, script, tmp_path):
    name = change.get("lacks", "tests/test_a.py").removeprefix(f"{RECORD}/licenses/")
    with pytest.raises(SystemExit, match=name):
        script.check_wheel(wheel_of(tmp_path, script, **change), {"pgc3d/__init__.py"})


def test_a_large_wheel_is_refused(script, tmp_path, monkeypatch):
    wheel = wheel_of(tmp_path, script)
    monkeypatch.setattr(script, "LIMIT", wheel.stat().st_size)
    with pytest.raises(SystemExit, match="must be smaller"):
        script.check_wheel(wheel, {"pgc3d/__init__.py"})


def test_nothing_is_built_into_a_folder_that_holds_something(script, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="must be empty"):
        script.build(tmp_path, isolated=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with what scripts/build_wheel.py makes, and checks."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / "scripts" / "build_wheel.py", "--no-isolation", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with the package from the wheel alone; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--target", folder]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *built.glob("*.whl")], check=True)
    return folder


def call(installed, cwd, *words):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, *words]
    result = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.scripts
def test_a_job_from_the_wheel(installed, tmp_path):
    where = call(installed, tmp_path, "-c", "import pgc3d; print(pgc3d.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    call(installed, tmp_path, "-m", "pgc3d", "text", "a red chair", "--out", "run", *SMALL)
    assert (tmp_path / "run" / "asset.glb").read_bytes()[:4] == b"glTF"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())
    call(installed, tmp_path, "-m", "pgc3d", "report", "run")
    assert "THREE" in (tmp_path / "run" / "report.html").read_text()
    assert "dreamfusion" in call(installed, tmp_path, "-m", "pgc3d", "config", "list")


@pytest.mark.scripts
def test_a_damaged_bundled_model_is_found(installed, tmp_path):
    printed = call(installed, tmp_path, "-m", "pgc3d", "models", "verify", "mini")
    folders = [path for path in (installed / "pgc3d" / "mini").iterdir() if path.name != "__pycache__"]
    count = sum(path.is_file() for folder in folders for path in folder.rglob("*"))
    assert f"whole, {count} files" in printed
    assert f"{count} hashed" in printed
    file = next(installed.glob("pgc3d/mini/text/vocabulary.json"))
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(AssertionError):
        call(installed, tmp_path, "-m", "pgc3d", "models", "verify", "mini")
    file.write_bytes(content)


@pytest.mark.scripts
def test_the_metadata_of_the_wheel(installed):
    text = next(installed.glob("pgc3d-*.dist-info/METADATA")).read_text()
    assert f"\nVersion: {pgc3d.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
