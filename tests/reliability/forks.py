"""A fork server: one process that has imported torch, and children of it that each run one `mcls` command.

A child is a process of its own, in a session of its own, and is killed like any other; it begins within milliseconds.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IMPORTS = (
    "torch sklearn.datasets sklearn.model_selection hydra mcls.training.run mcls.commands.train "
    "mcls.commands.resume mcls.report.run_figures torch.utils.tensorboard.summary "
    "tensorboard.plugins.hparams.summary_v2 torchvision.datasets matplotlib.figure "
    "matplotlib.backends.backend_agg torch._dynamo"
)


class Child:
    """A running command. Use `wait`, or `kill` and then `wait`."""

    def __init__(self, connection: socket.socket, output: Path, errors: Path) -> None:
        self.connection, self.output, self.errors = connection, output, errors
        self.predictions = connection.makefile()
        self.pid = int(self.predictions.readline())
        self.started = time.monotonic()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, limit: float = 120) -> int:
        """Its exit status, or minus the number of the signal that ended it. Kills it, and fails, after `limit`."""
        self.connection.settimeout(limit)
        try:
            status = int(self.predictions.readline())
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {limit} s\n{self.stderr}") from None
        finally:
            self.predictions.close()
            self.connection.close()
        self.seconds = time.monotonic() - self.started
        return status

    @property
    def stdout(self) -> str:
        """What it printed."""
        return self.output.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it said on stderr."""
        return self.errors.read_text("utf-8", "replace")


class Server:
    """Starts children. Make one a session.

    Args:
        folder: for its socket and what the children print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.address = str(folder / "s")
        log = folder / "server.log"
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(paths)}
        command = [sys.executable, "-u", str(HERE / "forks.py"), self.address]
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(log.read_text())

    def start(self, *arguments: str, cwd: Path, setup: Any = (), **environment: str) -> Child:
        """Begin `mcls ARGUMENTS` in `cwd`, after `setup`: [name of a function in faults.py, its arguments] each."""
        self.count += 1
        output, errors = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.address)
        asked = {
            "argv": list(arguments),
            "cwd": str(cwd),
            "setup": list(setup),
            "env": environment,
            "out": str(output),
            "err": str(errors),
        }
        connection.sendall((json.dumps(asked) + "\n").encode())
        return Child(connection, output, errors)

    def run(self, *arguments: str, cwd: Path, limit: float = 120, **keys: Any) -> Child:
        """A command from its beginning to its end; the status is in `.status`."""
        child = self.start(*arguments, cwd=cwd, **keys)
        child.status = child.wait(limit)  # type: ignore[attr-defined]
        return child

    def close(self) -> None:
        """End the server."""
        with self.process:
            self.process.kill()


def behave(asked: dict[str, Any]) -> int:
    """In the child: become the command."""
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    for name, number in (("out", 1), ("err", 2)):
        descriptor = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        faults = importlib.import_module("faults")
        for name, *arguments in asked["setup"]:
            getattr(faults, name)(*arguments)
        if asked["argv"][:1] == ["call"]:
            status = getattr(faults, asked["argv"][1])(*asked["argv"][2:]) or 0
        else:
            sys.argv = ["mcls", *asked["argv"]]
            status = importlib.import_module("mcls.cli").main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 99
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return status


def keep(connection: socket.socket) -> None:
    """Start the child that `connection` asks for and report its number, then its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile("rw") as talk:
        asked = json.loads(talk.readline())
        pid = os.fork()
        if pid == 0:
            connection.close()
            os._exit(behave(asked))
        talk.write(f"{pid}\n")
        talk.flush()
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            talk.write(f"{os.waitstatus_to_exitcode(status)}\n")
            talk.flush()


def serve(address: str) -> None:
    """Fork a keeper for every connection, for ever."""
    for name in IMPORTS.split():
        importlib.import_module(name)
    import torch

    from mcls.config.compose import checker

    torch.set_num_threads(1)
    with checker() as check:  # Hydra finds its plugins once
        check.check([], False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(200)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                keep(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
