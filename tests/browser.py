"""A real browser for tests: Debian's Chromium, asked over a pipe by the DevTools protocol.

No port and no library: messages are JSON that ends in a zero byte, in on descriptor 3 and out on 4
(--remote-debugging-pipe).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-extensions --hide-scrollbars --remote-debugging-pipe"
).split()
SECONDS = 60.0  # for an answer; a shared machine may be busy


def chromium() -> str | None:
    """The program, where one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A headless browser with a profile of its own and one page; every event is kept."""

    def __init__(self, program: str, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash"]
        self._process = subprocess.Popen(
            [*command, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._rest, self._asked = ours_in, ours_out, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._out)  # which ends it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        self._asked += 1
        message: dict[str, Any] = {"id": self._asked, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            told = self._message(method)
            if told.get("id") == self._asked:
                assert "error" not in told, f"{method}: {told['error']}"
                return dict(told["result"])

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file, in a window of so many CSS pixels, and wait until it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._message("Page.navigate")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, a promise's once it is kept."""
        told = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def key(self, name: str) -> None:
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG, however long it is."""
        told = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(b64decode(told["data"]))

    def pdf(self) -> bytes:
        """The page printed on A4."""
        self.ask("Emulation.setEmulatedMedia", media="")
        told = self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return b64decode(told["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console and exceptions since the page was opened."""
        wrong = []
        for event in self.events:
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    wrong.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    wrong.append(str(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    wrong.append(str(params["entry"]["text"]))
        return wrong

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened, but for what it holds."""
        sent = [e["params"]["request"]["url"] for e in self.events if "request" in e["params"]]
        return [url for url in sent if not url.startswith("data:")]

    def _message(self, method: str) -> dict[str, Any]:
        """The next message; an event is kept as well."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            assert ready, f"the browser did not answer {method} in {SECONDS:.0f} s"
            data = os.read(self._in, 1 << 20)
            assert data, f"the browser ended before it answered {method}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        told = dict(json.loads(line))
        if "method" in told:
            self.events.append(told)
        return told
