"""Signals that ask a run to stop: other commands end at once, training when everything is saved."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from threading import current_thread, main_thread
from types import FrameType

# those of these that the system has: Windows knows the first two alone
ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2") if hasattr(signal, name))
UNFINISHED: set[str] = set()  # temporary files that are being written
main_process = 0  # the one that was started from a command line; those that it forks say nothing


def end_on_signals() -> None:
    """From now on a signal ends this process at once: one line, no traceback, exit status 128 + its number.

    A signal that the process was started to ignore (`nohup`, a script's `&`) stays ignored.
    """
    global main_process
    main_process = os.getpid()
    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def end(number: int, _frame: FrameType | None) -> None:
    """The handler of a process in which nobody looks for signals."""
    leave(number)


def leave(number: int, again: str = "") -> None:
    """End the process without an exception, which running code could swallow or report as another error.

    Args:
        number: of the signal.
        again: the command that continues.
    """
    if os.getpid() == main_process:
        for path in UNFINISHED:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108, as little as possible happens here
        reason = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        text = f"mcls: {reason}; go on with: {again}\n" if again else f"mcls: {reason}.\n"
        clear = "\r\x1b[K" if os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb" else ""
        with contextlib.suppress(OSError):
            os.write(2, (clear + text).encode("utf-8", "backslashreplace"))
    os._exit(128 + number)


def never(epoch: int, accuracy: float) -> bool:
    """No run is given up."""
    return False


class StopRequest:
    """Within the context, the signals of ASKING end the process at once, except inside `patient`.

    There they are recorded, and the running code asks this object. A signal that the process was started to ignore
    (`nohup`, a script's `&`) stays ignored. A second SIGINT always ends the process at once.

    Args:
        exits: whether the process is mcls's to end. Otherwise a signal that is not remembered goes to the handler that
            was there before; outside the main thread, where Python has none, no signal is seen.
    """

    def __init__(self, exits: bool = True) -> None:
        self.exits = exits
        self.number = 0
        self.remembers = False
        self.prune: Callable[[int, float], bool] = never  # of a search: whether a run is given up after an epoch
        self.resume_command = ""  # the command that goes on with what was begun
        self.before: dict[int, object] = {}

    def __reduce__(self) -> tuple[type["StopRequest"], tuple[()]]:
        return StopRequest, ()  # a launcher's worker process has handlers of its own

    def __enter__(self) -> "StopRequest":
        for number in ASKING if self.exits or current_thread() is main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if kind is None and self.before.get(self.number) is end:
            leave(self.number)  # it came too late to stop anything, and still says that nothing more is to follow
        if kind is None and self.number and not self.exits:
            signal.raise_signal(self.number)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.remembers and not (self.number and number == signal.SIGINT):
            self.number = self.number or number
        elif self.exits:
            leave(number, self.resume_command)
        elif callable(before := self.before[number]):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within the context a signal is recorded, and the code inside checks for it."""
        self.remembers = True
        try:
            yield
        finally:
            self.remembers = False

    def __call__(self) -> int:
        """Number of the signal that came first, or 0."""
        return self.number
