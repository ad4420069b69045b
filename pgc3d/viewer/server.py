"""The server of `pgc3d view`: on 127.0.0.1 only, for those who have the token, under no other name.

The address with the token sets a cookie and leads to an address without it. Other requests need the cookie.
The address that a browser is started with is visible in the list of processes, so it has a code in place of
the token, which is valid once and for a minute.
The Host header must be the server's own, so that no page of another name that resolves to 127.0.0.1 can read
data.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs

from pgc3d.errors import InputError
from pgc3d.viewer.page import make_page
from pgc3d.viewer.site import Reply, Site, refusal
from pgc3d.viewer.sources import open_source

HOST = "127.0.0.1"
SECONDS = 30.0  # that a connection may be silent
CODE_SECONDS = 60.0  # that a code is valid
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Server:
    """A server that listens from the start and answers while `run` does; as a context manager it closes."""

    def __init__(self, paths: Sequence[Path], port: int = 0) -> None:
        """Open the sources and a port.

        Args:
            paths: folders of runs or mesh files, one or two.
            port: 0 takes a free one.

        Raises:
            InputError: there are other numbers of paths, a file is no mesh, or the port is in use.
        """
        if len(paths) not in {1, 2}:
            raise InputError(f"a page must have one run or two, got {len(paths)}; leave some out")
        sources = tuple(open_source(path) for path in paths)
        self.token = secrets.token_urlsafe(32)
        self._codes = _Codes()
        handler = partial(_Handler, Site(sources, make_page(sources)), self.token, self._codes)
        try:
            self._server = _Threads((HOST, port), handler)
        except OSError as error:
            raise InputError(
                f"--port must be one that can be opened, got {port}: {error.strerror}; leave it out"
            ) from error
        self.port = int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """The address of the page, with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def one_time_address(self) -> str:
        """An address of the page that the first request to it uses up, within a minute."""
        return f"http://{HOST}:{self.port}/?once={self._codes.new()}"

    def run(self) -> None:
        """Answer requests until an exception, as KeyboardInterrupt, or `stop` from another thread."""
        self._server.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """End `run`, which another thread has called."""
        self._server.shutdown()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()


class _Codes:
    """Codes that are each valid once, for `CODE_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._until: dict[str, float] = {}

    def new(self) -> str:
        """A new code."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._until[code] = self._clock() + CODE_SECONDS
        return code

    def use_up(self, given: str) -> bool:
        """Whether a code is valid; it is not any more afterwards."""
        with self._lock:
            found = next((code for code in self._until if _same(given, code)), None)
            return found is not None and self._until.pop(found) >= self._clock()


class _Threads(ThreadingTCPServer):  # not http.server's, which resolves the host's name
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection early is no error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = SECONDS

    def __init__(self, site: Site, token: str, codes: _Codes, *connection: Any) -> None:
        self.site, self.token, self.codes = site, token, codes
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Answer a request after all checks."""
        path, _, query = self.path.partition("?")
        fields = parse_qs(query) if path == "/" else {}
        given = fields.get("token") or fields.get("once")
        if not self._is_own_host():
            self._send(refusal(HTTPStatus.MISDIRECTED_REQUEST, "the Host header is not that of this server"))
        elif given is not None and self._is_admitted(fields):
            own = {"Set-Cookie": f"{self._cookie_name()}={self.token}; HttpOnly; SameSite=Strict; Path=/"}
            self._send(refusal(HTTPStatus.SEE_OTHER, "see /"), own | {"Location": "/"})
        elif given is not None or not self._has_cookie():
            text = "the token is missing, wrong or used up; open the address that pgc3d view printed"
            self._send(refusal(HTTPStatus.FORBIDDEN, text))
        else:
            self._send(self.site.answer(path))

    def _is_admitted(self, fields: Mapping[str, Sequence[str]]) -> bool:
        if "token" in fields:
            return _same(fields["token"][0], self.token)
        return self.codes.use_up(fields["once"][0])

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is no GET, or malformed."""
        unsupported = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unsupported else HTTPStatus(code)
        self._send(refusal(status, status.phrase), {"Allow": "GET"} if unsupported else {})

    def version_string(self) -> str:
        """The Server header."""
        return "pgc3d"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request would hide the address, and hold the token."""

    @property
    def _port(self) -> int:
        return int(self.connection.getsockname()[1])

    def _is_own_host(self) -> bool:
        return self.headers.get_all("Host") in ([f"{HOST}:{self._port}"], [f"localhost:{self._port}"])

    def _cookie_name(self) -> str:
        """With the port, as browsers send cookies to all ports of a host."""
        return f"pgc3d-{self._port}"

    def _has_cookie(self) -> bool:
        try:
            found = SimpleCookie("; ".join(self.headers.get_all("Cookie") or ())).get(self._cookie_name())
        except CookieError:
            return False
        return found is not None and _same(found.value, self.token)

    def _send(self, reply: Reply, more: dict[str, str] | None = None) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        policy = {"Content-Security-Policy": self.site.page.policy}
        own = {"Content-Type": reply.kind, "Content-Length": str(len(reply.content))}
        for name, value in {**HEADERS, **policy, **own, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", errors="replace"), token.encode())
