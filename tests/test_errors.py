"""What users read when they make a mistake, all in `errors.txt`: a change of wording shows there at once.

`PGC3D_WRITE_ERRORS=1 python -m pytest tests/test_errors.py` writes the file anew.
"""

import os
import re
from pathlib import Path

import pytest
import test_cli
import test_config
from test_cli import run  # noqa: F401 - a fixture

from pgc3d.config import load_config
from pgc3d.errors import ConfigError

FILE = Path(__file__).parent / "errors.txt"


def said_of_overrides():
    """The lines about wrong `--set`."""
    for override in [*test_config.ERRORS, *(text for text, _ in test_config.REFUSED_OVERRIDES.values())]:
        more = ["objectives.color.batch=32"] if "4096" in override else []
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=[override, *more])
        yield str(caught.value)


def said_of_files(folder):
    """The lines about wrong `--config`."""
    path = folder / "config.yaml"
    contents = [text.encode() for text, _ in test_config.REFUSED_FILES.values()]
    for content in [*contents, *(content for content, _ in test_config.BROKEN_FILES.values())]:
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load_config([path])
        yield str(caught.value)
    path.unlink()


def said_by_commands(run):
    """The last lines of commands that were refused."""
    for arguments, _, _ in test_cli.ERRORS.values():
        yield run(*arguments)[2].splitlines()[-1]


def plain(line, folder):
    """A line without what depends on the computer or on the version of a parser."""
    line = line.replace(str(folder), "FOLDER")
    line = re.sub(r"(must be YAML, got: |Invalid value for '--[\w-]+': (?=Value|Input)).*", r"\1...", line)
    return re.sub(r"(.)\1{20,}", r"\1\1\1...", line)


def test_errors_are_those_of_the_file(run, tmp_path):
    lines = [*said_of_overrides(), *said_of_files(tmp_path), *said_by_commands(run)]
    found = sorted({plain(line, tmp_path) for line in lines})
    assert all("\n" not in line for line in found)
    if os.environ.get("PGC3D_WRITE_ERRORS"):
        FILE.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    assert found == FILE.read_text(encoding="utf-8").splitlines()
