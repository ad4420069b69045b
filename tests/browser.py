"""A headless Chromium, driven through the pipe of its DevTools protocol; needs no further package."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-background-networking", "--remote-debugging-pipe",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL without a GPU
)  # fmt: skip
SECONDS = 120.0  # that a page may take


class Browser:
    """One tab; `console` are the texts of errors and warnings, `requests` the addresses that it opened."""

    def __init__(self, profile, *, size=(600, 700)):
        self.console, self.requests, self._number, self._buffer = [], [], 0, b""
        theirs, self._input = os.pipe()
        self._output, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs, answers)]
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", *command, "about:blank"],
            pass_fds=ends, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (theirs, answers, *ends):
            os.close(end)
        self._session = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self._call("Browser.close")
        self._process.wait(30)
        os.close(self._input)
        os.close(self._output)

    def open(self, page):
        """Open a path or an address, and wait until the page's script is done."""
        self._call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def resize(self, width, height):
        """Make the window that size, as no real one is narrower than 500 pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression):
        result = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < end, (condition, self.console)
            time.sleep(0.05)

    def image(self):
        """What is visible [H, W, 3], after the next two frames."""
        frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        self.evaluate(frame)
        content = base64.b64decode(self._call("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def mouse(self, kind, x, y):
        """An event of the left button, at a place of the visible page in pixels."""
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._input, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._output], [], [], SECONDS)
            part = os.read(self._output, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        values = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(item.get("value")) for item in values["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(values["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(values["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
