"""What goes wrong on purpose, in a child of the fork server, before its command begins. And naive ways, as controls."""

import errno
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def find(name: str) -> tuple[Any, str]:
    """The owner and the attribute of a dotted name such as `mcls.training.trainer.Trainer.flush`."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise ImportError(name)


def put(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute of a module or class for good."""
    setattr(owner, name, value)


def before(name: str, number: int, act: Callable[[], None]) -> None:
    """Call `act` before the call `number` (from 1) of the function called `name`."""
    owner, attribute = find(name)
    inner, calls = getattr(owner, attribute), [0]

    def counted(*arguments: Any, **keys: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return inner(*arguments, **keys)

    setattr(owner, attribute, counted)


def die_before(name: str, number: int) -> None:
    """Be killed before that call."""
    before(name, number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def signal_before(name: str, number: int, which: int, whom: str = "self") -> None:
    """Get signal `which` before that call; or let the processes started from here get it, or all."""

    def act() -> None:
        if whom == "all":
            os.killpg(0, which)
        children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
        for pid in {"self": [os.getpid()], "children": map(int, children), "all": []}[whom]:
            os.kill(pid, which)

    before(name, number, act)


def sleep_before(name: str, number: int, seconds: float) -> None:
    """Sleep before that call."""
    before(name, number, lambda: time.sleep(seconds))


def raise_before(name: str, number: int, kind: str, text: str) -> None:
    """Raise the error `kind`, a builtin or a dotted name, before that call."""

    def act() -> None:
        owner, attribute = find(kind if "." in kind else f"builtins.{kind}")
        raise getattr(owner, attribute)(text)

    before(name, number, act)


def calls_that_write() -> tuple[str, ...]:
    """The calls by which a file is published."""
    return ("pathlib.Path.open", "os.fsync", "os.replace", "os.open")


def die_at_call(number: int, after: bool) -> None:
    """Be killed at the call `number` (from 1) of all those that publish files, before or after it."""
    calls = [0]
    for name in calls_that_write():
        owner, attribute = find(name)

        def counted(*arguments: Any, inner: Any = getattr(owner, attribute), **keys: Any) -> Any:
            calls[0] += 1
            mine = calls[0]
            if mine == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*arguments, **keys)
            if mine == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, attribute, counted)


def refuse_at_call(name: str, first: int, code: str, count: int = 1) -> None:
    """From call `first` of `name` on a run folder's files on, `count` calls fail with the errno called `code`."""
    owner, attribute = find(name)
    inner, calls = getattr(owner, attribute), [0]

    def refused(*arguments: Any, **keys: Any) -> Any:
        calls[0] += 1
        if first <= calls[0] < first + count:
            number = getattr(errno, code)
            raise OSError(number, os.strerror(number))
        return inner(*arguments, **keys)

    setattr(owner, attribute, refused)


def limit_file_size(size: int) -> None:
    """No file may grow beyond `size` bytes: what a full disk is like, without being root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """No more than `size` bytes of address space beyond what is there now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def write_in_place() -> None:
    """A control: checkpoints are written straight to where they belong, the way of the tutorials."""
    import torch

    from mcls.runs import checkpoint

    replace = os.replace

    def keep(source: Any, target: Any, **keys: Any) -> None:
        if Path(target).name != "previous.pt":
            replace(source, target, **keys)

    checkpoint.save = lambda path, state: torch.save(state, path)
    checkpoint.load_checkpoint = load_naively
    put(os, "replace", keep)


def load_naively(path: Path) -> Any:
    """`torch.load` as it comes."""
    import torch

    from mcls.errors import FolderError

    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise FolderError(f"{path}: {error}") from error


