"""A headless Chromium over WebDriver, which is plain HTTP; for tests/test_web.py."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

KEYS = {"ArrowRight": "\ue014", "ArrowLeft": "\ue012", "ArrowDown": "\ue015", "ArrowUp": "\ue013"}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1100,900")  # fmt: skip


def missing() -> str:
    """Why there is no browser to try pages in; empty where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"needs {' and '.join(absent)}" if absent else ""


class Browser:
    def __init__(self, address: str) -> None:
        self.profile = tempfile.TemporaryDirectory()
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        port = next(match[1] for line in self.driver.stdout if (match := re.search(r"on port (\d+)\.", line)))
        self.base = f"http://127.0.0.1:{port}/session"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={self.profile.name}"]}
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += f"/{self.ask('', asked)['sessionId']}"
        self.ask("/url", {"url": address})

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.base + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.ask("/execute/sync", {"script": script, "args": []})

    def until(self, script: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return found

    def press(self, key: str, hold: float = 0.0) -> None:
        key = KEYS.get(key, key)
        for kind, pause in (("keyDown", hold), ("keyUp", 0)):
            self.ask("/actions", {"actions": [{"type": "key", "id": "k", "actions": [{"type": kind, "value": key}]}]})
            time.sleep(pause)

    def here(self) -> str:
        """The tab that is looked at."""
        return str(self.ask("/window"))

    def go(self, tab: str) -> None:
        self.ask("/window", {"handle": tab})

    def tab(self, address: str) -> str:
        """A new one, which is looked at from now on."""
        handle = str(self.ask("/window/new", {"type": "tab"})["handle"])
        self.go(handle)
        self.ask("/url", {"url": address})
        return handle

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("/screenshot")))

    def close(self) -> None:
        self.ask_to_end()
        self.driver.terminate()
        self.driver.wait()
        self.profile.cleanup()

    def ask_to_end(self) -> None:
        urlopen(Request(self.base, method="DELETE"), timeout=60).close()
