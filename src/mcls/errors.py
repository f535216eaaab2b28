"""Errors that a user can cause, one class per exit status. Any other exception is a bug in mcls."""


class MclsError(Exception):
    """A failure with a message for the user: `key, file or row: what is wrong, got what. What to do.`"""

    status = 1


class RunError(MclsError):
    """The run itself failed: a loss that is not finite, a sweep with failed jobs."""

    status = 1


class RequestError(MclsError):
    """The command, a key or a combination of choices is wrong."""

    status = 2


class DataError(MclsError):
    """The data are wrong."""

    status = 3


class MachineError(MclsError):
    """Environment error: device, disk, permissions or network."""

    status = 4


class FolderError(MclsError):
    """A run folder is damaged or refused."""

    status = 5


class Stopped(MclsError):
    """Stopped by a signal, and what was trained is saved; the exit status is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.status = 128 + signal_number
