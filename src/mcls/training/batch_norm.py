"""Batch norm over all processes of a run: each layer's statistics are those of the whole batch.

torch's `SyncBatchNorm` is for GPUs alone; this one is the same on both, so that what is tested on CPUs is what GPUs do.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcls.system.distributed import World


class SumOfProcesses(torch.autograd.Function):
    """`World.sum` with a gradient: every process's loss depends on the sum, so its gradient is a sum as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World) -> Tensor:
        """The sums, in every process the same."""
        ctx.world = world
        return world.sum(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of this process's values."""
        return ctx.world.sum(gradients[0].contiguous().clone()), None


def share_statistics(model: nn.Module, world: World) -> None:
    """Make every batch norm of `model` take the statistics of the whole batch in training."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            vars(module)["forward"] = partial(normalise_whole_batch, module, world)


def normalise_whole_batch(norm: _BatchNorm, world: World, inputs: Tensor) -> Tensor:
    """`norm` of this process's samples (N, C, ...), which all processes call together in training."""
    if not norm.training:
        evaluated: Tensor = type(norm).forward(norm, inputs)
        return evaluated
    axes, shape = [axis for axis in range(inputs.ndim) if axis != 1], (-1, *[1] * (inputs.ndim - 2))
    with torch.autocast(inputs.device.type, enabled=False):
        exact = inputs.float()
        elements = exact.new_tensor([inputs.numel() / inputs.shape[1]])
        sums: Tensor = SumOfProcesses.apply(torch.cat([exact.sum(axes), elements]), world)
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = exact - mean.view(shape)
        variance: Tensor = SumOfProcesses.apply(centred.square().sum(axes), world) / count
        normal = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.weight is not None:
            normal = normal * norm.weight.view(shape)
        if norm.bias is not None:
            normal = normal + norm.bias.view(shape)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(variance.detach() * (count / (count - 1)), share)
    return normal.to(inputs.dtype)
