"""The jobs of a sweep, one after the other."""

import logging
from collections.abc import Sequence
from typing import Any

from mcls.config.saved import RESUMABLE_KEYS, saved_config
from mcls.config.schema import leaves, yaml_text
from mcls.errors import RequestError, Stopped
from mcls.runs.folder import RunFolder, read_yaml, relative
from mcls.runs.renamed import rename
from mcls.sweep.plan import Sweep, record_failure
from mcls.system.signals import StopRequest
from mcls.training.restore import read_metadata
from mcls.training.run import resume, train_new

log = logging.getLogger("mcls")


def run_or_resume(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: StopRequest
) -> tuple[RunFolder, dict[str, Any]]:
    """Bring a job of a sweep to its end: nothing is done if it is finished, what is missing if it was begun.

    Raises RequestError when the folder holds a run under another configuration.
    """
    if not folder.begun:
        return train_new(config, origin, lambda: folder, stop)
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
        return folder, result
    return folder, resume(folder, config, stop)


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
            raise Stopped(f"{error}, or the whole sweep with: {plan.resume_command}", error.signal_number) from error
        except Exception as error:
            record_failure(folder, error, about["overrides"])
    plan.summarise()
