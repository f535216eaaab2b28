"""Baselines: classifiers that are fitted at once, on the splits of a run, each recorded as a run of its own.

Their inputs are what a network is given: standardised numbers of tables, normalised pixels of images.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mcls.data.loader import Loader, Normalise, forward_batch
from mcls.data.types import Dataset, Split
from mcls.errors import DataError
from mcls.models import LinearBaseline, TreeBaseline
from mcls.report import run_figures
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder, as_yaml, claim, timestamp
from mcls.runs.ledger import record_opening, utc_now
from mcls.runs.tracking import RunLogger, log_to_folder
from mcls.system.device import device_name, environment
from mcls.system.distributed import SINGLE_PROCESS
from mcls.training.precision import evaluate_loader
from mcls.training.setup import data_state, hyperparameters, open_dataset, prepare_machine
from mcls.training.start import data_name

log = logging.getLogger("mcls")

CPU = torch.device("cpu")
Array = NDArray[Any]
Fitted = tuple[dict[str, Any], nn.Module]  # the node of the model for config.yaml, and the model


def linear(method: str, weight: Array, bias: Array) -> Fitted:
    """The model with logits `weight @ x + bias`."""
    model = LinearBaseline(weight.shape[1:], len(weight), method)
    weights = (torch.as_tensor(part, dtype=torch.float32) for part in (weight, bias))
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    return {"_target_": "mcls.models.LinearBaseline", "method": method}, model


def majority(inputs: Array, targets: Array, counts: Array, seed: int) -> Fitted:
    """The most frequent class, whatever the input; its probabilities are the frequencies in train, none 0."""
    return linear("majority", np.zeros((len(counts), inputs.shape[1])), np.log((counts + 1) / (counts + 1).sum()))


def nearest_centroid(inputs: Array, targets: Array, counts: Array, seed: int) -> Fitted:
    """The class whose mean is nearest; probabilities as if all classes were spheres of the same, pooled, variance."""
    present = counts > 0
    means = np.zeros((len(counts), inputs.shape[1]))
    for label in np.flatnonzero(present):
        means[label] = inputs[targets == label].mean(axis=0, dtype=np.float64)
    spread = sum(np.square(inputs[targets == label] - means[label]).sum() for label in np.flatnonzero(present))
    variance = max(float(spread) / inputs.size, 1e-12)
    bias = -np.square(means).sum(axis=1) / 2 / variance
    return linear("nearest-centroid", means / variance, np.where(present, bias, bias.min() - ABSENT))


def logistic_regression(inputs: Array, targets: Array, counts: Array, seed: int) -> Fitted:
    """scikit-learn's LogisticRegression: multinomial, C=1."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # scikit-learn stops after 100 steps, and so does this
        fitted = LogisticRegression(max_iter=100).fit(inputs, targets)
    weight, bias = np.zeros((len(counts), inputs.shape[1])), np.full(len(counts), -float(ABSENT))
    if len(fitted.classes_) == 2:  # one row, of the second
        first, second = fitted.classes_
        weight[second], bias[[first, second]] = fitted.coef_[0], [0, fitted.intercept_[0]]
    else:
        weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return linear("logistic-regression", weight, bias)


