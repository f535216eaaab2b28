"""`mcls data`: look at a data set without training, or at its labels with the runs of a k-fold sweep."""

import argparse
import hashlib
import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcls.commands.options import DATA_KEYS, Parser, add_device, check_effective, override, path
from mcls.config.compose import checker
from mcls.errors import DataError, FolderError, RequestError
from mcls.runs.folder import relative
from mcls.system import text
from mcls.system.console import console, say, say_progress, say_table
from mcls.system.files import make_folder, publish

if TYPE_CHECKING:
    from mcls.data.types import Dataset, Split

SAMPLES_PER_CLASS = 20  # bad files that are listed
EXAMPLES = 3  # of doubles
GRID = 40  # images in the grid
UNEVEN = 10  # largest class to smallest, from which on weights are suggested
AUGMENTED_ROWS, AUGMENTED_EPOCHS = 6, 7  # images in the grid of augmented ones, and how often each
DOUBTS_FILE = "label-doubts.csv"
DOUBTS_HEADER = ["sample", "label", "its probability", "suggested", "probability of that"]
DOUBTS_LISTED = 10  # on the terminal
HASH_CHUNK = 256  # samples read at a time


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls data",
        description="check: look at a data set without training: samples of each class, unreadable images, samples in "
        "two splits, a grid of images. Takes the overrides of mcls train. The exit status is 3 if something is "
        "wrong. doubts SWEEP: after mcls train -m dataset.folds=5 dataset.fold=0,1,2,3,4, list the training samples "
        "whose label is likely wrong, as runs see it that were not trained on them.",
    )
    command.add_argument("what", choices=["check", "doubts"], help="the action")
    command.add_argument(
        "overrides",
        nargs="*",
        type=override,
        metavar="SWEEP or key=value",
        help="for example dataset=csv dataset.path=FILE; of doubts the sweep's folder first",
    )
    command.add_argument(
        "--augment", action="store_true", help="also draw a grid of training images as augment=... changes them"
    )
    command.add_argument(
        "--output",
        type=path,
        metavar="DIR",
        help="folder for the grid (image data only); of doubts for the list too, default SWEEP",
    )
    add_device(command)
    command.add_argument("--config-dir", type=path, metavar="DIR", help="folder with configuration files of your own")
    return command


