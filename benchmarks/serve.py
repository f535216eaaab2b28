"""`mcls serve` beside plain servers that compute each request by itself: requests a second and waiting times.

    python benchmarks/serve.py RUN PICTURE [--clients 64] [--seconds 30] [--rounds 3]

Every client is a connection that sends a picture, waits for its answer and sends it again. The servers take turns.
"""

import argparse
import asyncio
import contextlib
import io
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from mcls.inference.objects import image_samples
from mcls.inference.predict import Classifier, from_run
from mcls.runs.folder import RunFolder
from mcls.system.layout import plain_table

KINDS = ("mcls serve", "starlette, one by one", "http.server, a thread each")


def answer(model: Classifier, body: bytes) -> bytes:
    """What a plain server does with a request: open the picture, compute, name the class."""
    from PIL import Image

    [sample] = image_samples(model, Image.open(io.BytesIO(body)))
    row = model.probabilities(sample[None])[0]
    guesses = [
        f'{{"class": "{name}", "probability": {part}}}' for name, part in zip(model.classes, row.tolist(), strict=True)
    ]
    return f'{{"class": "{model.classes[int(np.argmax(row))]}", "top": [{", ".join(guesses)}]}}'.encode()


def plain_starlette(model: Classifier) -> None:
    """The same HTTP library as mcls serve uses."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def predict(request: Request) -> Response:
        return Response(answer(model, await request.body()), media_type="application/json")

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", flush=True)
        await serving

    asyncio.run(serve())


def plain_threads(model: Classifier) -> None:
    """Python's own server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = answer(model, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


@contextlib.contextmanager
def serving(kind: str, run: str, rest: list[str]) -> Iterator[tuple[int, int]]:
    """Start a server; gives its port and its process."""
    command = [sys.executable, __file__, run, "-", "--serve", kind]
    if kind == KINDS[0]:
        command = [sys.executable, "-m", "mcls", "serve", run, "--port", "0", "--device", "cpu", *rest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rpartition(":")[2].rstrip("/\n")), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def client(port: int, request: bytes, until: float, waits: list[float]) -> int:
    """Ask until it is time; returns how many requests failed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    failed = 0
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        waits.append(time.perf_counter() - began)
        failed += head.split(None, 2)[1] != b"200"
    writer.close()
    return failed


async def load(port: int, body: bytes, clients: int, seconds: float) -> tuple[list[float], int]:
    """Waiting times of all requests of so many clients, and how many failed."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    waits: list[float] = []
    until = time.perf_counter() + seconds
    failed = await asyncio.gather(*(client(port, head + body, until, waits) for _ in range(clients)))
    return waits, sum(failed)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.serve:
        model = from_run(RunFolder(Path(options.run)), "cpu", [])
        return plain_starlette(model) if options.serve == KINDS[1] else plain_threads(model)
    body = Path(options.picture).read_bytes()
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rows = []
    for number in range(options.rounds):
        for kind in KINDS:
            with serving(kind, options.run, rest) as (port, pid):
                asyncio.run(load(port, body, options.clients, min(2, options.seconds)))
                before = processor_seconds(pid)
                waits, failed = asyncio.run(load(port, body, options.clients, options.seconds))
                used = processor_seconds(pid) - before
            rates[kind].append(len(waits) / options.seconds)
            cuts = statistics.quantiles(waits, n=100)
            times = [f"{1000 * cuts[place]:.1f}" for place in (49, 98)]
            rows.append(
                [number + 1, kind, f"{rates[kind][-1]:,.0f}", *times, failed, f"{1000 * used / len(waits):.2f}"]
            )
            print(*rows[-1], file=sys.stderr)
    print(plain_table(["round", "server", "requests/s", "p50 ms", "p99 ms", "failed", "processor ms/request"], rows))
    for kind in KINDS[1:]:
        ratios = [ours / theirs for ours, theirs in zip(rates[KINDS[0]], rates[kind], strict=True)]
        print(f"mcls serve / {kind}: {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
