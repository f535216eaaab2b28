"""`mcls resume`: go on where a run stopped, at the very step."""

import argparse
import logging
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from mcls.config.stored import HARMLESS, check_length, stored_config
from mcls.console import console, say_result
from mcls.errors import FolderError, RequestError, Stopped
from mcls.files import make_folder
from mcls.options import override, path
from mcls.runs import RunFolder, find_run, read_yaml, typed
from mcls.sweeps import Sweep, read_sweep, record_failure
from mcls.torchrun import rank_and_size

log = logging.getLogger("mcls")


def run(arguments: list[str]) -> int:
    """Resume one run, or what is missing of a sweep. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mcls resume",
        description="Go on where a run stopped, however it stopped: the result is the uninterrupted run's, bit for bit "
        "on the CPU. Keys that do not change what is trained may be changed, and trainer.epochs and trainer.patience, "
        "to go on for longer or to end earlier.",
    )
    parser.add_argument("run", type=path, metavar="RUN", help="folder of a run or of a sweep")
    parser.add_argument("changes", nargs="*", type=override, metavar="key=value", help="for example trainer.epochs=30")
    parser.add_argument("--config-dir", type=path, metavar="DIR", help="of a sweep that was begun with it")
    options = parser.parse_intermixed_args(arguments)
    rank, size = rank_and_size()
    if (options.run / "sweep.json").is_file():
        if size > 1:
            raise RequestError(
                f"{options.run}: a sweep is not resumed under torchrun. Say mcls resume {typed(options.run)}."
            )
        return resume_sweep(options.run, options.changes, options.config_dir)
    folder = find_run(options.run)
    config = stored_config(folder, options.changes)
    if (result := folder.finished()) and (said := complete(result, folder, config["trainer"])):
        print(said)
        return 0
    if size not in (1, devices := config["trainer"]["devices"]):
        raise RequestError(f"trainer.devices: the run has {devices}, torchrun started {size} processes.")
    from mcls import session
    from mcls.distributed import Team
    from mcls.opened import pointing
    from mcls.signals import StopRequest

    with console(), StopRequest() as stop:
        stop.again = shlex.join(["mcls", "resume", *arguments])
        if rank:
            session.assist(Team(rank, size), "env://", config, stop, ready=int)
            return 0
        with pointing(folder, config["dataset"]):
            result = session.resume(folder, config, stop)
        say_result(folder, result)
    return 0


def complete(result: dict[str, Any], folder: RunFolder, asked: dict[str, Any]) -> str:
    """Why there is nothing to go on with in a finished run; nothing if it is `asked` for more.

    Raises RequestError when it is asked for less.
    """
    done, was = result["epochs"], read_yaml(folder.config)["trainer"]
    epochs, patience, again = asked["epochs"], asked["patience"], f"mcls resume {typed(folder.path)}"
    check_length(epochs, done)
    if done < was["epochs"] and patience is not None and patience <= (was["patience"] or patience):
        ended = f"already finished: trainer.patience ran out after {done} of {was['epochs']} epochs"
        return f"{ended}; for more: {again} trainer.patience={2 * (was['patience'] or patience)}"
    return f"already finished, {done} epochs; for more: {again} trainer.epochs={2 * done}" if epochs == done else ""


def resume_sweep(path: Path, changes: list[str], config_dir: Path | None) -> int:
    """Bring every job of a sweep that is not finished to its end, then show the table. Returns the exit status.

    The overrides in the folder choose and set like a command line's, but trust no package and place nothing elsewhere;
    `changes` say what to trust and where the data are now.
    """
    from mcls import session
    from mcls.config.compose import checker
    from mcls.signals import StopRequest

    plan = read_sweep(path)
    if not plan.jobs:
        raise RequestError(f"{path}: it does not say what its jobs are. Give its own command again: {plan.again}")
    for line in changes:
        if line.split("=")[0] not in HARMLESS:
            raise RequestError(f"{line}: a sweep is resumed as it is. Resume one of its jobs to change that one.")
    refuse_harm(plan, changes)
    with console(), StopRequest() as stop:
        stop.again = plan.again
        for number, overrides in enumerate(plan.jobs):
            folder = plan.folder(number)
            log.info(f"\njob {number}: {' '.join(overrides)}")
            try:
                if signal_number := stop():
                    raise Stopped("stopped between two jobs", signal_number)
                if folder.finished() is not None:
                    log.info("already finished")
                    continue
                if folder.begun:
                    session.resume(folder, stored_config(folder, changes), stop)
                    continue
                make_folder(folder.path)
                with checker(config_dir) as check:
                    values, choices = check.values([*overrides, *changes])
                if "download" in values["dataset"]:
                    values["dataset"]["download"] = False  # the data were there, or a stranger wants a connection
                origin = {"command": plan.command, "overrides": overrides, "choices": choices}
                origin["test_closed"] = values["sweep"]["test"] != "all"
                session.train(values, origin, partial(RunFolder, folder.path), stop)
            except Stopped as error:
                raise Stopped(f"{error}, or the whole sweep with: {plan.again}", error.signal_number) from error
            except Exception as error:
                record_failure(folder, error, overrides)
        session.conclude(plan, changes, stop)
    return 0


def refuse_harm(plan: Sweep, changes: list[str]) -> None:
    """Raise FolderError when a sweep's folder asks for what only a command line may, or leads elsewhere."""
    from mcls.config.words import RESOLVER

    for number, overrides in enumerate(plan.jobs):
        for line in overrides:
            trusted = line.startswith("trust=") and line in changes
            if RESOLVER.search(line) or (line.lstrip("+~").startswith(("hydra", "trust")) and not trusted):
                raise FolderError(f"{plan.path / 'sweep.json'}: refused, {line} is only for a command line.")
        if (place := plan.folder(number).path).is_symlink():
            raise FolderError(f"{place}: refused, a link.")
