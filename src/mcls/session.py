"""One training from its configuration to its result: builds the parts, runs the trainer, fills the run folder."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from mcls import checkpoint, results
from mcls.config.build import build
from mcls.data.datasets import Dataset, Split
from mcls.data.loader import Loader, Normalise
from mcls.errors import FolderError, MachineError, MclsError, RequestError, Stopped
from mcls.machine import describe, environment, memory_bytes, resolve_device, resolve_precision
from mcls.optim import Rates, spare_compiler
from mcls.runs import RunFolder, read_json, read_yaml, relative
from mcls.tracking import Recorder
from mcls.trainer import Settings, Trainer

log = logging.getLogger("mcls")

EVAL_BATCH = 1024  # samples in a batch that needs no gradient ...
EVAL_BYTES = 32 << 20  # ... while they take up to this as floats
PARTS = ("dataset", "model", "loss", "optimizer", "schedule", "augment")
NOT_COMPARED = {"_target_", "root", "path", "download", "log_every", "checkpoint_every", "checkpoint_steps", "figures"}
FOLLOWED = ("accuracy", "loss", "f1_macro", "ece")


@dataclass(frozen=True)
class Parts:
    """Everything that a training is made of, built and on its device."""

    dataset: Dataset
    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    rates: Rates
    settings: Settings
    train: Loader
    val: Loader | None
    load: Callable[[Split], Loader]
    device: torch.device
    precision: str
    channels_last: bool

    @property
    def data(self) -> dict[str, Any]:
        """What a checkpoint must know of the data to be used without them."""
        found: dict[str, Any] = {"classes": list(self.dataset.classes), "input_shape": list(self.dataset.input_shape)}
        if self.dataset.mean is not None and self.dataset.std is not None:
            found |= {"mean": list(self.dataset.mean), "std": list(self.dataset.std)}
        if self.dataset.encoder is not None:
            found["encoder"] = self.dataset.encoder
        return found


def assemble(config: dict[str, Any]) -> Parts:
    """Build what `config` describes. Raises MclsError when parts do not go together or the machine lacks something."""
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    if torch.are_deterministic_algorithms_enabled() != config["deterministic"]:  # setting it costs 2 s of imports
        torch.use_deterministic_algorithms(config["deterministic"])
    device = resolve_device(config["device"])
    precision = resolve_precision(config["precision"], device)
    settings, trust, seed = config["trainer"], config["trust"], config["seed"]
    dataset = open_dataset(config, device)
    shape, num_classes = dataset.input_shape, len(dataset.classes)
    torch.manual_seed(seed)
    model: nn.Module = build("model", config["model"], trust, input_shape=shape, num_classes=num_classes).to(device)
    channels_last = wants_channels_last(settings["channels_last"], model, device, precision)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if settings["compile"]:
        model.compile()
    augment = build("augment", config["augment"], trust)
    if augment is not None and len(shape) != 3:
        got = " x ".join(map(str, shape))
        raise RequestError(f"augment: wants images, this data set has samples of shape {got}. Say augment=none.")
    size = len(dataset.train) if settings["batch_size"] == "full" else settings["batch_size"]
    check_batches(len(dataset.train), size, model)
    serve = {
        "device": device,
        "normalise": Normalise(dataset.mean, dataset.std, device),
        "resident": is_resident(settings["resident"], dataset, device),
        "workers": settings["workers"],
        "channels_last": channels_last,
    }

    def load(split: Split) -> Loader:
        most = EVAL_BYTES // (4 * math.prod(shape))
        return Loader(split, max(1, min(EVAL_BATCH, most)), **serve)

    train = Loader(dataset.train, size, augment=augment, seed=seed, balanced=settings["balanced"], **serve)
    counts = torch.bincount(dataset.train.targets, minlength=num_classes)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    spare_compiler()
    optimizer = build("optimizer", config["optimizer"], trust, params=weights)
    return Parts(
        dataset=dataset,
        model=model,
        loss=build("loss", config["loss"], trust, counts=counts).to(device),
        optimizer=optimizer,
        rates=Rates(optimizer, build("schedule", config["schedule"], trust), settings["epochs"] * len(train)),
        settings=Settings(**{field.name: settings[field.name] for field in fields(Settings)}),
        train=train,
        val=load(dataset.val) if dataset.val is not None else None,
        load=load,
        device=device,
        precision=precision,
        channels_last=channels_last,
    )


def check_batches(samples: int, size: int, model: nn.Module) -> None:
    """Raise RequestError for a batch size that does not go with the number of training samples or with batch norm."""
    if size > samples:
        raise RequestError(
            f"trainer.batch_size: {size} is more than the {samples} training samples. Lower it, or say full."
        )
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normalised and samples % size == 1:
        better = next(other for other in range(size + 1, samples + 1) if samples % other != 1)
        raise RequestError(
            f"trainer.batch_size: {size} leaves one of the {samples} training samples alone in the last batch, "
            f"and batch norm can't train on one. Try {better}."
        )


def wants_channels_last(choice: str | bool, model: nn.Module, device: torch.device, precision: str) -> bool:
    """`auto` is yes for convolutional networks on GPUs and in half precision, where it is faster."""
    if choice != "auto":
        return bool(choice)
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutional and (device.type == "cuda" or precision != "fp32")


def open_dataset(config: dict[str, Any], device: torch.device) -> Dataset:
    """Build the data set of `config`; files of images too big for `device` or for this machine stay files."""
    choice = config["trainer"]["resident"]

    def keeps(size: int) -> bool:
        return fits(choice, size, device) and fits(choice, size, torch.device("cpu"))

    dataset: Dataset = build("dataset", config["dataset"], config["trust"], fits=keeps)
    return dataset


def is_resident(choice: str | bool, dataset: Dataset, device: torch.device) -> bool:
    """Whether train and val are kept on the device; see `fits`. What is read from files as it is wanted never is."""
    splits = [split.inputs for split in (dataset.train, dataset.val) if split is not None]
    tensors = [inputs for inputs in splits if isinstance(inputs, Tensor)]
    size = sum(inputs.numel() * inputs.element_size() for inputs in tensors)
    return len(tensors) == len(splits) and fits(choice, size, device)


def fits(choice: str | bool, needed: int, device: torch.device) -> bool:
    """`auto` is yes when `needed` bytes are at most a quarter of the device's memory.

    Raises MachineError when they are to be resident and are more than all of it.
    """
    there = memory_bytes(device)
    if choice is True and needed > there:
        raise MachineError(
            f"trainer.resident: the data take {needed / 1e9:.1f} GB and {device} has {there / 1e9:.1f} GB. Say auto."
        )
    return needed <= there / 4 if choice == "auto" else bool(choice)


def flat(config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """What distinguishes one run from another: flat keys to plain values, for the HPARAMS tab and for tables."""
    found: dict[str, Any] = {"seed": config["seed"], "precision": config["precision"]}
    found |= {part: choices[part] for part in PARTS}
    for group in (*PARTS, "trainer"):
        for key, value in config[group].items():
            if key not in NOT_COMPARED and value is not None:
                found[f"{group}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def train(
    config: dict[str, Any], origin: dict[str, Any], make_folder: Callable[[], RunFolder], stop: Callable[[], int]
) -> tuple[RunFolder, dict[str, Any]]:
    """Train what `config` describes and fill a run folder.

    Args:
        config: checked and resolved.
        origin: `command` (what was typed), `overrides` and `choices` (from each group), for run.json.
        make_folder: makes the run folder; called when everything is built, so that wrong requests leave none behind.
        stop: number of the signal that asks to stop, or 0.

    Returns:
        The folder and what stands in its result.json. Raises MclsError; the folder, if there is one, says why too.
    """
    started = time.monotonic()
    parts = assemble(config)
    folder = make_folder()
    about = {
        **origin,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config["seed"],
        "device": str(parts.device),
        "device_name": describe(parts.device),
        "precision": parts.precision,
        "channels_last": parts.channels_last,
        "environment": environment(),
        "hyperparameters": flat(config, origin["choices"]),
    }
    with folder.lock(), keeping_record(folder):
        folder.write_config(config)
        folder.write_json(folder.about, about)
        return folder, fill(folder, parts, config, about, None, stop, started)


def resume(folder: RunFolder, config: dict[str, Any], stop: Callable[[], int]) -> dict[str, Any]:
    """Go on from the newest good checkpoint of a run, under `config`. Returns what stands in result.json.

    Raises FolderError when no checkpoint is good or the data are not those it was trained on.
    """
    started = time.monotonic()
    about = read_json(folder.about)
    with folder.lock(), keeping_record(folder):
        state = newest(folder)
        torch.set_num_threads(about["environment"]["threads"])
        parts = assemble(config)
        if state is not None and state["data"] != parts.data:
            raise FolderError(f"{folder.path}: refused, the data set's classes, shape or statistics are not the run's.")
        folder.write_config(config)
        return fill(folder, parts, config, about, state, stop, started)


def finish(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: Callable[[], int]
) -> tuple[RunFolder, dict[str, Any]]:
    """Bring a job of a sweep to its end: nothing is done if it is finished, what is missing if it was begun."""
    if not (folder.config.is_file() and folder.about.is_file()) or read_yaml(folder.config) != config:
        return train(config, origin, lambda: folder, stop)
    result = folder.read_result()
    if result is not None and result["status"] == "finished":
        log.info("already finished")
        return folder, result
    return folder, resume(folder, config, stop)


def newest(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None when none was written. Raises FolderError when all are damaged."""
    there = [path for path in (folder.last, folder.previous) if path.exists()]
    for path in there:
        try:
            return checkpoint.load(path)
        except FolderError as error:
            if path == there[-1]:
                raise
            log.warning(f"{error} Going on from {there[-1]}.")
    return None


