"""The jobs of a sweep, one after the other."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

from mcls.config.saved import RESUMABLE_KEYS, saved_config
from mcls.config.schema import leaves, yaml_text
from mcls.errors import RequestError, Stopped
from mcls.runs.folder import RunFolder, read_yaml, relative
from mcls.runs.renamed import rename
from mcls.sweep.plan import Sweep, record_failure
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.training.restore import read_metadata
from mcls.training.run import resume, train_new

log = logging.getLogger("mcls")

Configure = Callable[[list[str]], tuple[dict[str, Any], dict[str, str]]]


def run_jobs(
    plan: Sweep, configure: Configure, changes: Sequence[str], stop: StopRequest, fresh: bool = False
) -> list[str]:
    """Bring every job of a sweep that is not finished to its end, one after the other. Returns why jobs failed.

    Args:
        configure: from the overrides of a job to its checked configuration and choices.
        changes: `key=value` for jobs that were begun: where their data are, which packages to trust.
        fresh: whether the sweep's own command was typed. Then a folder with another configuration is refused.

    Raises Stopped. A job that fails is recorded in its folder and stops no other.
    """
    failed = []
    for number, overrides in enumerate(plan.jobs):
        folder = plan.folder(number)
        log.info(f"\njob {number}: {' '.join(overrides)}")
        try:
            if signal_number := stop():
                raise Stopped("stopped between two jobs", signal_number)
            make_folder(folder.path)
            if folder.begun and not fresh:
                if folder.finished() is None:
                    resume(folder, saved_config(folder, changes), stop)
                else:
                    log.info("already finished")
                continue
            values, choices = configure([*overrides])
            run_or_resume(values, {"command": plan.command, "overrides": overrides, "choices": choices}, folder, stop)
        except Stopped as error:
            raise plan.stopped(error) from error
        except Exception as error:
            record_failure(folder, error, overrides)
            failed.append(str(error))  # without its traceback, which holds model and data
        finally:
            gc.collect()  # before the next job takes memory
    return failed


def run_or_resume(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
    """Bring a job of a sweep to its end: nothing is done if it is finished, what is missing if it was begun.

    Returns the content of result.json. Raises RequestError when the folder holds a run of another configuration.
    """
    if not folder.begun:
        origin = {**origin, "test_closed": config["sweep"]["test"] != "all"}
        return train_new(config, origin, lambda: folder, stop)[1]
    wanted = dict(leaves(config))
    saved = read_yaml(folder.config)
    rename(saved, wanted)
    for key, was in leaves(saved):
        if key not in RESUMABLE_KEYS and key in wanted and wanted[key] != was:
            place, asked = relative(folder.path), yaml_text(wanted[key])
            raise RequestError(
                f"{key}: {place} holds a run with {yaml_text(was)}, not {asked}. Name a new hydra.sweep.dir."
            )
    if (result := folder.finished()) is not None:
        log.info("already finished")
        return result
    return resume(folder, config, stop)


def conclude(plan: Sweep, changes: Sequence[str], stop: StopRequest) -> None:
    """Open the test set for the jobs of a sweep that `sweep.test` names, then show the table.

    What a job lacks is done once more from its last checkpoint: its folder first says that the test set is open.
    """
    ranked = plan.ranked()
    closed = [folder for folder, result in ranked if not result.get("test")]
    which = saved_config(closed[0], changes)["sweep"]["test"] if closed else "none"
    if which == "best" and (closed[0] is not ranked[0][0] or not ranked[0][1].get("val")):
        which = "none"
    for folder in {"none": [], "best": closed[:1], "all": closed}[which]:
        about = read_metadata(folder)
        log.info(f"\n{relative(folder.path)}: the test set is opened{', best on val' if which == 'best' else ''}")
        try:
            with folder.lock():
                folder.write_json(folder.about, {**about, "test_closed": False})
            resume(folder, saved_config(folder, changes), stop)
        except Stopped as error:
            raise plan.stopped(error) from error
        except Exception as error:
            record_failure(folder, error, about["overrides"])
    plan.summarise()
