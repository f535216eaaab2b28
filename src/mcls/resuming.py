"""What a run goes on from: its record and its newest good checkpoint, checked, for the folder may be a stranger's."""

import logging
from typing import Any

from mcls import checkpoint, images
from mcls.assembly import PARTS, Parts
from mcls.config.stored import check_length
from mcls.errors import FolderError
from mcls.opened import as_trained_on, fitting
from mcls.runs import RunFolder, read_json
from mcls.trainer import Progress

log = logging.getLogger("mcls")


def read_about(folder: RunFolder) -> dict[str, Any]:
    """What run.json says. Raises FolderError unless everything is there that a resumed run needs."""
    about = read_json(folder.about)
    kinds = {"command": str, "seed": int, "choices": dict, "environment": dict, "hyperparameters": dict}
    kinds |= {"device": str, "device_name": str, "precision": str, "channels_last": bool}
    wrong = [key for key, kind in kinds.items() if not isinstance(about.get(key), kind)]
    if wrong or any(not isinstance(about["choices"].get(part), str) for part in PARTS):
        raise FolderError(f"{folder.about}: damaged, it does not say {', '.join(wrong) or 'what was chosen'}.")
    batch = about.get("batch_size", 1)  # older runs have none, and take their configuration's
    if not isinstance(batch, int) or batch < 1:
        raise FolderError(f"{folder.about}: damaged, {batch!r} samples a batch.")
    threads = about["environment"].get("threads")
    if not isinstance(threads, int) or not 0 < threads <= 1024:
        raise FolderError(f"{folder.about}: damaged, {threads!r} threads.")
    return about


def resumable(folder: RunFolder, config: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """`config` with a model whose weights come from `state`. Raises FolderError unless `state` fits it."""
    try:
        bits = images.checked_bits(state["data"].get("bits", images.BITS))
        shape, classes = tuple(map(int, state["data"]["input_shape"])), state["data"]["classes"]
        for weights in filter(None, (state["best"], state["model"])):
            node = fitting(config, shape, len(classes), weights, folder.last)
        progress = Progress(**state["progress"])
        whole = (progress.epoch, progress.step, progress.batch, progress.correct, progress.seen, progress.waited)
        good = all(isinstance(number, int) and 0 <= number < 1 << 48 for number in whole)
        if not good or not {"optimizer", "scaler", "rng"} <= state.keys():
            raise ValueError("its progress makes no sense")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{folder.last}: refused, it is no checkpoint of mcls ({error}).") from error
    check_length(config["trainer"]["epochs"], progress.epoch)
    return {**config, "model": node, "dataset": as_trained_on(config["dataset"], bits)}


def tell_length(config: dict[str, Any], planned: int, progress: dict[str, Any], parts: Parts) -> None:
    """Warn of what it does to a run that it is to have another number of epochs than `planned`."""
    epochs, constant = config["trainer"]["epochs"], {"_target_": "mcls.optim.constant", "warmup": 0}
    if progress["epoch"] < epochs != planned and config["schedule"] != constant:
        way = "stretched over all epochs: the learning rate goes back to where it was before"
        if epochs < planned:
            way = "shrunk to fewer epochs: the learning rate jumps ahead"
        log.warning(f"the schedule is {way}")
    if progress["epoch"] == epochs and progress["batch"] and parts.val is None:
        log.warning(f"{progress['batch']} steps of epoch {epochs + 1} are in the weights too")


def newest(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None when none was written. Raises FolderError when all are damaged."""
    there = [path for path in (folder.last, folder.previous) if path.exists()]
    try:
        return checkpoint.load(there[0]) if there else None
    except FolderError as error:
        if len(there) == 1:
            raise
        state = checkpoint.load(folder.previous)
        log.warning(f"{error} Going on from {folder.previous}.")
        folder.last.replace(folder.last.with_suffix(".damaged"))  # or the next checkpoint would push the good one out
        return state
