"""A real headless Chromium, told over a pipe what to do (--remote-debugging-pipe): no driver, no port, no network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
SKIP = "no Chromium (Debian: chromium-headless-shell)"
_TIMEOUT_S = 60.0


def program() -> str | None:
    """The browser's path, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab: what it is told, and what it complained about in `problems`."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd = write_fd, read_fd
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._seen: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.requests: list[str] = []

    def open_tab(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def go(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        self._seen.clear()
        self.send("Page.navigate", url=url)
        self._wait("Page.loadEventFired")

    def size(self, width: int, height: int, *, dark: bool = False, touch: bool = False) -> None:
        """The window in CSS pixels, and what the reader's system prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited where it is a promise."""
        told = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise AssertionError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def settle(self) -> None:
        """Wait for two frames: what observers of sizes and of visibility do is done then."""
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One event of the pointer: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        held = {"button": "left", "clickCount": 1} if kind in {"mousePressed", "mouseReleased"} else {}
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held, **more)

    def press(self, key: str) -> None:
        """One key, such as Tab, ArrowRight or +."""
        codes = {"Tab": 9, "ArrowRight": 39, "ArrowUp": 38, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes.get(key, 0), **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes.get(key, 0))

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write_fd, data) :]
        while True:
            told = self._read()
            if told.get("id") == self._number:
                if "error" in told:
                    raise AssertionError(f"{method}: {told['error']}")
                return dict(told.get("result", {}))
            self._note(told)

    def _wait(self, method: str) -> None:
        while not any(told.get("method") == method for told in self._seen):
            self._note(self._read())

    def _note(self, told: dict[str, Any]) -> None:
        self._seen.append(told)
        method, given = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in {"error", "warning", "assert"}:
            self.problems.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in {"error", "warning"}:
            self.problems.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read_fd, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the browser ended or did not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with one tab; `profile` is a folder of its own. It ends with the block."""
    path = program()
    assert path is not None
    # The browser reads commands from descriptor 3 and writes answers to 4.
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio"]
    script = f'exec 3<&{to_read} 4>&{from_write}; exec "$@"'
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            script,
            "bash",
            path,
            *options,
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    page = Page(to_write, from_read)
    try:
        page.open_tab()
        yield page
    finally:
        # It answers and then ends with all its processes; where it does not, it is told in another way.
        with contextlib.suppress(AssertionError, OSError):
            page.send("Browser.close")
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_write)
        os.close(from_read)
