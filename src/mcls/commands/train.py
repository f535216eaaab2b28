"""`mcls train`: one run, or a sweep of many."""

import argparse
import logging
import os
import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from mcls.commands.options import path, refuse_arguments
from mcls.config.compose import NONE, checker
from mcls.config.explain import explain_command
from mcls.config.jobs import Request
from mcls.config.overrides import as_path, at_home, first
from mcls.config.sweeps import check_selection
from mcls.errors import RequestError, RunError
from mcls.report.ending import print_result
from mcls.runs.folder import claim, find_run, named_folder, timestamp
from mcls.sweep.plan import Sweep, read_sweep
from mcls.sweep.plugins import launch
from mcls.system.console import columns, console, say_progress, say_table
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.system.torchrun import check_restart, rank_and_size

log = logging.getLogger("mcls")

SHOWS = ("help", "hydra_help", "info", "cfg", "shell_completion", "version")  # flags that show something, train nothing
# data sets that have no val but what dataset.val_fraction or dataset.folds cuts from train
WITHOUT_VAL = [f"mcls.datasets.{name}" for name in ("blobs", "mnist", "fashion_mnist", "cifar10", "csv_file")]


def run(arguments: list[str]) -> int:
    """Check the command line, then train. Returns the exit status."""
    options, arguments = split_flags(arguments)
    shows = any(getattr(options, flag, None) for flag in SHOWS)
    flags = arguments[: len(arguments) - len(options.overrides)]
    if shows and not (options.cfg or options.info or options.help or options.config_dir):  # what needs no overrides
        launch(flags, str)
        return 0
    with console(), StopRequest() as stop:  # from here on: an interrupt inside Hydra would come out as another error
        with checker(options.config_dir, options.config_name or "train") as check:
            if options.origin:
                from mcls.config.again import overrides_of

                options.overrides[:0] = overrides_of(find_run(options.origin), options.overrides, check)
                arguments = [*flags, *options.overrides]
            request = check.check(options.overrides, options.multirun)
            one = [line for override in map(check.parse, request.overrides) for line in first(override)]
        if request.sweep and (shows or options.summary):
            log.info("of the sweep's first job:")
        if options.help:
            with checker(options.config_dir, options.config_name or "train") as check:
                print(explain_command(check, one, columns()))
            return 0
        if shows:
            launch([*(flag for flag in flags if flag not in ("-m", "--multirun")), *one], str)
            return 0
        os.environ.update(request.env)
        command = shlex.join(["mcls", "train", *arguments])
        if options.summary:
            from mcls.training.model_summary import HEADER, summarise_model

            say_table(HEADER, summarise_model(request.config), names=[0, 1])
        elif request.sweep:
            sweep(request, command, options, stop)
        else:
            single(request, command, stop)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: Hydra's."""
    made: argparse.ArgumentParser = get_args_parser()
    made.prog = "mcls train"
    made.add_argument(
        "--from",
        dest="origin",
        type=path,
        metavar="RUN",
        help="begin with the configuration of this run, then override",
    )
    made.add_argument("--summary", action="store_true", help="print the layers of the model, train nothing")
    made.error = partial(refuse_arguments, made)  # type: ignore[method-assign]
    return made


def split_flags(arguments: list[str]) -> tuple[Any, list[str]]:
    """Parsed Hydra flags, and the arguments reordered so that flags precede overrides, as Hydra's parser requires."""
    arguments = [at_home(word) if word.startswith("--config-dir=") else word for word in arguments]
    options = parser().parse_intermixed_args(arguments)
    if options.experimental_rerun is not None:
        raise RequestError(
            "--experimental-rerun: refused, it would run a pickle. Use the command in the run's run.json."
        )
    if options.config_path is not None:
        raise RequestError("--config-path: refused, it would hide mcls's own files. Use --config-dir.")
    flags = list(arguments)
    for override in options.overrides:
        flags.remove(override)
    if options.origin:  # which Hydra does not know; its overrides stand in the place of it
        index = next(index for index, word in enumerate(flags) if word.partition("=")[0] == "--from")
        del flags[index : index + (1 if "=" in flags[index] else 2)]
    flags = [flag for flag in flags if flag != "--summary"]
    options.overrides = [as_path(override) for override in options.overrides if override != NONE]
    return options, [*flags, *options.overrides]


