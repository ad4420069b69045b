"""The page of `pgc3d view`: its parts are empty, and its script fills them from the server's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template

from pgc3d import __version__
from pgc3d.report.html import columns, section
from pgc3d.report.page import package_file, policy
from pgc3d.viewer.state import Source

SHARED = ("vendor/three.min.js", "viewer.js", "controls.js")  # of the report
COLUMNS, ROWS = 3, 2  # of the views in a preview, see `write_sheet`


@dataclass(frozen=True)
class Page:
    """A page and its content security policy."""

    html: str
    policy: str


def make_page(sources: Sequence[Source]) -> Page:
    """The page of one source, or of two side by side."""
    style = package_file("style.css") + _own_file("view.css")
    scripts = [*map(package_file, SHARED), _own_file("view.js")]
    allowed = policy(style, scripts, origin="'self'") + "; frame-ancestors 'none'"
    html = Template(_own_file("view.html")).substitute(
        title=escape(" and ".join(_heads(sources))),
        style=style,
        body=_body(sources),
        version=escape(__version__),
        licence=escape(package_file("vendor/three.LICENSE.txt")),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    return Page(html.encode("utf-8", errors="backslashreplace").decode("utf-8"), allowed)


def _own_file(name: str) -> str:
    return resources.files("pgc3d.viewer").joinpath(name).read_text(encoding="utf-8")


def _heads(sources: Sequence[Source]) -> list[str]:
    names = [source.name for source in sources]
    return [f"{'AB'[index]}: {name}" for index, name in enumerate(names)] if len(names) > 1 else names


def _body(sources: Sequence[Source]) -> str:
    heads = [f"<h3>{escape(head)}</h3>" if len(sources) > 1 else "" for head in _heads(sources)]
    runs = [
        f'{head}<div class="run" data-index="{index}">{_progress(source)}</div>'
        for index, (head, source) in enumerate(zip(heads, sources, strict=True))
    ]
    parts = [columns(runs), section("asset", "Asset", _viewers(sources, heads))]
    if any(source.is_run for source in sources):
        parts.append(section("clipping", "Clip statistics", '<div class="charts"></div>'))
        parts.append(section("curves", "Curves", '<div class="charts"></div>'))
    return "".join(parts)


def _viewers(sources: Sequence[Source], heads: Sequence[str]) -> str:
    """The assets; of one run alone, also the mesh that it textures, which is shown where there is one."""
    bar = '<div id="controls" class="buttons" hidden></div>'
    state = '<p class="state">no asset yet</p>'
    viewers = [
        f'{head}<div class="viewer" data-index="{index}" data-kind="asset">{state}</div>'
        for index, head in enumerate(heads)
    ]
    if len(sources) == 1 and sources[0].is_run:
        before = (
            '<h3>before</h3><div class="viewer" data-index="0" data-kind="before"><p class="state"></p></div>'
        )
        viewers = [before, f"<h3>after</h3>{viewers[0]}"]
    split = '<label id="split" hidden><span></span><input type="range" min="0" max="100" value="50"></label>'
    single = ' class="single"' if len(sources) == 1 else ""
    return f'{bar}{split}<div id="viewers"{single}>{columns(viewers)}</div>'


def _progress(source: Source) -> str:
    """What changes while a run goes on."""
    notes = '<div class="notes"></div>'
    if not source.is_run:
        return notes
    return (
        '<p class="prompt"></p><p class="status" role="status"></p>'
        '<progress max="1" value="0" aria-label="steps"></progress>'
        f'{notes}<details class="numbers"><summary>newest numbers</summary><p class="newest"></p></details>'
        f'<figure class="preview" data-columns="{COLUMNS}" data-rows="{ROWS}" hidden>'
        '<div class="buttons"></div>'
        '<div class="sheet"><img alt="preview of the asset"><img class="other" alt="" hidden></div>'
        '<input class="cut" type="range" min="0" max="100" value="50" aria-label="compared part" hidden>'
        '<input class="step" type="range" min="0" max="0" value="0" aria-label="preview">'
        "<figcaption></figcaption></figure>"
        '<figure class="clipping" hidden><img alt="gradient of each pixel, and the clipped part">'
        "<figcaption>Above: length of the gradient before clipping, a logarithmic scale over three decades. "
        "Below: the part that clipping removes, black for none, white for all.</figcaption></figure>"
    )
