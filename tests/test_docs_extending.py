"""The examples of the extending pages, added to a copy of the package as the pages state."""

import os
import shutil
import subprocess
import sys
from itertools import groupby

import pytest
from documentation import PAGES, ROOT, Page

EXAMPLES = [Page(path) for path in sorted((PAGES / "extending").glob("*.md"))]
TINY = [
    "--set", "run.micro_batch=1", "--set", "logging.preview_every=0", "--steps", "3", "--resolution", "32",
    "--texture-size", "64", "--guidance", "mini", "--out", "run",
]  # fmt: skip


def hunks(diff):
    """The old and the new text of each hunk."""
    lines = diff.splitlines(keepends=True)
    for separator, group in groupby(lines, key=lambda line: line == "@@\n"):
        if not separator:
            part = list(group)
            yield tuple("".join(line[1:] for line in part if line[0] != mark) for mark in "+-")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder with the package and the examples in it; folders that no example changes are links."""
    folder = tmp_path_factory.mktemp("extended")
    titles = [
        block.attributes.get("title", "") for page in EXAMPLES for block in page.blocks("python", "diff")
    ]
    changed = {title.split("/")[1] for title in titles if title.count("/") > 1}
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "pgc3d").mkdir()
    for path in (ROOT / "pgc3d").iterdir():
        if path.is_dir() and path.name not in changed:  # a link, so that compiled kernels are found
            (folder / "pgc3d" / path.name).symlink_to(path)
        else:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / "pgc3d" / path.name)
    for page in EXAMPLES:
        for block in page.blocks("python", "yaml"):
            if title := block.attributes.get("title"):
                (folder / title).write_text(block.text)
        for block in page.blocks("diff"):
            file = folder / block.attributes["title"]
            for old, new in hunks(block.text):
                text = file.read_text()
                assert text.count(old) == 1, (
                    f"{page.name} changes lines that {file.name} does not have:\n{old}"
                )
                file.write_text(text.replace(old, new))
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_page_has_a_complete_example():
    for page in EXAMPLES:
        assert page.blocks("python"), page.name
        assert page.blocks("diff") or page.path.stem == "index", page.name


def test_the_code_of_the_pages_runs(extended):
    """Of all pages in one process, each with names of its own."""
    code = "".join(
        f"exec(compile({block.text!r}, {page.name!r}, 'exec'), names := {{}})\n"
        for page in EXAMPLES
        for block in page.blocks("python")
        if "title" not in block.attributes
    )
    run(extended, "-c", code)


def test_a_run_uses_all_new_members(extended):
    files = ("top-down.yaml", "sky.yaml", "palette.yaml", "star.yaml", "candle.yaml")
    titles = {
        block.attributes["title"] for page in EXAMPLES for block in page.blocks("yaml") if block.attributes
    }
    assert titles == set(files)
    used = [part for file in files[:4] for part in ("--config", file)]
    lines = [
        ["config", "validate", "candle.yaml"],
        ["text", "a ball", *used, "--clip", "soft=0.3", *TINY],
        ["export", "run", "--format", "raw", "--faces", "0"],
    ]
    code = "from pgc3d.cli.app import app\n" + "".join(
        f"app({line!r}, standalone_mode=False)\n" for line in lines
    )
    run(extended, "-c", code)
    triangles = (extended / "run" / "asset.raw").read_text().splitlines()
    assert len(triangles) == 1280  # of an icosahedron that was subdivided three times
    config = (extended / "run" / "config.yaml").read_text()
    for kind in ("palette", "star", "top_down", "soft"):
        assert f"kind: {kind}\n" in config
    assert "palette/distance" in (extended / "run" / "metrics.jsonl").read_text()
