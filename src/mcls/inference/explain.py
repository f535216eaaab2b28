"""What of a picture a prediction rests on: where covering it lowers the probability (Zeiler and Fergus, 2014)."""

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcls.errors import RequestError
from mcls.inference.evaluate import Evaluation, doubted
from mcls.inference.load import LoadedRun
from mcls.report import figures
from mcls.system.files import make_folder, publish

PARTS = 8  # positions of what covers a picture, across and down; it is two of them wide and high
EXPLAINED = 10  # mistakes
RED = (235, 40, 20)
STRENGTH = 0.6  # of the colour where covering matters most


def check_explainable(loaded: LoadedRun) -> None:
    """Raise RequestError unless the inputs of a run are pictures."""
    if loaded.mean is None or len(loaded.input_shape) != 3:
        raise RequestError(f"--explain: the inputs of {loaded.folder.path} are not images. Omit it.")


def occlusion(loaded: LoadedRun, pictures: Tensor, predicted: Tensor) -> Tensor:
    """How much of the probability of the class `predicted` (N) is lost where `pictures` (N x C x H x W) are covered.

    A square of the picture's mean colour is put to PARTS x PARTS positions. Returns float32 (N, H, W), of each picture
    from 0, nothing or a gain, to 1, the most.
    """

    def probability(inputs: Tensor) -> Tensor:
        scores = loaded.logits(loaded.normalise(inputs.to(loaded.device))).cpu().softmax(dim=1)
        return scores.gather(1, predicted[:, None])[:, 0]

    height, width = pictures.shape[2:]
    mean = pictures.float().mean(dim=(2, 3), keepdim=True).to(pictures.dtype)
    before, lost = probability(pictures), torch.zeros(len(pictures), PARTS, PARTS)
    for row, column in itertools.product(range(PARTS), repeat=2):
        rows, columns = (covered(part, side) for part, side in ((row, height), (column, width)))
        changed = pictures.clone()
        changed[:, :, rows, columns] = mean
        lost[:, row, column] = before - probability(changed)
    heat = functional.interpolate(lost[:, None], (height, width), mode="bilinear")[:, 0].clamp(min=0)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def covered(part: int, side: int) -> slice:
    """The pixels of a side that are covered, around the middle of a part of it."""
    middle, half = (part + 0.5) * side / PARTS, max(side / PARTS, 1)
    return slice(max(round(middle - half), 0), round(middle + half))


def in_red(pictures: Tensor, heat: Tensor) -> Tensor:
    """`pictures` (N x C x H x W, uint8) in grey, with `heat` (N x H x W) in red: uint8 (N, 3, H, W)."""
    grey = pictures[:, :3].float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    strength = STRENGTH * heat[:, None]
    return (grey * (1 - strength) + torch.tensor(RED)[:, None, None] * strength).round().to(torch.uint8)


def draw_explanations(loaded: LoadedRun, evaluation: Evaluation) -> bool:
    """Leave the mistakes and their heat maps in the run's figures. Returns whether there was a mistake."""
    chosen = doubted(evaluation)[:EXPLAINED]
    if not len(chosen):
        return False
    folder, split, names = loaded.folder, evaluation.report["split"], figures.legible(tuple(loaded.classes))
    pictures, predicted = evaluation.split.inputs[chosen], evaluation.accumulator.predictions()[0][chosen]
    heat = in_red(pictures, occlusion(loaded, pictures, predicted))
    coloured = pictures[:, :3].expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures[:, :3]
    pairs = torch.stack([coloured, heat], dim=1).flatten(0, 1)
    labels = []
    for index, guess in zip(chosen.tolist(), predicted.tolist(), strict=True):
        truth = figures.shortened(names[int(evaluation.split.targets[index])], 14)
        labels += [truth, f"{figures.shortened(names[guess], 14)}\n{evaluation.surest[index]:.0%}"]
    title = f"Mistakes ({split}): true class; predicted, and what it rests on\n{folder.name}"
    figure = figures.image_grid(np.asarray(pairs), labels, [True, False] * len(chosen), title, columns=4)
    make_folder(folder.figures)
    publish(folder.figures / f"evaluation-{split}-explain.png", figures.png(figure))
    return True
