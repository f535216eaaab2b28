"""From a checked command line to a finished run: what `mcls train`, `mcls.train` and the jobs of a sweep share."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from mcls.config.jobs import Request
from mcls.config.saved import EXTENDABLE_KEYS, RESUMABLE_KEYS
from mcls.config.schema import leaves, yaml_text
from mcls.errors import RequestError
from mcls.runs.folder import RunFolder, claim, read_yaml, relative, shell_path, slug, timestamp
from mcls.runs.remarks import newest_remarks, set_remarks
from mcls.runs.renamed import rename
from mcls.system.files import make_folder
from mcls.system.signals import StopRequest
from mcls.system.text import plural
from mcls.training.launch import dismiss_workers
from mcls.training.run import resume, train_new
from mcls.training.setup import with_expected_input

log = logging.getLogger("mcls")

FREE_KEYS = (*RESUMABLE_KEYS, "outputs", "name")  # by which the configurations of the same run may differ


def train_request(request: Request, command: str, stop: StopRequest) -> tuple[RunFolder, dict[str, Any]]:
    """Train the one run that was asked for, or what is missing of it if it has a name. Returns its folder and the
    content of its result.json.

    Args:
        command: what was typed, for run.json.

    Raises MclsError, as `train_new`; RequestError when the folder that was given holds another run.
    """
    own = [line for line in request.overrides if not line.lstrip("+~").startswith("hydra")]
    origin = {"command": command, "overrides": own, "choices": request.choices}
    given = None if request.folder is None else RunFolder(Path(request.folder))
    if given is not None and request.config["name"] is not None:
        if not given.begun and given.path.exists() and any(path.is_dir() for path in given.path.iterdir()):
            raise RequestError(f"name: {relative(given.path)} is a folder of other folders. Give another name.")
        return given, run_or_resume(request.config, origin, given, stop, "name")
    if given is not None:
        make_folder(given.path)
        if given.about.exists():
            raise RequestError(f"hydra.run.dir: {given.path} already holds a run. Name a new folder.")
    return train_new(request.config, origin, partial(new_folder, request, given), stop)


def new_folder(request: Request, given: RunFolder | None) -> RunFolder:
    """The folder that was given, or a new one, `outputs/<dataset or its file>-<model>/<date>_<time>`."""
    group = f"{data_name(request.choices, request.config)}-{request.choices['model']}"
    return given or claim(Path(request.config["outputs"]) / group, timestamp())


def data_name(choices: dict[str, str], config: dict[str, Any]) -> str:
    """The choice of data set, or its file's name where many data sets have that choice."""
    choice, node = choices["dataset"], config["dataset"]
    if choice not in ("csv", "huggingface", "image_table", "image_folder"):
        return choice
    return slug(Path(str(node.get("path") or node.get("root") or choice)).stem)


def run_or_resume(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: StopRequest, key: str
) -> dict[str, Any]:
    """Bring the run in `folder` to its end: nothing is done if it is finished, what is missing if it was begun.

    Args:
        config, origin, stop: as of `train_new`.
        key: what names the folder.

    Returns the content of result.json. Raises RequestError when the folder holds a run of another configuration.
    """

    def made() -> RunFolder:
        make_folder(folder.path)
        return folder

    if not folder.begun:
        return train_new(config, origin, made, stop)[1]
    config = newest_remarks(with_expected_input(config), origin["overrides"], folder)
    wanted, saved, shown = dict(leaves(config)), read_yaml(folder.config), relative(folder.path)
    rename(saved, wanted)
    differing = [
        (name, was) for name, was in leaves(saved) if name not in FREE_KEYS and name in wanted and wanted[name] != was
    ]
    if differing:
        name, was = differing[0]
        also = f"; also different: {', '.join(other for other, _ in differing[1:])}" if differing[1:] else ""
        longer = f", or go on with: mcls resume {shell_path(shown)} {name}={yaml_text(wanted[name])}"
        raise RequestError(
            f"{name}: {shown} holds a run with {yaml_text(was)}, not {yaml_text(wanted[name])}{also}. "
            f"Choose another {key}{longer * (name in EXTENDABLE_KEYS and not also)}."
        )
    if (result := folder.finished()) is not None:
        dismiss_workers()
        changed = set_remarks(folder, config)
        epochs = "" if key == "sweep.name" else f", {plural(result['epochs'], 'epoch')}"
        log.info(f"already finished{epochs}")
        for line in changed:
            log.info(line)
        return result
    return resume(folder, config, stop)
