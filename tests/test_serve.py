"""`mcls serve`: the answers of predict, whoever else asks at the same time; its page in a browser; how it ends."""

import asyncio
import csv
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Tab, needs_chromium
from mcls.inference.batching import Batcher
from mcls.inference.predict import Classifier, from_onnx, from_run
from mcls.inference.serve import Limits, serve_until
from mcls.inference.served import metadata
from mcls.runs.folder import RunFolder
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
LIMITS = Limits(max_batch=8, max_wait=0.01, max_queue=64, max_body=1_000_000, max_pixels=1_000_000, timeout=5)
PEOPLE = "age,colour,kind\n" + "30,red,a\n60,blue,b\n35,red,a\n55,blue,b\n" * 30


@contextmanager
def serving(model: Classifier, limits: Limits = LIMITS) -> Iterator[int]:
    """Serve in a thread of this process; gives the port."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:
        about = metadata("the run", model)
        done = thread.submit(lambda: asyncio.run(serve_until(stop.is_set, model, about, limits, listening)))
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            done.result()


def ask(port: int, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, Any]:
    """Status and content of an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": kind} if kind else {})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if reply.headers["content-type"] == "application/json" else text


def form(files: dict[str, bytes]) -> tuple[bytes, str]:
    """Files as multipart/form-data, and its content type."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files.items()
    ]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("mnist") / "run", data_root, "dataset=mnist", "trainer.epochs=1")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("people")
    (folder / "people.csv").write_text(PEOPLE)
    keys = ("dataset=csv", f"dataset.path={folder / 'people.csv'}", "dataset.target=kind", "trainer.epochs=2")
    return train(folder / "run", data_root, *keys)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("blobs") / "run", data_root, "trainer.epochs=1")


def predicted(mcls: Main, capsys: Capture, model: Path, *inputs: str) -> list[dict[str, float]]:
    """The probabilities of each class that `mcls predict` prints, by its name."""
    capsys.readouterr()
    assert mcls("predict", str(model), *inputs, "--format", "wide") == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return [{key: float(cell) for key, cell in row.items() if key != "file"} for row in rows]


def same(answers: tuple[int, Any], expected: list[dict[str, float]]) -> None:
    """The answers are those of predict: the same probabilities, the most probable class first."""
    status, found = answers
    assert status == 200, found
    assert len(found["predictions"]) == len(expected)
    for one, parts in zip(found["predictions"], expected, strict=True):
        given = {guess["class"]: guess["probability"] for guess in one["top"]}
        assert given.keys() == parts.keys()
        np.testing.assert_allclose([given[name] for name in parts], list(parts.values()), atol=1e-6)
        assert one["class"] == max(parts, key=parts.__getitem__) == one["top"][0]["class"]


@pytest.mark.parametrize("form_of", ["run", "onnx"])
def test_pictures_get_the_answers_of_predict(
    mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture, form_of: str
) -> None:
    """Each alone, all in one form, and 20 clients at a time, whose pictures share batches."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 30, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{index:02}.png")
    files = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("*.png"))}
    if form_of == "onnx":
        assert mcls("export", str(mnist), "--format", "onnx", "--output", str(tmp_path / "m.onnx")) == 0
        model, place = from_onnx(tmp_path / "m.onnx", "cpu"), tmp_path / "m.onnx"
    else:
        model, place = from_run(RunFolder(mnist), "cpu", []), mnist
    expected = predicted(mcls, capsys, place, *(str(tmp_path / name) for name in files))
    with serving(model) as port:
        whole = ask(port, "/predict", *form(files))
        same(whole, expected)
        assert [one["input"] for one in whole[1]["predictions"]] == list(files)
        with ThreadPoolExecutor(20) as clients:
            found = list(clients.map(lambda body: ask(port, "/predict", body, "image/png"), files.values()))
        for one, parts in zip(found, expected, strict=True):
            same(one, [parts])
        top = ask(port, "/predict?top=2", files["00.png"], "application/octet-stream")[1]["predictions"][0]["top"]
        assert [one["class"] for one in top] == [one["class"] for one in whole[1]["predictions"][0]["top"][:2]]
        counted = dict(line.rsplit(" ", 1) for line in ask(port, "/metrics")[1].splitlines() if line[0] != "#")
        assert counted['mcls_requests_total{status="200"}'] == "22" and counted["mcls_samples_total"] == "41"
        assert int(counted["mcls_batches_total"]) < 41 - 17  # the form's 20 in 3, and the clients' in fewer than 20


