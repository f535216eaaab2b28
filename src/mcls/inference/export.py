"""A run's model brought elsewhere: preprocessing and softmax inside, checked against the original."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from mcls.data.table_encoder import all_numbers
from mcls.errors import MachineError, RunError
from mcls.inference.load import LoadedRun, with_delimiter
from mcls.training.precision import eval_logits

BATCHES = (1, 7)  # batch sizes at which the export is compared with the original; the traced example has 2 samples
TOLERANCE = 1e-4  # largest difference of two probabilities
INSTALL = "Install what it takes: pip install 'mcls[onnx]'"


class Deployed(nn.Module):
    """Samples as they are stored, uint8 images (N, C, H, W) or vectors (N, F), to probabilities (N, C).

    Args:
        model: inputs to logits.
        scale, shift: of the normalisation, (1, C, 1, 1) or float64 (F,); None for inputs that need none.
        loaded: the run, for its test-time augmentation and its temperature.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, model: nn.Module, scale: Tensor | None, shift: Tensor | None, loaded: LoadedRun) -> None:
        super().__init__()
        self.model, self.tta, self.temperature = model, loaded.tta, loaded.temperature
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, inputs: Tensor) -> Tensor:
        """Probabilities float32 (N, C)."""
        if self.scale is not None and self.shift is not None:
            inputs = (inputs * self.scale + self.shift).float()
        return (eval_logits(self.model, inputs, self.tta).float() / self.temperature).softmax(dim=1)


def export(loaded: LoadedRun, form: str) -> tuple[bytes, dict[int, float]]:
    """The model of `opened` (on the CPU) as a file of `form`: onnx, pt2 or safetensors.

    Returns:
        The file, and for each batch size the largest difference of its probabilities from the original's.

    Raises MachineError when a package is missing, RunError when the model can't be exported or comes out different.
    """
    try:
        scale, shift = loaded.normalise.scale, loaded.normalise.shift
        if (table := format_numbers(loaded)) is not None:
            scale, shift = 1 / table[1], -table[0] / table[1]
        deployed = Deployed(loaded.model, scale, shift, loaded).eval()
        with quiet():
            content, copied = FORMS[form](deployed, loaded)
            differences = {size: output_difference(loaded, copied, size) for size in BATCHES}
    except ImportError as error:
        raise MachineError(f"--format {form}: {error.name or error} is not installed. {INSTALL}") from error
    except Exception as error:  # the exporters raise whatever their many passes come upon
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"--format {form}: the model cannot be exported ({type(error).__name__}: {text}).") from error
    if not max(differences.values()) <= TOLERANCE:
        raise RunError(
            f"--format {form}: the copy's probabilities are up to {max(differences.values()):.1e} from the model's, "
            f"more than {TOLERANCE:g}. No file was written."
        )
    return content, differences


def format_numbers(loaded: LoadedRun) -> tuple[Tensor, Tensor] | None:
    """Means and stds, float64 (F,), of a run on a table of numbers alone: the file standardises. None for other runs.

    Rows with columns of text are encoded outside.
    """
    if loaded.encoder is None or not all_numbers(loaded.encoder):
        return None
    means, stds = (torch.tensor(loaded.encoder[key], dtype=torch.float64) for key in ("means", "stds"))
    return means, stds


def input_type(loaded: LoadedRun) -> str:
    """What the file takes; float64 for a table of numbers, which may be too long for float32 before they are scaled."""
    return "uint8" if loaded.mean is not None else "float32" if format_numbers(loaded) is None else "float64"


Run = Callable[[Tensor], Tensor]


def to_onnx(deployed: Deployed, loaded: LoadedRun) -> tuple[bytes, Run]:
    """ONNX, run by onnxruntime."""
    import onnxruntime
    import onnxscript  # noqa: F401, torch's exporter uses it

    shapes: Any = ({0: torch.export.Dim("batch")},)
    inputs = (example_input(loaded, 2),)
    program: Any = torch.onnx.export(
        deployed, inputs, input_names=["inputs"], output_names=["probabilities"], dynamic_shapes=shapes, verbose=False
    )
    program.model.metadata_props.update(about(loaded))
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


def to_pt2(deployed: Deployed, loaded: LoadedRun) -> tuple[bytes, Run]:
    """`torch.export`'s own file, run by torch."""
    shapes: Any = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(deployed, (example_input(loaded, 2),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"mcls.json": json.dumps(about(loaded))})
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


def to_safetensors(deployed: Deployed, loaded: LoadedRun) -> tuple[bytes, Run]:
    """The weights alone, with what it takes to use them as text; run by a copy of the model that is given them."""
    from safetensors import torch as safetensors

    weights = {name: tensor.detach().contiguous().clone() for name, tensor in loaded.model.state_dict().items()}
    content = safetensors.save(weights, metadata=about(loaded))
    copied = copy.deepcopy(deployed)
    for tensor in copied.model.state_dict().values():
        tensor.zero_()
    copied.model.load_state_dict(safetensors.load(content))
    return content, copied


FORMS = {"onnx": to_onnx, "pt2": to_pt2, "safetensors": to_safetensors}


def about(loaded: LoadedRun) -> dict[str, str]:
    """What goes beside the model, each value JSON."""
    metadata: dict[str, Any] = {
        "classes": loaded.classes,
        "input_shape": loaded.input_shape,
        "input_type": input_type(loaded),
        "mean": loaded.mean,
        "std": loaded.std,
        "model": loaded.config["model"],
        "epoch": loaded.epoch,
        "temperature": loaded.temperature if loaded.temperature != 1 else None,
        "encoder": with_delimiter(loaded),
        "tta": loaded.tta,
        **loaded.reading.record(),
    }
    return {f"mcls.{key}": json.dumps(value) for key, value in metadata.items() if value is not None}


def example_input(loaded: LoadedRun, size: int) -> Tensor:
    """`size` made-up samples as they are stored, the same each time."""
    generator = torch.Generator().manual_seed(size)
    shape = (size, *loaded.input_shape)
    if loaded.mean is not None:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    values, table = torch.randn(shape, generator=generator), format_numbers(loaded)
    return values if table is None else values * table[1] + table[0]


@torch.inference_mode()
def output_difference(loaded: LoadedRun, copied: Run, size: int) -> float:
    """The largest difference between the probabilities of a copy and the original's, at this batch size."""
    inputs = example_input(loaded, size)
    table = format_numbers(loaded)
    given = loaded.normalise(inputs) if table is None else ((inputs - table[0]) / table[1]).float()
    expected = (eval_logits(loaded.model, given, loaded.tta).float() / loaded.temperature).softmax(dim=1)
    return float((copied(inputs) - expected).abs().max())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress, logs and warnings of their own affairs from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