def single(request: Request, command: str, stop: StopRequest) -> None:
    """One run: train, then print its result."""
    check_restart(request.config["name"])
    say_progress(f"reading {request.choices['dataset']}")
    from mcls.training.launch import joined
    from mcls.training.run import worker_main
    from mcls.training.start import train_request

    with joined(request.config) as world:
        if world.rank:
            worker_main(world, "", request.config, stop, ready=int)
            return
        done = train_request(request, command, stop)
    print_result(*done)


def sweep(request: Request, command: str, options: Any, stop: StopRequest) -> None:
    """Many runs in one folder, then a table of them, best first."""
    say_progress("preparing the sweep")
    check_search(request)
    begun = time.monotonic()
    from mcls.sweep import runner
    from mcls.sweep.executors import capacity, executor
    from mcls.sweep.preflight import preflight
    from mcls.sweep.search import run_search

    importing = time.monotonic() - begun  # which a process of launcher=parallel does once more

    if rank_and_size()[1] > 1:
        raise RequestError("-m: not under torchrun. Set trainer.devices=N instead.")
    names = []
    if "hydra.sweep.subdir" in request.fixed:
        hydras = [line for line in request.overrides if line.startswith("hydra")]
        with checker(options.config_dir, options.config_name or "train") as check:
            names = [check.job_folder([*job.overrides, *hydras], index) for index, job in enumerate(request.jobs)]
    parallel = capacity(request.launcher, request.config)
    parent = Path(request.config["outputs"]) / "sweeps"
    given = sweep_folder(request, parent)
    plan = Sweep(given or parent, command, request.fixed, request.jobs, request.bases, names, request.search)
    if given is not None and (given / "sweep.json").exists():
        stored = read_sweep(given)
        plan.refuse_other(stored)
        plan = replace(plan, jobs=stored.jobs, bases=stored.bases) if plan.samples else plan
    else:
        if plan.jobs:
            kind = request.launcher["kind"]
            log.info(preflight(plan, parallel, kind == "slurm", importing if kind == "parallel" else 0.0))
        plan = replace(plan, path=given or claim(parent, timestamp()).path)
        make_folder(plan.path)
        plan.write()
    stop.resume_command = plan.resume_command
    changes = [f"trust=[{','.join(request.config['trust'])}]"]
    with executor(request.launcher, plan.path, request.config, stop) as runs:
        if plan.search and plan.samples:
            with checker(options.config_dir, options.config_name or "train") as check:
                plan, failed = run_search(plan, plan.search, partial(check.trial, changes), changes, runs, fresh=True)
        else:
            failed = runner.run_jobs(plan, runner.frozen(plan), changes, runs, fresh=True)
        runner.conclude(plan, changes, runs)
    if failed:  # and has left what it found in its folder as it was
        raise RunError(failed[0])


def sweep_folder(request: Request, parent: Path) -> Path | None:
    """The folder that sweep.name or hydra.sweep.dir names. Raises RequestError if the name is not valid."""
    name: str | None = request.config["sweep"]["name"]
    if name is None:
        return Path(request.folder) if request.folder else None
    return named_folder(parent, "sweep.name", name)


def check_search(request: Request) -> None:
    """Raise RequestError for a sweep without a validation split. Reads the data only if the keys don't tell."""
    node = request.config["dataset"]
    has_val = node["_target_"].startswith("mcls.") and bool(node.get("folds") or node.get("val_fraction"))
    sampler = f"search={request.search.settings['kind']}" if request.search else None
    reads = not has_val and node["_target_"] not in WITHOUT_VAL
    if reads and (sampler or request.config["sweep"]["test"] == "best"):
        import torch

        from mcls.training.setup import open_dataset

        has_val = open_dataset(request.config, torch.device("cpu")).val is not None
    check_selection(request.config, has_val, sampler)
