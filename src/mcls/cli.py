"""`mcls COMMAND ...`: looks at the first word, imports that one command, hands over the rest."""

import errno
import gc
import os
import sys

from mcls.commands import COMMANDS
from mcls.errors import MachineError, MclsError
from mcls.system.signals import end_on_signals
from mcls.version import __version__

HELP = """mcls {version}: train, sweep and honestly measure classifiers.

usage: mcls COMMAND [ARGUMENT ...] [--debug]

{commands}

mcls COMMAND --help says more. Begin with: mcls train
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status. Failures are one line on stderr, with `--debug` a traceback too."""
    if arguments is None:  # the process is this command's
        end_on_signals()
        open_closed()
        arguments = sys.argv[1:]
    if arguments[:1] == ["help"] and (len(arguments) == 1 or arguments[1] in COMMANDS):
        arguments = [*arguments[1:], "--help"]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    return run(command, rest, debug)


def dispatch(command: str, arguments: list[str]) -> int:
    """Import one command and run it, or say which there are."""
    if command == "-V" or "--version" in (command, *arguments):
        print(f"mcls {__version__}")
        return 0
    if command in ("--help", "-h"):
        lines = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        print(HELP.format(version=__version__, commands=lines), end="")
        return 0
    if command not in COMMANDS:
        complain(f"{command}: no such command. {nearest_command(command)}There are {', '.join(COMMANDS)}.")
        return 2
    import importlib

    try:
        os.getcwd()  # noqa: PTH109, pathlib takes its time
    except FileNotFoundError as error:
        raise MachineError("the working directory was deleted. Change to one that exists.") from error
    try:
        status: int = importlib.import_module(f"mcls.commands.{command}").run(arguments)
        return status
    except SystemExit:  # of its --help
        sys.stdout.flush()
        raise


def nearest_command(command: str) -> str:
    """`Did you mean ...? ` for a mistyped command, or nothing."""
    import difflib

    matches = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"Did you mean mcls {matches[0]}? " if matches else ""


def run(command: str, arguments: list[str], debug: bool) -> int:
    """Run one command and say what went wrong."""
    try:
        status = dispatch(command, arguments)
        sys.stdout.flush()  # or the interpreter would, where nobody sees that it can't
        return status
    except MclsError as error:
        complain(str(error))
        if debug:
            raise
        return error.status
    except KeyboardInterrupt:
        if debug:
            raise
        complain("interrupted.")
        return 130
    except BrokenPipeError:
        mute()
        return 141
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            mute()
            complain(f"{error.filename or 'standard output'}: {error.strerror}. Make room.")
            return 4
        if out_of_memory(error):
            reason = [*str(error).splitlines(), "the system gives no more"][0].rstrip(".")
            complain(f"not enough memory: {reason}. Use less data or a smaller batch.")
            return 4
        complain(f"a bug in mcls: {type(error).__name__}: {error}. Run it again with --debug for the traceback.")
        return 1
    finally:
        if console := sys.modules.get("mcls.system.console"):
            console.say_progress()  # clears the line
        if "triton" not in sys.modules:  # which complains of what is never freed
            gc.freeze()  # or the interpreter's end walks all that torch made, for half a second


def complain(reason: str) -> None:
    """Say what is wrong."""
    from mcls.system.console import say_error  # late: it takes its time

    say_error(reason)


def mute() -> None:
    """Throw away what could not be printed, or the interpreter's end would complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def open_closed() -> None:
    """Lead the standard streams that this process was started without (cron, daemons) to nowhere."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which no other file may get now
            if descriptor:
                setattr(sys, name, os.fdopen(descriptor, "w"))


def out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on the CPU or on a GPU, got no memory: each says so in its own way."""
    told = isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    return told or isinstance(error, MemoryError)
