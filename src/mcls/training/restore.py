"""What a run goes on from: its record and its newest good checkpoint, checked, for the folder may be a stranger's."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mcls.config.instantiate import build
from mcls.config.saved import check_length, without_pretrained
from mcls.data import image_io
from mcls.errors import FolderError, MachineError
from mcls.report.run_figures import fingerprint_difference
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder, read_json, read_yaml
from mcls.runs.formats import check
from mcls.system.files import move
from mcls.system.text import plural
from mcls.training.optim import planned_steps
from mcls.training.setup import PARTS, Components
from mcls.training.state import Progress
from mcls.training.trainer import Trainer

log = logging.getLogger("mcls")

# what run.json has to say, of what it may
NEEDED = {
    **dict.fromkeys(("command", "device", "device_name", "precision"), "text"),
    "seed": "count",
    "channels_last": "bool",
    "choices": {part + "?" * (part == "mix"): "text" for part in PARTS},  # older folders have no mix
    "environment": {"threads": "count"},
    "hyperparameters": {},
}


def read_metadata(folder: RunFolder) -> dict[str, Any]:
    """What run.json says. Raises FolderError unless everything is there that a resumed run needs."""
    about = read_json(folder.about)
    check(about, NEEDED, folder.about)
    about["choices"].setdefault("mix", "none")
    if not 0 < (threads := about["environment"]["threads"]) <= 1024:
        raise FolderError(f"{folder.about}: damaged, {threads} threads.")
    return about


def as_begun(config: dict[str, Any], folder: RunFolder, about: dict[str, Any]) -> dict[str, Any]:
    """`config` with the batch size and the threads that the run in `folder` began with."""
    trainer = {**config["trainer"], "batch_size": about.get("batch_size", config["trainer"]["batch_size"])}
    before, now = read_yaml(folder.config)["trainer"].get("devices", 1), trainer["devices"]
    if before == now:
        return {**config, "trainer": trainer, "threads": about["environment"]["threads"]}
    log.warning(f"trainer.devices: {before} -> {now}: the samples and their order stay, rounding and dropout differ")
    return {**config, "trainer": trainer}


def check_as_begun(about: dict[str, Any], parts: Components) -> None:
    """Raise MachineError unless `parts` compute as `about`, run.json, says; warn of other samples in train."""
    here = {"device": parts.device.type, "precision": parts.precision, "channels_last": parts.channels_last}
    for key, value in here.items():
        if (was := str(about[key]).split(":")[0]) != str(value):
            raise MachineError(f"{key}: the run was started with {was}, got {value}. Resume it with {was}.")
    if other := fingerprint_difference(about, "train", parts.dataset.train):
        log.warning(f"train   not the samples that the run began with: {other}; the rest of it is trained on these")


def check_resumable(folder: RunFolder, config: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """`config` with a model whose weights come from `state`. Raises FolderError unless `state` fits it."""
    data = state["data"]
    for weights in filter(None, (state["best"], state.get("average"), state["model"])):
        node = check_weights_fit(config, tuple(data["input_shape"]), len(data["classes"]), weights, folder.last)
    check_length(config["trainer"]["epochs"], state["progress"]["epoch"])
    dataset = as_trained_on(config["dataset"], data.get("bits", image_io.BITS))
    return {**config, "model": node, "dataset": dataset}


def fitted(state: dict[str, Any], trainer: Trainer, batches: int) -> dict[str, Any]:
    """`state`, of the right types, for `trainer`, of `batches` in an epoch. Raises ValueError unless it fits."""
    progress = Progress(**state["progress"])
    if progress.step != progress.epoch * batches + progress.batch or progress.batch > batches:
        raise ValueError("its steps are not those of its epochs")
    best = (bool(progress.best), progress.best_epoch > 0, state["best"] is not None)
    if (
        (progress.batch > 0) != (progress.seen > 0)
        or len(set(best)) > 1
        or progress.best_epoch > progress.epoch
        or progress.pieces < 1
    ):
        raise ValueError("its progress makes no sense")
    if [len(progress.best), len(progress.window), len(progress.samples_and_seconds)] not in ([0, 3, 2], [2, 3, 2]):
        raise ValueError("its progress makes no sense")
    if state["best"] is not None and kinds(state["best"]) != kinds(trainer.model.state_dict()):
        raise ValueError("its best weights do not fit")
    if (trainer.average is None) != (state.get("average") is None):
        raise ValueError("its averaged weights do not fit")
    if state["scaler"].keys() != trainer.scaler.state_dict().keys():
        raise ValueError("its precision is another")
    check_optimizer_state(state["optimizer"], trainer, state["data"]["input_shape"])
    pairs = zip(trainer.optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"], strict=True)
    groups = [{**mine, **theirs} for mine, theirs in pairs]  # options that another torch did not have
    return {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}


def check_optimizer_state(saved: dict[str, Any], trainer: Trainer, shape: list[int]) -> None:
    """Raise ValueError unless `saved` can be the state of the optimizer, whose first step on a copy shows what that is.

    Options are the configuration's, as in `saved`; the learning rate is set anew before each step.
    """
    optimizer = trainer.optimizer
    for mine, theirs in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True):
        for key in mine.keys() & theirs.keys():
            free = key in ("lr", "fused", "foreach")  # how fast, and which kernel does the same
            if not isinstance(theirs[key], int | float | None) if free else plain(theirs[key]) != plain(mine[key]):
                raise ValueError(f"its optimizer has another {key}")
    copied = copy.deepcopy(optimizer)
    for weight in (weight for group in copied.param_groups for weight in group["params"]):
        weight.grad = torch.zeros_like(weight)
    copied.step()
    wanted = copied.state_dict()["state"]
    if any(index not in wanted or kinds(have) != kinds(wanted[index]) for index, have in saved["state"].items()):
        raise ValueError("its optimizer is another")
    if saved["state"] and len(saved["state"]) < len(wanted):  # of weights that the model does not use, there is none
        model, copied = copy.deepcopy((trainer.model, optimizer))
        model(torch.zeros(2, *shape, device=trainer.device)).sum().backward()
        weights = [weight for group in copied.param_groups for weight in group["params"]]
        if any(index not in saved["state"] for index, weight in enumerate(weights) if weight.grad is not None):
            raise ValueError("its optimizer lacks a part of its state")


def plain(value: Any) -> Any:
    """`value`, a pair as a list."""
    return list(value) if isinstance(value, tuple) else value


def tell_length(config: dict[str, Any], planned: dict[str, Any], progress: dict[str, Any], parts: Components) -> None:
    """Warn of what it does to the schedule that a run is to have other steps than by the `planned` keys of trainer."""
    before, steps = planned_steps({"max_steps": None, **planned}, len(parts.train)), parts.rates.total_steps
    epochs, constant = config["trainer"]["epochs"], {"_target_": "mcls.schedules.constant", "warmup_fraction": 0}
    if progress["step"] < steps != before and config["schedule"] != constant:
        way = "stretched over all steps: the learning rate goes back to where it was before"
        if steps < before:
            way = "shrunk to fewer steps: the learning rate jumps ahead"
        log.warning(f"the schedule is {way}")
    if progress["epoch"] == epochs and progress["batch"] and parts.val is None:
        log.warning(f"in the weights too: {plural(progress['batch'], 'step')} of epoch {epochs + 1}")


def newest_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None when none was written. Raises FolderError when all are damaged."""
    there = [path for path in (folder.last, folder.previous) if path.exists()]
    try:
        return checkpoint.load_as(checkpoint.LAST, there[0]) if there else None
    except FolderError as error:
        if len(there) == 1:
            raise
        state = checkpoint.load_as(checkpoint.LAST, folder.previous)
        log.warning(f"{error} Continuing from {folder.previous}.")
        folder.last.replace(folder.last.with_suffix(".damaged"))  # or the next checkpoint would push the good one out
        return state


