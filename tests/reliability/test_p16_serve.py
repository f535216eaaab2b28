"""P16: whatever a client sends to `mcls serve`, however slowly: one line, others are answered, memory is bounded."""

import contextlib
import gzip
import io
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from steps import QUICK

Run = Callable[..., Any]
Size = Callable[[int, int], int]
Count = Callable[[str], None]
MB = 1_000_000
BODY = 4 * MB  # --max-body of the servers here
LIMITS = ("--max-body", str(BODY), "--max-pixels", "4000000", "--timeout", "3", "--port", "0")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000")
TABLE = "x,y,class\n" + "1.5,red,a\n-0.5,blue,b\n2,red,c\n" * 40
NAIVE = """
import io, http.server, numpy
from PIL import Image
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        image = Image.open(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % numpy.asarray(image).argmax())
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("http://127.0.0.1:%d/" % server.server_port, flush=True)
server.serve_forever()
"""


def ask(port: int, body: bytes, kind: str, path: str = "/predict", limit: float = 60) -> tuple[int, str]:
    """Status and text of the answer."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=limit)) as connection:
        connection.request("POST", path, body, {"Content-Type": kind})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def refused(answer: tuple[int, str], allowed: tuple[int, ...] = ()) -> bool:
    """Whether a request was refused: a status of 4xx and an error of one line; `allowed` are other statuses."""
    status, text = answer
    if status in allowed:
        return False
    assert 400 <= status < 500, answer
    line = json.loads(text)["error"]
    assert line and line.isprintable() and len(line) < 600 and "Traceback" not in line, answer
    return True


def most_memory(pid: int) -> int:
    """The most bytes that a process has ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def picture(size: tuple[int, int] = (40, 30), form: str = "PNG", seed: int = 0) -> bytes:
    """A picture in a format."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says that it is that large, and is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((width + 1) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def form(files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Files as multipart/form-data, and its content type."""
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n'
    parts = [head % name.encode() + content + b"\r\n" for name, content in files]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


@pytest.fixture
def served(mcls: Run, start: Run, tmp_path: Path) -> Callable[[str], Any]:
    """`with served("pictures") as (child, port)` serves a run on pictures, `table` or `numbers`."""

    @contextmanager
    def begin(kind: str) -> Iterator[tuple[Any, int]]:
        (tmp_path / "t.csv").write_text(TABLE)
        data = {
            "pictures": ("dataset=mnist",),
            "table": ("dataset=csv", f"dataset.path={tmp_path}/t.csv", "dataset.target=class"),
            "numbers": ("dataset=blobs", "dataset.n_samples=200"),
        }[kind]
        keys = ("trainer.epochs=1", "model=mlp", "model.hidden_units=[8]", f"hydra.run.dir={tmp_path}/{kind}", *QUICK)
        assert mcls("train", *data, *keys).status == 0
        child = start("serve", f"{tmp_path}/{kind}", *LIMITS)
        try:
            while not (child.output.exists() and child.stdout.endswith("/\n")):
                time.sleep(0.05)
            yield child, int(child.stdout.rpartition(":")[2].rstrip("/\n"))
        finally:
            child.kill(15)
            status = child.wait()
        assert status == 143, child.stderr
        assert "Traceback" not in child.stderr and "a bug" not in child.stderr

    return begin


