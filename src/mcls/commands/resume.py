"""`mcls resume`: continue a run at the step at which it stopped."""

import argparse
import logging
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from mcls.commands.options import Parser, override, path
from mcls.config.saved import RESUMABLE_KEYS, check_length, saved_config
from mcls.errors import FolderError, RequestError
from mcls.report.ending import print_result
from mcls.runs.folder import RunFolder, find_run, read_json, read_yaml, shell_path
from mcls.sweep.plan import Sweep, read_sweep
from mcls.system.console import console, say, say_progress
from mcls.system.text import plural
from mcls.system.torchrun import rank_and_size

log = logging.getLogger("mcls")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="mcls resume",
        description="Go on where a run stopped, however it stopped: the result is the uninterrupted run's, bit for bit "
        "on the CPU. Keys that do not change what is trained may be changed, and how long is trained: trainer.epochs, "
        "patience, max_steps and max_minutes, to go on for longer or to end earlier.",
    )
    made.add_argument("run", type=path, metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    made.add_argument("changes", nargs="*", type=override, metavar="key=value", help="for example trainer.epochs=30")
    made.add_argument("--config-dir", type=path, metavar="DIR", help="of a sweep that was begun with it")
    return made


def run(arguments: list[str]) -> int:
    """Resume a run, or the unfinished jobs of a sweep. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    if (options.run / "sweep.json").is_file():
        if rank_and_size()[1] > 1:
            raise RequestError(
                f"{options.run}: a sweep is not resumed under torchrun. Use mcls resume {shell_path(options.run)}."
            )
        return resume_sweep(options.run, options.changes, options.config_dir)
    folder = find_run(options.run)
    if name := read_json(folder.about).get("baseline"):
        raise RequestError(f"{options.run}: the baseline {name}, fitted at once; there is nothing to resume.")
    config = saved_config(folder, options.changes)
    if (result := folder.finished()) and (said := complete(result, folder, config["trainer"])):
        from mcls.runs.remarks import set_remarks

        for line in [said, *set_remarks(folder, config)]:
            say(line)
        return 0
    say_progress(f"reading {options.run}")
    from mcls.inference.load import pointing
    from mcls.system.signals import StopRequest
    from mcls.training import run as training_run
    from mcls.training.launch import joined

    with console(), StopRequest() as stop, joined(config) as world:
        stop.resume_command = shlex.join(["mcls", "resume", *arguments])
        if world.rank:
            training_run.worker_main(world, "", config, stop, ready=int)
            return 0
        with pointing(folder, config["dataset"]):
            result = training_run.resume(folder, config, stop)
        print_result(folder, result)
    return 0


def complete(result: dict[str, Any], folder: RunFolder, asked: dict[str, Any]) -> str:
    """Message that a finished run has nothing left to train; empty if the overrides ask for more.

    Raises RequestError if they ask for less.
    """
    done, was = result["epochs"], read_yaml(folder.config)["trainer"]
    epochs, patience, again = asked["epochs"], asked["patience"], f"mcls resume {shell_path(folder.path)}"
    check_length(epochs, done)
    if (key := str(result.get("ended_by")).removeprefix("trainer.")) in ("max_steps", "max_minutes"):
        if asked[key] is None or asked[key] > was[key]:
            return ""
        ended = f"already finished: trainer.{key} ended it in epoch {done}"
        return f"{ended}; for more: {again} trainer.{key}={2 * was[key]:g}"
    if done < was["epochs"] and patience is not None and patience <= (was["patience"] or patience):
        ended = f"already finished: trainer.patience ran out after {done} of {plural(was['epochs'], 'epoch')}"
        return f"{ended}; for more: {again} trainer.patience={2 * (was['patience'] or patience)}"
    ended = f"already finished, {plural(done, 'epoch')}; for more: {again} trainer.epochs={2 * done}"
    return ended if epochs == done else ""


def resume_sweep(path: Path, changes: list[str], config_dir: Path | None) -> int:
    """Run the unfinished jobs of a sweep, then print the table. Returns the exit status.

    The overrides in the folder work like those of a command line, but can't trust a package or move an output;
    `changes` say what to trust and where the data are now.
    """
    from mcls.config.compose import checker
    from mcls.sweep import runner
    from mcls.sweep.executors import executor
    from mcls.sweep.search import run_search
    from mcls.system.signals import StopRequest

    plan = read_sweep(path)
    if not (plan.jobs or plan.search):
        raise RequestError(f"{path}: it does not say what its jobs are. Begin a new sweep.")
    places = [line for line in changes if line.startswith("launcher")]
    changes = [line for line in changes if line not in places]
    for line in changes:
        if line.split("=")[0] not in RESUMABLE_KEYS:
            raise RequestError(f"{line}: a sweep is resumed as it is. Resume one of its jobs to change that one.")
    refuse_harm(plan, changes)
    with console(), StopRequest() as stop, checker(config_dir) as check:
        stop.resume_command = plan.resume_command

        def compose(index: int) -> tuple[dict[str, Any], dict[str, str]]:
            values, choices = check.values([*plan.jobs[index].overrides, *changes])
            if "download" in values["dataset"]:
                values["dataset"]["download"] = False  # the data were there, or a stranger wants a connection
            return values, choices

        first = plan.jobs[0].config(plan.bases) if plan.bases else check.values([])[0]
        with executor(check.launcher(places), plan.path, first, stop) as runs:
            if plan.search and plan.samples:
                plan, _ = run_search(plan, plan.search, partial(check.trial, changes), changes, runs)
            else:
                runner.run_jobs(plan, runner.frozen(plan, changes) if plan.bases else compose, changes, runs)
            runner.conclude(plan, changes, runs)
    return 0


def refuse_harm(plan: Sweep, changes: list[str]) -> None:
    """Raise FolderError if a sweep's folder sets what only a command line may set, or links to another place."""
    from mcls.config.overrides import RESOLVER

    for line in plan.search.lines if plan.search else ():
        if RESOLVER.search(line) or line.lstrip("+~").startswith(("hydra", "trust")):
            raise FolderError(f"{plan.path / 'sweep.json'}: refused, {line} is only for a command line.")
    for index, job in enumerate(plan.jobs):
        for line in job.overrides:
            trusted = line.startswith("trust=") and line in changes
            if (RESOLVER.search(line) and not plan.bases) or (
                line.lstrip("+~").startswith(("hydra", "trust")) and not trusted
            ):
                raise FolderError(f"{plan.path / 'sweep.json'}: refused, {line} is only for a command line.")
        if (path := plan.folder(index).path).is_symlink():
            raise FolderError(f"{path}: refused, a link.")
