"""The layers of a model: what each puts out, its weights, and what it costs to compute."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mcls.config.instantiate import build
from mcls.config.saved import without_pretrained
from mcls.training.setup import open_dataset, with_expected_input

HEADER = ("layer", "kind", "output", "weights", "trained", "multiply-adds")


def summarise_model(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a table of the layers of the model of `config`, built for its data set, without pretrained weights.

    Raises MclsError for what can't be built.
    """
    config = with_expected_input(config)
    dataset = open_dataset(config, torch.device("cpu"))
    node, shape = without_pretrained(config["model"], config["trust"]), dataset.input_shape
    model: nn.Module = build("model", node, config["trust"], input_shape=shape, num_classes=len(dataset.classes))
    return layer_rows(model.eval(), torch.zeros(1, *shape))


def layer_rows(model: nn.Module, samples: Tensor) -> list[tuple[str, ...]]:
    """Rows below HEADER: a module that computes without calling others each, in the order of the computation.

    Weights are those in the module and below it, counted where they are first used; multiply-adds are of one sample,
    as torch counts them for matrix products, convolutions and attention. The last row is of the whole model.
    """
    counter = FlopCounterMode(display=False)
    open_modules: list[tuple[nn.Module, int]] = []
    parents: set[nn.Module] = set()
    measured: dict[nn.Module, tuple[str, int]] = {}

    def enter(module: nn.Module, inputs: Any) -> None:
        parents.update(outer for outer, _ in open_modules)
        open_modules.append((module, counter.get_total_flops()))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        _, before = open_modules.pop()
        output = output[0] if isinstance(output, tuple) and output else output
        made = " x ".join(map(str, output.shape[1:])) if isinstance(output, Tensor) else type(output).__name__
        operations = measured.get(module, ("", 0))[1] + counter.get_total_flops() - before
        measured[module] = made, operations

    handles = [
        hook
        for one in model.modules()
        for hook in (one.register_forward_pre_hook(enter), one.register_forward_hook(leave))
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its attention is one operation that is not counted
    try:
        with counter, torch.no_grad():
            model(samples)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in handles:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    seen: set[nn.Parameter] = set()
    rows = []
    for module, (made, operations) in measured.items():
        if module is not model and module not in parents:
            rows.append(layer_row(names[module], module, made, operations, seen))
    return [*rows, layer_row("whole model", model, measured[model][0], measured[model][1], set())]


def layer_row(name: str, module: nn.Module, made: str, operations: int, seen: set[nn.Parameter]) -> tuple[str, ...]:
    """One row; its weights are those that are not in `seen`, and then are."""
    weights = [weight for weight in module.parameters() if weight not in seen]
    seen.update(weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    numbers = (sum(weight.numel() for weight in weights), trained, operations // 2)
    return (name, type(module).__name__, made, *(f"{count:,}" for count in numbers))
