"""What the parts of a training must keep to, tried before anything is trained: one line says what does not fit."""

import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.types import Dataset
from mcls.errors import MclsError, RequestError
from mcls.models.finetuned import FineTuned
from mcls.system.text import shape_text
from mcls.training.precision import check_tta

log = logging.getLogger("mcls")

PASS_THROUGH = (MclsError, MemoryError, torch.OutOfMemoryError)  # what is not the fault of the part that raises it


def check_components(
    config: dict[str, Any],
    dataset: Dataset,
    model: nn.Module,
    augment: Any,
    mix: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Tensor | None:
    """Raise RequestError unless what was built from `config` goes together. Returns the class weights of the loss."""
    shape, num_classes, settings = dataset.input_shape, len(dataset.classes), config["trainer"]
    if settings["patience"] is not None and dataset.val is None:
        raise RequestError(
            "trainer.patience: requires a validation split. Raise dataset.val_fraction, or set it to null."
        )
    if settings["oom"] == "accumulate" and settings["devices"] > 1:
        raise RequestError(
            f"trainer.oom: accumulate is for one process, got trainer.devices={settings['devices']}. Set "
            "trainer.accumulate."
        )
    if settings["sync_batchnorm"] and settings["accumulate"] > 1 and settings["devices"] > 1:
        raise RequestError(
            f"trainer.sync_batchnorm: true is for whole batches, got trainer.accumulate={settings['accumulate']}. Set "
            "one of them only."
        )
    check_model(model, config["model"]["_target_"], shape, num_classes, device)
    if settings["monitor"] == "top_k" and config["evaluate"]["top_k"] >= num_classes:
        raise RequestError(f"evaluate.top_k: must be less than the {num_classes} classes if trainer.monitor is top_k.")
    check_tta(config["evaluate"]["tta"], shape, "evaluate.tta")
    check_augment(augment, config["augment"]["_target_"], shape)
    if isinstance(model, FineTuned) and (model.unfreeze_epoch or 0) >= settings["epochs"]:
        log.warning(
            f"model   unfreeze_epoch={model.unfreeze_epoch} is no epoch before the last, trainer.epochs="
            f"{settings['epochs']}: nothing is unfrozen"
        )
    class_weights = check_loss(loss, config["loss"]["_target_"], dataset.train.targets, num_classes, device)
    if mix is not None:
        check_mix(mix, config["mix"]["_target_"], shape)
        check_soft_targets(loss, config["loss"]["_target_"], num_classes, device)
    check_optimizer(optimizer, config["optimizer"]["_target_"])
    if settings["class_balanced_sampling"] and config["loss"].get("class_weights") == "balanced":
        log.warning(
            "loss    class_weights=balanced and trainer.class_balanced_sampling=true both correct the imbalance. Use "
            "one."
        )
    return class_weights


@torch.no_grad()
def check_model(model: nn.Module, name: str, shape: tuple[int, ...], num_classes: int, device: torch.device) -> None:
    """Raise RequestError unless `model` turns two samples of `shape` into two rows of logits, when it trains too."""
    got, samples = shape_text(shape), torch.zeros(2, *shape, device=device)
    kept: list[Tensor] = []
    for training in (False, True):
        try:
            logits = model.train(training)(samples)
        except PASS_THROUGH:
            raise
        except Exception as error:
            raise RequestError(
                f"model: {name} does not accept samples of shape {got}: {error_summary(error)}."
            ) from error
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
    if isinstance(getattr(loss, "values", loss), nn.NLLLoss) or name == "torch.nn.functional.nll_loss":
        raise RequestError(f"loss: {name} expects log-probabilities, but models return logits. Set loss=nll.")
    few = targets[: 3 if num_classes == 2 else 2].to(device)  # never as many as classes: nothing to broadcast
    logits = torch.linspace(-1, 1, len(few) * num_classes, device=device).view(-1, num_classes).requires_grad_()
    try:
        with warnings.catch_warnings(action="ignore"):
            value = loss(logits, few)
    except PASS_THROUGH:
        raise
    except Exception as error:
        wanted = f"logits of shape {tuple(logits.shape)} and class numbers"
        raise RequestError(f"loss: {name} does not take {wanted}: {error_summary(error)}.") from error
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
    except PASS_THROUGH:
        raise
    except Exception as error:
        raise RequestError(f"loss: {name} does not accept batches of any size: {error_summary(error)}.") from error
    for weights in [*candidates, None]:
        mass = torch.ones_like(samples, dtype=logits.dtype) if weights is None else weights[samples]
        mean = (first * mass[parts[0]].sum() + second * mass[parts[1]].sum()) / mass.sum()
        if torch.allclose(mean.float(), whole.float(), rtol=1e-4, atol=1e-6):
            return weights
    weighted = ", weighted by its `weight` or not" * bool(candidates)
    raise RequestError(
        f"loss: {name} must return the mean over the samples of a batch{weighted}: got {whole:.4g} for a batch "
        f"whose parts have {first:.4g} and {second:.4g}. Set reduction: mean, or none for one value per sample."
    )


def may_fuse(node: dict[str, Any], device: torch.device, precision: str, model: nn.Module) -> bool | None:
    """Whether the optimizer of `node` has a fused implementation that can train `model`: it is one of torch's own, and
    neither a key nor weights that begin to train later exclude it."""
    if precision == "fp16":  # SGD's takes momentum that was never written
        return None
    later = isinstance(model, FineTuned) and model.unfreeze_epoch is not None
    if later and node["_target_"] == "torch.optim.SGD" and node.get("momentum"):  # has it of all weights or of none
        return None
    excluded = any(node.get(key) for key in ("foreach", "capturable", "differentiable"))
    cpu_only = device.type != "cpu" and node["_target_"] == "torch.optim.Adagrad"
    return None if excluded or cpu_only or not node["_target_"].startswith("torch.optim.") else True


def check_optimizer(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise RequestError for an optimizer that wants more than dense gradients and one step per batch, or has numbers
    that are none in single precision."""
    for key, value in ((key, value) for group in optimizer.param_groups for key, value in group.items()):
        if isinstance(value, float) and value > torch.finfo(torch.float32).max:
            raise RequestError(f"optimizer.{key}: {value:g} is more than single precision holds, 3.4e38. Lower it.")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise RequestError(
            f"optimizer: {name} evaluates the loss several times per step, which is not supported. Choose another."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise RequestError(f"optimizer: {name} requires sparse gradients, but models have dense ones. Choose another.")
    if optimizer.defaults.get("differentiable"):
        raise RequestError(
            "optimizer.differentiable: true is for differentiating through the optimizer. Set it to false."
        )
    if optimizer.defaults.get("capturable") and optimizer.param_groups[0]["params"][0].device.type == "cpu":
        raise RequestError("optimizer.capturable: true is for GPUs, but this run is on the CPU. Set it to false.")


def check_augment(augment: Any, name: str | None, shape: tuple[int, ...]) -> None:
    """Raise RequestError unless `augment` is None, or an augmentation and samples are images."""
    if augment is None:
        return
    if len(shape) != 3:
        got = " x ".join(map(str, shape))
        raise RequestError(f"augment: requires images, but this data set has samples of shape {got}. Set augment=none.")
    if not callable(augment) or not isinstance(getattr(augment, "draws", None), int):
        raise RequestError(f"augment: {name} must be callable and have `draws`, its random numbers for each sample.")


def check_mix(mix: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raise RequestError unless `mix` mixes samples of `shape`."""
    if not callable(mix) or not callable(getattr(mix, "draw", None)):
        raise RequestError(f"mix: {name} must be callable and have `draw`, which draws numbers for each sample.")
    if mix.images and len(shape) != 3:
        got = " x ".join(map(str, shape))
        raise RequestError(f"mix: {name} requires images, but samples have shape {got}. Set mix=mixup or mix=none.")


def check_soft_targets(
    loss: Callable[[Tensor, Tensor], Tensor], name: str, num_classes: int, device: torch.device
) -> None:
    """Raise RequestError unless `loss` takes probabilities of the classes as it takes class numbers."""
    logits = torch.linspace(-1, 1, num_classes * num_classes, device=device).sin().view(num_classes, num_classes)
    numbers = torch.arange(num_classes, device=device)
    told = f"mix: the loss {name} does not take probabilities of the classes as it takes class numbers"
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            hard, soft = loss(logits, numbers), loss(logits, torch.eye(num_classes, device=device))
    except PASS_THROUGH:
        raise
    except Exception as error:
        raise RequestError(f"{told} ({error_summary(error)}). Set loss=ce or loss=nll, or mix=none.") from error
    if not torch.allclose(hard.float(), soft.float(), rtol=1e-4, atol=1e-6, equal_nan=True):
        raise RequestError(f"{told}: got {soft:.4g}, and {hard:.4g}. Set loss=ce or loss=nll, or mix=none.")


def error_summary(error: Exception) -> str:
    """The kind of `error` and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(". :")