def run(arguments: list[str]) -> int:
    """Check one data set, or its labels. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    if options.what == "doubts":
        return doubt_labels(options)
    if options.augment and options.output is None:
        raise RequestError("--augment: draws a grid of images. Name its folder: --output DIR.")
    with checker(options.config_dir) as check:
        config = check.check(options.overrides, False).config
    with console():
        faults: list[str] = []
        dataset = read_dataset(config, faults)
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.open_test()}
        check_splits(
            dataset, {name: split for name, split in splits.items() if split is not None}, faults, options.output
        )
        if options.augment:
            draw_augmented(dataset, config, options.output)
    if faults:
        raise DataError(f"data check: {'; '.join(faults)}.")
    say("nothing wrong")
    return 0


def read_dataset(config: dict[str, Any], faults: list[str]) -> "Dataset":
    """The data set; without its unreadable images, which are listed, if they are few enough to skip."""
    say_progress("reading the data")
    from mcls.system.device import resolve_device
    from mcls.training.setup import open_dataset

    device = resolve_device(config["device"])
    try:
        return open_dataset(config, device)
    except DataError as error:
        notes = getattr(error, "__notes__", [])
        for note in notes[:SAMPLES_PER_CLASS]:
            say(f"unreadable  {note}")
        if len(notes) > SAMPLES_PER_CLASS:
            say(f"unreadable  and {len(notes) - SAMPLES_PER_CLASS:,} more")
        if not notes or config["dataset"]["bad_images"] != "error":
            raise
        faults.append(f"images can't be read ({len(notes):,})")
        try:
            return open_dataset({**config, "dataset": {**config["dataset"], "bad_images": "skip"}}, device)
        except DataError:
            raise error from None


def check_splits(dataset: "Dataset", splits: "dict[str, Split]", faults: list[str], output: Path | None) -> None:
    """Print what there is to see; add to `faults` what is wrong."""
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    shape = text.shape_text(dataset.input_shape)
    say(f"samples     {sizes}; {shape}, {str(dataset.train.inputs.dtype).removeprefix('torch.')}")
    if dataset.mean is not None and dataset.std is not None:
        mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (dataset.mean, dataset.std))
        say(f"statistics  mean {mean}; standard deviation {std}")
    show_class_counts(dataset.classes, splits)
    if dataset.encoder is not None:
        show_columns(dataset.encoder)
    check_duplicates(splits, dataset.train.inputs.ndim == 4, faults)
    if output is not None and dataset.train.inputs.ndim == 4:
        draw_samples(dataset, output)


def show_class_counts(classes: tuple[str, ...], splits: "dict[str, Split]") -> None:
    """Samples of each class in each split; labels; whether the classes are uneven."""
    import torch

    counts = {name: torch.bincount(split.targets, minlength=len(classes)).tolist() for name, split in splits.items()}
    rows = [[label, *(counted[index] for counted in counts.values())] for index, label in enumerate(classes)]
    say()
    say_table(["class", *counts], rows, names=[0])
    say()
    say(f"labels      0 to {len(classes) - 1}, all within {len(classes)} classes")
    filled = [count for count in counts["train"] if count]
    ratio = max(filled) / min(filled)
    if ratio > UNEVEN:
        say(
            f"uneven      the largest class has {ratio:.0f} times the samples of the smallest: consider "
            "loss.class_weights=balanced or trainer.class_balanced_sampling=true"
        )


def show_columns(encoder: dict[str, Any]) -> None:
    """The columns of a table and how they are used."""
    rows = []
    settings = zip(encoder["columns"], encoder["means"], encoder["stds"], encoder["categories"], strict=True)
    for name, mean, std, categories in settings:
        if categories:
            shown = ", ".join(categories[:5]) + (f" and {len(categories) - 5} more" if len(categories) > 5 else "")
            rows.append([name, "text", f"{text.plural(len(categories), 'category')}: {shown}"])
        else:
            rows.append([name, "number", f"mean {mean:.6g}, standard deviation {std:.6g}"])
    say()
    say_table(["column", "kind", "in train"], rows, names=[0, 2])
    say()


def check_duplicates(splits: "dict[str, Split]", images: bool, faults: list[str]) -> None:
    """Samples that are there twice. Between splits they are a leak, and a fault where they are images: two rows of a
    table may be equal by chance, two pictures are not."""
    places = {name: sample_digests(split) for name, split in splits.items()}
    for name, split in splits.items():
        if again := len(split) - len(set(places[name])):
            say(f"doubles     {again:,} of {len(split):,} in {name} occur earlier in the split")
    for earlier, later in itertools.combinations(splits, 2):
        first = {digest: index for index, digest in reversed(list(enumerate(places[earlier])))}
        pairs = [(index, first[digest]) for index, digest in enumerate(places[later]) if digest in first]
        if not pairs:
            continue
        told = [f"{called(splits[later], a)} = {called(splits[earlier], b)}" for a, b in pairs[:EXAMPLES]]
        differ = sum(bool(splits[later].targets[a] != splits[earlier].targets[b]) for a, b in pairs)
        other = f", {differ:,} of them with another label" if differ else ""
        say(f"leak        {len(pairs):,} of {len(splits[later]):,} in {later} are in {earlier} too{other}")
        say(f"            {text.clean('; '.join(told))}")
        if images:
            faults.append(f"{later} images are in {earlier} too ({len(pairs):,})")


def sample_digests(split: "Split") -> list[bytes]:
    """sha256 of the bytes of each sample."""
    chunks = (split.inputs[start : start + HASH_CHUNK].numpy() for start in range(0, len(split), HASH_CHUNK))
    return [hashlib.sha256(sample.tobytes()).digest() for chunk in chunks for sample in chunk]


def called(split: "Split", index: int) -> str:
    """What to call a sample."""
    return split.names[index] if split.names else f"sample {index}"


def draw_augmented(dataset: "Dataset", config: dict[str, Any], output: Path) -> None:
    """A row for each of a few training images: as it is, then as the first epochs get it, as DIR/augmented.png."""
    import torch

    from mcls.config.instantiate import build
    from mcls.data.loader import Loader, Normalise
    from mcls.report import figures
    from mcls.training.checks import check_augment

    augment = build("augment", config["augment"], config["trust"])
    if augment is None:
        raise RequestError("--augment: augment=none changes nothing. Choose one, such as augment=standard.")
    check_augment(augment, config["augment"]["_target_"], dataset.input_shape)
    cpu, count = torch.device("cpu"), len(dataset.classes)
    loader = Loader(dataset.train, 1, cpu, Normalise(None, None, cpu), augment=augment, seed=config["seed"])
    firsts = [(dataset.train.targets == label).nonzero()[:1, 0] for label in range(count)]
    chosen = torch.cat(firsts)[:AUGMENTED_ROWS]
    images: Any = dataset.train.inputs[chosen]
    columns = [images]
    for epoch in range(AUGMENTED_EPOCHS):
        uniforms: Any = loader.uniforms(epoch)
        columns.append(augment(images, uniforms[chosen]))
    pixels = torch.stack(columns, dim=1).flatten(0, 1).numpy()
    labels = ["as it is", *(f"epoch {epoch + 1}" for epoch in range(AUGMENTED_EPOCHS))] * len(chosen)
    figure = figures.image_grid(pixels, labels, [True] * len(labels), "training images, augmented", len(columns))
    path = output / "augmented.png"
    make_folder(output)
    publish(path, figures.png(figure))
    say(f"augmented   {relative(path)}")


def draw_samples(dataset: "Dataset", output: Path) -> None:
    """A grid of the first training images of each class, as DIR/grid.png."""
    import torch

    from mcls.data.image_tree import GRID_FILE
    from mcls.report import figures

    each = max(1, GRID // len(dataset.classes))
    members = [(dataset.train.targets == label).nonzero()[:each, 0] for label in range(len(dataset.classes))]
    chosen = torch.cat(members)[:GRID]
    names = figures.legible(tuple(map(text.clean, dataset.classes)))
    labels = [names[label] for label in dataset.train.targets[chosen].tolist()]
    pixels = dataset.train.inputs[chosen].numpy()
    figure = figures.image_grid(pixels, labels, [True] * len(labels), "the first training images of each class", 8)
    path = output / GRID_FILE
    make_folder(output)
    publish(path, figures.png(figure))
    say(f"pictures    {relative(path)}")


def doubt_labels(options: argparse.Namespace) -> int:
    """List the training samples whose label is likely wrong, by the best setting of a k-fold sweep."""
    from mcls.sweep.plan import read_sweep
    from mcls.sweep.table import read_settings

    if not options.overrides:
        raise RequestError("SWEEP: missing. Name the folder of a k-fold sweep: mcls data doubts SWEEP")
    if options.augment or options.config_dir:
        raise RequestError("mcls data doubts: takes neither --augment nor --config-dir. Omit them.")
    folder, *changes = options.overrides
    check_effective(changes, DATA_KEYS, "mcls data doubts")
    if not (Path(folder) / "sweep.json").is_file():
        raise FolderError(f"{folder}: not the folder of a sweep, it has no sweep.json.")
    settings = read_settings(plan := read_sweep(Path(folder)))
    best = settings[0] if settings else None
    if best is None or any(job.status != "finished" for job in best.repeats):
        raise FolderError(f"{folder}: no setting has all its jobs finished. Continue with: {plan.resume_command}")
    say_progress(f"reading {folder}")
    with console():
        from mcls.inference import labels

        logging.getLogger("mcls").setLevel(logging.WARNING)  # each fold would say how its data are read
        labels.check_cleanlab()
        found = labels.cross_validated([job.folder for job in best.repeats], changes, options.device)
        order = labels.in_doubt(found)
        rows, target = labels.doubt_rows(found, order), options.output or Path(folder)
        make_folder(target)
        publish(target / DOUBTS_FILE, text.comma_separated(DOUBTS_HEADER, rows).encode())
        picture = labels.draw_doubts(found, order, f"Labels in doubt: the label, and what the runs say\n{target.name}")
        if picture:
            publish(target / DOUBTS_FILE.replace(".csv", ".png"), picture)
    say(f"labels in doubt: {len(rows):,} of {len(found.names):,}; all are in {relative(target / DOUBTS_FILE)}")
    if best.values:
        say(f"judged by the best setting on val, {' '.join(f'{key}={value}' for key, value in best.values.items())}")
    if rows:
        say_table(DOUBTS_HEADER, rows[:DOUBTS_LISTED], names=(0,))
    return 0
