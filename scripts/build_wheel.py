"""Build the source distribution and from it the wheel, and check what they hold.

    python scripts/build_wheel.py dist

The wheel must hold the files of pgc3d/, the licences of all that it contains, and nothing else, and must stay
below 110 MB. It is made from the unpacked source distribution, so that this one is complete. The times in the
wheel are those of the last commit: the same commit gives the same bytes.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 110_000_000  # bytes
LICENCES = {"LICENSE", "pgc3d/mini/ATTRIBUTIONS.md", "pgc3d/report/vendor/three.LICENSE.txt"}
# Of the source distribution, beside the package and what setuptools adds.
SOURCES = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "PKG-INFO"}


def package_files(root: Path = ROOT) -> set[str]:
    """Files of the package relative to a checkout, those of `configs` through the link to it."""
    walk = os.walk(root / "pgc3d", followlinks=True)
    paths = (Path(folder) / name for folder, _, names in walk for name in names)
    return {path.relative_to(root).as_posix() for path in paths if path.parent.name != "__pycache__"}


def check_wheel(wheel: Path, expected: set[str]) -> None:
    """Exit with a line where the wheel is too large or holds other files than `expected` and its licences."""
    if (size := wheel.stat().st_size) >= LIMIT:
        sys.exit(f"error: the wheel must be smaller than {LIMIT / 1e6:g} MB, got {size / 1e6:.1f} MB")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    records = {name for name in names if PurePosixPath(name).parts[0].endswith(".dist-info")}
    _compare(f"the package in {wheel.name}", names - records, expected)
    marker = "dist-info/licenses/"
    _compare(
        f"the licences in {wheel.name}",
        {name.split(marker)[1] for name in records if marker in name},
        LICENCES,
    )


def check_sources(archive: Path, expected: set[str]) -> None:
    """Exit with a line where a source distribution holds other files than the package and `SOURCES`."""
    with tarfile.open(archive) as file:
        names = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    kept = {name for name in names if not name.startswith("pgc3d.egg-info/")}
    _compare(archive.name, kept, expected | SOURCES)


def build(out: Path, *, isolated: bool) -> tuple[Path, Path]:
    """The source distribution and the wheel, new in an empty folder.

    Raises:
        SystemExit: the folder holds something, or the build failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"error: the folder of the build must be empty, got {out}; name another one")
    environment = {"SOURCE_DATE_EPOCH": _time_of_commit()} | os.environ
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    options = [] if isolated else ["--no-isolation"]
    subprocess.run([*command, *options], check=True, env=environment, stdout=subprocess.DEVNULL)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def _time_of_commit() -> str:
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    found: str = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return found.strip()


def _compare(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        lacks, exceeds = sorted(expected - found), sorted(found - expected)
        sys.exit(
            f"error: {what} must be complete and hold nothing else, lacks {lacks}, has besides {exceeds}"
        )


def main() -> None:
    """Build, check, and print each file with its size and hash."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--no-isolation", action="store_true", help="with the installed setuptools, offline")
    arguments = parser.parse_args()
    sources, wheel = build(arguments.out, isolated=not arguments.no_isolation)
    expected = package_files()
    check_sources(sources, expected)
    check_wheel(wheel, expected)
    for file in (sources, wheel):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB  sha256:{digest}")


if __name__ == "__main__":
    main()
