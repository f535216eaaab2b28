"""`mcls board`: TensorBoard on the runs in a folder, arranged."""

import argparse
import contextlib
import io
import json
import os
import sys
import time
import webbrowser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from mcls.commands.options import Parser, path
from mcls.errors import MachineError, RequestError
from mcls.runs.folder import find_runs
from mcls.system.console import say_progress
from mcls.system.signals import StopRequest

PINNED = ("val/accuracy", "train/accuracy", "val/loss", "train/loss")  # the cards on top
# one colour for each <dataset>-<model>, one for each job of a sweep
RUN_COLOURS = r"^((?:.*/)?sweeps/.+|.+(?=/[^/]+$))"
IMAGES = 100  # steps of an image that are kept; TensorBoard's own 10 would drop some
INTERVAL = 0.2  # seconds between two looks for a signal


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls board",
        description="Start TensorBoard for the runs in a folder, on this machine only: accuracy and loss of val and "
        "train on top, one colour per data set and model, no smoothing. Ctrl-C ends it.",
    )
    command.add_argument("folder", nargs="?", type=path, metavar="DIR", help="default outputs")
    command.add_argument("--port", type=int, help="default: 6006 or the next free port")
    command.add_argument("--open", action="store_true", help="open the browser")
    return command


def run(arguments: list[str]) -> int:
    """Serve until a signal comes. Returns the exit status."""
    options = parser().parse_args(arguments)
    folder = options.folder or Path("outputs")
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder. Start with mcls train, or name the folder: mcls board DIR.")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise RequestError(f"--port: must be 0 to 65535, got {options.port}.")
    if next(find_runs(folder), None) is None:
        print(f"{folder}: no runs yet; they appear once they start.", file=sys.stderr)
    with StopRequest() as stop, stop.patient():
        say_progress("starting TensorBoard")
        url = serve(folder, options.port)
        say_progress()
        print(address(url, folder), flush=True)
        if "SSH_CONNECTION" in os.environ:
            port = urlsplit(url).port
            print(f"from your own machine, first run: ssh -L {port}:127.0.0.1:{port} HOST", file=sys.stderr)
        print("Ctrl-C ends it.", file=sys.stderr)
        if options.open and not webbrowser.open(address(url, folder)):
            print("no browser could be opened; open the address above.", file=sys.stderr)
        while not stop():
            time.sleep(INTERVAL)
        stop.number = 0  # it is how this ends
    return 0


def serve(folder: Path, port: int | None) -> str:
    """Start TensorBoard in a thread of this process; returns its URL. Raises MachineError when the port is taken."""
    from tensorboard import program

    board = program.TensorBoard()
    flags = {"logdir": folder, "host": "127.0.0.1", "port": "default" if port is None else port}
    flags |= {"window_title": "mcls", "samples_per_plugin": f"images={IMAGES}"}
    try:
        board.configure(argv=["", *(f"--{flag}={value}" for flag, value in flags.items())])
        with contextlib.redirect_stderr(io.StringIO()):  # it advertises its data server
            url: str = board.launch()
    except program.TensorBoardPortInUseError as error:
        raise MachineError(f"--port: {port} is in use. Omit --port to use the next free one.") from error
    except program.TensorBoardServerException as error:
        raise MachineError(f"--port: {error.msg}. Name another one.") from error
    return url


def address(url: str, folder: Path) -> str:
    """`url` with the arrangement, which the time series page reads out of it."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    query: dict[str, object] = {"pinnedCards": json.dumps(cards, separators=(",", ":")), "smoothing": 0}
    deep = any(folder not in (run.path, run.path.parent) for run in find_runs(folder))
    if deep:  # without a folder in its name every run has a colour
        query["runColorGroup"] = f"regex:{RUN_COLOURS}"
    return f"{url}?{urlencode(query)}#timeseries"
