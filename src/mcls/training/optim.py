"""What the trainer needs of an optimizer: its learning rates set before each step, and a step without overhead."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

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


class StackedOptimizer:
    """SGD, Adam or AdamW of stacked weights, with a learning rate, momentum and weight decay for each run.

    Args:
        optimizers: one of each run, of the same kind; their state becomes slices of the stacked one.
        weights: of each run, in the order of the optimizers' own.
        stacked: the same, (runs, numbers).
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], weights: Sequence[Sequence[nn.Parameter]], stacked: list[Tensor]
    ) -> None:
        self.weights, self.groups = stacked, [optimizer.param_groups[0] for optimizer in optimizers]
        self.adam = isinstance(optimizers[0], Adam)
        self.decay, self.momentum = self.column("weight_decay"), self.column("momentum")
        keys = ("exp_avg", "exp_avg_sq") if self.adam else ("momentum_buffer",) if self.momentum is not None else ()
        self.state: dict[str, list[Tensor]] = {key: [torch.zeros_like(each) for each in stacked] for key in keys}
        self.steps = stacked[0].new_zeros(len(stacked), len(optimizers), dtype=torch.float32)
        for run, (optimizer, group) in enumerate(zip(optimizers, self.groups, strict=True)):
            for index, weight in enumerate(weights[run]):
                state = optimizer.state[weight] if self.adam or group["momentum"] else {}
                slices = {key: tensors[index][run].view_as(weight) for key, tensors in self.state.items()}
                slices |= {"step": self.steps[index, run]} if self.adam else {}
                for key, tensor in slices.items():
                    if key in state:
                        tensor.copy_(state[key])
                state.update(slices)

    def column(self, key: str) -> Tensor | None:
        """An option of each run, (runs, 1); None where it is 0 for all."""
        values = [[float(group.get(key, 0))] for group in self.groups]
        return self.weights[0].new_tensor(values) if any(value for (value,) in values) else None

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rates: Tensor) -> None:
        """One update by `gradients` (runs, numbers), which it changes, with learning rates (runs, 1)."""
        group = self.groups[0]
        if self.decay is not None and group.get("decoupled_weight_decay"):
            torch._foreach_mul_(self.weights, [1 - rates * self.decay] * len(self.weights))
        elif self.decay is not None:
            for gradient, weight in zip(gradients, self.weights, strict=True):
                gradient.addcmul_(weight, self.decay)
        if self.adam:
            self.adam_step(gradients, rates)
            return
        updates = gradients
        if self.momentum is not None:
            updates = self.state["momentum_buffer"]
            for buffer, gradient in zip(updates, gradients, strict=True):
                buffer.mul_(self.momentum).add_(gradient)
            if group["nesterov"]:
                updates = [torch.addcmul(g, b, self.momentum) for g, b in zip(gradients, updates, strict=True)]
        for weight, update in zip(self.weights, updates, strict=True):
            weight.addcmul_(update, -rates)

    def adam_step(self, gradients: list[Tensor], rates: Tensor) -> None:
        """What is Adam's own: of gradients that have their weight decay."""
        group, (first, second) = self.groups[0], self.groups[0]["betas"]
        self.steps += 1
        means, squares = self.state["exp_avg"], self.state["exp_avg_sq"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        done = self.steps[0, :, None]
        sizes, roots = -rates / (1 - first**done), (1 - second**done).sqrt()
        for weight, mean, square in zip(self.weights, means, squares, strict=True):
            weight.addcmul_(mean / (square.sqrt() / roots + group["eps"]), sizes)
