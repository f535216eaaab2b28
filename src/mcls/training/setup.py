"""From a checked configuration to the parts of a training, built, on their device, and known to go together."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mcls.config.instantiate import build
from mcls.data.loader import ORDER, Loader, Normalise, forward_batch, generator
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, MachineError, RequestError
from mcls.losses import MeanOfValues
from mcls.models.pretrained import expected_input
from mcls.system.device import memory_bytes, resolve_device
from mcls.system.distributed import SINGLE_PROCESS, World
from mcls.system.text import plural
from mcls.system.torchrun import processes_here
from mcls.training import features
from mcls.training.batch_norm import share_statistics
from mcls.training.checks import check_components, may_fuse
from mcls.training.graph import records_steps
from mcls.training.optim import LRScheduler, parameter_groups, planned_steps, skip_compiler_import
from mcls.training.precision import resolve_precision, set_matrix_products
from mcls.training.state import Settings

log = logging.getLogger("mcls")

DEFAULT_THREADS = torch.get_num_threads()  # before any job of a sweep has changed it
MOST_WORKERS = 8  # that trainer.workers=auto starts
AUTO_BATCH = 128  # what trainer.batch_size=auto takes, as its comment says
PARTS = ("dataset", "model", "loss", "optimizer", "schedule", "augment", "mix")
NOT_COMPARED = {"download", "figures", "timeout_seconds", "log_every_steps"}
NOT_COMPARED |= {"checkpoint_every_seconds", "checkpoint_every_steps"}


@dataclass(frozen=True)
class Components:
    """Everything that a training is made of, built and on its device."""

    dataset: Dataset
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    class_weights: Tensor | None
    optimizer: torch.optim.Optimizer
    rates: LRScheduler
    settings: Settings
    batch_size: int
    train: Loader
    val: Loader | None
    load: Callable[[Split], Loader]
    world: World
    device: torch.device
    precision: str
    channels_last: bool
    cuda_graph: bool

    @property
    def data(self) -> dict[str, Any]:
        """What a checkpoint must know of the data to be used without them."""
        return data_state(self.dataset)


def data_state(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint must know of `dataset` to be used without it."""
    state: dict[str, Any] = {"classes": list(dataset.classes), "input_shape": list(dataset.input_shape)}
    state["samples"] = [0 if split is None else len(split) for split in (dataset.train, dataset.val)]
    if dataset.mean is not None and dataset.std is not None:
        state |= {"mean": list(dataset.mean), "std": list(dataset.std)}
    state |= dataset.reading.record()
    if dataset.encoder is not None:
        state["encoder"] = dataset.encoder
    return state


def build_components(config: dict[str, Any], rank: int = 0, dataset: Dataset | None = None) -> Components:
    """Build what `config` describes, for process number `rank` of its `trainer.devices`; of `dataset` if it is open.

    Raises MclsError when parts do not go together or the machine lacks something.
    """
    world = World(rank, config["trainer"]["devices"])
    device, precision = prepare_machine(config, world)
    settings, trust, seed = config["trainer"], config["trust"], config["seed"]
    # build
    dataset = dataset or open_dataset(config, device, world)
    shape, num_classes = dataset.input_shape, len(dataset.classes)
    torch.manual_seed(seed)
    model: nn.Module = build("model", config["model"], trust, input_shape=shape, num_classes=num_classes).to(device)
    augment, mix = (build(part, config[part], trust) for part in ("augment", "mix"))
    loss = build_loss(config, dataset, device)
    optimizer = build_optimizer(config, model, device, precision)
    schedule = build("schedule", config["schedule"], trust)
    # check
    class_weights = check_components(config, dataset, model, augment, mix, loss, optimizer, device)
    split, size = training_split(config, dataset, model, world)
    # prepare
    channels_last = prepare_model(model, settings, device, precision, world)
    serve: dict[str, Any] = {
        "device": device,
        "normalise": Normalise(dataset.mean, dataset.std, device),
        "resident": is_resident(settings["data_on_device"], dataset, device, world),
        "workers": resolve_workers(settings["workers"], dataset, world),
        "channels_last": channels_last,
    }
    frozen = features.constant_features(model, augment, mix, config["evaluate"]["tta"])

    def load(split: Split, batch_size: int = forward_batch(shape, num_classes), **keys: Any) -> Loader:
        if frozen is None:
            return Loader(split, batch_size, **serve, **keys)
        pictures = Loader(split, forward_batch(shape, num_classes), **serve)
        split = features.with_features(split, frozen, pictures, precision, config["cache"])
        return Loader(split, batch_size, device, Normalise(None, None, device), **keys)

    serve_train = {"augment": augment, "mix": mix, "num_classes": num_classes, "seed": seed}
    keys = {"balanced": settings["class_balanced_sampling"], "drop_last": settings["drop_last"]}
    train = load(split, size * settings["accumulate"], **serve_train, **keys)
    torch.manual_seed(seed + rank)  # of dropout
    return Components(
        dataset=dataset,
        model=model,
        loss=loss,
        class_weights=class_weights,
        optimizer=optimizer,
        rates=LRScheduler(optimizer, schedule, planned_steps(settings, len(train))),
        settings=Settings(**{field.name: (settings | config["evaluate"])[field.name] for field in fields(Settings)}),
        batch_size=size,
        train=train,
        val=load(dataset.val) if dataset.val is not None else None,
        load=load,
        world=world,
        device=device,
        precision=precision,
        channels_last=channels_last,
        cuda_graph=records_steps(config, model, optimizer, device, precision),
    )


