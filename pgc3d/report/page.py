"""One HTML page of the facts of runs: everything is inline, and its policy forbids all requests."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from string import Template

from pgc3d import __version__
from pgc3d.report import sections
from pgc3d.report.facts import RunFacts

SCRIPTS = ("vendor/three.min.js", "viewer.js", "controls.js", "page.js")  # in the order in which they run
SECTIONS: tuple[Callable[[Sequence[RunFacts]], str], ...] = (
    sections.summary,
    sections.viewers,
    sections.images,
    sections.mesh_health,
    sections.clipping,
    sections.curves,
    sections.costs,
    sections.settings,
    sections.records,
)


def render_page(runs: Sequence[RunFacts]) -> str:
    """The page of one run, or of two side by side.

    The policy names the scripts and the style sheet by their hashes: nothing in the data of a run is executed
    or fetched.
    """
    style, scripts = package_file("style.css"), [package_file(name) for name in SCRIPTS]
    names = " and ".join(run.name for run in runs)
    return Template(package_file("page.html")).substitute(
        policy=policy(style, scripts),
        title=escape(f"pgc3d report of {names}"),
        style=style,
        body="".join(make(runs) for make in SECTIONS),
        version=escape(__version__),
        licence=escape(package_file("vendor/three.LICENSE.txt")),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def package_file(name: str) -> str:
    """The text of a file of this package.

    Args:
        name: its path below the package.
    """
    return resources.files("pgc3d.report").joinpath(name).read_text(encoding="utf-8")


def policy(style: str, scripts: Sequence[str], *, origin: str = "") -> str:
    """A content security policy that allows these texts, and images, videos and textures inside the page.

    Args:
        style: the style sheet.
        scripts: the page's scripts.
        origin: where images and data may also come from, as `'self'`.
    """
    own = f"{origin} " if origin else ""
    run = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {run}; style-src {_hash(style)}; img-src {own}data: blob:; "
        f"media-src data:; connect-src {own}data: blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