def as_trained_on(node: dict[str, Any], bits: int) -> dict[str, Any]:
    """The node of a data set, with the bits that its run was trained with in place of `auto`."""
    return {**node, "bits": bits} if "bits" in node else node


def check_weights_fit(
    config: dict[str, Any], shape: tuple[int, ...], num_classes: int, weights: Any, path: Path
) -> dict[str, Any]:
    """The node of the run's model, but for where its first weights came from.

    Raises FolderError unless `weights`, read from `path`, fit that model; to find out takes no memory where it can be
    built without values.
    """
    node = without_pretrained(config["model"], config["trust"])
    if config["trust"]:  # somebody's own code may need real tensors
        return node
    make = partial(build, "model", node, input_shape=shape, num_classes=num_classes)
    try:
        try:
            with torch.device("meta"):
                model = make()
        except NotImplementedError:  # of a registry's network that computes its sizes with tensors, such as RegNets
            with torch.random.fork_rng(devices=[]):
                model = make()
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise FolderError(f"{path}: refused, the run's model can't be built for its data ({error}).") from error
    if kinds(model.state_dict()) != kinds(weights):
        raise FolderError(f"{path}: refused, its weights do not fit the run's model.")
    return node


def kinds(tensors: dict[str, Any]) -> dict[str, Any]:
    """Shape and type of each tensor, the type of what is none."""
    return {name: (item.shape, item.dtype) if torch.is_tensor(item) else type(item) for name, item in tensors.items()}


def checkpoint_writer(folder: RunFolder, parts: Components) -> Callable[[dict[str, Any], bool], None]:
    """A function that writes a trainer's checkpoints to `folder`."""

    def save(state: dict[str, Any], best_is_new: bool) -> None:
        if folder.last.exists():
            move(folder.last, folder.previous)
        checkpoint.save(folder.last, {**state, "data": parts.data})
        if best_is_new:
            save_best(folder, state["best"], state["progress"]["best_epoch"], parts.data)

    return save


def save_best(folder: RunFolder, weights: dict[str, Any], epoch: int, data: dict[str, Any]) -> None:
    """Publish the selected weights without the training state, with what is needed to use them."""
    checkpoint.save(folder.best, {"model": weights, "data": data, "epoch": epoch})
