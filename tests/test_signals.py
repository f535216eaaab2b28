"""A signal asks; the loop decides when to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcls.system.signals import ASKING, StopRequest


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Whoever started the tests (nohup, `&`) may have had signals ignored, which mcls would keep."""
    before = [signal.signal(number, signal.default_int_handler) for number in ASKING]
    yield
    for number, handler in zip(ASKING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_is_remembered(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop, stop.patient():
        assert stop() == 0
        os.kill(os.getpid(), number)
        assert stop() == number
    assert signal.getsignal(number) is before


def test_the_first_signal_counts() -> None:
    with StopRequest() as stop, stop.patient():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM


def test_handlers_are_put_back_after_a_failure() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(RuntimeError), StopRequest() as stop, stop.patient():
        raise RuntimeError
    assert [signal.getsignal(number) for number in ASKING] == before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.patient():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CODE = """
import time
from mcls.system.signals import StopRequest
with StopRequest() as stop, stop.patient():
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(30)
"""


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - started < 5


AT = """
import os, sys
from importlib.abc import MetaPathFinder

_, module, number, *rest = sys.argv
sys.argv = ["mcls", *rest]

class Sender(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Sender())
from mcls.cli import main
sys.exit(main())
"""
TRAIN = ("train", "trainer.epochs=1", "trainer.figures=false")


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("hydra.core.global_hydra", TRAIN),
        ("mcls.models.mlp", TRAIN),
        ("yaml", ("runs", ".")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_ends_where_it_is(module: str, arguments: tuple[str, ...], number: int, tmp_path: Path) -> None:
    """Also inside what turns exceptions into others: imports, Hydra, the building of a model."""
    command = [sys.executable, "-c", AT, module, str(int(number)), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    said = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"mcls: {said}.\n")
    assert list(tmp_path.iterdir()) == []


WRITING = """
import os, sys
from pathlib import Path
from mcls.system.files import replacing
from mcls.system.signals import end_on_signals
end_on_signals()
with replacing(Path("file"), "x") as file:
    file.write("half of it")
    if os.fork() == 0:
        os.kill(os.getpid(), int(sys.argv[1]))
    os.wait()
    assert len(os.listdir()) == 1
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
def test_nothing_is_left_of_a_file_that_was_being_written(number: int, tmp_path: Path) -> None:
    """A forked process that gets the signal too says nothing and deletes nothing."""
    command = [sys.executable, "-c", WRITING, str(int(number))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n"), list(tmp_path.iterdir())) == (128 + number, 1, [])


LATE = """
import os, signal
from mcls.system.signals import StopRequest, end_on_signals
end_on_signals()
with StopRequest() as stop:
    with stop.patient():
        os.kill(os.getpid(), signal.SIGTERM)
    print("the result", flush=True)
print("more")
"""


def test_a_signal_that_came_too_late_is_in_the_exit_status() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "the result\n", "mcls: stopped by SIGTERM.\n")
