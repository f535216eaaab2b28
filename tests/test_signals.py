"""A signal asks; the loop decides when to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mcls.signals import ASKING, StopRequest


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
    with StopRequest() as stop:
        assert stop() == 0
        os.kill(os.getpid(), number)
        assert stop() == number
    assert signal.getsignal(number) is before


def test_the_first_signal_counts() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM


def test_handlers_are_put_back_after_a_failure() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert [signal.getsignal(number) for number in ASKING] == before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CODE = """
import time
from mcls.signals import StopRequest
with StopRequest() as stop:
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
