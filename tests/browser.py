"""A real browser, for tests of what is looked at in one."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=15000"),
]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def ask(url: str, folder: Path, *flags: str) -> str:
    """Open `url` in chromium with a profile in `folder`. Returns what it prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def screenshot(url: str, folder: Path) -> np.ndarray:
    """What a window on `url` shows: uint8 (height, width, 3)."""
    path = folder / "screenshot.png"
    ask(url, folder, "--window-size=1500,1100", f"--screenshot={path}")
    return np.asarray(Image.open(path).convert("RGB"))


def document(url: str, folder: Path) -> str:
    """The page as it stands once its scripts have run."""
    return ask(url, folder, "--window-size=1500,1100", "--dump-dom")


def busy_parts(pixels: np.ndarray, size: int = 100) -> float:
    """How many of the squares of `size` pixels are not of one colour, as a part of all."""
    height, width = (length // size * size for length in pixels.shape[:2])
    squares = pixels[:height, :width].reshape(height // size, size, width // size, size, 3).swapaxes(1, 2)
    return float((squares.std(axis=(2, 3)).max(axis=-1) > 2).mean())


class Tab:
    """A page in chromium that is driven: DevTools' protocol over a pair of pipes.

    Args:
        url: of the page.
        folder: for the profile.
    """

    def __init__(self, url: str, folder: Path) -> None:
        there, self.commands = os.pipe()
        self.answers, back = os.pipe()
        flags = [flag for flag in FLAGS if "virtual-time" not in flag]
        command = [str(CHROMIUM), *flags, "--remote-debugging-pipe", f"--user-data-dir={folder / 'driven'}"]
        shell = ["bash", "-c", f'exec 3<&{there} 4>&{back}; exec "$@"', "bash", *command]  # it talks over 3 and 4
        self.process = subprocess.Popen(shell, pass_fds=(there, back), stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self.number, self.rest, self.session = 0, b"", {}
        self.seen: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url=url)["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self.number += 1
        line = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.commands, json.dumps(line).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.answers, 65536) or self.gone()
            message, _, self.rest = self.rest.partition(b"\0")
            if (found := json.loads(message)).get("id") == self.number:
                assert "error" not in found, found
                return dict(found["result"])
            self.seen.append(found)

    def events(self, method: str) -> list[dict[str, Any]]:
        """What the domains that were enabled have said so far."""
        return [event for event in self.seen if event.get("method") == method]

    def gone(self) -> bytes:
        """Chromium has ended."""
        raise AssertionError("chromium has ended")

    def value(self, expression: str) -> Any:
        """What JavaScript makes of `expression`, once that is not null or empty."""
        for _ in range(100):
            found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"nothing: {expression}")

    def screenshot(self, path: Path) -> None:
        """Save what the page shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
