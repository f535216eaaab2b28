"""A training step as a CUDA graph: recorded once, then replayed, so that a small network does not wait for Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mcls.errors import MachineError, RequestError
from mcls.models.finetuned import FineTuned
from mcls.system.text import plural

PLAIN_STEPS = 3  # that are not replayed: they make the optimizer's state, and libraries choose their algorithms
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # whose fused step reads its rate from the device
OWN = ("mcls.models.", "mcls.losses.")  # known to do the same at every step, which a recording takes for granted

Update = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


class GraphedStep:
    """Does training steps: the first ones plainly, and those of whole batches by replaying one that it recorded.

    The learning rates are kept on the device, for the plain steps too: so all steps of a run, and of a resumed one,
    compute with the same rounded rates.

    Args:
        step: the optimizer's.
        optimizer: one of OPTIMIZERS, fused.
    """

    def __init__(self, step: Callable[[], object], optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.rates = [group["params"][0].new_zeros(()) for group in optimizer.param_groups]
        self.sent: list[float] = []
        self.done = 0
        self.recording = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, update: Update, inputs: Tensor, targets: Tensor, size: int, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Do one step on a batch of `size` samples, where a whole one has `batch_size`. Returns loss and logits.

        Args:
            update: does the step with these arguments; it has to call this object's `optimizer_step`.
        """
        if (rates := [group["lr"] for group in self.optimizer.param_groups]) != self.sent:
            for rate, value in zip(self.rates, rates, strict=True):
                rate.fill_(value)
            self.sent = rates
        self.done += 1
        if self.done <= PLAIN_STEPS or size != batch_size:
            return update(inputs, targets, size, batch_size)
        if self.graph is None:
            self.graph = self.record(update, inputs, targets, size, batch_size)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.loss.clone(), self.logits.clone()

    def record(
        self, update: Update, inputs: Tensor, targets: Tensor, size: int, batch_size: int
    ) -> torch.cuda.CUDAGraph:
        """The step as a graph that reads `self.inputs` and `self.targets` and writes `self.loss` and `self.logits`.

        Raises RequestError where the model, the loss or the optimizer waits for the device, MachineError where memory
        runs out.
        """
        self.inputs, self.targets = inputs.clone(), targets.clone()
        graph, self.recording = torch.cuda.CUDAGraph(), True
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a thread may pin memory meanwhile
                self.loss, self.logits = update(self.inputs, self.targets, size, batch_size)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"trainer.cuda_graph: {inputs.device} has no memory for a recorded step of "
                f"{plural(batch_size, 'sample')} beside the plain ones. Set it to false, or lower trainer.batch_size."
            ) from error
        except RuntimeError as error:
            raise RequestError(
                f"trainer.cuda_graph: a step can't be recorded ({str(error).splitlines()[0]}). Set it to false."
            ) from error
        finally:
            self.recording = False
        return graph

    def optimizer_step(self) -> None:
        """The optimizer's step with the learning rates on the device; the optimizer keeps its own as plain numbers."""
        plain = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = self.recording
        try:
            self.step()
        finally:
            for group, value in zip(self.optimizer.param_groups, plain, strict=True):
                group["lr"] = value
                if "capturable" in group:
                    group["capturable"] = False


def records_steps(
    config: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, precision: str
) -> bool:
    """Whether steps are recorded: where it can be done, if `trainer.cuda_graph` is true, or auto and the model and the
    loss are mcls's own. Raises MachineError or RequestError where it is true and can't be done."""
    choice = config["trainer"]["cuda_graph"]
    if choice is False:
        return False
    if device.type != "cuda":
        if choice is True:
            raise MachineError(f"trainer.cuda_graph: true is for NVIDIA GPUs, got device {device}. Use auto.")
        return False
    reason = ""
    if config["trainer"]["devices"] > 1:
        reason = f"trainer.devices={config['trainer']['devices']}"
    elif precision == "fp16":
        reason = "precision=fp16"
    elif not isinstance(optimizer, OPTIMIZERS) or not optimizer.defaults.get("fused"):
        reason = f"optimizer {type(optimizer).__name__}; SGD, Adam and AdamW in their fused form do"
    elif isinstance(model, FineTuned) and model.unfreeze_epoch is not None:
        reason = "model.unfreeze_epoch"
    if reason and choice is True:
        raise RequestError(f"trainer.cuda_graph: true does not go with {reason}. Use auto.")
    own = all(str(config[part]["_target_"]).startswith(OWN) for part in ("model", "loss"))
    return not reason and (choice is True or own)