def build_loss(config: dict[str, Any], dataset: Dataset, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of `config`; one that weighs the classes is given how many samples each has."""
    counts = torch.bincount(dataset.train.targets, minlength=len(dataset.classes))
    loss: Callable[[Tensor, Tensor], Tensor] = build("loss", config["loss"], config["trust"], counts=counts)
    if not isinstance(loss, nn.Module):
        return loss
    return (MeanOfValues(loss) if getattr(loss, "reduction", "") == "none" else loss).to(device)


def build_optimizer(
    config: dict[str, Any], model: nn.Module, device: torch.device, precision: str
) -> torch.optim.Optimizer:
    """The optimizer of `config` over the weights of `model` that are trained."""
    skip_compiler_import()
    node = dict(config["optimizer"])
    factor, decay = node.pop("head_lr_factor", 1), node.pop("decay_norm_and_bias", True)  # a user's own file has none
    weights = parameter_groups(model, node.get("lr", 0.0), factor, decay)
    fused = may_fuse(node, device, precision, model)
    optimizer: torch.optim.Optimizer = build("optimizer", node, config["trust"], params=weights, fused=fused)
    return optimizer


def with_expected_input(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with pictures as the makers of the model's weights prepare them, where the data set leaves it open.

    Raises RequestError for a model that its registry does not have.
    """
    expected, node = expected_input(config["model"]), config["dataset"]
    if expected is None or "resize" not in node:
        return config
    if node["channels"] == 1:
        expected |= {key: [sum(expected[key]) / len(expected[key])] for key in ("mean", "std")}
    taken = {key: value for key, value in {"channels": 3, **expected}.items() if node[key] in ("auto", None)}
    if taken:
        said = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in taken.items()
        )
        log.info(f"images  as the weights of {config['model']['name']} expect them: {said}")
    return {**config, "dataset": {**node, **taken}}