def plain_publish(path: str, size: str, offset: str, naive: str) -> None:
    """Publish `size` bytes at `path` and die when `offset` of them are written."""
    from mcls.system import files

    inner = Path.open

    def loaded(self: Path, *arguments: Any, **keys: Any) -> Any:
        return Dying(inner(self, *arguments, **keys), int(offset))

    put(Path, "open", loaded)
    content = b"new" * (int(size) // 3)
    if naive == "yes":
        with Path(path).open("wb") as file:
            file.write(content)
    else:
        files.publish(Path(path), content)


class Dying:
    """A file that ends the process when enough is written."""

    def __init__(self, inner: Any, left: int) -> None:
        self.inner, self.left = inner, left

    def __enter__(self) -> "Dying":
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def write(self, content: bytes) -> int:
        """As much as there is left."""
        self.inner.write(content[: self.left])
        self.inner.flush()
        if self.left < len(content):
            os._exit(137)
        return len(content)

    def flush(self) -> None:
        """The file's."""
        self.inner.flush()

    def fileno(self) -> int:
        """The file's."""
        return int(self.inner.fileno())


def note_writes(log: str) -> None:
    """Write the path of every file that is opened for writing to file `log`."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            os.write(out, f"{os.fspath(arguments[0])}\n".encode())

    sys.addaudithook(hook)


def refuse_in_run(name: str, first: int, code: str) -> None:
    """The call `first` of `name` that is about a path in a run folder (`os.fsync`: any) fails with errno `code`."""
    owner, attribute = find(name)
    inner, calls = getattr(owner, attribute), [0]

    def refused(*arguments: Any, **keys: Any) -> Any:
        calls[0] += name == "os.fsync" or "outputs" in str(arguments[0])
        if calls[0] == first:
            calls[0] += 1
            number = getattr(errno, code)
            raise OSError(number, os.strerror(number))
        return inner(*arguments, **keys)

    setattr(owner, attribute, refused)


def plant(place: str, step: int, value: float) -> None:
    """Put `value` in the input, the loss, a gradient or a weight of step `step`."""
    import torch
    from torch import nn

    from mcls.data.loader import Normalise
    from mcls.training.trainer import Trainer

    owner, name = {
        "input": (Normalise, "__call__"),
        "loss": (nn.CrossEntropyLoss, "forward"),
        "gradient": (torch.optim.SGD, "step"),
        "weight": (torch.optim.SGD, "step"),
    }[place]
    inner, train_epoch, calls = getattr(owner, name), Trainer.train_epoch, [0]
    begun: list[bool] = []  # a loss is called before the first step too, to be checked

    def count_from_here(trainer: Trainer, train: Any) -> None:
        begun.append(True)
        train_epoch(trainer, train)

    put(Trainer, "train_epoch", count_from_here)

    def planted(first: Any, *arguments: Any, **keys: Any) -> Any:
        calls[0] += bool(begun)
        mine = calls[0] == step
        if mine and place == "gradient":
            first.param_groups[0]["params"][0].grad[0, 0] = value
        result = inner(first, *arguments, **keys)
        if mine and place == "weight":
            with torch.no_grad():
                first.param_groups[0]["params"][0][0, 0] = value
        if mine and place == "input":
            return torch.full_like(result, value)
        return result * value if mine and place == "loss" else result

    setattr(owner, name, planted)


def check_nothing() -> None:
    """A control: a trainer that looks at no number."""
    import types

    from mcls.training import trainer

    put(trainer, "math", types.SimpleNamespace(isfinite=lambda _: True, nan=float("nan")))

    def save(self: Any) -> None:
        self.save(self.state_dict(), self.best_is_new)

    trainer.Trainer.checkpoint = save  # type: ignore[method-assign]


def forget_nothing() -> None:
    """A control: curves that are only ever appended to."""
    from mcls.runs.tracking import RunLogger

    inner = RunLogger.event
    RunLogger.drop_after = lambda self, epoch: None  # type: ignore[method-assign]

    def event(self: Any, step: Any = None, **content: Any) -> None:
        if "session_log" not in content:
            inner(self, step, **content)

    RunLogger.event = event  # type: ignore[method-assign]


def same_second(naive: bool) -> None:
    """The clock stands still; `naive` makes the folder as everybody does."""
    from mcls.runs.folder import RunFolder
    from mcls.training import start

    put(start, "timestamp", lambda: "now")

    def shared(parent: Path, name: str) -> RunFolder:
        (parent / name).mkdir(parents=True, exist_ok=True)
        return RunFolder(parent / name)

    if naive:
        put(start, "claim", shared)


def fail_for_seeds(failures: dict[str, str]) -> None:
    """Runs with these seeds fail: `bug`, `machine`, `nan`, or `kill`."""
    from mcls.errors import MachineError, RunError
    from mcls.training import run, setup

    inner = setup.build_components

    def assemble(config: dict[str, Any]) -> Any:
        kind = failures.get(str(config["seed"]))
        if kind == "bug":
            raise ValueError("planted")
        if kind == "machine":
            raise MachineError("planted: no such machine")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "nan":
            raise RunError("step 3: the training loss is nan, planted.")
        return inner(config)

    put(run, "build_components", assemble)


def no_handlers() -> None:
    """A control: signals do what they do without mcls."""
    from mcls.system.signals import ASKING, StopRequest

    def enter(self: StopRequest) -> StopRequest:
        for number in ASKING:
            signal.signal(number, signal.SIG_DFL)
        return self

    StopRequest.__enter__ = enter  # type: ignore[method-assign]


def full_logs() -> None:
    """train.log, metrics.jsonl and the event file are on `/dev/full`."""
    from mcls.runs import tracking
    from mcls.system.files import open_plain

    def loaded(path: Path, flags: int) -> int:
        if path.name in ("train.log", "metrics.jsonl"):
            return os.open("/dev/full", os.O_WRONLY)
        return open_plain(path, flags)

    put(tracking, "open_plain", loaded)
    refuse_at_call("tensorboard.summary.writer.record_writer.RecordWriter.write", 1, "ENOSPC", 1_000_000)


READABLE = (
    "/usr",
    "/lib",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/ssl",
)
FORBIDDEN = (
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.sendto", "socket.getaddrinfo", "ctypes.dlopen", "webbrowser.open", "urllib.Request"),
    *(
        "os.chmod",
        "os.chown",
        "os.link",
        "os.symlink",
        "os.rmdir",
        "os.remove",
        "os.rename",
        "os.mkdir",
    ),
)


OURS = [["git", "rev-parse", "HEAD"], ["uname", "-p"]]  # what a run writes down of the machine


def watch(log: str, mine: list[str], board: bool = False) -> None:
    """Write to file `log` every event that a stranger's folder must not cause.

    Args:
        mine: folders in which files may be read and written: the run, the named output.
        board: allow what TensorBoard does on this machine alone: its port and its data server, a process of its own.
    """
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    roots = [os.path.realpath(root) for root in mine]
    scratch = f"{tempfile.gettempdir()}/tensorboard_data_server_"
    repository = str(Path(__file__).parents[2])
    readable = [*roots, *READABLE, repository, *{os.path.realpath(path) for path in (*sys.path, sys.prefix) if path}]
    readable += [os.path.realpath(sys.base_prefix), *(str(Path.home() / name) for name in (".cache", ".config"))]

    def inside(path: Any, places: list[str]) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))
        return (board and real.startswith(scratch)) or any(
            real == place or real.startswith(f"{place}/") for place in places
        )

    def allowed(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & os.O_NOFOLLOW and Path(os.fsdecode(path)).is_symlink():
                return True  # it fails
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            return path is None or inside(path, roots if writes and path != os.devnull else readable)
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            return not name.startswith("/") or not inside(name, roots)
        if event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod"):
            paths = arguments[:2] if event == "os.rename" else arguments[:1]
            return all(inside(path, roots) for path in paths)
        if event == "subprocess.Popen":
            return list(arguments[1]) in OURS or inside(arguments[0], [sys.prefix])
        if event in ("socket.connect", "socket.getaddrinfo"):  # the board finds its port and its own data server
            return board and any(name in repr(arguments) for name in ("localhost", "127.0.0.1", "'::1'"))
        if event == "ctypes.dlopen":
            return arguments[0] is None or not inside(arguments[0], roots)
        if event in ("os.fork", "os.posix_spawn", "os.exec"):
            return bool(git) and git.pop() is not None
        return event not in FORBIDDEN

    git: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and list(arguments[1]) in OURS:
            git.append("git")
        if board and event == "subprocess.Popen" and "tensorboard_data_server" in str(arguments[0]):
            git.append("server")
        if (event in FORBIDDEN or event in ("open", "exec")) and not allowed(event, arguments):
            os.write(out, f"{event} {arguments!r:.300}\n".encode("utf-8", "replace"))

    sys.addaudithook(hook)


def load_pickles() -> None:
    """A control: checkpoints are loaded as in every old tutorial."""
    import torch

    from mcls.runs import checkpoint

    checkpoint.load_checkpoint = lambda path: torch.load(path, weights_only=False)


def follow_links() -> None:
    """A control: files are opened as they come, and locked as usual."""
    from mcls.runs import folder

    folder.RunFolder.refuse_links = lambda self: None  # type: ignore[method-assign]
    put(folder, "open_plain", lambda path, flags: os.open(path, flags, 0o666))


def serve_digits(address: str) -> None:
    """MNIST comes from the server at `address`, and has the sums of what is there."""
    import json
    import urllib.request

    from torchvision.datasets import MNIST

    MNIST.mirrors = [address]
    MNIST.resources = [tuple(entry) for entry in json.loads(os.environ["DIGITS"])]
    assert urllib.request


def impatient(seconds: float) -> None:
    """Downloads are given up after `seconds` of silence."""
    from mcls.data import datasets

    datasets.DOWNLOAD_TIMEOUT = seconds


def stop_after(seconds: float) -> None:
    """Get a SIGINT after `seconds`, for commands that run until then."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def open_logs_naively() -> None:
    """A control: the log and the curves follow links too."""
    from mcls.runs import tracking

    put(tracking, "open_plain", lambda path, flags: os.open(path, flags, 0o666))


def download_naively(root: str) -> None:
    """A control: torchvision's own download."""
    from torchvision.datasets import MNIST

    MNIST(root, download=True)


def refuse_writes_below(place: str) -> None:
    """Files below `place` can be read, and not written, made or locked for writing."""
    inner = os.open

    def loaded(path: Any, flags: int, *arguments: Any, **keys: Any) -> int:
        if str(path).startswith(place) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return inner(path, flags, *arguments, **keys)

    def make(path: Any, *_: Any, **__: Any) -> None:
        if str(path).startswith(place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        make_folder(path)

    make_folder = os.mkdir
    os.open, os.mkdir = loaded, make


def fuzz(whole: str, name: str, first: str, count: str, commands: str) -> None:
    """Run each of `commands` on `count` copies of the folder `whole`, each with a mutation of file `name` in it.

    Prints what went wrong, and how many were refused.
    """
    import contextlib
    import io
    import json
    import random
    import shutil

    from hostile import mutated

    from mcls.cli import main

    refused = 0
    for number in range(int(first), int(first) + int(count)):
        for words in json.loads(commands):
            shutil.rmtree("copy", ignore_errors=True)
            shutil.copytree(whole, "copy")
            mutated(Path("copy", name), random.Random(f"{name} {number}"))
            output, errors = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8")
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                try:
                    status = main(words)
                except BaseException as error:
                    status = f"{type(error).__name__}: {error}"  # type: ignore[assignment]
                errors.flush()
            said = errors.buffer.getvalue().decode().splitlines()
            wrong = [line for line in said if "bug in mcls" in line or "Traceback" in line]
            last = said[-1:] if status != 0 else ["mcls: "]
            if wrong or status not in (0, 1, 2, 3, 4, 5) or not last or not last[0].startswith("mcls: "):
                print(f"{name} {number} {words}: {status} {wrong or said[-2:]}", flush=True)
            refused += status == 5
    print(f"{refused} refused", flush=True)
