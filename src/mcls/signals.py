"""Signals that ask a run to stop: a handler sets a flag, the training loop looks at it after every step."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from mcls.errors import Stopped

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP are remembered instead of ending the process.

    A signal that the process was started to ignore (`nohup`, a script's `&`) stays ignored. A second SIGINT ends the
    process at once; what was saved before stays good.
    """

    def __init__(self) -> None:
        self.number = 0
        self.impatient = False
        self.before: dict[int, object] = {}

    def __reduce__(self) -> tuple[type["StopRequest"], tuple[()]]:
        return StopRequest, ()  # a launcher's worker process has handlers of its own

    def __enter__(self) -> "StopRequest":
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def remember(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.number and number == signal.SIGINT:
            os._exit(130)
        first, self.number = not self.number, self.number or number
        if first and self.impatient:
            raise Stopped("stopped", number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While entered nobody looks at the flag: the first signal raises Stopped where it is."""
        self.impatient = True
        try:
            if self.number:
                raise Stopped("stopped", self.number)
            yield
        finally:
            self.impatient = False

    def __call__(self) -> int:
        """Number of the signal that came first, or 0."""
        return self.number
