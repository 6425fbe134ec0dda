"""A headless Chromium, driven by the DevTools protocol over pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def program() -> str | None:
    """Return the browser's program; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """A page in the browser."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer, self._number, self._rest, self._session = reader, writer, 0, b"", ""
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown" or _is_error(answer):
                self.errors.append(json.dumps(answer["params"])[:500])

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            assert select.select([self._reader], [], [], 60)[0], "the browser does not answer"
            block = os.read(self._reader, 1 << 20)
            assert block, "the browser has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Go to a page, in a window of some size."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"{script}: not within {seconds} seconds; {self.errors}"
            time.sleep(0.05)

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in a field."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        content = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(content["data"]))


def _is_error(message: Any) -> bool:
    return message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error"


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Run a browser, with a folder for what it keeps, until the block ends."""
    name = program()
    assert name is not None
    here_in, there_out = os.pipe()
    there_in, here_out = os.pipe()

    def pipes() -> None:  # the protocol's are 3 and 4
        high_in, high_out = os.dup2(there_in, 20), os.dup2(there_out, 21)
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        [name, *options, "--no-first-run", f"--user-data-dir={profile}"], preexec_fn=pipes, close_fds=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(there_in)
    os.close(there_out)
    try:
        yield Browser(here_in, here_out)
    finally:
        process.terminate()
        process.wait(30)
        os.close(here_in)
        os.close(here_out)
