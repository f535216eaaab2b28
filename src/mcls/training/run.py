"""One run from its configuration to its result: builds the components, trains, and writes the run folder."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from mcls.config.saved import without_pretrained
from mcls.config.sweeps import check_selection
from mcls.data.loader import Loader, worker_errors
from mcls.data.types import Split
from mcls.errors import FolderError, MachineError, RunError
from mcls.metrics import EvalAccumulator, ranks_kept
from mcls.report import run_figures
from mcls.report.embedding import save_embedding
from mcls.runs import checkpoint
from mcls.runs.folder import RunFolder, as_yaml, read_yaml, relative
from mcls.runs.ledger import record_opening, utc_now
from mcls.runs.tracking import RunLogger, collect_warnings, log_to_folder, next_event
from mcls.system.console import say_progress
from mcls.system.device import device_name, environment
from mcls.system.distributed import World
from mcls.system.signals import StopRequest
from mcls.system.text import plural, shape_text
from mcls.training import restore
from mcls.training.embedding import embed
from mcls.training.launch import launch_workers, peer_errors
from mcls.training.precision import evaluate_loader
from mcls.training.setup import Components, build_components, hyperparameters, with_expected_input
from mcls.training.state import MetricWriter, NullWriter
from mcls.training.trainer import Trainer

log = logging.getLogger("mcls")


@dataclass(frozen=True)
class RunContext:
    """The context of a run, which its stages share.

    Args:
        folder: the run's, locked.
        components: built from `config`.
        config: checked and resolved.
        about: what run.json says.
        state: the checkpoint to go on from; None of a new run.
        stop: number of the signal that asks to stop, or 0.
    """

    folder: RunFolder
    components: Components
    config: dict[str, Any]
    about: dict[str, Any]
    state: dict[str, Any] | None
    stop: StopRequest


def train_new(
    config: dict[str, Any], origin: dict[str, Any], make_folder: Callable[[], RunFolder], stop: StopRequest
) -> tuple[RunFolder, dict[str, Any]]:
    """Train a new run of `config` and write its run folder.

    Args:
        config: checked and resolved.
        origin: `command` (what was typed), `overrides` and `choices` (from each group), for run.json; of a job of a
            sweep also `test_closed`, whether the test set is left closed.
        make_folder: makes the run folder; called when everything is built, so that wrong requests leave none behind.
        stop: number of the signal that asks to stop, or 0.

    Returns:
        The folder and the content of its result.json. Raises MclsError; the folder, if there is one, records it too.
    """
    started = time.monotonic()
    config = with_expected_input(config)
    with collect_warnings() as warnings:
        parts = build_components(config)
    if origin.get("test_closed"):
        check_selection(config, parts.val is not None)
    with stop.patient(), (folder := make_folder()).lock(), log_to_folder(folder):
        return folder, train_and_record(begin(folder, parts, config, origin, warnings, stop), started)


def begin(
    folder: RunFolder,
    parts: Components,
    config: dict[str, Any],
    origin: dict[str, Any],
    warnings: list[str],
    stop: StopRequest,
) -> RunContext:
    """Write what is known of a new run, its `warnings` too, to its folder, which is locked; others as `train_new`."""
    about = {
        **origin,
        "started": utc_now(),
        **({"warnings": warnings} if warnings else {}),
        "seed": config["seed"],
        "device": str(parts.device),
        "device_name": device_name(parts.device),
        "precision": parts.precision,
        "channels_last": parts.channels_last,
        "batch_size": parts.batch_size,
        "environment": environment(),
        "fingerprints": run_figures.fingerprints(train=parts.dataset.train),
        "hyperparameters": {**hyperparameters(config, origin["choices"]), "trainer.batch_size": parts.batch_size},
    }
    if folder.begun:
        raise MachineError(f"{relative(folder.path)}: another process began this run. Run the command again.")
    folder.write_config(config)
    folder.write_json(folder.about, about)
    return RunContext(folder, parts, config, about, None, stop)


def resume(folder: RunFolder, config: dict[str, Any], stop: StopRequest) -> dict[str, Any]:
    """Continue from the newest good checkpoint of a run, under `config`. Returns the content of result.json.

    Raises FolderError when no checkpoint is good or the data are not those it was trained on.
    """
    started = time.monotonic()
    about = restore.read_metadata(folder)
    with folder.lock(), log_to_folder(folder):
        state = restore.newest_checkpoint(folder)
        wanted = config if state is None else restore.check_resumable(folder, config, state)
        wanted = restore.as_begun(wanted, folder, about)
        parts = build_components(wanted)
        if state is not None and state["data"] != parts.data:
            raise FolderError(f"{folder.path}: refused, the data set's classes, shape, statistics or sizes differ.")
        restore.check_as_begun(about, parts)
        if state is not None:
            restore.tell_length(config, read_yaml(folder.config)["trainer"], state["progress"], parts)
        with stop.patient():
            folder.write_config(config)
            resolved = {"trainer.batch_size": parts.batch_size}
            about["hyperparameters"] = {**hyperparameters(config, about["choices"]), **resolved}
            folder.write_json(folder.about, about)
            return train_and_record(RunContext(folder, parts, wanted, about, state, stop), started)


def train_and_record(run: RunContext, started: float) -> dict[str, Any]:
    """Train into the run's folder. Returns the content of result.json.

    Args:
        started: `time.monotonic()` when the command began with this run.
    """
    folder, about, state = run.folder, run.about, run.state
    openings, before = folder.openings(), (folder.finished() or {}).get("total_seconds") or 0.0
    folder.write_json(folder.result, {"status": "running", "test_openings": openings})
    log_summary(run.components, about, folder)
    recorder = open_recorder(run)
    try:
        if state is not None:
            log.info(f"resumed after epoch {state['progress']['epoch']}, step {state['progress']['step']}")
        result = train_and_evaluate(run, recorder, openings)
        result["total_seconds"] = before + time.monotonic() - started
        folder.write_json(folder.result, result)
        recorder.end(succeeded=True)
        return result
    except BaseException:
        recorder.end(succeeded=False)
        raise
    finally:
        recorder.close()


def open_recorder(run: RunContext) -> RunLogger:
    """What writes the metrics of a run, behind those that it has."""
    progress = {"epoch": 0, "step": 0} if run.state is None else run.state["progress"]
    recorder = RunLogger(run.folder, progress["epoch"], next_event(progress))
    if not progress["step"]:
        recorder.setting(run.about, as_yaml(run.config))
    return recorder


def log_summary(parts: Components, about: dict[str, Any], folder: RunFolder) -> None:
    """Log the data, model and device before the first step."""
    dataset, choices = parts.dataset, about["choices"]
    unit = "per sample" if len(dataset.input_shape) > 1 else "feature" if dataset.input_shape == (1,) else "features"
    shape = f"{shape_text(dataset.input_shape)} {unit}"
    sizes = f"{len(dataset.train):,} train, {len(dataset.val) if dataset.val is not None else 0:,} val"
    weights = sum(weight.numel() for weight in parts.model.parameters())
    memory = "in device memory" if parts.train.resident else f"streamed, {plural(parts.train.workers, 'worker')}"
    others = ", ".join(f"{part} {choices[part]}" for part in ("loss", "optimizer", "schedule", "augment"))
    others += f", mix {choices['mix']}" if choices["mix"] != "none" else ""
    order = ", channels-last" if parts.channels_last else ""
    processes = f"{parts.world.size} processes of " if parts.world.size > 1 else ""
    device = f"{processes}{parts.device} ({about['device_name']}), {parts.precision}{order}"
    log.info(f"data    {choices['dataset']}: {sizes}; {len(dataset.classes)} classes; {shape}; {memory}")
    log.info(f"model   {choices['model']}: {weights:,} weights; {others}")
    if parts.settings.ema is not None:
        log.info(f"ema     val, the selected weights and exports are averages, trainer.ema={parts.settings.ema:g}")
    log.info(f"device  {device}; {plural(about['environment']['threads'], 'thread')}; seed {about['seed']}")
    log.info(f"folder  {relative(folder.path)}")


def make_trainer(
    parts: Components, recorder: MetricWriter, save: Callable[[dict[str, Any], bool], None], stop: Callable[[], int]
) -> Trainer:
    """A trainer of `parts`."""
    return Trainer(
        parts.model,
        parts.loss,
        parts.optimizer,
        parts.rates,
        parts.settings,
        num_classes=len(parts.dataset.classes),
        device=parts.device,
        precision=parts.precision,
        recorder=recorder,
        save=save,
        stop=stop,
        world=parts.world,
        class_weights=parts.class_weights,
        cuda_graph=parts.cuda_graph,
    )


@worker_errors()
def restore_and_fit(trainer: Trainer, parts: Components, config: dict[str, Any], state: dict[str, Any] | None) -> str:
    """Train, starting from rank 0's `state` if there is one. Returns the key of `trainer` that ended it."""
    state = parts.world.broadcast_object(state)
    if state is not None:
        try:
            trainer.load_state_dict(restore.fitted(state, trainer, len(parts.train)))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise FolderError(f"last.pt: refused, it does not fit the run ({error}).") from error
    followed = parts.load(parts.dataset.open_test()) if config["trainer"]["evaluate_test_each_epoch"] else None
    return trainer.fit(parts.train, parts.val, followed)


