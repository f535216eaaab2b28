"""`mcls export`: bring a model elsewhere."""

import argparse

from mcls.commands.options import Parser, add_checkpoint, add_temperature, check_effective, override, path
from mcls.runs.folder import find_run, read_json, relative
from mcls.system.console import say, say_progress
from mcls.system.files import publish

FORMATS = ("onnx", "pt2", "safetensors")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls export",
        description="Write a run's model as one file for other programs, class names in its metadata. onnx and pt2 "
        "hold preprocessing and softmax: uint8 images N x C x H x W, or vectors of a table's numbers as they are, in, "
        "probabilities out, any N. A table with columns of text has to be encoded outside, as mcls.encoder in the "
        "metadata says; mcls predict does. safetensors holds the weights. The file is checked against the run's model "
        "before it is put in its place.",
    )
    command.add_argument("run", type=path, metavar="RUN", help="the run's folder")
    command.add_argument(
        "changes", nargs="*", type=override, metavar="key=value", help="for example trust=[my_package]"
    )
    command.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    command.add_argument("--output", type=path, metavar="FILE", help="where; default RUN/model.FORMAT")
    add_checkpoint(command)
    add_temperature(command)
    return command


def run(arguments: list[str]) -> int:
    """Export one run. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    folder = find_run(options.run)
    check_effective(options.changes, ("trust",), "mcls export")
    say_progress(f"exporting as {options.format}")
    from mcls.inference.calibration import at_temperature
    from mcls.inference.export import export, input_type
    from mcls.inference.load import load_run

    loaded = load_run(folder, options.checkpoint, "cpu", options.changes, model_only=True)
    if options.temperature:
        loaded = at_temperature(loaded, options.checkpoint)
    content, differences = export(loaded, options.format)
    target = options.output or options.run / f"model.{options.format}"
    publish(target, content)
    shape = " x ".join(("N", *map(str, loaded.input_shape)))
    checked = ", ".join(f"{value:.1e} in a batch of {size}" for size, value in differences.items())
    kind = input_type(loaded)
    say(f"{relative(target)}: {len(content) / 1e6:.2f} MB, {options.checkpoint} checkpoint of epoch {loaded.epoch}")
    if options.temperature:
        where = "in the metadata" if options.format == "safetensors" else "applied"
        say(f"temperature: {loaded.temperature:.3f}, fitted on val, {where}")
    if options.format == "safetensors":
        say("weights only; classes, shape, mean and std are in the metadata")
    else:
        say(f"input: {kind} {shape}; output: probabilities N x {len(loaded.classes)}; class names are in the metadata")
        if kind == "float64":
            say("input: the raw numeric columns of the table, in the order of mcls.encoder in the metadata")
        elif loaded.encoder is not None:
            say("input: the encoded columns of the table, as described by mcls.encoder in the metadata")
    say(f"largest difference from the run's model: {checked}")
    if (measured := read_json(folder.about).get("precision")) in ("bf16", "fp16"):
        say(f"computes in fp32; the run was measured in {measured}")
    return 0
