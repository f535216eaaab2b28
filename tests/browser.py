"""A real browser, for tests of what is looked at in one."""

import shutil
import subprocess
from pathlib import Path

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
    return ask(url, folder, "--dump-dom")


def busy_parts(pixels: np.ndarray, size: int = 100) -> float:
    """How many of the squares of `size` pixels are not of one colour, as a part of all."""
    height, width = (length // size * size for length in pixels.shape[:2])
    squares = pixels[:height, :width].reshape(height // size, size, width // size, size, 3).swapaxes(1, 2)
    return float((squares.std(axis=(2, 3)).max(axis=-1) > 2).mean())
