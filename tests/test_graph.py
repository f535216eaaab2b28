"""Steps recorded as CUDA graphs: what can be tested without a GPU. tests/test_gpu.py compares them with plain steps."""

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from mcls.errors import MachineError, RequestError
from mcls.models.mlp import MLP
from mcls.training.graph import GraphedStep, records_steps
from mcls.training.optim import raw_step

GPU = torch.device("cuda")


def config(**changes: Any) -> dict[str, Any]:
    parts = {"model": {"_target_": "mcls.models.MLP"}, "loss": {"_target_": "mcls.losses.cross_entropy"}}
    return parts | {"trainer": {"cuda_graph": "auto", "devices": 1} | changes}


def sgd(model: nn.Module, **keys: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, fused=True, **keys)


def records(choice: Any, device: torch.device = GPU, precision: str = "bf16", **changes: Any) -> bool:
    model = MLP((4,), 3, [8], 0.0)
    given = config(cuda_graph=choice) | changes
    return records_steps(given, model, sgd(model), device, precision)


def test_auto_records_the_models_of_mcls_on_gpus_alone() -> None:
    assert records("auto") and records(True) and not records(False)
    assert not records("auto", torch.device("cpu"))
    theirs: dict[str, Any] = {"model": {"_target_": "mine.Net"}}
    assert not records("auto", **theirs) and records(True, **theirs)


def test_where_a_step_cannot_be_recorded_auto_does_not_and_true_is_refused() -> None:
    assert not records("auto", precision="fp16")
    with pytest.raises(RequestError, match="does not go with precision=fp16"):
        records(True, precision="fp16")
    with pytest.raises(MachineError, match="for NVIDIA GPUs, got device cpu"):
        records(True, torch.device("cpu"))
    model = MLP((4,), 3, [8], 0.0)
    optimizer = torch.optim.RMSprop(model.parameters())
    assert not records_steps(config(), model, optimizer, GPU, "fp32")
    with pytest.raises(RequestError, match="optimizer RMSprop"):
        records_steps(config(cuda_graph=True), model, optimizer, GPU, "fp32")


def train(graphed: bool, steps: int = 6) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = MLP((4,), 3, [8], 0.0)
    optimizer = sgd(model, momentum=0.9)
    plain = raw_step(optimizer)
    steps_of = GraphedStep(plain, optimizer)
    step = steps_of.optimizer_step if graphed else plain
    generator = torch.Generator().manual_seed(1)

    def update(inputs: torch.Tensor, targets: torch.Tensor, size: int, batch_size: int) -> Any:
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        step()
        return loss.detach(), logits.detach()

    for number in range(steps):
        batch = torch.randn(5, 4, generator=generator), torch.randint(3, (5,), generator=generator)
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        if number == 2:  # as resuming does, which makes new groups
            optimizer.load_state_dict(optimizer.state_dict())
        if graphed:
            steps_of(update, *batch, 5, 6)  # a batch that is not whole is never recorded
        else:
            update(*batch, 5, 6)
    return model, optimizer


def test_rates_on_the_device_follow_the_plain_ones() -> None:
    (model, _), (graphed, optimizer) = train(False), train(True)
    for left, right in zip(model.parameters(), graphed.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
    assert optimizer.param_groups[0]["lr"] == 0.1 / 6  # a plain number, as it is saved


def test_a_step_that_memory_cannot_hold_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(inputs: torch.Tensor, targets: torch.Tensor, size: int, batch_size: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **keys: contextlib.nullcontext())
    optimizer = sgd(MLP((4,), 3, [8], 0.0))
    step = GraphedStep(raw_step(optimizer), optimizer)
    with pytest.raises(MachineError, match=r"^trainer\.cuda_graph: cpu has no memory for a recorded step of 5 samples"):
        step.record(update, torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), 5, 5)
    assert not step.recording