def test_rows_get_the_answers_of_predict(mcls: Main, people: Path, tmp_path: Path, capsys: Capture) -> None:
    """As CSV, as a file in a form, as JSON objects and as JSON lists; with a category among the columns."""
    (tmp_path / "rows.csv").write_text("colour;id;age\nblue;1;44\nred;2;58.5\n")
    expected = predicted(mcls, capsys, people, "rows.csv")
    body = (tmp_path / "rows.csv").read_bytes()
    objects = [{"age": 44, "colour": "blue"}, {"colour": "red", "age": "58.5", "id": None}]
    with serving(from_run(RunFolder(people), "cpu", [])) as port:
        for answers in (
            ask(port, "/predict", body, "text/csv; charset=utf-8"),
            ask(port, "/predict", *form({"a.csv": body})),
            ask(port, "/predict", json.dumps(objects).encode(), "application/json"),
            ask(port, "/predict", b'[[44, "blue"], [58.5, "red"]]', "application/json"),
        ):
            same(answers, expected)
        same(ask(port, "/predict", json.dumps(objects[0]).encode(), "application/json"), expected[:1])
        assert [one["input"] for one in ask(port, "/predict", *form({"a.csv": body}))[1]["predictions"]] == [
            "a.csv:2",
            "a.csv:3",
        ]
        assert ask(port, "/predict", b"colour,age\ngreen,3\n", "text/csv")[0] == 422
        known = ask(port, "/metadata")[1]
        assert known["input"]["columns"] == [{"name": "age"}, {"name": "colour", "categories": ["blue", "red"]}]
        assert known["classes"] == ["a", "b"] and known["model"] == "the run"
        page = ask(port, "/")[1]
        assert "age,colour\n0,blue\n</textarea>" in page
        same(ask(port, "/predict", b"age,colour\n0,blue\n", "text/csv"), predicted_text(mcls, capsys, people))


def predicted_text(mcls: Main, capsys: Capture, model: Path) -> list[dict[str, float]]:
    """What predict says of the example on the page."""
    Path("example.csv").write_text("age,colour\n0,blue\n")
    return predicted(mcls, capsys, model, "example.csv")