def prepare_machine(config: dict[str, Any], world: World) -> tuple[torch.device, str]:
    """Set torch's threads and arithmetic as `config` wants them. Returns the device and the precision of the run."""
    torch.set_num_threads(config["threads"] or max(1, DEFAULT_THREADS // processes_here(world.size)))
    if torch.are_deterministic_algorithms_enabled() != config["deterministic"]:  # setting it costs 2 s of imports
        torch.use_deterministic_algorithms(config["deterministic"])
    device = resolve_device(config["device"], world)
    precision = resolve_precision(config["precision"], device)
    set_matrix_products(precision)
    return device, precision


def training_split(config: dict[str, Any], dataset: Dataset, model: nn.Module, world: World) -> tuple[Split, int]:
    """What is trained on, and how many samples of it a batch has.

    Raises RequestError for a batch that goes with neither the samples nor the model.
    """
    settings, split = config["trainer"], dataset.train
    size = resolve_batch_size(settings["batch_size"], len(split), model, world.size, settings["drop_last"])
    step = size * settings["accumulate"]
    if settings["drop_last"] and step > len(split):
        raise RequestError(
            f"trainer.drop_last: a step takes {plural(step, 'sample')}, and train has {len(split)}. Set it to false."
        )
    if (batches := settings["overfit_batches"]) is not None and batches * step < len(split):
        chosen = torch.randperm(len(split), generator=generator(config["seed"], 0, ORDER))[: batches * step]
        split = split.rows(chosen)
        log.warning(f"trainer.overfit_batches: trains on {len(split):,} of {len(dataset.train):,} training samples")
    return split, size


def resolve_batch_size(
    choice: int | str, samples: int, model: nn.Module, processes: int, drop_last: bool = False
) -> int:
    """The samples a batch; `auto` goes with any number of training samples.

    Of every batch each of the `processes` gets a sample, and more than one where there is batch norm.
    Raises RequestError for a number that does not go with the training samples or with batch norm.
    """
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    least = (2 if normalised else 1) * processes

    def fitting(first: int) -> int:
        whole = range(min(first, samples), samples + 1)
        return next(size for size in whole if drop_last or not 0 < samples % size < least)

    size = choice if isinstance(choice, int) else samples if choice == "full" else fitting(AUTO_BATCH)
    if choice == "auto" and size != AUTO_BATCH:
        log.info(f"batch   {plural(size, 'sample')}, not {AUTO_BATCH}: train has {samples:,}")
    if size > samples:
        raise RequestError(
            f"trainer.batch_size: {size} is more than the {samples} training samples. Lower it, or set it to full."
        )
    if processes > 1 and size < least:
        norm = ", and batch norm can't train on one sample" if normalised else ""
        raise RequestError(f"trainer.batch_size: {size} is too few for trainer.devices={processes}{norm}.")
    if 0 < samples % size < least and not drop_last:
        better = fitting(size + 1)
        if processes > 1:
            raise RequestError(
                f"trainer.batch_size: {size} leaves {samples % size} of the {samples} training samples for the last "
                f"batch, too few for trainer.devices={processes}. Try {better}."
            )
        raise RequestError(
            f"trainer.batch_size: {size} leaves one of the {samples} training samples alone in the last batch, but "
            f"batch norm needs at least two. Try {better}."
        )
    return size


def prepare_model(
    model: nn.Module, settings: dict[str, Any], device: torch.device, precision: str, world: World
) -> bool:
    """Memory order, batch norm and compilation, as the trainer's `settings` ask. Returns whether channels are last."""
    if settings["sync_batchnorm"] and world.size > 1:
        share_statistics(model, world)
    channels_last = wants_channels_last(settings["channels_last"], model, device, precision)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if settings["compile"]:
        model.compile()
    return channels_last


def wants_channels_last(choice: str | bool, model: nn.Module, device: torch.device, precision: str) -> bool:
    """`auto` is yes for convolutional networks on GPUs and in half precision, where it is faster."""
    if choice != "auto":
        return bool(choice)
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutional and (device.type == "cuda" or precision == "bf16")


def open_dataset(config: dict[str, Any], device: torch.device, world: World = SINGLE_PROCESS) -> Dataset:
    """Build the data set of `config`; files of images too big for `device` or for this machine stay files."""
    choice = config["trainer"]["data_on_device"]

    def keeps(size: int) -> bool:
        return fits_in_memory(choice, size, device, world) and fits_in_memory(choice, size, torch.device("cpu"), world)

    dataset = build("dataset", config["dataset"], config["trust"], fits=keeps, cache=config["cache"])
    if not isinstance(dataset, Dataset):
        made = type(dataset).__name__
        raise DataError(f"dataset._target_: {config['dataset']['_target_']} must return a Dataset, got {made}.")
    return dataset


def resolve_workers(choice: int | str, dataset: Dataset, world: World) -> int:
    """Processes that load data; `auto` are some where files are decoded on Linux."""
    if choice != "auto":
        return int(choice)
    files = dataset.train.inputs
    if isinstance(files, Tensor) or files.decoded is not None or sys.platform != "linux":  # elsewhere they start slowly
        return 0
    return min(MOST_WORKERS, max(0, len(os.sched_getaffinity(0)) // world.size - 1))


def is_resident(choice: str | bool, dataset: Dataset, device: torch.device, world: World) -> bool:
    """Whether train and val are kept on the device; see `fits`. What is read from files as it is wanted never is."""
    splits = [split.inputs for split in (dataset.train, dataset.val) if split is not None]
    tensors = [inputs for inputs in splits if isinstance(inputs, Tensor)]
    size = sum(inputs.numel() * inputs.element_size() for inputs in tensors)
    return len(tensors) == len(splits) and fits_in_memory(choice, size, device, world)


def fits_in_memory(choice: str | bool, needed: int, device: torch.device, world: World) -> bool:
    """`auto` is yes when `needed` bytes are at most a quarter of the device's memory, which the ranks share on the CPU.

    Raises MachineError when they are to be resident and are more than all of it.
    """
    there = memory_bytes(device) // (processes_here(world.size) if device.type == "cpu" else 1)
    if choice is True and needed > there:
        raise MachineError(
            f"trainer.data_on_device: the data take {needed / 1e9:.1f} GB, {device} has {there / 1e9:.1f} GB. Use auto."
        )
    return needed <= there / 4 if choice == "auto" else bool(choice)


def hyperparameters(config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """What distinguishes one run from another: flat keys to plain values, for the HPARAMS tab and for tables."""
    values: dict[str, Any] = {"seed": config["seed"], "precision": config["precision"]}
    values |= {part: choices[part] for part in PARTS if choices[part] != "none" or part != "mix"}
    for group in (*PARTS, "trainer"):
        for key, value in config[group].items():
            if key not in NOT_COMPARED and value is not None:
                values[f"{group}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    values |= {"tags": ",".join(config["tags"])} if config["tags"] else {}
    values |= {"note": config["note"]} if config["note"] else {}
    return values
