"""`pgc3d view`: codes that are used up, killed runs, images of clipping, and comparisons by a slider."""

import io
import zipfile
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Browser
from PIL import Image
from report_runs import MAGENTA, make_run, write_colored_cube
from test_view import RUNNING, request, served, state

from pgc3d.mesh_io.bundle import pack_document
from pgc3d.run_directory import INTERRUPTED, RunDirectory
from pgc3d.viewer.server import CODE_SECONDS, _Codes


def code_of(server):
    return server.one_time_address().removeprefix(f"http://127.0.0.1:{server.port}")


def test_an_address_for_a_browser_admits_once_and_holds_no_token(tmp_path):
    with served(tmp_path) as server:
        path = code_of(server)
        assert server.token not in path
        status, headers, _ = request(server, path, cookie=False)
        assert (status, headers["Location"]) == (HTTPStatus.SEE_OTHER, "/")
        status, _, _ = request(server, "/", cookie=False, Cookie=headers["Set-Cookie"].split(";")[0])
        assert status == HTTPStatus.OK
        status, headers, content = request(server, path, cookie=False)
        assert status == HTTPStatus.FORBIDDEN
        assert "Set-Cookie" not in headers
        assert b"used up" in content
        for wrong in ("/?once=", "/?once=x", f"/?once={server.token}", f"/state.json{path[1:]}"):
            assert request(server, wrong, cookie=False)[0] == HTTPStatus.FORBIDDEN
        assert request(server, code_of(server), Host="evil.example")[0] == HTTPStatus.MISDIRECTED_REQUEST


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self):
        return self.now


def test_a_code_is_valid_for_a_minute():
    clock = Clock()
    codes = _Codes(clock)
    first, second = codes.new(), codes.new()
    assert first != second
    clock.now = CODE_SECONDS
    assert codes.use_up(first)
    assert not codes.use_up(first)
    clock.now += 0.1
    assert not codes.use_up(second)


def test_a_killed_run_does_not_run(tmp_path):
    folder = make_run(tmp_path / "run", asset=False, **RUNNING)
    with served(folder) as server:
        with RunDirectory.open(folder):
            assert state(server)["status"] == "running"
        assert state(server)["status"] == INTERRUPTED
        with RunDirectory.open(folder):  # it is resumed
            assert state(server)["status"] == "running"
        (folder / ".lock").unlink()
        assert state(server)["status"] == INTERRUPTED


def add_clipping(folder, stage, step):
    Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8)).save(RunDirectory(folder).clip_image(stage, step))


def add_document(folder, tmp_path):
    """The archive of the mesh that the run textures: a cube of another colour."""
    source = write_colored_cube(tmp_path / "before.glb")
    (folder / "document.zip").write_bytes(pack_document(source))
    run = RunDirectory(folder)
    run.write_manifest(run.read_manifest() | {"document": "document.zip"})
    return source


def test_images_of_clipping_are_those_of_their_previews(tmp_path):
    folder = make_run(tmp_path / "run")
    add_clipping(folder, "fine", 5)
    with served(folder) as server:
        assert state(server)["clipping"] == [2]
        assert len(state(server)["previews"]) == 6
        status, headers, content = request(server, "/clipping/0/2")
        assert (status, headers["Content-Type"]) == (HTTPStatus.OK, "image/png")
        assert Image.open(io.BytesIO(content)).size == (8, 8)
        for path in ("/clipping/0/1", "/clipping/0/9", "/clipping/1/0"):
            assert request(server, path)[0] == HTTPStatus.NOT_FOUND


def test_the_mesh_before_is_that_of_the_document(tmp_path):
    folder = make_run(tmp_path / "run")
    with served(folder) as server:
        assert state(server)["before"] is None
        assert request(server, "/before/0.glb")[0] == HTTPStatus.NOT_FOUND
        source = add_document(folder, tmp_path)
        assert state(server)["before"]["name"] == "document.zip"
        assert request(server, "/before/0.glb")[2] == source.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None], ids=["empty", "torn", "outside"])
def test_a_damaged_document_is_an_answer(tmp_path, content):
    folder = make_run(tmp_path / "run")
    add_document(folder, tmp_path)
    if content is None:
        with zipfile.ZipFile(folder / "document.zip", "w") as archive:
            archive.writestr("../../outside.glb", b"x")
    else:
        (folder / "document.zip").write_bytes(content)
    with served(folder) as server:
        assert request(server, "/before/0.glb")[0] == HTTPStatus.NOT_FOUND
    assert not (tmp_path / "outside.glb").exists()


def press(browser, name):
    browser.evaluate(
        f"[...document.querySelectorAll('button')].find((one) => one.textContent === {name!r}).click()"
    )


def slide(browser, selector, value):
    browser.evaluate(
        f"(() => {{ const one = document.querySelector({selector!r}); one.value = {value};"
        " one.dispatchEvent(new Event('input')); })()"
    )


