"""A sweep by plugins of Hydra's: their sweepers choose the jobs, their launchers run them."""

import contextlib
import gc
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mcls.config.validate import CONFIGS, check_config
from mcls.errors import MachineError, RequestError, Stopped
from mcls.runs.folder import RunFolder
from mcls.sweep.plan import Sweep, record_failure
from mcls.system.files import describe_os_error
from mcls.system.signals import StopRequest

log = logging.getLogger("mcls")


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
        stop: the signal that asks to stop.
    """

    command: str
    stop: StopRequest
    stopped: list[Stopped] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float:
        """Train; returns the validation accuracy for whoever maximises it, 0 after a failure."""
        from mcls.sweep.runner import run_or_resume

        given: Any = HydraConfig.get()
        folder, overrides = RunFolder(Path(given.runtime.output_dir)), list(given.overrides.task)
        with contextlib.ExitStack() as here:
            if not self.stop.before:  # in the worker process of one of Hydra's launchers
                here.enter_context(self.stop)
                log.setLevel(logging.INFO)
            try:
                values, choices = check_config(config, given)
                if number := self.stop():
                    raise Stopped("stopped before it began", number)
                log.info(f"\njob {given.job.num}: {' '.join(overrides)}")
                origin = {"command": self.command, "overrides": overrides, "choices": choices}
                result = run_or_resume(values, origin, folder, self.stop)
            except Stopped as error:
                self.stopped.append(error)
                raise KeyboardInterrupt from error
            except Exception as error:
                record_failure(folder, error, overrides)
                self.failed.append(str(error))  # without its traceback, which holds model and data
                return 0.0
            finally:
                gc.collect()  # before the next job takes memory
        return float((result["val"] or {"accuracy": 0.0})["accuracy"])


def run_plugins(plan: Sweep, arguments: list[str], plugin: str, stop: StopRequest) -> list[str]:
    """Hand `arguments` to Hydra, whose plugins find and run the jobs. Returns why jobs failed; raises Stopped.

    Args:
        plugin: the class of the sweeper.
    """
    extra = [f"hydra.sweep.dir={QuotedString(str(plan.path), Quote.single).with_quotes()}"]
    extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(plan.fixed)}]")
    if "optuna" in plugin and "hydra.sweeper.direction" not in plan.fixed:
        extra.append("hydra.sweeper.direction=maximize")  # the accuracy
    task = Task(plan.command, stop)
    others = "hydra/launcher" in plan.fixed  # whose processes are not to be left alone
    with contextlib.suppress(KeyboardInterrupt), stop.patient() if others else contextlib.nullcontext():
        launch([*arguments, *extra], task)
    if not task.stopped and stop() and not plan.complete:
        task.stopped.append(Stopped("stopped between two jobs", stop()))
    if task.stopped:
        raise plan.stopped(task.stopped[0])
    return task.failed