def test_pictures_that_are_wrong(served: Any, size: Size, count: Count) -> None:
    """Cut, changed, too large, of a format that is not read, no picture; then the answer is what it was before."""
    draw, wrong = random.Random(16), 0
    with served("pictures") as (child, port):
        good = ask(port, picture(), "image/png")
        assert good[0] == 200
        before = most_memory(child.pid)
        for index in range(size(100, 1500)):
            changed = bytearray(picture(form=FORMATS[index % len(FORMATS)], seed=index))
            if draw.random() < 0.5:
                del changed[draw.randrange(len(changed)) :]
            for _ in range(draw.randrange(1, 30) if changed else 0):
                changed[draw.randrange(min(len(changed), draw.choice((30, 300, 9999))))] = draw.randrange(256)
            wrong += refused(ask(port, bytes(changed), "image/png"), allowed=(200,))
        others = {
            "empty": b"", "text": b"no picture", "page": b"<html>", "zip": b"PK\x03\x04" + bytes(99),
            "gzip": b"\x1f\x8b" + bytes(9),
            "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "one side": bomb(3_000_000, 2),
            "bomb": bomb(30_000, 30_000), "larger bomb": bomb(20_000, 20_000)[:900] + bytes(1000),
        }  # fmt: skip
        for content in others.values():
            assert refused(ask(port, content, "application/octet-stream"))
        assert refused(ask(port, *form([("a.png", picture()), ("b\n\x1b[31m.png", b"x")])))
        assert refused(ask(port, *form([(f"{index}.png", picture((1, 1))) for index in range(1001)])))
        assert ask(port, picture(), "image/png") == good
        grown = most_memory(child.pid) - before
        assert grown < 300 * MB
    count(
        f"{size(100, 1500)} changed pictures, {wrong} refused in one line; {grown / MB:.0f} MB more memory at the most"
    )


