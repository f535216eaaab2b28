"""A last layer trained on a frozen backbone's features, beside one forward pass over the same pictures.

    python benchmarks/features.py [--pictures 2000] [--epochs 20] [--rounds 3] [--model resnet18]

Pictures of 224 x 224 are made, in ten classes. mcls's side is everything from the files on: a look at them, decoding,
statistics, the features of train, val and test, the epochs with a validation each, the test. The forward pass has the
pixels in memory already, in the same batches and memory order. The two take turns; the ratio is that of a round.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mcls.config.compose import checker
from mcls.data.loader import forward_batch
from mcls.training.precision import evaluate_loader
from mcls.training.run import make_trainer
from mcls.training.setup import Components, build_components, with_expected_input
from mcls.training.state import NullWriter


def write_pictures(folder: Path, count: int) -> None:
    """`folder`/CLASS/NUMBER.jpg: noise, smoothed."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        small.resize((224, 224), Image.Resampling.BICUBIC).save(path, quality=90)


def train(folder: Path, model: str, epochs: int) -> Components:
    """What `mcls train` does, but for the run folder."""
    lines = ["dataset=image_folder", f"dataset.root={folder}", "model=pretrained", f"model.name={model}"]
    lines += ["model.weights=null", "model.freeze=backbone", f"trainer.epochs={epochs}", "device=cpu", "precision=fp32"]
    with checker() as check:
        config = with_expected_input(check.check(lines, False).config)
    parts = build_components(config)
    make_trainer(parts, NullWriter(), lambda state, best: None, lambda: 0).fit(parts.train, parts.val)
    evaluate_loader(parts.model, parts.load(parts.dataset.open_test()), len(parts.dataset.classes), parts.precision)
    return parts


@torch.inference_mode()
def forward(model: nn.Module, pixels: Tensor, channels_last: bool) -> None:
    """One pass of the backbone."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    for batch in pixels.split(forward_batch(tuple(pixels.shape[1:]), 10)):
        model(((batch.float() / 255 - 0.45) / 0.225).contiguous(memory_format=order))


def main() -> None:
    """Print the ratio of each round and their median."""
    parser = argparse.ArgumentParser()
    for option, value in {"--pictures": 2000, "--epochs": 20, "--rounds": 3}.items():
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--model", default="resnet18")
    given = parser.parse_args()
    logging.getLogger("mcls").setLevel(logging.ERROR)
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as place:
        write_pictures(Path(place), given.pictures)
        for _ in range(given.rounds):
            started = time.monotonic(), time.process_time()
            parts = train(Path(place), given.model, given.epochs)
            mine = time.monotonic() - started[0], time.process_time() - started[1]
            splits = (parts.dataset.train, parts.dataset.val, parts.dataset.open_test())
            pixels = torch.cat([split.inputs[:] for split in splits if split is not None])
            backbone = parts.model.eval().get_submodule("backbone")
            started = time.monotonic(), time.process_time()
            forward(backbone, pixels, parts.channels_last)
            bare = time.monotonic() - started[0], time.process_time() - started[1]
            ratios.append((mine[0] / bare[0], mine[1] / bare[1]))
            print(
                f"forward pass {bare[0]:.1f} s ({bare[1]:.1f} of the processor), {given.epochs} epochs {mine[0]:.1f} s"
            )
            told = f"({mine[1]:.1f}), ratio {ratios[-1][0]:.2f} ({ratios[-1][1]:.2f})"
            print(f"    {told}, load {os.getloadavg()[0]:.1f}", flush=True)
    wall, processor = (statistics.median(ratio[clock] for ratio in ratios) for clock in (0, 1))
    print(f"median ratio {wall:.2f}, by processor seconds {processor:.2f}; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
