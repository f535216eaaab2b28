"""A picture of what a model makes of samples: principal components of the features that its last layer is given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mcls.data.types import Split
from mcls.report import figures
from mcls.runs.folder import RunFolder
from mcls.runs.projector import write_projector
from mcls.runs.tracking import RunLogger
from mcls.system.files import make_folder, publish

SAMPLES = 1000  # in the picture and in the projector
INPUTS = 1 << 26  # bytes of them
COMPONENTS = 32  # in the projector
THUMBNAIL = 32  # pixels of a picture there, at most


@dataclass(frozen=True)
class Embedding:
    """Samples as a model sees them.

    Args:
        name: of the split that they are from, and `total`, how many it has.
        samples: in memory.
        points: float64 (N, D), the first principal components of their features.
        shares: of the features' variance, of each component.
        predicted: class numbers, int64 (N,).
        layer: what the features are, for the title.
    """

    name: str
    total: int
    samples: Split
    points: Tensor
    shares: list[float]
    predicted: Tensor
    layer: str


def representative(split: Split, num_classes: int) -> Split:
    """The samples of `split` that are shown, read: as many of each class as there are, up to SAMPLES in all.

    Of many classes those with the most samples, as many as a legend has. Which ones does not depend on a seed.
    """
    counts = split.targets.bincount(minlength=num_classes)
    shown = torch.zeros(num_classes, dtype=torch.bool)
    shown[counts.argsort(descending=True, stable=True)[: figures.IN_LEGEND]] = True
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    order = order[shown[split.targets[order]]]
    by_class = split.targets[order].argsort(stable=True)
    sizes = counts[shown]
    places = torch.empty_like(order)
    places[by_class] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    most = min(SAMPLES, INPUTS // math.prod(split.inputs.shape[1:]) // (1 if split.inputs.ndim == 4 else 4))
    chosen = order[places.argsort(stable=True)][: max(most, 2)]
    return Split(
        split.inputs[chosen],
        split.targets[chosen],
        tuple(split.names[index] for index in chosen.tolist()) if split.names else (),
    )


def principal_components(features: Tensor, most: int) -> tuple[Tensor, list[float]]:
    """The first principal components of `features` (N, F), float64 (N, D), and their shares of the variance.

    D is at least two and at most `most`; a component that there is not is 0. The sample that is farthest out along a
    component is on its positive side.
    """
    centred = features.double() - features.double().mean(dim=0)
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = torch.linalg.eigh(centred @ centred.t() if wide else centred.t() @ centred)
    values, vectors = values.flip(0)[:most].clamp(min=0), vectors.flip(1)[:, :most]
    points = vectors * values.sqrt() if wide else centred @ vectors
    farthest = points.gather(0, points.abs().argmax(dim=0, keepdim=True))
    points = points * torch.where(farthest < 0, -1, 1)
    total = centred.square().sum().item()
    shares = [value / total if total else 0.0 for value in values.tolist()]
    missing = max(0, 2 - len(shares))
    return functional.pad(points, (0, missing)), shares + [0.0] * missing


def draw_embedding(embedding: Embedding, classes: Sequence[str], run: str) -> bytes:
    """The first two components as a PNG file, in the colours of the classes; wrong predictions have a ring.

    Args:
        classes: names of all classes.
        run: its name.
    """
    from matplotlib.lines import Line2D

    names, targets = figures.legible(tuple(classes)), embedding.samples.targets
    points, right = embedding.points[:, :2].numpy(), (embedding.predicted == targets).numpy()
    labels = targets.unique().tolist()
    colours = dict(zip(labels, figures.class_colours(len(labels)), strict=True))
    figure = figures.new_figure(6.25, 5)
    axes = figure.add_subplot()
    edges = [figures.RING if wrong else "white" for wrong in ~right]
    fills = [colours[label] for label in targets.tolist()]
    widths = np.where(right, 0.3, 1.1).tolist()
    axes.scatter(points[:, 0], points[:, 1], s=22, c=fills, edgecolors=edges, linewidths=widths)
    axes.set(xticks=[], yticks=[])
    for axis, number in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        axis(f"principal component {number + 1}, {embedding.shares[number]:.1%} of the variance", fontsize=9)
    dot = partial(Line2D, [], [], marker="o", linestyle="", markersize=5)
    handles = [dot(color=colours[label], label=names[label]) for label in labels]
    if not right.all():
        handles.append(dot(label="predicted wrong", markerfacecolor="none", markeredgecolor=figures.RING))
    more = f"{len(labels)} of {len(names):,} classes" if len(labels) < len(names) else None
    figure.legend(handles=handles, title=more, fontsize=8, title_fontsize=8, loc="outside right upper")
    samples = f"{len(targets):,} of {embedding.total:,} samples"
    figures.add_title(axes, f"{embedding.layer}, {embedding.name}\n{run}, {samples}")
    return figures.png(figure)


def save_embedding(
    embedding: Embedding | None, classes: Sequence[str], folder: RunFolder, recorder: RunLogger, step: int
) -> None:
    """Put the picture into the run's figures and into TensorBoard at `step`, and the components into its projector."""
    if embedding is None:
        return
    picture = draw_embedding(embedding, classes, folder.name)
    make_folder(folder.figures)
    publish(folder.figures / "embedding.png", picture)
    recorder.image(f"{embedding.name}/embedding", picture, step)
    samples = embedding.samples
    rows = [
        [
            classes[truth],
            classes[guess],
            "yes" if truth == guess else "no",
            samples.names[index] if samples.names else index,
        ]
        for index, (truth, guess) in enumerate(zip(samples.targets.tolist(), embedding.predicted.tolist(), strict=True))
    ]
    write_projector(
        folder,
        f"{embedding.name} features",
        embedding.points,
        ["class", "predicted", "right", "sample"],
        rows,
        thumbnails(torch.as_tensor(samples.inputs)),
    )


def thumbnails(inputs: Tensor) -> Tensor | None:
    """Pictures (N x 1 or 3 x H x W, uint8), a side at most THUMBNAIL pixels; None of what is no pictures."""
    if inputs.ndim != 4:
        return None
    channels = inputs[:, :3] if inputs.shape[1] >= 3 else inputs[:, :1]
    scale = THUMBNAIL / max(inputs.shape[2:])
    if scale >= 1:
        return channels
    size = [max(1, round(side * scale)) for side in inputs.shape[2:]]
    return functional.interpolate(channels, size, mode="bilinear", antialias=True)
