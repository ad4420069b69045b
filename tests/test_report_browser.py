"""A report in a real browser with WebGL, where Chromium is installed."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_runs import make_run

from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.report.facts import gather_run
from pgc3d.report.page import render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
# presses every button, and ends with the normals
PRESS = """<script>
const ready = setInterval(() => {
  if (!document.documentElement.dataset.ready) return;
  clearInterval(ready);
  const buttons = [...document.querySelectorAll("#controls button")];
  const names = buttons.map((button) => button.textContent);
  buttons.push(buttons[names.indexOf("turn")], buttons[names.indexOf("normals")]);
  buttons.forEach((button, index) => setTimeout(() => button.click(), 300 * index));
}, 50);
</script>"""


def browse(page, folder, *, milliseconds):
    """The image of a page in the browser [H, W, 3], and the lines that it wrote to its console."""
    (folder / "page.html").write_text(page)
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--disable-background-networking", f"--user-data-dir={folder}/profile",
        "--enable-logging=stderr", "--window-size=600,700", f"--virtual-time-budget={milliseconds}",
        f"--screenshot={folder}/page.png", f"file://{folder}/page.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    with Image.open(folder / "page.png") as image:
        return np.asarray(image.convert("RGB")).astype(int), re.findall(r".*CONSOLE.*", done.stderr)


@pytest.fixture
def page(tmp_path):
    """A page on which nothing but the viewer can be magenta."""
    facts = gather_run(make_run(tmp_path / "run"), rasterizer=CpuRasterizer())
    return render_page([replace(facts, images=(), asset=replace(facts.asset, turntable=None))])


def fractions(image):
    """Of the image: magenta, as the cube's texture, and blue, as normals that point to the camera."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return np.mean((red > green + 90) & (blue > green + 80)), np.mean((blue > 200) & (blue > red + 40))


def test_the_asset_is_visible_and_the_console_is_empty(page, tmp_path):
    image, console = browse(page, tmp_path, milliseconds=10_000)
    assert console == []
    magenta, _ = fractions(image)
    assert magenta > 0.05


def test_every_button_works(page, tmp_path):
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    image, console = browse(free.replace("</body>", f"{PRESS}</body>"), tmp_path, milliseconds=15_000)
    assert console == []
    magenta, blue = fractions(image)
    assert blue > 0.05
    assert magenta < 0.01


def test_the_policy_stops_other_scripts(page, tmp_path):
    _, console = browse(page.replace("</body>", f"{PRESS}</body>"), tmp_path, milliseconds=3_000)
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
