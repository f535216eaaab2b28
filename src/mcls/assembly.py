"""From a checked configuration to the parts of a training, built, on their device, and known to go together."""

import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mcls.config.build import build
from mcls.data.datasets import Dataset, Split
from mcls.data.loader import Loader, Normalise, forward_batch
from mcls.distributed import ALONE, Team
from mcls.errors import DataError, MachineError, MclsError, RequestError
from mcls.machine import memory_bytes, resolve_device, resolve_precision, set_matrix_products
from mcls.optim import Rates, spare_compiler
from mcls.trainer import Settings

log = logging.getLogger("mcls")

THREADS = torch.get_num_threads()  # before any job of a sweep has changed it
AUTO_BATCH = 128  # what trainer.batch_size=auto takes, as its comment says
PARTS = ("dataset", "model", "loss", "optimizer", "schedule", "augment")
THROUGH = (MclsError, MemoryError, torch.OutOfMemoryError)  # what is not the fault of the part that raises it
NOT_COMPARED = {"download", "log_every", "checkpoint_every", "checkpoint_steps", "figures"}


@dataclass(frozen=True)
class Parts:
    """Everything that a training is made of, built and on its device."""

    dataset: Dataset
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    class_weights: Tensor | None
    optimizer: torch.optim.Optimizer
    rates: Rates
    settings: Settings
    train: Loader
    val: Loader | None
    load: Callable[[Split], Loader]
    team: Team
    device: torch.device
    precision: str
    channels_last: bool

    @property
    def data(self) -> dict[str, Any]:
        """What a checkpoint must know of the data to be used without them."""
        found: dict[str, Any] = {"classes": list(self.dataset.classes), "input_shape": list(self.dataset.input_shape)}
        found["samples"] = [0 if split is None else len(split) for split in (self.dataset.train, self.dataset.val)]
        if self.dataset.mean is not None and self.dataset.std is not None:
            found |= {"mean": list(self.dataset.mean), "std": list(self.dataset.std)}
        if self.dataset.bits != 16:
            found["bits"] = self.dataset.bits
        if self.dataset.encoder is not None:
            found["encoder"] = self.dataset.encoder
        return found


def assemble(config: dict[str, Any], rank: int = 0) -> Parts:
    """Build what `config` describes, for process number `rank` of its `trainer.devices`.

    Raises MclsError when parts do not go together or the machine lacks something.
    """
    team = Team(rank, config["trainer"]["devices"])
    device, precision = prepare_machine(config, team)
    settings, trust, seed = config["trainer"], config["trust"], config["seed"]
    dataset = open_dataset(config, device, team)
    shape, num_classes = dataset.input_shape, len(dataset.classes)
    if settings["patience"] is not None and dataset.val is None:
        raise RequestError("trainer.patience: there is no val to wait for. Raise dataset.val_fraction, or say null.")
    torch.manual_seed(seed)
    model: nn.Module = build("model", config["model"], trust, input_shape=shape, num_classes=num_classes).to(device)
    check_model(model, config["model"]["_target_"], shape, num_classes, device)
    channels_last = wants_channels_last(settings["channels_last"], model, device, precision)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if settings["compile"]:
        model.compile()
    augment = build("augment", config["augment"], trust)
    check_augment(augment, config["augment"]["_target_"], shape)
    size = resolve_batch_size(settings["batch_size"], len(dataset.train), model, team.size)
    serve = {
        "device": device,
        "normalise": Normalise(dataset.mean, dataset.std, device),
        "resident": is_resident(settings["resident"], dataset, device, team),
        "workers": settings["workers"],
        "channels_last": channels_last,
    }

    def load(split: Split) -> Loader:
        return Loader(split, forward_batch(shape, num_classes), **serve)

    train = Loader(dataset.train, size, augment=augment, seed=seed, balanced=settings["balanced"], **serve)
    counts = torch.bincount(dataset.train.targets, minlength=num_classes)
    loss = build("loss", config["loss"], trust, counts=counts)
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss
    class_weights = check_loss(loss, config["loss"]["_target_"], dataset.train.targets, num_classes, device)
    if settings["balanced"] and config["loss"].get("class_weights") == "balanced":
        log.warning("loss    class_weights=balanced and trainer.balanced=true make up for rare classes twice. Use one.")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.manual_seed(seed + rank)  # of dropout
    spare_compiler()
    fused = may_fuse(config["optimizer"], device, precision)
    optimizer = build("optimizer", config["optimizer"], trust, params=weights, fused=fused)
    check_optimizer(optimizer, config["optimizer"]["_target_"])
    return Parts(
        dataset=dataset,
        model=model,
        loss=loss,
        class_weights=class_weights,
        optimizer=optimizer,
        rates=Rates(optimizer, build("schedule", config["schedule"], trust), settings["epochs"] * len(train)),
        settings=Settings(**{field.name: settings[field.name] for field in fields(Settings)}),
        train=train,
        val=load(dataset.val) if dataset.val is not None else None,
        load=load,
        team=team,
        device=device,
        precision=precision,
        channels_last=channels_last,
    )


