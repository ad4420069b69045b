"""Build the documentation site, without a network: `python docs/build_site.py [OUT]`.

The pages of `pages/` are copied to OUT (build/docs when not given), with what is generated there beside them:
the reference pages, the changelog, and copies of the repository's files that a page links to. A link as
`../../assets/gallery.png` is right on a code host as it is, and leads to the copy in the site. The site
itself is in OUT/site; every warning is an error.
"""

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from reference_pages import command_pages, setting_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = "docs/pages"
COPIES = "repository"  # folder of the site for files that are no pages of it
LINK = re.compile(r"(\]\()([^)#\s:]+)(?=[)#\s])")


def build(out: Path) -> Path:
    """Assemble the sources in a folder, which is replaced, and build the site; its folder is returned."""
    assemble(out)
    # In its own folder, which relative paths of the configuration start from.
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "mkdocs.yml"]
    subprocess.run(command, cwd=out, check=True)
    return out / "site"


def assemble(out: Path) -> None:
    """Write the configuration and all pages to a folder, which is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / PAGES, out / "pages")
    commands, settings = command_pages(), setting_pages()
    for path, text in (commands | settings).items():
        _write(out / "pages" / path, text)
    shutil.copy(ROOT / "CHANGELOG.md", out / "pages" / "changelog.md")
    config = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())
    config["nav"] = _expanded(config["nav"], {"commands/": list(commands), "settings/": list(settings)})
    config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    _write(out / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False))
    _copy_linked(out / "pages")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _expanded(entry: Any, made: dict[str, list[str]]) -> Any:
    """The navigation with the pages of generated folders in place of the folders."""
    if isinstance(entry, list):
        return [_expanded(item, made) for item in entry]
    if isinstance(entry, dict):
        return {title: _expanded(item, made) for title, item in entry.items()}
    return made.get(entry, entry)


def _copy_linked(pages: Path) -> None:
    """Copy the files of the repository that pages link to, and those that copied pages link to."""
    waiting = [(path, f"{PAGES}/{path.relative_to(pages)}") for path in pages.rglob("*.md")]
    while waiting:
        path, origin = waiting.pop()
        for target in linked(origin, path.read_text()):
            copy = pages / COPIES / target
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / target, copy)
                waiting += [(copy, target)] if copy.suffix == ".md" else []
        moved = partial(_moved, origin=origin, here=path.relative_to(pages).parent.as_posix())
        path.write_text(LINK.sub(moved, path.read_text()))


def linked(origin: str, text: str) -> Iterator[str]:
    """The files of the repository outside `pages/` that a page links to.

    Args:
        origin: path of the page in the repository.
        text: of the page.
    """
    for match in LINK.finditer(text):
        if target := _outside(origin, match[2]):
            yield target


def _outside(origin: str, link: str) -> str | None:
    """The path in the repository of a link's target; None where it is a page, or no such file."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    inside = target.startswith((f"{PAGES}/", "../"))
    return None if inside or not (ROOT / target).is_file() else target


def _moved(match: re.Match[str], origin: str, here: str) -> str:
    target = _outside(origin, match[2])
    return match[0] if target is None else match[1] + posixpath.relpath(f"{COPIES}/{target}", here)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs")