def test_numbers_get_the_answers_of_predict(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.csv").write_text("1.5,2\n-3,1e3\n")
    expected = predicted(mcls, capsys, blobs, "rows.csv")
    with serving(from_run(RunFolder(blobs), "cpu", [])) as port:
        same(ask(port, "/predict", b"1.5,2\n-3,1e3\n", "text/csv"), expected)
        same(ask(port, "/predict", b"[[1.5, 2], [-3, 1e3]]", "application/json"), expected)
        same(ask(port, "/predict", b"[1.5, 2]", "application/json"), expected[:1])


def test_bodies_and_addresses_that_are_not_what_they_seem(blobs: Path) -> None:
    """A compressed body is refused by its header; long whole numbers are numbers; no answer leads elsewhere."""
    with serving(from_run(RunFolder(blobs), "cpu", [])) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        for coding, status in (("gzip", 415), ("br, gzip", 415), ("identity", 200)):
            headers = {"Content-Type": "application/json", "Content-Encoding": coding}
            connection.request("POST", "/predict", b"[[1, 2]]", headers)
            reply = connection.getresponse()
            assert (reply.status, b"content-encoding: got" in reply.read()) == (status, status == 415)
        connection.close()
        whole, real = (ask(port, "/predict", b"[[%s, 1]]" % text, "application/json") for text in (b"9" * 25, b"1e25"))
        assert whole[0] == 200 and whole == real
        assert ask(port, "/predict", b"[[%s, 1]]" % (b"9" * 5000), "application/json") == (
            422,
            {"error": "inputs, row 0: inf is not a finite number."},
        )
        for path in ("/health/", "/predict/", "//evil.example/health"):
            assert ask(port, path) == (404, {"error": "Not Found"})


def test_the_api_is_described(blobs: Path) -> None:
    """Every path that is served is in /openapi.json and the other way round."""
    with serving(from_run(RunFolder(blobs), "cpu", [])) as port:
        schema = ask(port, "/openapi.json")[1]
        assert schema["openapi"] == "3.1.0" and set(schema["paths"]) == {"/predict", "/health", "/metadata", "/metrics"}
        assert set(schema["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
            *("multipart/form-data", "application/json", "text/csv")
        }
        for path in schema["paths"]:
            status, answer = ask(port, path)
            assert status == (405 if path == "/predict" else 200), (path, answer)


def slow(samples: np.ndarray) -> np.ndarray:
    """A model that takes a second."""
    threading.Event().wait(1)
    return np.full((len(samples), 2), 0.5, dtype=np.float32)


def test_what_finds_no_room_is_told_to_come_again() -> None:
    """Of 12 samples at a time a queue of 4 takes 4, and those in the model; the others get 503 at once, not later."""
    model = Classifier(("a", "b"), (2,), False, None, slow)
    limits = Limits(max_batch=2, max_wait=0.001, max_queue=4, max_body=1_000, max_pixels=1, timeout=20)
    with serving(model, limits) as port, ThreadPoolExecutor(12) as clients:
        found = list(clients.map(lambda _: ask(port, "/predict", b"[1, 2]", "application/json"), range(12)))
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 503} and 4 <= statuses.count(200) <= 7
    assert {answer["error"] for status, answer in found if status == 503} == {
        "too many requests at the moment. Try again."
    }


def test_what_takes_too_long_is_given_up() -> None:
    model = Classifier(("a", "b"), (2,), False, None, slow)
    limits = Limits(max_batch=2, max_wait=0.001, max_queue=4, max_body=1_000, max_pixels=1, timeout=0.3)
    with serving(model, limits) as port:
        assert ask(port, "/predict", b"[1, 2]", "application/json") == (503, {"error": "no answer within 0.3 s."})


def test_a_model_that_fails_fails_its_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    def compute(samples: np.ndarray) -> np.ndarray:
        if (samples == 13).any():
            raise RuntimeError("thirteen")
        return np.full((len(samples), 2), 0.5, dtype=np.float32)

    with serving(Classifier(("a", "b"), (2,), False, None, compute)) as port:
        assert ask(port, "/predict", b"[1, 13]", "application/json") == (
            500,
            {"error": "the model failed (RuntimeError)."},
        )
        assert ask(port, "/predict", b"[1, 2]", "application/json")[0] == 200
    assert "/predict: the model failed (RuntimeError: thirteen)." in caplog.messages


def test_batches_are_filled_and_never_mixed_up() -> None:
    """300 requests of 1 to 8 samples: each gets its own rows, and batches hold as many as they may."""
    sizes: list[int] = []

    def compute(samples: np.ndarray) -> np.ndarray:
        sizes.append(len(samples))
        return samples * 2

    async def work() -> None:
        batcher = Batcher(compute, 8, 0.01, 10_000)
        worker = asyncio.create_task(batcher.work())
        requests = [np.full((1 + index % 8, 1), index) for index in range(300)]
        found = await asyncio.gather(*map(batcher.probabilities, requests))
        for given, rows in zip(requests, found, strict=True):
            np.testing.assert_array_equal(rows, given * 2)
        assert batcher.samples == 0 and batcher.computed == sum(map(len, requests)) == sum(sizes)
        worker.cancel()

    asyncio.run(work())
    assert max(sizes) == 8 and len(sizes) < 250


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`mcls serve ... --port 0` in a process of its own, and its port."""
    words = [sys.executable, "-m", "mcls", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())
            assert found is not None
            yield process, int(found[1])
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_when_what_has_come_is_answered(blobs: Path, number: signal.Signals) -> None:
    """A request that is on its way is answered, a new connection is not; the exit status is the signal's."""
    with command(str(blobs), "--device", "cpu", "--max-wait-ms", "1500") as (process, port):
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(ask, port, "/predict", b"[1, 2]", "application/json")
            while "mcls_waiting_samples 1" not in ask(port, "/metrics")[1]:
                pass
            process.send_signal(number)
            assert answer.result()[0] == 200
        _, said = process.communicate(timeout=20)
        told = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        assert said.endswith(f"Ctrl-C ends it.\nmcls: {told}.\n")
        assert process.returncode == 128 + number


def test_command_lines_that_are_refused(mcls: Main, blobs: Path, capsys: Capture) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return mcls("serve", str(blobs), "--device", "cpu", *arguments), capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert said("--port", str(port)) == (
            4, f"mcls: 127.0.0.1:{port}: Address already in use. Choose another --port; 0 takes a free one.\n",
        )  # fmt: skip
    assert said("--port", "70000") == (2, "mcls: --port: must be 0 to 65535, got 70000.\n")
    assert said("--max-queue", "3") == (2, "mcls: --max-queue: must be at least --max-batch, 64, got 3.\n")
    for host in ("not a host", "192.0.2.1"):
        status, line = said("--host", host)
        told = "--host: must be an address of this machine, such as 127.0.0.1 or 0.0.0.0 (all of them)"
        assert status == 4 and line.startswith(f"mcls: {told}, got {host!r} (")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "uvicorn", None)
        assert said() == (4, "mcls: uvicorn is not installed. Install it with: pip install 'mcls[serve]'\n")


