"""`mcls resume`: go on where a run stopped, at the very step."""

import argparse
from pathlib import Path

from mcls.config.stored import stored_config
from mcls.console import console, say_result
from mcls.errors import FolderError
from mcls.runs import RunFolder


def run(arguments: list[str]) -> int:
    """Resume one run. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mcls resume",
        description="Go on where a run stopped, however it stopped: the result is the uninterrupted run's, bit for bit "
        "on the CPU. Keys that do not change what is trained may be changed, trainer.epochs to go on for longer.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="for example trainer.epochs=30")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    if not folder.about.is_file():
        raise FolderError(f"{folder.path}: no run folder, it has no run.json.")
    config = stored_config(folder, options.changes)
    result = folder.read_result() or {}
    grown = config["trainer"]["epochs"] > stored_config(folder)["trainer"]["epochs"]
    if result.get("status") == "finished" and not grown:
        epochs = result["epochs"]
        print(f"already finished, {epochs} epochs; for more: mcls resume {options.run} trainer.epochs={2 * epochs}")
        return 0
    from mcls import session
    from mcls.signals import StopRequest

    with console(), StopRequest() as stop:
        result = session.resume(folder, config, stop)
    say_result(folder, result)
    return 0