def worker_main(world: World, url: str, config: dict[str, Any], stop: StopRequest, ready: Callable[[], object]) -> None:
    """Train as a rank other than 0. The ranks connect at `url`; it is empty under torchrun, which connects them."""
    log.setLevel(logging.ERROR)
    weightless = {**config, "model": without_pretrained(config["model"], config["trust"])}  # rank 0's will come
    parts = build_components(weightless, world.rank)
    with stop.patient():
        ready()
        seconds = config["trainer"]["timeout_seconds"]
        with peer_errors(seconds), world.init_process_group(url, parts.device, seconds) if url else nullcontext():
            if not url and not world.broadcast_object(None):
                return
            trainer = make_trainer(parts, NullWriter(), lambda state, best_is_new: None, stop)
            restore_and_fit(trainer, parts, config, None)


def train_in_processes(run: RunContext, recorder: RunLogger, openings: int) -> tuple[Trainer, str, int]:
    """Train in all processes. Returns the trainer, the key of `trainer` that ended it, and the evaluations of test."""
    parts, folder, followed = run.components, run.folder, run.config["trainer"]["evaluate_test_each_epoch"]
    begun = run.state["progress"]["epoch"] if run.state else 0
    with launch_workers(parts.world, parts.device, "mcls.training.run:worker_main", run.config, run.stop):
        trainer = make_trainer(parts, recorder, restore.checkpoint_writer(folder, parts), run.stop)
        trainer.prune = run.stop.prune
        try:
            ended = restore_and_fit(trainer, parts, run.config, run.state)
        finally:
            if followed:  # every epoch opens the test set, those before a kill -9 did too
                opened = max(0, trainer.progress.epoch - begun)
                openings = max(openings, begun) + opened
                record_opening(folder, "mcls train, after each epoch", opened)
                folder.write_json(folder.result, {"status": "running", "test_openings": openings})
    return trainer, ended, openings