@needs_chromium
def test_the_page_in_a_browser(mnist: Path, people: Path, tmp_path: Path) -> None:
    """A picture that is chosen and a row that is typed show their bars; what is wrong shows one line."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / "a.png")
    bars = "[...document.querySelectorAll('.bar')].map(bar => bar.innerText).join('|')"
    with serving(from_run(RunFolder(mnist), "cpu", [])) as port:
        top = ask(port, "/predict", (tmp_path / "a.png").read_bytes(), "image/png")[1]["predictions"][0]["top"]
        with Tab(f"http://127.0.0.1:{port}/", tmp_path) as tab:
            tab.value("document.querySelector('#file') && 1")
            node = tab.call("DOM.getDocument")["root"]["nodeId"]
            file = tab.call("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
            tab.call("DOM.setFileInputFiles", nodeId=file, files=[str(tmp_path / "a.png")])
            found = tab.value(bars).split("|")
            assert [line.split()[:2] for line in found] == [
                [guess["class"], f"{100 * guess['probability']:.2f}"] for guess in top
            ]
            tab.screenshot(tmp_path / "page.png")
            (tmp_path / "b.png").write_bytes(b"no picture")
            tab.call("DOM.setFileInputFiles", nodeId=file, files=[str(tmp_path / "b.png")])
            assert tab.value("document.querySelector('#wrong').innerText") == "body: cannot be read (not a picture)."
    with serving(from_run(RunFolder(people), "cpu", [])) as port, Tab(f"http://127.0.0.1:{port}/", tmp_path) as tab:
        tab.value("document.querySelector('#send') && 1")
        tab.value("document.querySelector('#rows').value = 'age,colour\\n30,red\\n60,blue\\n'")
        tab.value("document.querySelector('#send').click() || 1")
        assert len(tab.value(bars).split("|")) == 4
