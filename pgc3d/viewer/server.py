"""The server of `pgc3d view`: on 127.0.0.1 only, for those who have the token, under no other name.

The address with the token sets a cookie and leads to an address without it. Other requests need the cookie.
The Host header must be the server's own, so that no page of another name that resolves to 127.0.0.1 can read
data.
"""

import secrets
from collections.abc import Sequence
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
        handler = partial(_Handler, Site(sources, make_page(sources)), self.token)
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


class _Threads(ThreadingTCPServer):  # not http.server's, which resolves the host's name
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection early is no error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = SECONDS

    def __init__(self, site: Site, token: str, *connection: Any) -> None:
        self.site, self.token = site, token
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Answer a request after all checks."""
        path, _, query = self.path.partition("?")
        given = parse_qs(query).get("token") if path == "/" else None
        if not self._is_own_host():
            self._send(refusal(HTTPStatus.MISDIRECTED_REQUEST, "the Host header is not that of this server"))
        elif given is not None and _same(given[0], self.token):
            own = {"Set-Cookie": f"{self._cookie_name()}={self.token}; HttpOnly; SameSite=Strict; Path=/"}
            self._send(refusal(HTTPStatus.SEE_OTHER, "see /"), own | {"Location": "/"})
        elif given is not None or not self._has_cookie():
            text = "the token is missing or wrong; open the address that pgc3d view printed"
            self._send(refusal(HTTPStatus.FORBIDDEN, text))
        else:
            self._send(self.site.answer(path))

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