def train_and_evaluate(run: RunContext, recorder: RunLogger, openings: int) -> dict[str, Any]:
    """Train, select, open the test set (which had `openings` before) unless it is to stay closed, measure and draw.

    Returns the content of result.json.
    """
    parts, folder, settings = run.components, run.folder, run.config["trainer"]
    trainer, ended, openings = train_in_processes(run, recorder, openings)
    progress, classes = trainer.progress, parts.dataset.classes

    def measure_ranked(loader: Loader, samples: Split) -> EvalAccumulator:
        top_k = parts.settings.top_k if ranks_kept(samples, classes) else None
        how = partial(evaluate_loader, stop=run.stop, tta=parts.settings.tta, top_k=top_k)
        return how(parts.model, loader, len(classes), parts.precision)

    parts.model.load_state_dict(trainer.weights if trainer.best is None else trainer.best)
    split = test = None
    if not run.about.get("test_closed") and ended != "pruner":
        openings += 1
        folder.write_json(folder.result, {"status": "running", "test_openings": openings})
        record_opening(folder, "mcls train, at its end")
        split = parts.dataset.open_test()
        accumulator = measure_ranked(parts.load(split), split)
        test = accumulator.measure()
        if not math.isfinite(test.loss):
            raise RunError(f"the test loss is {test.loss} after step {progress.step}. Lower optimizer.lr.")
    if trainer.best is None:  # no val: the last weights are the selected ones
        progress.best_epoch = progress.epoch
    if trainer.best is None or trainer.best_is_new:  # or they are of an epoch that a limit cut short
        restore.save_best(folder, parts.model.state_dict(), progress.best_epoch, parts.data)
    judged = measure_ranked(parts.val, parts.dataset.val) if parts.val and parts.dataset.val else None
    val = judged.measure() if judged else None
    result: dict[str, Any] = {
        "status": "finished",
        "ended_by": f"{'search' if ended == 'pruner' else 'trainer'}.{ended}",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        **({"pieces": progress.pieces} if progress.pieces > 1 else {}),  # of trainer.oom=accumulate
        "seconds": progress.seconds,
        "samples_per_second": progress.samples_and_seconds[0] / max(progress.samples_and_seconds[1], 1e-9),
        "val": val.report(classes, selected=True) if val else None,
        "val_correct": judged.correct_bits().hex() if judged else "",
        "test": test.report(classes) if test else None,
        "test_openings": openings,
        "fingerprints": run_figures.fingerprints(val=parts.dataset.val, test=split),
        "weights_sha256": checkpoint.weights_digest(parts.model.state_dict()),
    }
    end = progress.step + 1  # behind the last step: a resumed run drops what is there, and writes it once more
    recorder.scalars(end, run_figures.final_scalars(result, settings["evaluate_test_each_epoch"]))
    if settings["figures"]:
        say_progress("drawing the figures")
        seen = embed(parts)
        parts.train.release()  # matplotlib takes as much memory as MNIST
        run_figures.save_curves(folder, progress.best_epoch)
        save_embedding(seen, classes, folder, recorder, end)
    if settings["figures"] and split and test:
        classify = partial(run_figures.classify_points, parts.model, parts.device)
        drawn = run_figures.draw_run_figures(folder.name, split, accumulator, test, classes, classify)
        run_figures.save_run_figures(drawn, folder.figures, recorder, end)
    return result
