"""`mcls resume`: go on where a run stopped, at the very step."""

import argparse
import logging
from pathlib import Path

from mcls.config.stored import stored_config
from mcls.console import console, say_result
from mcls.errors import FolderError, RequestError, Stopped
from mcls.runs import find_run
from mcls.sweeps import Sweep, read_sweep, record_failure
from mcls.torchrun import rank_and_size

log = logging.getLogger("mcls")


def run(arguments: list[str]) -> int:
    """Resume one run, or what is missing of a sweep. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mcls resume",
        description="Go on where a run stopped, however it stopped: the result is the uninterrupted run's, bit for bit "
        "on the CPU. Keys that do not change what is trained may be changed, trainer.epochs to go on for longer.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run or of a sweep")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="for example trainer.epochs=30")
    options = parser.parse_args(arguments)
    rank, size = rank_and_size()
    if (options.run / "sweep.json").is_file():
        if size > 1:
            raise RequestError(f"{options.run}: a sweep is not resumed under torchrun. Say mcls resume {options.run}.")
        return resume_sweep(options.run, options.changes)
    folder = find_run(options.run)
    config = stored_config(folder, options.changes)
    result = folder.read_result() or {}
    planned = stored_config(folder)["trainer"]["epochs"]
    grown = config["trainer"]["epochs"] > planned
    if result.get("status") == "finished" and result["epochs"] < planned:
        print(f"already finished: trainer.patience ran out after {result['epochs']} of {planned} epochs")
        return 0
    if result.get("status") == "finished" and not grown:
        print(f"already finished, {planned} epochs; for more: mcls resume {options.run} trainer.epochs={2 * planned}")
        return 0
    if size not in (1, devices := config["trainer"]["devices"]):
        raise RequestError(f"trainer.devices: the run has {devices}, torchrun started {size} processes.")
    from mcls import session
    from mcls.distributed import Team
    from mcls.signals import StopRequest

    with console(), StopRequest() as stop:
        if rank:
            session.assist(Team(rank, size), "env://", config, stop, ready=int)
            return 0
        if grown and config["schedule"] != {"_target_": "mcls.optim.constant", "warmup": 0}:
            log.warning("the schedule is stretched over all epochs: the learning rate goes back to where it was before")
        result = session.resume(folder, config, stop)
    say_result(folder, result)
    return 0


def resume_sweep(path: Path, changes: list[str]) -> int:
    """Bring every job of a sweep that is not finished to its end, then show the table. Returns the exit status.

    The overrides in the folder choose and set like a command line's, but trust no package and place nothing elsewhere.
    """
    from mcls import session
    from mcls.config.compose import checker
    from mcls.signals import StopRequest

    plan = read_sweep(path)
    if not plan.jobs:
        raise RequestError(f"{path}: its jobs were chosen by an optimizer. Give its own command again: {plan.command}")
    if changes:
        raise RequestError(f"{changes[0]}: a sweep is resumed as it is. Resume one of its jobs to change that one.")
    refuse_harm(plan)
    with console(), StopRequest() as stop:
        for number, overrides in enumerate(plan.jobs):
            folder = plan.folder(number)
            log.info(f"\njob {number}: {' '.join(overrides)}")
            try:
                if signal_number := stop():
                    raise Stopped("stopped between two jobs", signal_number)
                with checker() as check:
                    values, choices = check.values(list(overrides))
                if "download" in values["dataset"]:
                    values["dataset"]["download"] = False  # the data were there, or a stranger wants a connection
                folder.path.mkdir(exist_ok=True)
                origin = {"command": plan.command, "overrides": overrides, "choices": choices}
                session.finish(values, origin, folder, stop)
            except Stopped as error:
                raise Stopped(f"{error}, or the whole sweep with: mcls resume {path}", error.signal_number) from error
            except Exception as error:
                record_failure(folder, error, overrides)
    plan.conclude()
    return 0


def refuse_harm(plan: Sweep) -> None:
    """Raise FolderError when a sweep's folder asks for what only a command line may, or leads elsewhere."""
    for number, overrides in enumerate(plan.jobs):
        for line in overrides:
            if "${" in line or line.lstrip("+~").startswith(("hydra", "trust")):
                raise FolderError(f"{plan.path / 'sweep.json'}: refused, {line} is only for a command line.")
        if (place := plan.folder(number).path).is_symlink():
            raise FolderError(f"{place}: refused, a link.")
