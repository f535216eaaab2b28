"""`mcls train`: Hydra's whole grammar in front of a session."""

import contextlib
import gc
import logging
import os
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mcls.config.compose import NONE, Request, checker
from mcls.config.overrides import as_path, at_home, first
from mcls.config.validate import CONFIGS, check_config
from mcls.errors import MachineError, RequestError, RunError, Stopped
from mcls.report.summary import print_result
from mcls.runs.folder import RunFolder, claim, timestamp
from mcls.sweep.plan import Sweep, read_sweep, record_failure
from mcls.system.console import console
from mcls.system.files import describe_os_error, make_folder
from mcls.system.signals import StopRequest
from mcls.system.torchrun import rank_and_size

log = logging.getLogger("mcls")

SHOWS = ("help", "hydra_help", "info", "cfg", "shell_completion", "version")  # flags that show something, train nothing


def run(arguments: list[str]) -> int:
    """Check the command line, then let Hydra run it. Returns the exit status."""
    options, arguments = split_flags(arguments)
    shows = any(getattr(options, flag, None) for flag in SHOWS)
    flags = arguments[: len(arguments) - len(options.overrides)]
    if shows and not (options.cfg or options.info or options.help or options.config_dir):  # what needs no overrides
        launch(flags, str)
        return 0
    with console(), StopRequest() as stop:  # from here on: an interrupt inside Hydra would come out as another error
        with checker(options.config_dir, options.config_name or "train") as check:
            request = check.check(options.overrides, options.multirun)
            one = [line for override in map(check.parse, request.overrides) for line in first(override)]
        typed, arguments = arguments, [*flags, *request.overrides]
        if shows:
            if request.sweep:
                log.info("of the sweep's first job:")
            launch([*(flag for flag in flags if flag not in ("-m", "--multirun")), *one], str)
            return 0
        if request.sweep and rank_and_size()[1] > 1:
            raise RequestError("-m: not under torchrun. Say trainer.devices=N instead.")
        task = Task(shlex.join(["mcls", "train", *typed]), request.folder is not None, stop)
        return sweep(request, arguments, task) if request.sweep else single(request, arguments, task)


def split_flags(arguments: list[str]) -> tuple[Any, list[str]]:
    """Hydra's flags parsed, and the arguments with the flags before the overrides, which Hydra's parser insists on."""
    parser = get_args_parser()
    parser.prog = "mcls train"

    def refuse(message: str) -> None:
        raise RequestError(f"{message}. See mcls train --help.")

    arguments = [at_home(word) if word.startswith("--config-dir=") else word for word in arguments]
    parser.error = refuse  # type: ignore[method-assign, assignment]
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun is not None:
        raise RequestError(
            "--experimental-rerun: refused, it would run a pickle. Use the command in the run's run.json."
        )
    if options.config_path is not None:
        raise RequestError("--config-path: refused, it would hide mcls's own files. Say --config-dir.")
    flags = list(arguments)
    for override in options.overrides:
        flags.remove(override)
    options.overrides = [as_path(override) for override in options.overrides if override != NONE]
    return options, [*flags, *options.overrides]


def launch(arguments: list[str], task: Any) -> None:
    """Hand over to Hydra, as if its program were called `mcls train`."""
    sys.argv = ["mcls train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or what is raised in there is printed, and the process ended
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="train")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise RequestError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.filename is None:  # standard output
            raise
        raise MachineError(describe_os_error(Path(error.filename), error, 0)) from error


