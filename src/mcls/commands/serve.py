"""`mcls serve`: a finished run or an exported model over HTTP."""

import argparse
import asyncio
import errno
import ipaddress
import logging
import socket

from mcls.commands.options import (
    Parser,
    add_device,
    add_temperature,
    check_effective,
    open_classifier,
    override,
    path,
    positive,
)
from mcls.errors import MachineError, RequestError
from mcls.system.console import console, say_progress
from mcls.system.signals import StopRequest
from mcls.system.text import clean

log = logging.getLogger("mcls")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls serve",
        description="The answers of mcls predict over HTTP: POST /predict takes image files, JSON rows or CSV; GET "
        "/health, /metadata, /openapi.json and /metrics; a page to try it at /. It listens on this machine only unless "
        "--host says otherwise, and asks for no password. Ctrl-C or SIGTERM ends it when what has come is answered.",
    )
    command.add_argument("run", type=path, metavar="RUN", help="folder of a run or a sweep, or an exported .onnx file")
    command.add_argument(
        "changes", nargs="*", type=override, metavar="key=value", help="for example trust=[my_package]"
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    add_device(command)
    add_temperature(command)
    numbers = {
        "--max-batch": (64, "samples that the model computes at a time"),
        "--max-wait-ms": (2, "milliseconds that a sample waits for others"),
        "--max-queue": (1_024, "samples that may wait; more are answered with 503"),
        "--max-body": (16_000_000, "bytes of a request"),
        "--max-pixels": (25_000_000, "pixels of a picture"),
        "--timeout": (30, "seconds for a request to arrive and to be answered"),
    }
    for flag, (default, what) in numbers.items():
        command.add_argument(flag, type=positive, default=default, metavar="N", help=f"{what} (default {default:,})")
    return command


def run(arguments: list[str]) -> int:
    """Serve until a signal comes. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    if options.max_queue < options.max_batch:
        raise RequestError(f"--max-queue: must be at least --max-batch, {options.max_batch}, got {options.max_queue}.")
    check_effective(options.changes, ("trust",), "mcls serve")
    say_progress(f"loading {options.run}")
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MachineError(f"{error.name} is not installed. Install it with: pip install 'mcls[serve]'") from error
    from mcls.inference.predict import warm_up
    from mcls.inference.serve import Limits, serve_until
    from mcls.inference.served import metadata

    with console(), StopRequest() as stop, listen(options.host, options.port) as listening:
        model = open_classifier(options.run, options.device, options.changes, temperature=options.temperature)
        warm_up(model)
        limits = Limits(
            options.max_batch, options.max_wait_ms / 1000, options.max_queue, options.max_body, options.max_pixels,
            options.timeout,
        )  # fmt: skip
        about = metadata(options.run.resolve().name, model)
        host, port = listening.getsockname()[:2]
        say_progress()
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
        if not ipaddress.ip_address(host).is_loopback:
            log.warning(
                f"--host {clean(options.host)}: whoever reaches this address can use the model, without a password."
            )
        log.info("Ctrl-C ends it.")
        with stop.patient():
            asyncio.run(serve_until(stop, model, about, limits, listening))
    return 128 + stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises RequestError for a port that is none, MachineError when it cannot be had."""
    if not 0 <= port <= 65535:
        raise RequestError(f"--port: must be 0 to 65535, got {port}.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            what = "--host: must be an address of this machine, such as 127.0.0.1 or 0.0.0.0 (all of them)"
            raise MachineError(f"{what}, got {clean(host)!r} ({reason}).") from error
        raise MachineError(f"{clean(host)}:{port}: {reason}. Choose another --port; 0 takes a free one.") from error
