"""What the trainer needs of an optimizer: its learning rates set before each step, and a step without overhead."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mcls.models.finetuned import FineTuned
from mcls.schedules import Schedule


def skip_compiler_import() -> None:
    """Let optimizers be made without importing torch's compiler, which takes as long as importing torch.

    Four methods of `Optimizer` import it when first called, to ask it to leave them alone; nothing here compiles them.
    They remember the answer in an attribute, which is set here. A torch that does not look for it imports as before.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(vars(Optimizer)[name], "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)  # setattr: Python would mangle the name


def parameter_groups(
    model: nn.Module, lr: float, head_lr_factor: float, decay_norm_and_bias: bool
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The weights of `model` that are trained at some time, in groups of one learning rate and weight decay.

    Args:
        lr: of all weights but those whose rate is another: the head's, and the stages' of a `layer_decay`.
        head_lr_factor: of the last linear layer's learning rate.
        decay_norm_and_bias: whether weights with one dimension, of normalisation and biases, decay too.
    """
    later = isinstance(model, FineTuned) and model.unfreeze_epoch is not None
    weights = [(name, weight) for name, weight in model.named_parameters() if later or weight.requires_grad]
    factors = model.rate_factors() if isinstance(model, FineTuned) and model.layer_decay != 1 else {}
    if head_lr_factor != 1:
        head = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1:]
        factors |= {f"{name}.{part}": head_lr_factor for name in head for part in ("weight", "bias")}
    if not factors and decay_norm_and_bias:
        return [weight for _, weight in weights]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in weights:
        decays = decay_norm_and_bias or weight.ndim > 1
        groups.setdefault((factors.get(name, 1.0), decays), []).append(weight)
    return [
        {"params": group, "lr": lr * factor, **({} if decays else {"weight_decay": 0.0})}
        for (factor, decays), group in sorted(groups.items(), key=lambda item: item[0][0] != 1)  # `lr` is reported
    ]


def train_mode(model: nn.Module, epoch: int) -> None:
    """Put `model` into training mode, what it has frozen into the state that it has after `epoch` epochs."""
    if isinstance(model, FineTuned):
        model.unfreeze(epoch)
    model.train()


def raw_step(optimizer: Optimizer) -> Callable[[], object]:
    """`optimizer.step` of one of torch's optimizers without what torch wraps around it: the import of its compiler,
    a record for its profiler, and hooks, of which there are none here. Any other optimizer's step as it is."""
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return torch.no_grad()(partial(inspect.unwrap(kind.step), optimizer))


def not_finite(model: nn.Module, optimizer: Optimizer) -> str:
    """The first tensor of the model or of the optimizer's state that holds a value that is not finite; or nothing."""
    tensors = dict(model.state_dict())
    for index, values in enumerate(optimizer.state.values()):
        tensors |= {f"the optimizer's {key} of weight {index}": item for key, item in values.items()}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return ""


def planned_steps(settings: Mapping[str, Any], batches: int) -> int:
    """Steps of a training by its `trainer` keys, of `batches` an epoch; the schedule is stretched over them."""
    steps: int = settings["epochs"] * batches
    return steps if settings["max_steps"] is None else min(steps, settings["max_steps"])


class LRScheduler:
    """Sets the learning rate of each parameter group of `optimizer` to its own base rate times the schedule."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: int) -> None:
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Set the rates for the update that follows `step` finished ones; return the first group's."""
        factor = self.schedule(step / self.total_steps)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor
