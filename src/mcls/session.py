"""One training from its configuration to its result: builds the parts, runs the trainer, fills the run folder."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from textwrap import indent
from typing import Any

from mcls import checkpoint, results
from mcls.assembly import Parts, assemble, flat
from mcls.config.schema import leaves, show
from mcls.config.stored import HARMLESS, stored_config, untrained
from mcls.data.loader import worker_errors
from mcls.distributed import Team, leading
from mcls.errors import FolderError, MachineError, RequestError, RunError, Stopped
from mcls.files import move
from mcls.forward import evaluate
from mcls.machine import describe, environment
from mcls.renamed import rename
from mcls.resuming import fitted, newest, read_about, resumable, tell_length
from mcls.runs import RunFolder, as_yaml, read_yaml, relative
from mcls.signals import StopRequest
from mcls.sweeps import Sweep, check_selection, record_failure
from mcls.tracking import Recorder, keeping_record, next_event
from mcls.trainer import Recorder as Reports
from mcls.trainer import Trainer

log = logging.getLogger("mcls")


def train(
    config: dict[str, Any], origin: dict[str, Any], make_folder: Callable[[], RunFolder], stop: StopRequest
) -> tuple[RunFolder, dict[str, Any]]:
    """Train what `config` describes and fill a run folder.

    Args:
        config: checked and resolved.
        origin: `command` (what was typed), `overrides` and `choices` (from each group), for run.json; of a job of a
            sweep also `test_closed`, whether the test set is left closed.
        make_folder: makes the run folder; called when everything is built, so that wrong requests leave none behind.
        stop: number of the signal that asks to stop, or 0.

    Returns:
        The folder and what stands in its result.json. Raises MclsError; the folder, if there is one, says why too.
    """
    started = time.monotonic()
    parts = assemble(config)
    if origin.get("test_closed"):
        check_selection(config, parts.val is not None)
    resolved = {"trainer.batch_size": parts.train.batch_size} if config["trainer"]["batch_size"] == "auto" else {}
    about = {
        **origin,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config["seed"],
        "device": str(parts.device),
        "device_name": describe(parts.device),
        "precision": parts.precision,
        "channels_last": parts.channels_last,
        "batch_size": parts.train.batch_size,
        "environment": environment(),
        "hyperparameters": flat(config, origin["choices"]) | resolved,
    }
    with stop.patient(), (folder := make_folder()).lock(), keeping_record(folder):
        folder.write_config(config)
        folder.write_json(folder.about, about)
        return folder, fill(folder, parts, config, about, None, stop, started)


def resume(folder: RunFolder, config: dict[str, Any], stop: StopRequest) -> dict[str, Any]:
    """Go on from the newest good checkpoint of a run, under `config`. Returns what stands in result.json.

    Raises FolderError when no checkpoint is good or the data are not those it was trained on.
    """
    started = time.monotonic()
    about = read_about(folder)
    with folder.lock(), keeping_record(folder):
        state = newest(folder)
        wanted = config if state is None else resumable(folder, config, state)
        trainer = {**wanted["trainer"], "batch_size": about.get("batch_size", wanted["trainer"]["batch_size"])}
        wanted = {**wanted, "threads": about["environment"]["threads"], "trainer": trainer}
        parts = assemble(wanted)
        if state is not None and state["data"] != parts.data:
            raise FolderError(f"{folder.path}: refused, the data set's classes, shape, statistics or sizes are others.")
        here = {"device": parts.device.type, "precision": parts.precision, "channels_last": parts.channels_last}
        for key, found in here.items():
            if (was := str(about[key]).split(":")[0]) != str(found):
                raise MachineError(f"{key}: the run began with {was}, here it is {found}. Resume it where it began.")
        if state is not None:
            tell_length(config, read_yaml(folder.config)["trainer"]["epochs"], state["progress"], parts)
        with stop.patient():
            folder.write_config(config)
            about["hyperparameters"] = flat(config, about["choices"])
            folder.write_json(folder.about, about)
            return fill(folder, parts, wanted, about, state, stop, started)


def finish(
    config: dict[str, Any], origin: dict[str, Any], folder: RunFolder, stop: StopRequest
) -> tuple[RunFolder, dict[str, Any]]:
    """Bring a job of a sweep to its end: nothing is done if it is finished, what is missing if it was begun.

    Raises RequestError when the folder holds a run under another configuration.
    """
    if not folder.begun:
        return train(config, origin, lambda: folder, stop)
    wanted = dict(leaves(config))
    saved = read_yaml(folder.config)
    rename(saved, wanted)
    for key, was in leaves(saved):
        if key not in HARMLESS and key in wanted and wanted[key] != was:
            place, asked = relative(folder.path), show(wanted[key])
            raise RequestError(f"{key}: {place} holds a run with {show(was)}, not {asked}. Name a new hydra.sweep.dir.")
    if (result := folder.finished()) is not None:
        log.info("already finished")
        return folder, result
    return folder, resume(folder, config, stop)


def conclude(plan: Sweep, changes: Sequence[str], stop: StopRequest) -> None:
    """Open the test set for the jobs of a sweep that `sweep.test` names, then show the table.

    What a job lacks is done once more from its last checkpoint: its folder first says that the test set is open.
    """
    ranked = plan.ranked()
    closed = [folder for folder, result in ranked if not result.get("test")]
    which = stored_config(closed[0], changes)["sweep"]["test"] if closed else "none"
    if which == "best" and (closed[0] is not ranked[0][0] or not ranked[0][1].get("val")):
        which = "none"
    for folder in {"none": [], "best": closed[:1], "all": closed}[which]:
        about = read_about(folder)
        log.info(f"\n{relative(folder.path)}: the test set is opened{', best on val' if which == 'best' else ''}")
        try:
            with folder.lock():
                folder.write_json(folder.about, {**about, "test_closed": False})
            resume(folder, stored_config(folder, changes), stop)
        except Stopped as error:
            raise Stopped(f"{error}, or the whole sweep with: {plan.again}", error.signal_number) from error
        except Exception as error:
            record_failure(folder, error, about["overrides"])
    plan.conclude()


def fill(
    folder: RunFolder,
    parts: Parts,
    config: dict[str, Any],
    about: dict[str, Any],
    state: dict[str, Any] | None,
    stop: StopRequest,
    started: float,
) -> dict[str, Any]:
    """Train into `folder`, from `state` on if there is one. Returns what stands in result.json."""
    openings, before = folder.openings(), (folder.finished() or {}).get("total_seconds") or 0.0
    folder.write_json(folder.result, {"status": "running", "test_openings": openings})
    introduce(parts, about, folder)
    progress = {"epoch": 0, "step": 0} if state is None else state["progress"]
    recorder = Recorder(folder, progress["epoch"], next_event(progress))
    try:
        if not progress["step"]:
            recorder.text("command", f"    {about['command']}")
            recorder.text("config", indent(as_yaml(config), "    "))
            recorder.hyperparameters(about["hyperparameters"])
        if state is not None:
            log.info(f"resumed after epoch {progress['epoch']}, step {progress['step']}")
        result = run(parts, config, folder, recorder, state, stop, openings, bool(about.get("test_closed")))
        result["total_seconds"] = before + time.monotonic() - started
        folder.write_json(folder.result, result)
        recorder.end(succeeded=True)
        return result
    except BaseException:
        recorder.end(succeeded=False)
        raise
    finally:
        recorder.close()


def introduce(parts: Parts, about: dict[str, Any], folder: RunFolder) -> None:
    """Say what was found, before the first step."""
    dataset, choices = parts.dataset, about["choices"]
    shape = " x ".join(map(str, dataset.input_shape))
    sizes = f"{len(dataset.train):,} train, {len(dataset.val) if dataset.val is not None else 0:,} val"
    weights = sum(weight.numel() for weight in parts.model.parameters())
    memory = "resident" if parts.train.resident else f"streamed, {parts.train.workers} workers"
    others = ", ".join(f"{part} {choices[part]}" for part in ("loss", "optimizer", "schedule", "augment"))
    order = ", channels-last" if parts.channels_last else ""
    processes = f"{parts.team.size} processes of " if parts.team.size > 1 else ""
    device = f"{processes}{parts.device} ({about['device_name']}), {parts.precision}{order}"
    log.info(f"data    {choices['dataset']}: {sizes}; {len(dataset.classes)} classes; {shape} a sample; {memory}")
    log.info(f"model   {choices['model']}: {weights:,} weights; {others}")
    log.info(f"device  {device}; {about['environment']['threads']} threads; seed {about['seed']}")
    log.info(f"folder  {relative(folder.path)}")


def saver(folder: RunFolder, parts: Parts) -> Callable[[dict[str, Any], bool], None]:
    """What writes a trainer's checkpoints to `folder`."""

    def save(state: dict[str, Any], best_is_new: bool) -> None:
        if folder.last.exists():
            move(folder.last, folder.previous)
        checkpoint.save(folder.last, {**state, "data": parts.data})
        if best_is_new:
            save_best(folder, state["best"], state["progress"]["best_epoch"], parts.data)

    return save


def save_best(folder: RunFolder, weights: dict[str, Any], epoch: int, data: dict[str, Any]) -> None:
    """Publish the selected weights by themselves, with what it takes to use them."""
    checkpoint.save(folder.best, {"model": weights, "data": data, "epoch": epoch})


def make_trainer(
    parts: Parts, recorder: Reports, save: Callable[[dict[str, Any], bool], None], stop: Callable[[], int]
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
        team=parts.team,
        class_weights=parts.class_weights,
    )


@worker_errors()
def fit(trainer: Trainer, parts: Parts, config: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Train, from the leader's `state` on if there is one."""
    state = parts.team.told(state)
    if state is not None:
        try:
            trainer.load_state_dict(fitted(state, trainer, len(parts.train)))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise FolderError(f"last.pt: refused, it does not fit the run ({error}).") from error
    followed = parts.load(parts.dataset.open_test()) if config["trainer"]["evaluate_test_each_epoch"] else None
    trainer.fit(parts.train, parts.val, followed)


class Silent:
    """A recorder that records nothing."""

    def steps(self, step: int, scalars: dict[str, float]) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""


def assist(team: Team, place: str, config: dict[str, Any], stop: StopRequest, ready: Callable[[], object]) -> None:
    """What a process does that does not lead its team: it trains with the others. The rest is the leader's."""
    log.setLevel(logging.ERROR)
    weightless = {**config, "model": untrained(config["model"], config["trust"])}  # the leader's weights will come
    parts = assemble(weightless, team.rank)
    with stop.patient():
        ready()
        with team.joined(place, parts.device):
            fit(make_trainer(parts, Silent(), lambda state, best_is_new: None, stop), parts, config, None)


def run(
    parts: Parts,
    config: dict[str, Any],
    folder: RunFolder,
    recorder: Recorder,
    state: dict[str, Any] | None,
    stop: StopRequest,
    openings: int,
    closed: bool,
) -> dict[str, Any]:
    """Train, select, open the test set if it is not to stay `closed` (it had `openings` before), measure and draw.

    Returns what stands in result.json.
    """
    begun, followed = state["progress"]["epoch"] if state else 0, config["trainer"]["evaluate_test_each_epoch"]
    with leading(parts.team, parts.device, "mcls.session:assist", config, stop):
        trainer = make_trainer(parts, recorder, saver(folder, parts), stop)
        try:
            fit(trainer, parts, config, state)
        finally:
            if followed:  # every epoch opens the test set, those before a kill -9 did too
                openings = max(openings, begun) + max(0, trainer.progress.epoch - begun)
                folder.write_json(folder.result, {"status": "running", "test_openings": openings})
    progress, classes = trainer.progress, parts.dataset.classes

    measure = partial(evaluate, parts.model, num_classes=len(classes), precision=parts.precision, stop=stop)
    if trainer.best is not None:
        parts.model.load_state_dict(trainer.best)
    split = test = None
    if not closed:
        openings += 1
        folder.write_json(folder.result, {"status": "running", "test_openings": openings})
        split = parts.dataset.open_test()
        tally = measure(parts.load(split))
        test = tally.measure()
        if not math.isfinite(test.loss):
            raise RunError(f"the test loss is {test.loss} after step {progress.step}. Lower optimizer.lr.")
    if trainer.best is None:  # no val: the last weights are the selected ones
        progress.best_epoch = progress.epoch
        save_best(folder, parts.model.state_dict(), progress.epoch, parts.data)
    result: dict[str, Any] = {
        "status": "finished",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        "seconds": progress.seconds,
        "samples_per_second": progress.samples_and_seconds[0] / max(progress.samples_and_seconds[1], 1e-9),
        "val": measure(parts.val).measure().report(classes, selected=True) if parts.val is not None else None,
        "test": test.report(classes) if test else None,
        "test_openings": openings,
        "fingerprints": results.fingerprints(parts.dataset.val, split),
        "weights_sha256": checkpoint.weights_digest(parts.model.state_dict()),
    }
    end = progress.step + 1  # behind the last step: a resumed run drops what is there, and writes it once more
    recorder.scalars(end, results.final_scalars(result, followed))
    if config["trainer"]["figures"] and split and test:
        parts.train.release()  # matplotlib takes as much memory as MNIST
        model = parts.model
        results.draw(folder.figures, folder.name, split, tally, test, classes, model, parts.train, recorder, end)
    return result
