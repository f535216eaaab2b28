"""P14: one download however many ask; nothing short, wrong or slow is taken; data that are there need no socket."""

import gzip
import hashlib
import http.server
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steps import QUICK

import makers

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Count = Callable[[str], None]
KEYS = ("train", "dataset=mnist", "dataset.root=data", "model.hidden_units=[4]", "trainer.epochs=1", *QUICK)


class Mirror:
    """A server of MNIST's files on this machine; `fault` says what it does instead of serving well."""

    def __init__(self, folder: Path) -> None:
        makers.write_mnist(folder)
        self.files = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in folder.glob("MNIST/raw/*")}
        self.asked: Counter[str] = Counter()
        self.fault = ""
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        self.digits = json.dumps([[name, hashlib.md5(content).hexdigest()] for name, content in self.files.items()])

    def answer(self, request: Any) -> None:
        """Serve one file, or not."""
        name = request.path.strip("/")
        self.asked[name] += 1
        content = self.files.get(name, b"")
        codes = {"missing": 404, "forbidden": 403, "broken": 500, "busy": 503}
        if self.fault in codes:
            request.send_error(codes[self.fault])
            return
        if self.fault == "hang up":
            request.close_connection = True
            return
        sent = {
            "empty": b"",
            "page": b"<html>log in first</html>",
            "wrong": content[:-9] + bytes(9),
            "cut": content[: len(content) // 2],
            "stall": content[: len(content) // 2],
            "other file": self.files[next(iter(self.files))][::-1],
        }.get(self.fault, content)
        request.send_response(200)
        promised = len(content) if self.fault in ("cut", "stall") else len(sent)
        request.send_header("Content-Length", str(promised))
        request.end_headers()
        for start in range(0, len(sent), 4096):
            request.wfile.write(sent[start : start + 4096])
            time.sleep(0.002 if self.fault == "slow" else 0)
        if self.fault == "stall":
            time.sleep(30)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """The server."""
    found = Mirror(tmp_path / "there")
    yield found
    found.server.shutdown()
    found.server.server_close()


def asking(mirror: Mirror) -> dict[str, Any]:
    """What a child needs to ask it."""
    return {"setup": [["serve_digits", mirror.address], ["impatient", 2]], "DIGITS": mirror.digits}


def test_eight_processes_one_download(start: Run, mcls: Run, mirror: Mirror, tmp_path: Path, count: Count) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    assert mcls(*KEYS, cwd=alone, **asking(mirror)).status == 0
    once, mirror.asked = mirror.asked, Counter()  # torchvision asks twice for a file, the first time where it is
    mirror.fault = "slow"
    children = [start(*KEYS, f"seed={seed}", **asking(mirror)) for seed in range(8)]
    statuses = [child.wait() for child in children]
    assert statuses == [0] * 8, children[0].stderr + children[-1].stderr
    assert mirror.asked == once
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if path.is_dir()) == ["MNIST"]
    count("8 processes, 1 download")


FAULTS = ("missing", "forbidden", "broken", "busy", "hang up", "empty", "page", "wrong", "cut", "stall", "other file")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_with_a_fault(fault: str, mcls: Run, mirror: Mirror, tmp_path: Path, count: Count) -> None:
    mirror.fault = fault
    child = mcls(*KEYS, **asking(mirror), limit=60)
    assert child.status == 4 and child.seconds < 60, child.stderr
    assert child.stderr.splitlines()[-1].startswith("mcls: dataset.root: MNIST is missing or damaged")
    assert "Traceback" not in child.stderr and not (tmp_path / "outputs").exists()
    mirror.fault = ""
    assert mcls(*KEYS, **asking(mirror)).status == 0, "it must be had when the server is well again"
    count(f"server: {fault}")


def test_killed_while_it_downloads(
    start: Run, mcls: Run, mirror: Mirror, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    draw, kills = random.Random(14), size(5, 50)
    mirror.fault = "slow"
    for _ in range(kills):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        before = sum(mirror.asked.values())
        child = start(*KEYS, **asking(mirror))
        while sum(mirror.asked.values()) == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.15))
        child.kill()
        assert child.wait() == -9
        child = mcls(*KEYS, **asking(mirror))
        assert child.status == 0, child.stderr
    count(f"{kills} kills in a download, each made good by the next call")


def test_data_that_are_there_need_no_socket(mcls: Run, mirror: Mirror, tmp_path: Path, count: Count) -> None:
    makers.write_mnist(tmp_path / "data")
    log = tmp_path / "log"
    child = mcls(
        *KEYS, setup=[["serve_digits", mirror.address], ["watch", str(log), [str(tmp_path)]]], DIGITS=mirror.digits
    )
    assert child.status == 0, child.stderr
    assert "socket" not in (log.read_text() if log.exists() else "") and not mirror.asked
    count("data that are there: 0 sockets")


def test_data_in_a_folder_that_may_not_be_written(mcls: Run, mirror: Mirror, tmp_path: Path) -> None:
    makers.write_mnist(tmp_path / "data")
    refuse = ["refuse_writes_below", str(tmp_path / "data")]
    assert mcls(*KEYS, setup=[refuse]).status == 0


def test_control_torchvision_by_itself(start: Run, mirror: Mirror, tmp_path: Path) -> None:
    """Several processes that download as torchvision does ask several times."""
    mirror.fault = "slow"
    arguments = ("call", "download_naively", str(tmp_path / "data"))
    children = [start(*arguments, **asking(mirror)) for _ in range(4)]
    for child in children:
        child.wait()
    assert sum(mirror.asked.values()) > 2 * len(mirror.files)
