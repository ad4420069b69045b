"""`pgc3d view`: who gets an answer, what the state of a run is while it goes, and the page in a browser."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http import HTTPStatus

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from report_runs import MAGENTA, make_run, write_colored_cube

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.run_directory import PREPARING, RunDirectory
from pgc3d.viewer.server import Server

RUNNING = {"status": "running", "stages": {"coarse": {"status": "running", "steps": 5}}}


@contextmanager
def served(*paths):
    with Server(paths) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


def request(server, path, *, method="GET", cookie=True, **headers):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    own = {"Host": f"127.0.0.1:{server.port}"}
    if cookie:
        own["Cookie"] = f"other=1; pgc3d-{server.port}={server.token}"
    connection.putrequest(method, path, skip_host=True)
    for name, value in (own | headers).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


def state(server, index=0):
    status, _, content = request(server, "/state.json")
    assert status == HTTPStatus.OK
    return json.loads(content)["runs"][index]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "done")


@pytest.fixture(scope="module")
def server(done):
    with served(done) as server:
        yield server


def test_the_token_sets_a_cookie_and_leaves_the_address(server):
    address = server.address.removeprefix(f"http://127.0.0.1:{server.port}")
    assert len(server.token) >= 32
    status, headers, _ = request(server, address, cookie=False)
    assert (status, headers["Location"]) == (HTTPStatus.SEE_OTHER, "/")
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    status, headers, content = request(server, "/", cookie=False, Cookie=cookie.split(";")[0])
    assert status == HTTPStatus.OK
    assert server.token.encode() not in content
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "{" not in policy
    assert {"default-src 'none'", "connect-src 'self' data: blob:", "frame-ancestors 'none'"} <= set(
        policy.split("; ")
    )


@pytest.mark.parametrize("path", ["/", "/state.json", "/charts.json", "/asset/0.glb", "/preview/0/0", "/x"])
@pytest.mark.parametrize("cookie", [None, "wrong", "", "é", '"'])
def test_without_the_cookie_nothing_is_given(server, path, cookie):
    value = cookie and f"pgc3d-{server.port}={cookie}".encode()
    status, _, content = request(server, path, cookie=False, Cookie=value)
    assert status == HTTPStatus.FORBIDDEN
    assert b"token" in content
    assert server.token.encode() not in content


@pytest.mark.parametrize("query", ["token=wrong", "token=wrong&token={}", "token=%C3%A9", "Token={}", "{}"])
def test_a_wrong_token_is_refused(server, query):
    path = f"/?{query.format(server.token)}"
    assert request(server, path, cookie=False)[0] == HTTPStatus.FORBIDDEN
    # a token counts at the address of the page alone
    assert request(server, f"/state.json?token={server.token}", cookie=False)[0] == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost.evil:{}",
        "[::1]:{}",
        "",
        None,
    ],
)
def test_another_host_is_refused(server, host):
    for path in ("/", f"/?token={server.token}", "/state.json"):
        status, headers, _ = request(server, path, Host=host and host.format(server.port))
        assert status == HTTPStatus.MISDIRECTED_REQUEST
        assert "Set-Cookie" not in headers
    assert request(server, "/state.json", Host=f"localhost:{server.port}")[0] == HTTPStatus.OK


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"])
def test_only_get_is_answered(server, method):
    status, headers, _ = request(server, "/", method=method)
    assert (status, headers["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET")


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml", "/manifest.json", "/../manifest.json", "/preview/0/../../manifest.json",
        "/preview/0/99", "/preview/0/-1", "/preview/1/0", "/asset/1.glb", "/asset/..%2fmanifest.json",
        "/asset/0.glb/", "//etc/passwd", "/preview/0/%2e%2e", "/preview/0/0\\..", "http://evil.example/state.json",
    ],
)  # fmt: skip
def test_a_path_is_never_that_of_a_file(server, path):
    status, _, content = request(server, path)
    assert status == HTTPStatus.NOT_FOUND
    assert b"root:" not in content
    assert b"red chair" not in content


def test_the_data_of_a_run(server, done):
    found = state(server)
    assert (found["status"], found["stage"], found["step"], found["planned"]) == ("done", "fine", 30, 30)
    assert found["newest"]["color/clipped_fraction"] == 0.5
    assert found["previews"] == [["coarse", 5], ["coarse", 10], *(["fine", step] for step in (5, 10, 15, 20))]
    assert found["notes"] == []
    status, headers, content = request(server, "/preview/0/2")
    assert (status, headers["Content-Type"]) == (HTTPStatus.OK, "image/png")
    assert content == (done / "previews/fine/step-000005.png").read_bytes()
    assert request(server, "/asset/0.glb?v=1")[2] == (done / "asset.glb").read_bytes()
    charts = json.loads(request(server, "/charts.json")[2])
    assert "color/clipped_fraction" in charts["clipping"]
    assert "seconds per step" in charts["curves"]


def test_the_state_follows_a_run(tmp_path):
    with served(tmp_path / "run") as server:
        found = state(server)
        assert found["status"] == "not begun"
        assert "no run" in found["notes"][0]
        assert request(server, "/asset/0.glb")[0] == HTTPStatus.NOT_FOUND
        assert json.loads(request(server, "/charts.json")[2]) == {"clipping": "", "curves": ""}

        run = RunDirectory.create(tmp_path / "run")
        with run:
            run.begin()
            assert (state(server)["status"], state(server)["planned"]) == (PREPARING, None)

        run.config.write_text("stages:\n  coarse: {steps: 10}\n")
        run.write_manifest({"status": "running"})
        assert (state(server)["stage"], state(server)["planned"]) == (None, 10)
        assert state(server)["stages"][0]["status"] == "not begun"
        for step in (6, 7):
            run.log_metrics({"stage": "coarse", "step": step, "loss": step / 2, "bad": float("nan")})
            found = state(server)
            assert (found["step"], found["newest"]) == (step, {"loss": step / 2, "bad": None})
            assert (found["stage"], found["stages"][0]["status"]) == ("coarse", "begun")
        with (run.path / "metrics.jsonl").open("a") as stream:
            stream.write('{"stage": "coarse", "st')  # being written
        assert (state(server)["step"], state(server)["asset"]) == (7, None)

        write_colored_cube(run.path / "asset.glb")
        run.write_manifest(RUNNING | {"status": "done", "files": run.hash_files([run.path / "asset.glb"])})
        assert state(server)["asset"]["name"] == "asset.glb"
        assert request(server, "/asset/0.glb")[0] == HTTPStatus.OK


@pytest.mark.parametrize("content", [b"", b'{"status": "runn', b"[1]", b"\xff", b"[" * 100_000])
def test_a_half_written_run_is_a_message(tmp_path, content):
    run = make_run(tmp_path / "run")
    with served(run) as server:
        (run / "manifest.json").write_bytes(content)
        assert state(server)["status"] == "not readable"
        assert "must be a run's manifest" in state(server)["notes"][0]
        assert request(server, "/asset/0.glb")[0] == HTTPStatus.NOT_FOUND


def test_links_are_not_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    run = make_run(tmp_path / "run")
    preview = run / "previews/fine/step-000005.png"
    preview.unlink()
    preview.symlink_to(secret)
    with served(run) as server:
        status, _, content = request(server, "/preview/0/2")
        assert status == HTTPStatus.NOT_FOUND
        assert b"symbolic link" in content
        (run / "asset.glb").unlink()
        (run / "asset.glb").symlink_to(write_colored_cube(tmp_path / "other.glb"))
        assert request(server, "/asset/0.glb")[0] == HTTPStatus.NOT_FOUND


def test_a_mesh_file_alone(tmp_path):
    path = write_colored_cube(tmp_path / "cube.obj")
    with served(path, path) as server:
        page = request(server, "/")[2].decode()
        assert page.count('class="viewer"') == 2
        assert 'class="status"' not in page
        first = state(server, 1)["asset"]["version"]
        document, _ = unpack_glb(request(server, "/asset/1.glb")[2])
        assert document["meshes"]
        os.utime(path, ns=(0, 0))
        assert state(server, 1)["asset"]["version"] != first
        path.unlink()
        assert "missing" in state(server)["notes"][0]


def test_what_cannot_be_displayed_is_refused(tmp_path, server):
    text = tmp_path / "notes.txt"
    text.write_text("x")
    for paths in ([text], [tmp_path / "missing.glb"], [], [tmp_path] * 3):
        with pytest.raises(InputError):
            Server(paths)
    with pytest.raises(InputError, match="--port must"):
        Server([tmp_path], server.port)


def test_names_are_escaped(tmp_path):
    with served(tmp_path / "<script>alert(1)") as server:
        assert b"<script>alert" not in request(server, "/")[2]


def test_the_command_prints_the_address_and_ends_with_ctrl_c(done):
    command = [sys.executable, "-m", "pgc3d", "view", str(done), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:")
    port = address.split(":")[2].split("/")[0]
    hint = process.stderr.readline()
    assert f"ssh -L {port}:127.0.0.1:{port} " in hint
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in rest


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_follows_a_run_in_the_browser(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", asset=False, **RUNNING))
    other = make_run(tmp_path / "other")
    text = "document.querySelector('.status').textContent"
    with (
        served(run.path, other) as server,
        Browser(tmp_path / "profile", size=(900, 600)) as browser,
    ):
        browser.open(server.address)
        assert browser.evaluate("location.href") == f"http://127.0.0.1:{server.port}/"
        browser.wait(f"{text}.includes('fine: step 20 of 20')")
        assert browser.evaluate("document.querySelector('.prompt').textContent") == "a red chair"
        run.log_metrics({"stage": "fine", "step": 25, "color/clipped_fraction": 0.125})
        browser.wait(f"{text}.includes('fine: step 25 of 20')")
        browser.wait("document.querySelector('.newest').textContent.includes('clipped_fraction 0.125')")
        browser.wait("document.querySelector('#clipping').textContent.includes('0.125')")
        browser.wait("document.querySelectorAll('.sheet img:not(.other)')[1].naturalWidth === 24")
        browser.wait("document.querySelectorAll('.viewer')[1].dataset.loaded")
        assert not browser.evaluate("document.querySelectorAll('.viewer')[0].dataset.loaded")

        files = [write_colored_cube(run.path / "asset.glb")]
        run.write_manifest({**RUNNING, "status": "done", "files": run.hash_files(files)})
        browser.wait("document.querySelectorAll('.viewer')[0].dataset.loaded")
        browser.evaluate("document.querySelector('#controls').scrollIntoView()")
        name = "base colour"
        browser.evaluate(
            f"[...document.querySelectorAll('button')].find((one) => one.textContent === {name!r}).click()"
        )
        image = browser.image()
        for half in (slice(0, 450), slice(450, 900)):  # one asset in each
            assert np.mean(np.abs(image[:, half] - np.array(MAGENTA)).max(-1) <= 6) > 0.1
        assert browser.console == []
        own = f"http://127.0.0.1:{server.port}/"
        assert all(address.startswith((own, "data:", f"blob:{own}")) for address in browser.requests)