def fill(
    folder: RunFolder,
    parts: Parts,
    config: dict[str, Any],
    about: dict[str, Any],
    state: dict[str, Any] | None,
    stop: Callable[[], int],
    started: float,
) -> dict[str, Any]:
    """Train into `folder`, from `state` on if there is one. Returns what stands in result.json."""
    folder.write_json(folder.result, {"status": "running"})
    introduce(parts, about, folder)
    progress = {"epoch": 0, "step": 0} if state is None else state["progress"]
    recorder = Recorder(folder, progress["epoch"], progress["step"])
    try:
        if not progress["step"]:
            recorder.text("command", f"    {about['command']}")
            recorder.text("config", "".join(f"    {line}\n" for line in folder.config.read_text("utf-8").splitlines()))
            recorder.hyperparameters(about["hyperparameters"])
        if state is not None:
            log.info(f"resumed after epoch {progress['epoch']}, step {progress['step']}")
        result = run(parts, config["trainer"], folder, recorder, state, stop)
        result["total_seconds"] = time.monotonic() - started
        folder.write_json(folder.result, result)
        recorder.end(succeeded=True)
        return result
    except BaseException:
        recorder.end(succeeded=False)
        raise
    finally:
        recorder.close()


@contextlib.contextmanager
def keeping_record(folder: RunFolder) -> Iterator[None]:
    """Send the log to a file in `folder` too, and when what is inside fails, say so in its result.json."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        if isinstance(error, Stopped):
            error.args = (f"{error}, everything is saved; go on with: mcls resume {relative(folder.path)}",)
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        reason = str(error) if isinstance(error, MclsError) else f"{type(error).__name__}: {error}"
        handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, reason, (), None))
        with contextlib.suppress(MclsError):
            folder.write_json(folder.result, {"status": status, "reason": reason})
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def introduce(parts: Parts, about: dict[str, Any], folder: RunFolder) -> None:
    """Say what was found, before the first step."""
    dataset, choices = parts.dataset, about["choices"]
    shape = " x ".join(map(str, dataset.input_shape))
    sizes = f"{len(dataset.train):,} train, {len(dataset.val) if dataset.val is not None else 0:,} val"
    weights = sum(weight.numel() for weight in parts.model.parameters())
    memory = "resident" if parts.train.resident else f"streamed, {parts.train.workers} workers"
    others = ", ".join(f"{part} {choices[part]}" for part in ("loss", "optimizer", "schedule", "augment"))
    order = ", channels-last" if parts.channels_last else ""
    device = f"{parts.device} ({about['device_name']}), {parts.precision}{order}"
    log.info(f"data    {choices['dataset']}: {sizes}; {len(dataset.classes)} classes; {shape} a sample; {memory}")
    log.info(f"model   {choices['model']}: {weights:,} weights; {others}")
    log.info(f"device  {device}; {about['environment']['threads']} threads; seed {about['seed']}")
    log.info(f"folder  {relative(folder.path)}")


def save_best(folder: RunFolder, trainer: Trainer, data: dict[str, Any]) -> None:
    """Publish the selected weights by themselves, with what it takes to use them."""
    checkpoint.save(folder.best, {"model": trainer.best, "data": data, "epoch": trainer.progress.best_epoch})


def run(
    parts: Parts,
    settings: dict[str, Any],
    folder: RunFolder,
    recorder: Recorder,
    state: dict[str, Any] | None,
    stop: Callable[[], int],
) -> dict[str, Any]:
    """Train, select, then open the test set, measure and draw. Returns what stands in result.json."""

    def save(state: dict[str, Any], best_is_new: bool) -> None:
        if folder.last.exists():
            folder.last.replace(folder.previous)
        checkpoint.save(folder.last, {**state, "data": parts.data})
        if best_is_new:
            save_best(folder, trainer, parts.data)
        recorder.flush()

    dataset, classes = parts.dataset, parts.dataset.classes
    trainer = Trainer(
        parts.model,
        parts.loss,
        parts.optimizer,
        parts.rates,
        parts.settings,
        num_classes=len(classes),
        device=parts.device,
        precision=parts.precision,
        recorder=recorder,
        save=save,
        stop=stop,
    )
    if state is not None:
        trainer.load_state_dict(state)
    progress = trainer.progress
    followed = parts.load(dataset.open_test()) if settings["test_every_epoch"] else None
    trainer.fit(parts.train, parts.val, followed)
    if trainer.best is None:  # no val: the last weights are the selected ones
        progress.best_epoch = progress.epoch
        trainer.best = parts.model.state_dict()
        save_best(folder, trainer, parts.data)
    parts.model.load_state_dict(trainer.best)
    split = dataset.open_test()
    tally = trainer.evaluate(parts.load(split))
    test = tally.measure()
    val = trainer.evaluate(parts.val).measure().report(classes) if parts.val is not None else None
    result: dict[str, Any] = {
        "status": "finished",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        "seconds": progress.seconds,
        "images_per_second": progress.epoch * parts.train.samples / max(progress.seconds, 1e-9),
        "val": val,
        "test": test.report(classes),
        "test_openings": 1 if followed is None else progress.epoch + 1,
        "weights_sha256": checkpoint.weights_digest(parts.model.state_dict()),
    }
    final = {
        f"best/{name}_{key}": result[name][key] for name in ("val", "test") if result[name] for key in FOLLOWED[:2]
    }
    if followed is None:
        final |= {f"test/{key}": result["test"][key] for key in FOLLOWED}
    recorder.scalars(progress.step, final)
    if settings["figures"]:
        loader = parts.train
        results.draw(
            folder.figures, folder.name, split, tally, test, classes, parts.model, loader, recorder, progress.step
        )
    return result