def magenta(image):
    return np.abs(image - np.array(MAGENTA)).max(-1) <= 6


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_two_runs_lie_under_a_slider_and_so_do_their_previews(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=25)
    with served(first, second) as server, Browser(tmp_path / "profile", size=(900, 700)) as browser:
        browser.open(server.one_time_address())
        browser.wait("[...document.querySelectorAll('.viewer')].every((one) => one.dataset.loaded)")
        press(browser, "base colour")
        press(browser, "slider")
        places = (
            "[...document.querySelectorAll('#viewers .viewer')].map((one) => one.getBoundingClientRect().x)"
        )
        assert browser.evaluate(f"new Set({places}).size") == 1
        text = browser.evaluate("document.querySelector('#split span').textContent")
        assert text == "A: a | B: b"
        clip = "getComputedStyle(document.querySelectorAll('#viewers .columns > div')[1]).clipPath"
        slide(browser, "#split input", 25)
        assert browser.evaluate(clip) == "inset(0px 0px 0px 25%)"
        press(browser, "side by side")
        assert browser.evaluate(f"new Set({places}).size") == 2
        assert browser.evaluate("document.querySelector('#split').hidden")
        press(browser, "compare with B")
        browser.wait("document.querySelector('.other').naturalWidth === 24")
        slide(browser, ".cut", 30)
        inset = "document.querySelector('.other').style.clipPath"
        assert browser.evaluate(inset) == "inset(0px 70% 0px 0px)"
        press(browser, "2")  # of 3 columns: 30 % of the second is (100 + 30) / 3 of the sheet
        assert browser.evaluate(inset).startswith("inset(0px 56.6667%")
        assert browser.console == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_textured_mesh_is_compared_with_its_result(tmp_path):
    folder = make_run(tmp_path / "run")
    with served(folder) as server, Browser(tmp_path / "profile", size=(900, 700)) as browser:
        browser.open(server.address)
        browser.wait("document.querySelector('[data-kind=asset]').dataset.loaded")
        hidden = "document.querySelector('[data-kind=before]').offsetParent === null"
        assert browser.evaluate(hidden)
        assert browser.evaluate("document.querySelector('.clipping').hidden")
        add_document(folder, tmp_path)
        add_clipping(folder, "fine", 20)
        browser.wait("document.querySelector('[data-kind=before]').dataset.loaded")
        assert not browser.evaluate(hidden)
        press(browser, "base colour")
        press(browser, "slider")
        browser.evaluate("document.querySelector('#controls').scrollIntoView()")
        browser.wait("document.querySelector('#viewers .columns').classList.contains('overlay')")
        image = browser.image()
        assert np.mean(magenta(image)) > 0.1
        slide(browser, ".step", 4)
        slide(browser, ".step", 5)
        browser.wait("!document.querySelector('.clipping').hidden")
        browser.wait("document.querySelector('.clipping img').naturalWidth === 8")
        with RunDirectory.open(folder) as run:
            run.write_manifest(run.read_manifest() | {"status": "running"})
            run.log_metrics({"stage": "fine", "step": 21, "seconds_left": 150.0})
            browser.wait("document.querySelector('.status').textContent.includes('about 3 min left')")
        assert "seconds_left" not in browser.evaluate("document.querySelector('.newest').textContent")
        assert browser.console == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_run_without_an_asset_leaves_the_page_to_its_curves(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", asset=False, **RUNNING))
    height = "document.querySelector('[data-kind=asset]').offsetHeight"
    controls = "document.querySelector('#controls').offsetParent !== null"
    with served(run.path) as server, Browser(tmp_path / "profile", size=(900, 700)) as browser:
        browser.open(server.address)
        assert browser.evaluate(height) < 100
        assert not browser.evaluate(controls)
        assert "begun" not in browser.evaluate("document.querySelector('.status').textContent")
        files = [write_colored_cube(run.path / "asset.glb")]
        run.write_manifest({**RUNNING, "status": "done", "files": run.hash_files(files)})
        browser.wait("document.querySelector('[data-kind=asset]').dataset.loaded")
        assert browser.evaluate(height) > 300
        assert browser.evaluate(controls)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_run_without_previews_is_not_offered_for_a_comparison_of_them(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    kept = tmp_path / "kept"
    (second / "previews").rename(kept)
    with served(first, second) as server, Browser(tmp_path / "profile", size=(900, 700)) as browser:
        browser.open(server.address)
        browser.wait("document.querySelector('.sheet img').naturalWidth === 24")
        browser.wait("document.querySelector('.compare').hidden")
        kept.rename(second / "previews")
        browser.wait("!document.querySelector('.compare').hidden")
        assert browser.console == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_faces_of_a_white_mesh_differ_from_each_other_and_from_the_background(tmp_path):
    path = tmp_path / "cube.glb"
    path.write_bytes(trimesh.creation.box().export(file_type="glb"))
    with served(path) as server, Browser(tmp_path / "profile", size=(900, 700)) as browser:
        browser.open(server.address)
        browser.wait("document.querySelector('.viewer').dataset.loaded")
        browser.evaluate("document.querySelector('.viewer').scrollIntoView()")
        image = browser.image()[20:400, 50:800].mean(-1).round().astype(int)
        levels = [level for level in range(256) if np.mean(np.abs(image - level) <= 2) > 0.02]
        shades = [level for level in levels if level - 1 not in levels]  # the first of each group
        assert len(shades) >= 3
        assert min(np.diff(shades)) >= 10