def gradient_boosting(inputs: Array, targets: Array, counts: Array, seed: int) -> Fitted:
    """scikit-learn's HistGradientBoostingClassifier, 100 rounds, its trees taken over node by node."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    fitted = HistGradientBoostingClassifier(random_state=seed).fit(inputs, targets)
    base = np.full(len(counts), -float(ABSENT))
    labels = fitted.classes_[1:] if len(fitted.classes_) == 2 else fitted.classes_  # that have trees of their own
    base[fitted.classes_[:1]] = 0.0
    base[labels] = fitted._baseline_prediction.ravel()
    trees = [tree.nodes for round_ in fitted._predictors for tree in round_]
    starts = np.cumsum([0, *map(len, trees)])
    nodes, offset = np.concatenate(trees), np.repeat(starts[:-1], [len(tree) for tree in trees])
    own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    limits = np.where(leaf, 0, nodes["num_threshold"])
    rounded = limits.astype(np.float32)  # down, so that it still lies between the same two float32 inputs
    state = {
        "root": starts[:-1],
        "feature": np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        "left": np.where(leaf, own, nodes["left"] + offset),
        "right": np.where(leaf, own, nodes["right"] + offset),
        "threshold": np.where(rounded > limits, np.nextafter(rounded, np.float32(-np.inf)), rounded),
        "value": np.where(leaf, nodes["value"], 0).astype(np.float32),
        "classes": (np.tile(labels, len(fitted._predictors))[:, None] == np.arange(len(counts))).astype(np.float32),
        "base": base.astype(np.float32),
    }
    shape = {"trees": len(trees), "nodes": len(nodes), "depth": int(nodes["depth"].max())}
    model = TreeBaseline(inputs.shape[1:], len(counts), **shape)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return {"_target_": "mcls.models.TreeBaseline", **shape}, model


ABSENT = 30  # below the other logits is that of a class which train does not have
METHODS: dict[str, Callable[[Array, Array, Array, int], Fitted]] = {
    "majority": majority,
    "nearest-centroid": nearest_centroid,
    "logistic-regression": logistic_regression,
    "gradient-boosting": gradient_boosting,
}


def fit_baselines(
    config: dict[str, Any], origin: dict[str, Any], methods: Iterable[str]
) -> Iterator[tuple[str, RunFolder, dict[str, Any]]]:
    """Fit `methods` on the data of `config`, one run folder each. Yields names, folders and contents of result.json.

    Args:
        config, origin: as for `train_new`.
    """
    config = {**config, "device": "cpu", "precision": "fp32"}
    prepare_machine(config, SINGLE_PROCESS)
    dataset = open_dataset(config, CPU)
    normalise = Normalise(dataset.mean, dataset.std, CPU)
    batches = Loader(dataset.train, forward_batch(dataset.input_shape, 1), CPU, normalise).epoch()
    inputs = torch.cat([batch.flatten(1) for batch, _ in batches]).numpy()
    targets = dataset.train.targets.numpy()
    counts = np.bincount(targets, minlength=len(dataset.classes))
    if np.count_nonzero(counts) < 2:
        raise DataError("train: samples of one class only. A classifier needs at least two.")
    for name in methods:
        started = time.monotonic()
        log.info(f"fits {name}")
        node, model = METHODS[name](inputs, targets, counts, config["seed"])
        choices = {**origin["choices"], "model": name}
        mine = {**config, "model": node}
        folder = claim(Path(config["outputs"]) / f"{data_name(choices, config)}-{name}", timestamp())
        yield name, folder, record(folder, mine, {**origin, "choices": choices}, dataset, model, started)


def record(
    folder: RunFolder,
    config: dict[str, Any],
    origin: dict[str, Any],
    data: Dataset,
    model: nn.Module,
    started: float,
) -> dict[str, Any]:
    """Measure a fitted model and fill its run folder. Returns the content of result.json."""
    classes, shape = data.classes, data.input_shape
    settings = {key: value for key, value in hyperparameters(config, origin["choices"]).items() if baseline_key(key)}
    about = {
        **origin,
        "baseline": origin["choices"]["model"],
        "started": utc_now(),
        "seed": config["seed"],
        "device": "cpu",
        "device_name": device_name(CPU),
        "precision": "fp32",
        "environment": environment(),
        "fingerprints": run_figures.fingerprints(train=data.train),
        "hyperparameters": settings,
    }
    model.eval()
    normalise, size = Normalise(data.mean, data.std, CPU), forward_batch(shape, len(classes))

    def measure(split: Split) -> Any:
        return evaluate_loader(model, Loader(split, size, CPU, normalise), len(classes), "fp32")

    with folder.lock(), log_to_folder(folder):
        folder.write_config(config)
        folder.write_json(folder.about, about)
        folder.write_json(folder.result, {"status": "running", "test_openings": 1})
        record_opening(folder, "mcls baseline")
        checkpoint.save(folder.best, {"model": model.state_dict(), "data": data_state(data), "epoch": 1})
        test = data.open_test()
        answers = measure(test)
        measures = answers.measure()
        seconds = time.monotonic() - started
        result: dict[str, Any] = {
            "status": "finished",
            **{"epochs": 1, "best_epoch": 1, "steps": 1, "seconds": seconds, "total_seconds": seconds},
            "val": measure(data.val).measure().report(classes) if data.val is not None else None,
            "test": measures.report(classes),
            "test_openings": 1,
            "fingerprints": run_figures.fingerprints(val=data.val, test=test),
            "weights_sha256": checkpoint.weights_digest(model.state_dict()),
        }
        recorder = RunLogger(folder)
        recorder.setting(about, as_yaml(config))
        recorder.scalars(1, run_figures.final_scalars(result, False))
        if config["trainer"]["figures"]:
            classify = partial(run_figures.classify_points, model, CPU)
            drawn = run_figures.draw_run_figures(folder.name, test, answers, measures, classes, classify)
            run_figures.save_run_figures(drawn, folder.figures, recorder, 1)
        recorder.end(succeeded=True)
        recorder.close()
        folder.write_json(folder.result, result)
    return result


def baseline_key(key: str) -> bool:
    """Whether a hyper-parameter says something of a baseline, which no optimizer or schedule is used for."""
    return key == "model" or key.split(".")[0] in ("seed", "precision", "dataset")
