"""What the server answers to requests that are allowed; paths of files never come from a request."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pgc3d.errors import Pgc3dError
from pgc3d.report.charts import Chart, draw
from pgc3d.report.plots import clipping_charts, other_charts
from pgc3d.viewer.page import Page
from pgc3d.viewer.state import Source, State, as_json

IMAGE = re.compile(r"/(preview|clipping)/([01])/([0-9]{1,6})")
MESH = re.compile(r"/(asset|before)/([01])\.glb")
TEXT, JSON = "text/plain; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: HTTPStatus
    kind: str  # media type
    content: bytes


def refusal(status: HTTPStatus, reason: str) -> Reply:
    """An answer in plain text.

    Args:
        status: of HTTP.
        reason: one line.
    """
    return Reply(status, TEXT, f"{reason}\n".encode("utf-8", errors="backslashreplace"))


@dataclass(frozen=True)
class Site:
    """The page and the data of one source or two."""

    sources: tuple[Source, ...]
    page: Page

    def answer(self, path: str) -> Reply:
        """The answer to an allowed request.

        Args:
            path: of the request, without its query.
        """
        try:
            found = self._find(path)
        except (Pgc3dError, OSError, ValueError) as error:
            return refusal(HTTPStatus.NOT_FOUND, str(error))
        return found or refusal(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _find(self, path: str) -> Reply | None:
        if path == "/":
            return Reply(HTTPStatus.OK, "text/html; charset=utf-8", self.page.html.encode())
        if path == "/state.json":
            now = time.time()
            states = [source.state() for source in self.sources]
            runs = [as_json(state, now) for state in states]
            return _json({"runs": runs, "charts": _length(states)})
        if path == "/charts.json":
            return _json(_charts([source.state() for source in self.sources]))
        return self._file(path)

    def _file(self, path: str) -> Reply | None:
        match = IMAGE.fullmatch(path) or MESH.fullmatch(path)
        if match is None or int(match[2]) >= len(self.sources):
            return None
        source = self.sources[int(match[2])]
        if match.re is IMAGE:
            read = source.preview if match[1] == "preview" else source.clipping
            content, kind = read(int(match[3])), "image/png"
        else:
            content = source.asset() if match[1] == "asset" else source.before()
            kind = "model/gltf-binary"
        return None if content is None else Reply(HTTPStatus.OK, kind, content)


def _json(value: object) -> Reply:
    return Reply(HTTPStatus.OK, JSON, json.dumps(value, allow_nan=False).encode())


def _length(states: Sequence[State]) -> list[int]:
    """The numbers of points and the last steps, which change when there is more to draw."""
    every = [curve for state in states for curve in state.curves]
    return [len(every), sum(len(curve.steps) for curve in every), sum(curve.steps[-1] for curve in every)]


def _charts(states: Sequence[State]) -> dict[str, str]:
    runs = [state.curves for state in states]
    return {"clipping": _drawn(clipping_charts(runs)), "curves": _drawn(other_charts(runs))}


def _drawn(charts: Sequence[Chart]) -> str:
    return "".join(draw(chart) for chart in charts)
