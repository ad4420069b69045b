"""A report in a real browser with WebGL, where Chromium is installed."""

from functools import partial

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from report_runs import MAGENTA, make_run

from pgc3d.report.write import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
CANVAS = "document.querySelectorAll('canvas')"


def pressed(browser, name):
    """The page after a click on the button of a name."""
    browser.evaluate(
        f"[...document.querySelectorAll('button')].find((one) => one.textContent === {name!r}).click()"
    )
    return browser.image()


def near(image, *color, by=6):
    """The fraction of an image that has a colour."""
    return np.mean(np.abs(image - np.array(color)).max(-1) <= by)


def changed(first, second):
    return np.mean(np.abs(first - second).max(-1) > 30)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A comparison of two runs; another script was added to it."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name) for name in ("one", "two")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgc3d.report.asset.FRAMES", 2)
        path = write_report(runs, folder / "page.html")
    path.write_text(path.read_text().replace("</body>", "<script>window.foreign = 1</script></body>"))
    return path


def test_a_report_in_the_browser(page, tmp_path):
    with Browser(tmp_path / "profile", size=(800, 450)) as browser:
        browser.open(page)
        browser.evaluate("document.querySelector('#controls').scrollIntoView()")
        assert browser.evaluate(f"{CANVAS}.length") == 2
        assert browser.evaluate("window.foreign") is None
        assert ["Content Security Policy" in text for text in browser.console] == [True]

        modes = ("lit", "base colour", "normals", "wireframe", "UV checker", "roughness", "metallic")
        seen = dict(zip(modes, map(partial(pressed, browser), modes), strict=True))
        for half in (slice(0, 400), slice(400, 800)):  # one asset in each
            assert near(seen["base colour"][:, half], *MAGENTA) > 0.15
        assert near(seen["lit"], *MAGENTA, by=120) > 0.15
        assert near(seen["lit"], *MAGENTA) < 0.9 * near(seen["base colour"], *MAGENTA)
        assert near(seen["normals"], 85, 95, 245, by=12) > 0.1  # the front
        assert near(seen["roughness"], 64, 64, 64) > 0.15
        assert near(seen["metallic"], 128, 128, 128) > 0.15
        assert 0.002 < near(seen["wireframe"], 32, 38, 43, by=20) < 0.1
        assert 0.002 < near(seen["UV checker"], 16, 20, 24, by=20) < 0.1  # names of cells
        assert changed(seen["lit"], pressed(browser, "lit")) < 0.02

        drag(browser)
        turned = browser.image()
        for half in (slice(0, 400), slice(400, 800)):  # the other camera follows
            assert changed(turned[:, half], seen["lit"][:, half]) > 0.02
        assert near(pressed(browser, "dark"), 27, 30, 33) > 0.2
        assert len(browser.console) == 1
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "blob"}


def drag(browser):
    """Orbit the first asset with the mouse."""
    box = browser.evaluate(f"(({{x, y}}) => [x, y])({CANVAS}[0].getBoundingClientRect())")
    x, y = box[0] + 100, box[1] + 200
    browser.mouse("mousePressed", x, y)
    for step in range(1, 6):
        browser.mouse("mouseMoved", x + 20 * step, y + 5 * step)
    browser.mouse("mouseReleased", x + 100, y + 25)


PHONE = (390, 800)
NARROW = "[document.documentElement.scrollWidth, innerWidth]"
BROKEN = """[...document.querySelectorAll('td, th')].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
  return lines.size > Math.max(1, cell.textContent.length / 8);
}).map((cell) => cell.textContent)"""


@pytest.mark.slow
def test_tables_are_readable_on_a_phone(tmp_path):
    """No cell is a column of single letters, and the page itself is not wider than the window."""
    runs = [make_run(tmp_path / name, prompt=name * 60, device=name) for name in ("one", "two")]
    for run, value in zip(runs, (0.125, 0.0625), strict=True):
        config = run / "config.yaml"
        config.write_text(
            f"{config.read_text()}\nobjectives: {{color: {{guidance: {{t_max: [{value}, 1.0]}}}}}}\n"
        )
    page = write_report(runs, tmp_path / "page.html")
    with Browser(tmp_path / "profile", size=(900, 800)) as browser:
        browser.resize(*PHONE)
        browser.open(page)
        width, window = browser.evaluate(NARROW)
        assert width <= window == PHONE[0]
        assert browser.evaluate(BROKEN) == []


@pytest.mark.slow
def test_an_asset_stays_in_sight_when_a_phone_is_turned(page, tmp_path):
    with Browser(tmp_path / "profile", size=(900, 800)) as browser:
        browser.resize(800, 390)
        browser.open(page)
        pressed(browser, "base colour")
        browser.resize(*PHONE)
        browser.evaluate("document.querySelector('.viewer').scrollIntoView()")
        image = browser.image()
        assert near(image, *MAGENTA) > 0.05
        assert near(image[:, :30], *MAGENTA) == near(image[:, -30:], *MAGENTA) == 0
