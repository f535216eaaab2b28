"""`mcls board`: what it serves, how it ends, and how it looks in a browser."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from PIL import Image

from browser import busy_parts, document, needs_chromium, screenshot
from mcls.commands.board import PINNED, RUN_COLOURS
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    root = tmp_path_factory.mktemp("board") / "outputs"
    for seed in (0, 1):
        train(root / "blobs-mlp" / f"run{seed}", data_root, "trainer.epochs=4", f"seed={seed}")
    return root


def first_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@contextlib.contextmanager
def board(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`mcls board FOLDER ...` in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "mcls", "board", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process, first_line(process.stdout)
        finally:
            process.kill()


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def tags(url: str) -> dict[str, dict[str, object]]:
    """Run names and their tags, once TensorBoard has read them."""
    for _ in range(100):
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags") as answer:
            found: dict[str, dict[str, object]] = json.load(answer)
        if len(found) >= 2:
            return found
        time.sleep(0.1)
    return {}


def test_the_projector_has_each_run_with_names_and_thumbnails(mcls: Main, tmp_path: Path) -> None:
    line = ("-m", "dataset=mnist", "model=mlp", "trainer.epochs=1", "seed=0,1", "sweep.name=s", "outputs=outputs")
    assert mcls("train", *line) == 0
    with board(tmp_path / "outputs", "--port", "0") as (_, address):
        url = f"http://{urlsplit(address).netloc}/"
        tags(url)

        def fetch(route: str, **query: str) -> bytes:
            with urllib.request.urlopen(f"{url}data/plugin/projector/{route}?{urlencode(query)}") as answer:
                return bytes(answer.read())

        runs = json.loads(fetch("runs"))
        assert runs == ["sweeps/s/0_seed=0", "sweeps/s/1_seed=1"]
        for run in runs:
            (points,) = json.loads(fetch("info", run=run))["embeddings"]
            count, width = points["tensorShape"]
            asked = {"run": run, "name": points["tensorName"]}
            assert len(fetch("tensor", **asked)) == count * width * 4 and width == min(count, 32)
            header, *rows = fetch("metadata", **asked).decode().splitlines()
            assert header.split("\t") == ["class", "predicted", "right", "sample"] and len(rows) == count
            assert {row.split("\t")[0] for row in rows} <= set("0123456789")
            sheet = Image.open(io.BytesIO(fetch("sprite_image", **asked)))
            assert points["sprite"]["singleImageDim"] == [28, 28] and sheet.width // 28 * (sheet.height // 28) >= count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_arranged_until_a_signal(outputs: Path, number: int) -> None:
    with board(outputs, "--port", "0") as (process, address):
        parts = urlsplit(address)
        assert (parts.hostname, parts.fragment) == ("127.0.0.1", "timeseries")
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        pinned = json.loads(asked["pinnedCards"])
        assert pinned[0] == {"plugin": "scalars", "tag": "val/accuracy"}
        assert (asked["smoothing"], asked["runColorGroup"]) == ("0", f"regex:{RUN_COLOURS}")
        found = tags(f"http://{parts.netloc}/")
        assert set(found) == {"blobs-mlp/run0", "blobs-mlp/run1"}
        assert {card["tag"] for card in pinned} <= set(found["blobs-mlp/run0"])
        assert "epoch" not in found["blobs-mlp/run0"]
        helpers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "Ctrl-C ends it.\n")
    assert not [helper for helper in helpers if alive(int(helper))]


def alive(process: int) -> bool:
    """Whether a process is still there after two seconds; a zombie that nobody has buried is not."""
    state = Path(f"/proc/{process}/stat")
    for _ in range(20):
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_colours() -> None:
    def colour(run: str) -> str | None:
        found = re.match(RUN_COLOURS, run)
        return found and found[1]

    assert colour("mnist-mlp/2026-01-01") == colour("mnist-mlp/2026-01-02") == "mnist-mlp"
    assert colour("blobs-mlp/2026-01-01") == "blobs-mlp"
    assert colour("old/mnist-mlp/2026-01-01") == "old/mnist-mlp"
    assert colour("sweeps/s/0_lr=1") != colour("sweeps/s/1_lr=2")
    assert colour("2026-01-01") is None


def test_one_group_of_runs_has_a_colour_each(outputs: Path) -> None:
    with board(outputs / "blobs-mlp", "--port", "0") as (_, address):
        assert "runColorGroup" not in address
    with board(outputs / "blobs-mlp" / "run0", "--port", "0") as (_, address):
        assert "runColorGroup" not in address


def test_takes_the_next_free_port_or_says_that_one_is_taken(mcls: Main, outputs: Path, capsys: Capture) -> None:
    with board(outputs) as (_, first), board(outputs) as (_, second):
        ports = [urlsplit(address).port for address in (first, second)]
        assert None not in ports
        assert ports[0] != ports[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "mcls", "board", str(outputs), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"mcls: --port: {port} is in use. Omit --port to use the next free one.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "outputs: no such folder. Start with mcls train, or name the folder: mcls board DIR."),
        (["nowhere"], "nowhere: no such folder. Start with mcls train, or name the folder: mcls board DIR."),
        ([".", "--port", "70000"], "--port: must be 0 to 65535, got 70000."),
    ],
)
def test_wrong_requests(mcls: Main, capsys: Capture, arguments: list[str], message: str) -> None:
    assert mcls("board", *arguments) == 2
    assert capsys.readouterr() == ("", f"mcls: {message}\n")


def test_an_empty_folder_is_served(tmp_path: Path) -> None:
    with board(tmp_path, "--port", "0") as (process, address):
        assert first_line(process.stderr) == f"{tmp_path}: no runs yet; they appear once they start."
        assert address.startswith("http://127.0.0.1:")


@needs_chromium
def test_looks_as_arranged_in_a_browser(outputs: Path, tmp_path: Path) -> None:
    with board(outputs, "--port", "0") as (_, address):
        tags(f"http://{urlsplit(address).netloc}/")
        page = document(address, tmp_path)
        pixels = screenshot(address, tmp_path)
    (pinned,) = re.findall(r"<metrics-pinned-view.*?</metrics-pinned-view>", page, re.DOTALL)
    assert set(re.findall(r"(?:train|val|test|best|time)/\w+", pinned)) == set(PINNED)
    assert "blobs-mlp/run1" in page
    assert busy_parts(pixels) > 0.3
