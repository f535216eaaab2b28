"""`mcls tune lr`: which learning rate to begin with."""

import argparse
import math
import shlex
from pathlib import Path

from mcls.commands.options import Parser, override, path, positive
from mcls.config.compose import checker
from mcls.errors import RequestError
from mcls.runs.folder import relative
from mcls.system.console import console, say, say_progress
from mcls.system.files import make_folder, publish
from mcls.system.signals import StopRequest


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls tune",
        description="Learning-rate range test: train for some steps while the rate rises, draw the loss against "
        "the rate and suggest a rate. Takes the overrides of mcls train; makes no run folder.",
    )
    command.add_argument("what", choices=["lr"], help="the key; only lr is available")
    command.add_argument("overrides", nargs="*", type=override, metavar="key=value", help="of mcls train")
    command.add_argument("--from", dest="low", type=rate, default=1e-6, metavar="RATE", help="the first rate (1e-6)")
    command.add_argument("--to", dest="high", type=rate, default=10.0, metavar="RATE", help="the last rate (10)")
    command.add_argument("--steps", type=positive, default=200, metavar="N", help="optimizer steps (200)")
    command.add_argument("--output", type=path, metavar="FILE", help="the curve (outputs/DATASET-MODEL/tune-lr.png)")
    command.add_argument("--config-dir", type=path, metavar="DIR", help="folder with configuration files of your own")
    return command


def rate(text: str) -> float:
    """A number above 0 that single precision holds. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e38:
        raise argparse.ArgumentTypeError(f"must be a number above 0, 1e38 at most, got {text!r}")
    return value


def run(arguments: list[str]) -> int:
    """Test, draw and suggest. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    if options.low >= options.high:
        raise RequestError(f"--from: must be below --to, {options.high:g}, got {options.low:g}.")
    with console(), StopRequest():
        with checker(options.config_dir) as check:
            request = check.check(options.overrides, False)
        if request.sweep:
            raise RequestError("hydra.mode: mcls tune lr makes no sweep. Give each key one value.")
        say_progress(f"reading {request.choices['dataset']}")
        from mcls.report import figures
        from mcls.training.rate_test import range_test
        from mcls.training.start import data_name

        curve = range_test(request.config, options.low, options.high, options.steps)
        name = f"{data_name(request.choices, request.config)}-{request.choices['model']}"
        path = options.output or Path(request.config["outputs"]) / name / "tune-lr.png"
        make_folder(path.parent)
        title = f"learning-rate range test of {name}\n{len(curve.rates)} steps, loss averaged over about 10"
        publish(path, figures.png(figures.rate_curve(curve.rates, curve.losses, curve.suggested, title)))
        kept = [line for line in options.overrides if line.partition("=")[0] != "optimizer.lr"]
        flags = ["--config-dir", str(options.config_dir)] if options.config_dir else []
    say(f"rates      {curve.rates[0]:g} to {curve.rates[-1]:.3g} in {len(curve.rates)} steps")
    say(f"loss       {curve.losses[0]:.4f} at first, lowest {min(curve.losses):.4f} at {curve.lowest:.3g}")
    say(f"curve      {relative(path)}")
    say(f"suggested  {shlex.join(['mcls', 'train', *flags, *kept, f'optimizer.lr={curve.suggested:g}'])}")
    return 0