def test_rows_that_are_wrong(served: Any, size: Size, count: Count) -> None:
    """JSON and CSV: changed, of other types, nested, endless; then the answer is what it was before."""
    draw, wrong = random.Random(16), 0
    for kind, csv, rows in (
        ("table", "x,y\n1.5,red\n", '[{"x": 1.5, "y": "red"}]'),
        ("numbers", "1.5,2\n", "[[1.5, 2]]"),
    ):
        with served(kind) as (child, port):
            good = ask(port, rows.encode(), "application/json")
            assert good[0] == 200
            before = most_memory(child.pid)
            for _ in range(size(100, 1500)):
                text, name = draw.choice(((csv, "text/csv"), (rows, "application/json")))
                content = bytearray(text.encode())
                for _ in range(draw.randrange(1, 5)):
                    content[draw.randrange(len(content))] = draw.choice(b'[]{}",;:\n\0\xff1nN-e.')
                wrong += refused(ask(port, bytes(content), name), allowed=(200,))
            values = [
                *("null", "1", '"a"', "[]", "{}", "[[]]", "[null]", "[[null, null]]", '["a", "b"]', "[[[[1]]]]"),
                *("[[NaN, 1]]", "[[Infinity, 1]]", "[[1e400, 1]]", f"[[{'9' * 5000}, 1]]", "[[1, 2], [1]]", "[[1, 2]"),
                *("[" * 100_000, '{"x":' * 100_000, '{"/etc/passwd": 1}', '["/etc/passwd"]', '"/etc/passwd"'),
                *("[" + "[1, 2]," * 1001 + "[1, 2]]", "[" + "[]," * (BODY // 4) + "[]]", '[{"x": {}, "y": []}]'),
                '[{"y": "violet", "x": 1}]',
            ]
            for value in values:
                assert refused(ask(port, value.encode(), "application/json")), value[:60]
            tables = (
                "",
                "\0",
                "x,y\n",
                "x,x,x\n1,2,3\n",
                '"x',
                "a" * (BODY - 1),
                "x,y\n" + "1,red\n" * 1001,
                "1,2\n" * 1001,
                "\xff\xfe",
            )
            for table in tables:
                assert refused(ask(port, table.encode("latin-1"), "text/csv")), table[:60]
            assert ask(port, rows.encode(), "application/json") == good
            grown = most_memory(child.pid) - before
            assert grown < 300 * MB
        count(f"{size(100, 1500)} changed rows of {kind}; {grown / MB:.0f} MB more memory at the most")
    count(f"{wrong} changed rows refused in one line")


def test_requests_that_are_wrong(served: Any, count: Count) -> None:
    """Of other types, malformed, too large; and what is no HTTP at all."""
    with served("pictures") as (child, port):
        good = ask(port, picture(), "image/png")
        before = most_memory(child.pid)
        forms = (
            b"",
            b"--x",
            b"--x--\r\n",
            b"--x\r\n\r\n\r\n--x--",
            form([("a.png", b"")])[0],
            form([])[0],
            b"\0" * 999,
        )
        kinds = ("", "text/csv", "application/json", "text/html", "x", "multipart/form-data", "\x7f")
        for body in forms:
            assert refused(ask(port, body, "multipart/form-data; boundary=x")), body
        for kind in (*kinds, "multipart/form-data; boundary=", f"multipart/form-data; boundary={'y' * 999}"):
            assert refused(ask(port, form([("a.png", picture())])[0], kind)), kind
        for top in ("0", "-1", "x", "1.5", "", "%00"):
            assert refused(ask(port, picture(), "image/png", f"/predict?top={top}")), top
        assert ask(port, picture(), "image/png", f"/predict?top={'9' * 400}")[0] == 200
        for path in ("/../../etc/passwd", "/predict/x", "//", "/%2e%2e"):
            assert refused(ask(port, picture(), "image/png", path)), path
        assert refused(ask(port, bytes(BODY + 1), "image/png"))
        post = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        raw = {
            "length": post + b"Content-Length: 999999999999\r\n\r\n",
            "negative": post + b"Content-Length: -5\r\n\r\n",
            "no host": b"GET /health HTTP/1.1\r\n\r\n",
            "nothing": b"\r\n" * 999,
            "bytes": bytes(range(256)) * 99,
            "headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 99_999,
            "line": b"GET /" + b"a" * 999_999,
            "endless": post + b"Transfer-Encoding: chunked\r\n\r\n100000\r\n" + bytes(1 << 20) + b"\r\n",
        }
        for name, content in raw.items():
            status = answered(port, content, repeat=20 if name == "endless" else 1)
            assert status is None or 400 <= status < 500, (name, status)
        assert ask(port, picture(), "image/png") == good
        assert most_memory(child.pid) - before < 300 * MB
    count(f"{len(forms) + len(kinds) + 2 + 6 + 4 + 1 + len(raw)} malformed requests")


def answered(port: int, content: bytes, repeat: int = 1) -> int | None:
    """Status of the answer to bytes as they are, the second half sent again and again; None for a closed connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        head, blank, rest = content.partition(b"\r\n\r\n")
        try:
            client.sendall(head + blank)
            for _ in range(repeat):
                client.sendall(rest)
            line = client.makefile("rb").readline()
        except ConnectionError:
            return None
        return int(line.split()[1]) if line else None


POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
JSON = POST + b"Content-Type: application/json\r\n"
FORM = POST + b"Content-Type: multipart/form-data; boundary=x\r\n"
ROW = b"[[1.5, 2]]"
PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n1,2\r\n'
FIELD = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n'
END = b"\r\n0\r\n\r\n"
CHUNKED = JSON + b"Transfer-Encoding: chunked\r\n\r\n"


def sized(head: bytes, body: bytes) -> bytes:
    """A request with the length of its body."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


# what is sent, and with which statuses it may be answered besides 4xx; None: the connection is closed without a word
BROKEN: dict[str, tuple[bytes, tuple[int | None, ...]]] = {
    "chunk of no size": (CHUNKED + b"zz\r\nabc\r\n", ()),
    "chunk of a huge size": (CHUNKED + b"F" * 19 + b"\r\nabc\r\n", ()),
    "chunks without an end": (CHUNKED + b"1\r\n[\r\n" * 999, ()),
    "chunks and a length": (JSON + b"Content-Length: 3\r\n" + CHUNKED[len(JSON):] + b"a\r\n" + ROW + END, (200,)),
    "two lengths": (JSON + b"Content-Length: 10\r\nContent-Length: 11\r\n\r\n" + ROW, ()),
    "a length of other digits": (JSON + "Content-Length: \u0668\r\n\r\n".encode() + ROW, ()),
    "a length of 5,000 digits": (JSON + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + ROW, ()),
    "a length that is too short": (JSON + b"Content-Length: 4\r\n\r\n" + ROW, ()),
    "a length that is too long": (JSON + b"Content-Length: 999\r\n\r\n" + ROW, ()),
    "no boundary": (sized(POST + b"Content-Type: multipart/form-data\r\n", PART + b"--x--\r\n"), ()),
    "10,000 files": (sized(FORM, PART * 10_000 + b"--x--\r\n"), ()),
    "10,000 fields": (sized(FORM, FIELD * 10_000 + b"--x--\r\n"), ()),
    "a field of 3 MB": (sized(FORM, FIELD.replace(b"1", b"1" * 3 * MB) + b"--x--\r\n"), ()),
    "a part's header of 1 MB": (sized(FORM, b"--x\r\nA: " + b"b" * MB + b"\r\n\r\n1\r\n--x--\r\n"), ()),
    "a part without a name": (sized(FORM, b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n"), ()),
    "a form without an end": (sized(FORM, PART), (200,)),
    "compressed": (sized(JSON + b"Content-Encoding: gzip\r\n", gzip.compress(ROW)), ()),
    "compressed in name alone": (sized(JSON + b"Content-Encoding: deflate\r\n", ROW), ()),
    "a header of 1 MB": (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MB + b"\r\n\r\n", (None,)),
    "20,000 headers": (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", (None, 200)),
    "a query of 50 KB": (b"POST /predict?top=" + b"9" * 50_000 + sized(POST[13:], b""), ()),
    "the begin of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)), (None,)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ()),
    "no version": (b"GET /health\r\n\r\n", ()),
    "another version": (b"GET /health HTTP/9.9\r\nHost: a\r\nConnection: close\r\n\r\n", (200,)),
    "a proxy": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ()),
    "a space in the name of a header": (JSON + b"Content-Length : 10\r\n\r\n" + ROW, ()),
    "a folded header": (JSON + b"A: b\r\n c\r\n" + sized(b"", ROW), (200,)),
}  # fmt: skip


def all_answers(port: int, content: bytes, half: bool) -> list[int]:
    """The statuses of all answers to bytes as they are; `half` closes this end behind them."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        found = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(content)
        with contextlib.suppress(OSError):
            if half:
                client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                found += more
    assert b"Traceback" not in found
    return [int(line.split()[1]) for line in re.findall(rb"HTTP/1\.1 \d+ ", found)]


def test_requests_that_break_the_rules_of_http(served: Any, size: Size, count: Count) -> None:
    """Lengths and chunks that lie, forms without a boundary, 10,000 parts, other methods and paths, bytes changed."""
    draw, statuses = random.Random(16), set()
    with served("numbers") as (child, port):
        good = ask(port, ROW, "application/json")
        assert good[0] == 200
        before = most_memory(child.pid)
        for name, (content, allowed) in BROKEN.items():
            first = next(iter(all_answers(port, content, half=False)), None)
            assert first in allowed or (first is not None and 400 <= first < 500), (name, first)
        for method in (b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"X"):
            for path in (
                b"/predict",
                b"/",
                b"/metadata",
                b"*",
                b"/../a",
                b"/%2e%2e/%00",
                b"/predict%00",
                b"/%ff",
                b"//a",
            ):
                content = method + b" " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                [status] = all_answers(port, content, half=False)
                assert status in (404, 405) or (method == b"HEAD" and status == 200), (method, path, status)
        one = sized(JSON, ROW)
        assert all_answers(port, one.replace(b"Connection: close\r\n", b"") * 50 + one, half=False) == [200] * 51
        for _ in range(size(200, 3000)):
            changed = bytearray(draw.choice((one, sized(FORM, PART + b"--x--\r\n"), CHUNKED + b"a\r\n" + ROW + END)))
            for _ in range(draw.randrange(1, 6)):
                changed[draw.randrange(len(changed))] = draw.choice(b'\r\n\0 :;,="-/0189azA\xff')
            statuses |= set(all_answers(port, bytes(changed), half=True))
        assert all(status == 200 or 400 <= status < 500 for status in statuses), statuses
        assert ask(port, ROW, "application/json") == good
        grown = most_memory(child.pid) - before
        assert grown < 300 * MB
    count(f"{len(BROKEN) + 63} requests against HTTP's rules, {size(200, 3000)} changed ones; {grown / MB:.0f} MB more")


def slow_clients(port: int, number: int) -> list[socket.socket]:
    """Connections that have sent a part of a request: of the header, of the body, all but its end."""
    starts = (b"", b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    clients = []
    for index in range(number):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(starts[index % len(starts)])
        if index % 7 == 3:
            client.shutdown(socket.SHUT_WR)
        clients.append(client)
    return clients


def test_clients_that_are_slow(served: Any, size: Size, count: Count) -> None:
    """While they wait others are answered; they are let go; those that do not read hold no memory for long."""
    with served("pictures") as (child, port):
        good = ask(port, picture(), "image/png")
        before = most_memory(child.pid)
        slow = slow_clients(port, size(60, 300))
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            assert ask(port, picture(), "image/png") == good
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 3
        body, kind = form([(f"{index}.png", picture((1, 1))) for index in range(1000)])
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(5):
            client = socket.create_connection(("127.0.0.1", port), timeout=30)
            client.sendall(head.encode() + body)
            slow.append(client)  # it never reads
        began = time.monotonic()
        for client in slow[:-5]:
            while client.recv(65536):
                pass
        seconds = time.monotonic() - began
        assert seconds < 2 * 3 + 5 + 5
        for client in slow:
            client.close()
        assert ask(port, picture(), "image/png") == good
        assert most_memory(child.pid) - before < 300 * MB
    count(f"{len(slow)} slow or half-closed connections let go; an answer beside them took {slowest:.2f} s at most")


def test_more_than_there_is_room_for(served: Any, size: Size, count: Count) -> None:
    """The largest bodies all at once: some get 503, none another answer than 422 or 503, and memory is bounded."""
    with served("pictures") as (child, port), ThreadPoolExecutor(64) as clients:
        good = ask(port, picture(), "image/png")
        before = most_memory(child.pid)
        content = b"\x89PNG\r\n\x1a\n" + bytes(BODY - 8)
        found = [status for status, _ in clients.map(lambda _: ask(port, content, "image/png"), range(size(64, 300)))]
        assert set(found) == {422, 503}
        grown = most_memory(child.pid) - before
        assert grown < 300 * MB
        assert ask(port, picture(), "image/png") == good
    count(f"{len(found)} bodies of {BODY / MB:.0f} MB at once, {found.count(503)} with 503; {grown / MB:.0f} MB more")


def test_the_control(count: Count) -> None:
    """A server of a few lines drops the connection of a wrong picture, waits for slow clients, holds all it is sent."""
    with subprocess.Popen([sys.executable, "-c", NAIVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as naive:
        try:
            assert naive.stdout is not None
            port = int(naive.stdout.readline().decode().rpartition(":")[2].rstrip("/\n"))
            assert ask(port, picture(), "image/png")[0] == 200
            with pytest.raises((HTTPException, ConnectionError)):
                ask(port, b"no picture", "image/png")
            before = most_memory(naive.pid)
            with pytest.raises((HTTPException, ConnectionError)):
                ask(port, bytes(400 * MB), "image/png")
            assert most_memory(naive.pid) - before > 300 * MB
            slow = slow_clients(port, 3)
            with pytest.raises(TimeoutError):
                ask(port, picture(), "image/png", limit=3)
            for client in slow:
                client.close()
        finally:
            naive.kill()
    count("a naive server failed in three of three ways")