@dataclass
class Task:
    """What Hydra calls for each job. Failures are kept, so that one job's never stops another's.

    Args:
        command: what was typed.
        folder_given: whether the user said where the folder is to be.
        stop: the signal that asks to stop.
    """

    command: str
    folder_given: bool
    stop: StopRequest
    failures: list[BaseException] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    done: list[tuple[RunFolder, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float:
        """Train; returns the validation accuracy for whoever maximises it, 0 after a failure."""
        given: Any = HydraConfig.get()
        folder = RunFolder(Path(given.runtime.output_dir))
        with contextlib.ExitStack() as here:
            if not self.stop.before:  # in the worker process of one of Hydra's launchers
                here.enter_context(self.stop)
                log.setLevel(logging.INFO)
            try:
                done = self.train(*check_config(config, given), given, folder)
            except Stopped as error:
                self.failures.append(error)
                raise KeyboardInterrupt from error
            except Exception as error:
                if given.mode == RunMode.MULTIRUN:
                    record_failure(folder, error, list(given.overrides.task))
                    self.failed.append(str(error))  # without its traceback, which holds model and data
                else:
                    self.failures.append(error)
                return 0.0
            finally:
                if given.mode == RunMode.MULTIRUN:
                    gc.collect()  # before the next job takes memory
        if done is None:
            return 0.0
        self.done.append(done)
        return float((done[1]["val"] or {"accuracy": 0.0})["accuracy"])

    def train(
        self, values: dict[str, Any], choices: dict[str, str], given: Any, folder: RunFolder
    ) -> tuple[RunFolder, dict[str, Any]] | None:
        """Train under the checked `values`. Returns folder and result, None where another process leads."""
        from mcls.sweep import runner
        from mcls.system.distributed import World
        from mcls.training import run as training_run

        origin = {"command": self.command, "overrides": list(given.overrides.task), "choices": choices}
        if number := self.stop():
            raise Stopped("stopped before it began", number)
        rank, size = rank_and_size()
        if size > 1:
            values["trainer"]["devices"] = size
        if rank:
            training_run.worker_main(World(rank, size), "env://", values, self.stop, ready=int)
            return None
        if given.mode == RunMode.MULTIRUN:
            log.info(f"\njob {given.job.num}: {' '.join(origin['overrides'])}")
            origin["test_closed"] = values["sweep"]["test"] != "all"
            return runner.run_or_resume(values, origin, folder, self.stop)
        if self.folder_given and folder.about.exists():
            raise RequestError(f"hydra.run.dir: {folder.path} already holds a run. Name a new folder.")
        place = partial(new_folder, values, choices, folder if self.folder_given else None)
        return training_run.train_new(values, origin, place, self.stop)


def new_folder(values: dict[str, Any], choices: dict[str, str], given: RunFolder | None) -> RunFolder:
    """The folder that was given, or a new one, `outputs/<dataset>-<model>/<date>_<time>`."""
    return given or claim(Path(values["outputs"]) / f"{choices['dataset']}-{choices['model']}", timestamp())


def single(request: Request, arguments: list[str], task: Task) -> int:
    """One run: train, then say what came of it on stdout."""
    if task.folder_given:
        make_folder(Path(str(request.folder)))
    with contextlib.suppress(KeyboardInterrupt):
        launch(arguments, task)
    if task.failures:
        raise task.failures[0]
    for folder, result in task.done:
        print_result(folder, result)
    return 0


def sweep(request: Request, arguments: list[str], task: Task) -> int:
    """Many runs in one folder, then a table of them, best first."""
    check_search(request)
    path = Path(request.folder) if request.folder else new_sweep_folder(request.config)
    make_folder(path)
    plan = Sweep(path, task.command, request.fixed, request.jobs)
    if (path / "sweep.json").exists() and not plan.same(read_sweep(path)):
        raise RequestError(f"hydra.sweep.dir: {path} already holds another sweep. Name a new folder.")
    plan.write()
    changes = [f"trust=[{','.join(request.config['trust'])}]"]
    extra = [] if request.folder else [f"hydra.sweep.dir={QuotedString(str(path), Quote.single).with_quotes()}"]
    extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(request.fixed)}]")
    if "optuna" in request.sweeper and "hydra.sweeper.direction" not in request.fixed:
        extra.append("hydra.sweeper.direction=maximize")  # the accuracy
    task.stop.resume_command = plan.resume_command
    others = "hydra/launcher" in request.fixed  # whose processes are not to be left alone
    with contextlib.suppress(KeyboardInterrupt), task.stop.patient() if others else contextlib.nullcontext():
        launch([*arguments, *extra], task)
    if not task.failures and task.stop() and not plan.complete:
        task.failures.append(Stopped("stopped between two jobs", task.stop()))
    if stopped := [failure for failure in task.failures if isinstance(failure, Stopped)]:
        raise Stopped(f"{stopped[0]}, or the whole sweep with: {plan.resume_command}", stopped[0].signal_number)
    from mcls.sweep import runner

    runner.conclude(plan, changes, task.stop)
    if task.failed:  # and has left what it found in its folder as it was
        raise RunError(task.failed[0])
    return 0


def check_search(request: Request) -> None:
    """Raise RequestError for a sweep that could choose on test alone. Reads the data where nothing else says so."""
    from mcls.training.checks import check_selection

    node = request.config["dataset"]
    has_val = node["_target_"].startswith("mcls.") and node.get("val_fraction") not in (None, 0)
    sampler = None if request.sweeper.endswith(".BasicSweeper") else f"hydra/sweeper ({request.sweeper.split('.')[-1]})"
    if not has_val and (sampler or request.config["sweep"]["test"] == "best"):
        import torch

        from mcls.training.setup import open_dataset

        has_val = open_dataset(request.config, torch.device("cpu")).val is not None
    check_selection(request.config, has_val, sampler)


def new_sweep_folder(values: dict[str, Any]) -> Path:
    """A new folder `outputs/sweeps/<date>_<time>`."""
    return claim(Path(values["outputs"]) / "sweeps", timestamp()).path