def prepare_machine(config: dict[str, Any], team: Team) -> tuple[torch.device, str]:
    """Set torch's threads and arithmetic as `config` wants them. Returns the device and the precision of the run."""
    torch.set_num_threads(config["threads"] or max(1, THREADS // team.size))
    if torch.are_deterministic_algorithms_enabled() != config["deterministic"]:  # setting it costs 2 s of imports
        torch.use_deterministic_algorithms(config["deterministic"])
    device = resolve_device(config["device"], team)
    precision = resolve_precision(config["precision"], device)
    set_matrix_products(precision)
    return device, precision


@torch.no_grad()
def check_model(model: nn.Module, name: str, shape: tuple[int, ...], num_classes: int, device: torch.device) -> None:
    """Raise RequestError unless `model` turns two samples of `shape` into two rows of logits, when it trains too."""
    got, samples = " x ".join(map(str, shape)), torch.zeros(2, *shape, device=device)
    kept: list[Tensor] = []
    for training in (False, True):
        try:
            logits = model.train(training)(samples)
        except THROUGH:
            raise
        except Exception as error:
            raise RequestError(f"model: {name} does not take samples of shape {got}: {told(error)}.") from error
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            made = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            wanted = f"logits of shape (2, {num_classes}) for two samples"
            raise RequestError(f"model: {name} must return {wanted}, got {made}{' in training' * training}.")
        kept = kept or [buffer.clone() for buffer in model.buffers()]
    for buffer, was in zip(model.buffers(), kept, strict=False):
        buffer.copy_(was)
    model.eval()


def check_loss(
    loss: Callable[[Tensor, Tensor], Tensor], name: str, targets: Tensor, num_classes: int, device: torch.device
) -> Tensor | None:
    """Raise RequestError unless `loss` turns logits and some of `targets` into one number with a gradient, a mean.

    Returns the class weights of that mean; see `check_mean`.
    """
    if not callable(loss):
        raise RequestError(f"loss: {name} must be a loss or make one, got {type(loss).__name__}.")
    if isinstance(loss, nn.NLLLoss) or name == "torch.nn.functional.nll_loss":
        raise RequestError(f"loss: {name} wants log-probabilities, and models return logits. Say loss=nll.")
    few = targets[: 3 if num_classes == 2 else 2].to(device)  # never as many as classes: nothing to broadcast
    logits = torch.linspace(-1, 1, len(few) * num_classes, device=device).view(-1, num_classes).requires_grad_()
    try:
        with warnings.catch_warnings(action="ignore"):
            value = loss(logits, few)
    except THROUGH:
        raise
    except Exception as error:
        wanted = f"logits of shape {tuple(logits.shape)} and class numbers"
        raise RequestError(f"loss: {name} does not take {wanted}: {told(error)}.") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        made = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else str(value)
        raise RequestError(f"loss: {name} must return one number with a gradient, got {made}.")
    return check_mean(loss, name, targets, num_classes, device)


def check_mean(
    loss: Callable[[Tensor, Tensor], Tensor], name: str, targets: Tensor, num_classes: int, device: torch.device
) -> Tensor | None:
    """The class weights by which `loss` of a batch is the mean of its samples', float (C,); None if all count alike.

    Raises RequestError when it is no such mean: processes could not share a batch, nor losses be compared.
    """
    kept = getattr(loss, "weight", None)
    candidates = [kept] if isinstance(kept, Tensor) and kept.shape == (num_classes,) else []
    present = targets.unique().to(device)
    if candidates:
        present = present[candidates[0][present].argsort()]
        present = present[candidates[0][present] > 0]
        if not len(present):
            return kept
    present = torch.cat([present[:3], present[3:][-3:]])  # the lightest and the heaviest
    samples = torch.cat([present, present[:1]])
    logits = 2 * torch.arange(len(samples) * num_classes, device=device).float().sin().view(-1, num_classes)
    parts = [slice(0, len(samples) // 2), slice(len(samples) // 2, None), slice(None)]
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            first, second, whole = (loss(logits[part], samples[part]) for part in parts)
    except THROUGH:
        raise
    except Exception as error:
        raise RequestError(f"loss: {name} does not take batches of any size: {told(error)}.") from error
    for weights in [*candidates, None]:
        mass = torch.ones_like(samples, dtype=logits.dtype) if weights is None else weights[samples]
        mean = (first * mass[parts[0]].sum() + second * mass[parts[1]].sum()) / mass.sum()
        if torch.allclose(mean.float(), whole.float(), rtol=1e-4, atol=1e-6):
            return weights
    weighted = ", weighted by its `weight` or not" * bool(candidates)
    raise RequestError(
        f"loss: {name} must return the mean over the samples of a batch{weighted}: got {whole:.4g} for a batch "
        f"whose parts have {first:.4g} and {second:.4g}. Say reduction: mean."
    )


def may_fuse(node: dict[str, Any], device: torch.device, precision: str) -> bool | None:
    """Whether the optimizer of `node` takes one kernel a step: one of torch's own, unless a key of its excludes it."""
    if precision == "fp16":  # SGD's takes momentum that was never written
        return None
    excluded = any(node.get(key) for key in ("foreach", "capturable", "differentiable"))
    cpu_only = device.type != "cpu" and node["_target_"] == "torch.optim.Adagrad"
    return None if excluded or cpu_only or not node["_target_"].startswith("torch.optim.") else True


def check_optimizer(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise RequestError for an optimizer that wants more than dense gradients and one step a batch."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise RequestError(f"optimizer: {name} wants the loss several times a step, and gets it once. Choose another.")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise RequestError(f"optimizer: {name} wants sparse gradients, and models have dense ones. Choose another.")
    if optimizer.defaults.get("differentiable"):
        raise RequestError("optimizer.differentiable: true is for gradients of the optimizer itself. Set it to false.")
    if optimizer.defaults.get("capturable") and optimizer.param_groups[0]["params"][0].device.type == "cpu":
        raise RequestError("optimizer.capturable: true is for GPUs, and this run is on the CPU. Set it to false.")


def check_augment(augment: Any, name: str | None, shape: tuple[int, ...]) -> None:
    """Raise RequestError unless `augment` is None, or an augmentation and samples are images."""
    if augment is None:
        return
    if len(shape) != 3:
        got = " x ".join(map(str, shape))
        raise RequestError(f"augment: wants images, this data set has samples of shape {got}. Say augment=none.")
    if not callable(augment) or not isinstance(getattr(augment, "draws", None), int):
        raise RequestError(f"augment: {name} must be callable and have `draws`, its random numbers for each sample.")


def told(error: Exception) -> str:
    """The kind of `error` and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(". :")


def resolve_batch_size(choice: int | str, samples: int, model: nn.Module, processes: int) -> int:
    """The samples a batch; `auto` goes with any number of training samples.

    Of every batch each of the `processes` gets a sample, and more than one where there is batch norm.
    Raises RequestError for a number that does not go with the training samples or with batch norm.
    """
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    least = (2 if normalised else 1) * processes

    def fitting(first: int) -> int:
        return next(size for size in range(min(first, samples), samples + 1) if not 0 < samples % size < least)

    size = choice if isinstance(choice, int) else samples if choice == "full" else fitting(AUTO_BATCH)
    if choice == "auto" and size != AUTO_BATCH:
        log.info(f"batch   {size} samples, not {AUTO_BATCH}: train has {samples:,}")
    if size > samples:
        raise RequestError(
            f"trainer.batch_size: {size} is more than the {samples} training samples. Lower it, or say full."
        )
    if processes > 1 and size < least:
        norm = ", and batch norm can't train on one sample" if normalised else ""
        raise RequestError(f"trainer.batch_size: {size} is too few for trainer.devices={processes}{norm}.")
    if 0 < samples % size < least:
        better = fitting(size + 1)
        if processes > 1:
            raise RequestError(
                f"trainer.batch_size: {size} leaves {samples % size} of the {samples} training samples for the last "
                f"batch, too few for trainer.devices={processes}. Try {better}."
            )
        raise RequestError(
            f"trainer.batch_size: {size} leaves one of the {samples} training samples alone in the last batch, "
            f"and batch norm can't train on one. Try {better}."
        )
    return size


def wants_channels_last(choice: str | bool, model: nn.Module, device: torch.device, precision: str) -> bool:
    """`auto` is yes for convolutional networks on GPUs and in half precision, where it is faster."""
    if choice != "auto":
        return bool(choice)
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutional and (device.type == "cuda" or precision == "bf16")


def open_dataset(config: dict[str, Any], device: torch.device, team: Team = ALONE) -> Dataset:
    """Build the data set of `config`; files of images too big for `device` or for this machine stay files."""
    choice = config["trainer"]["resident"]

    def keeps(size: int) -> bool:
        return fits(choice, size, device, team) and fits(choice, size, torch.device("cpu"), team)

    dataset = build("dataset", config["dataset"], config["trust"], fits=keeps)
    if not isinstance(dataset, Dataset):
        made = type(dataset).__name__
        raise DataError(f"dataset._target_: {config['dataset']['_target_']} must return a Dataset, got {made}.")
    return dataset


def is_resident(choice: str | bool, dataset: Dataset, device: torch.device, team: Team) -> bool:
    """Whether train and val are kept on the device; see `fits`. What is read from files as it is wanted never is."""
    splits = [split.inputs for split in (dataset.train, dataset.val) if split is not None]
    tensors = [inputs for inputs in splits if isinstance(inputs, Tensor)]
    size = sum(inputs.numel() * inputs.element_size() for inputs in tensors)
    return len(tensors) == len(splits) and fits(choice, size, device, team)


def fits(choice: str | bool, needed: int, device: torch.device, team: Team) -> bool:
    """`auto` is yes when `needed` bytes are at most a quarter of the device's memory, which a team shares on the CPU.

    Raises MachineError when they are to be resident and are more than all of it.
    """
    there = memory_bytes(device) // (team.size if device.type == "cpu" else 1)
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
