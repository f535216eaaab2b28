"""Overrides as text: did-you-mean, quoting for Hydra's grammar, and the values that a swept override expands to."""

import contextlib
import difflib
import math
import os
import re
import shlex
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, RangeSweep, Transformer

from mcls.errors import RequestError

RESOLVER = re.compile(r"\$\{.*:")  # an interpolation that calls something

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # which have one value, whatever Hydra's grammar makes of it
PATHS = re.compile(r"hydra\.(run|sweep)\.dir|outputs|model\.weights|dataset\.(root|path|test_path)")
HOME = re.compile(r"(?<=[=,\['\"])~[\w.-]*(?=/|$)")

DASHES = "\u2212\u2013\u2014"  # minus, en dash, em dash
QUOTES = "\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
FOLDS = {"dataset.folds", "dataset.fold"}  # keys of which neither goes without the other

# what other tools call it: our key, or what is to be typed instead
SYNONYMS = {
    "optimizer.lr": "lr learning_rate lr0 base_lr init_lr eta",
    "optimizer.weight_decay": "wd l2 decay",
    "optimizer": "opt optim solver",
    "schedule": "scheduler lr_scheduler sched lr_schedule",
    "schedule.warmup_fraction": "warmup warmup_epochs warmup_steps warmup_ratio",
    "trainer.epochs": "epochs epoch max_epochs num_epochs n_epochs num_train_epochs nb_epochs",
    "trainer.batch_size": "batch_size batch bs batchsize train_batch_size per_device_train_batch_size",
    "trainer.patience": "early_stopping early_stop early_stopping_patience early_stopping_rounds",
    "trainer.monitor": "metric eval_metric metric_for_best_model",
    "trainer.grad_clip_norm": "clip clip_grad clip_norm grad_clip gradient_clip_val max_grad_norm",
    "trainer.accumulate": "accumulate_grad_batches gradient_accumulation_steps grad_accum_steps accum_iter",
    "trainer.ema": "ema_decay model_ema use_ema",
    "trainer.devices": "gpus num_gpus n_gpus num_devices nproc nproc_per_node world_size",
    "trainer.workers": "num_workers nworkers n_workers dataloader_num_workers",
    "trainer.max_minutes": "max_time time_limit",
    "trainer.checkpoint_every_steps": "save_steps save_every save_period checkpoint_interval",
    "trainer=debug": "debug fast_dev_run dry_run smoke_test",
    "device": "gpu accelerator cuda use_cuda no_cuda",
    "precision": "amp half mixed_precision autocast bf16 fp16",
    "threads": "num_threads n_jobs cpus",
    "seed": "random_seed manual_seed seed_everything rng",
    "name": "run_name exp_name experiment_name",
    "outputs": "output output_dir out_dir save_dir log_dir logdir project default_root_dir results_dir",
    "note": "notes description comment",
    "tags": "tag labels",
    "model": "arch architecture net network backbone",
    "model.name": "model_name timm_model",
    "model=pretrained": "pretrained finetune fine_tune transfer",
    "model.hidden_units": "hidden hidden_size hidden_sizes hidden_dim hidden_layers hidden_layer_sizes layers units",
    "model.dropout": "drop dropout_rate drop_rate",
    "loss": "criterion loss_fn objective loss_function",
    "loss.label_smoothing": "smoothing label_smooth",
    "loss.class_weights": "class_weight weights_of_classes cls_weight",
    "trainer.class_balanced_sampling": "balanced weighted_sampler oversample",
    "augment": "aug augmentation augmentations transform transforms auto_augment aa",
    "dataset": "data datamodule task",
    "dataset.root": "data_dir data_path data_root root_dir datadir",
    "dataset.target": "target_column label label_column class_column",
    "dataset.size": "imgsz img_size image_size resolution input_size",
    "dataset.val_fraction": "validation_split val_size valid_size validation_fraction val_ratio",
    "dataset.test_fraction": "test_size test_ratio",
    "mcls resume RUN": "resume resume_from_checkpoint ckpt_path ckpt checkpoint",
    "--config-dir DIR": "config config_path conf",
}
MEANINGS = {word: key for key, words in SYNONYMS.items() for word in words.split()}


def meaning(word: str) -> str | None:
    """What mcls calls a key that has another name in other tools; the part before a dot is ignored."""
    return MEANINGS.get(last_part(word).lower().replace("-", "_"))


def nearest_key(word: str, known: Sequence[str]) -> str | None:
    """What `word` was probably meant to be, out of `known`."""
    if (meant := meaning(word)) and (meant in known or not re.fullmatch(r"[\w.]+", meant)):
        return meant
    endings = [key for key in known if last_part(key) == last_part(word)]
    if "." not in word and len(endings) == 1:
        return endings[0]
    cutoff = 0.6 if len(last_part(word)) > 3 else 0.75  # of three letters one is another: no likeness
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    matches = [key for key in close if alike(last_part(key), last_part(word)) >= 0.5 and ("." in key) >= ("." in word)]
    names = sorted({last_part(key) for key in known})
    if not matches and (near := difflib.get_close_matches(last_part(word), names, n=1, cutoff=cutoff)):
        matches = [key for key in known if last_part(key) == near[0] and ("." in key) >= ("." in word)]
    return matches[0] if matches else endings[0] if endings else None


def last_part(key: str) -> str:
    """`lr` of `optimizer.lr`."""
    return key.rpartition(".")[2]


def alike(one: str, other: str) -> float:
    """How much two words have in common, from 0 to 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def suggestion(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown `word`."""
    nearest = nearest_key(word, known)
    return f"Did you mean {nearest}?" if nearest else "See mcls train --help."


def shell_quoted(line: str) -> str:
    """`key=value`, where the value is a text that Hydra's grammar takes for something else, as it is to be typed."""
    return shell(as_text(line))


def as_text(line: str) -> str:
    """`key=value` with the value quoted for Hydra's grammar."""
    key, _, value = line.partition("=")
    return "{}='{}'".format(key, value.replace("'", r"\'"))


def at_home(text: str) -> str:
    """`text` with `~` expanded where a value begins."""
    return HOME.sub(lambda match: os.path.expanduser(match[0]), text)  # noqa: PTH111, one of no user stays


def as_path(line: str) -> str:
    """`key=value` where a path is asked for as Hydra's grammar takes it: `~` expanded, quoted if it must be."""
    key, equals, value = line.partition("=")
    if not equals or not PATHS.fullmatch(key.lstrip("+")):
        return line
    line = at_home(line)
    with contextlib.suppress(Exception):  # Hydra's parser leaks many kinds
        override = OverridesParser.create().parse_override(line)
        if key not in FOLDERS or isinstance(override.value(), str | QuotedString):
            return line
    if value[:1] in (*"'\"", *QUOTES) or (value[:1] in "[{" and key not in FOLDERS):  # meant for the grammar, and wrong
        return line
    return f"{key}={QuotedString(line.partition('=')[2], Quote.single).with_quotes()}"


def as_list(line: str) -> str | None:
    """`key=[a,b]` with each element quoted for Hydra's grammar, or None if the value is in no brackets."""
    key, _, value = line.partition("=")
    if not (value.startswith("[") and value.endswith("]")):
        return None
    parts = ("'{}'".format(part.strip().strip("'\"").replace("'", r"\'")) for part in value[1:-1].split(","))
    return f"{key}=[{','.join(parts)}]"


def typeset(line: str) -> str | None:
    """`line` with the minus signs and quotation marks of the keyboard, if it has those of a word processor."""
    key, equals, value = line.partition("=")
    if not equals and line[:1] in DASHES:  # a flag
        return f"{'-' if len(line) == 2 else '--'}{line[1:]}"
    quotes = len(value) > 1 and value[0] in QUOTES and value[-1] in QUOTES
    plain = re.sub(f"[{DASHES}](?=[\\d.])", "-", f"'{value[1:-1]}'" if quotes else value)
    return None if plain == value else f"{key}={plain}"


def shell(text: str) -> str:
    """`text` as a shell takes it, in double quotes where that reads better."""
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)


def as_plain(value: Any) -> Any:
    """A value of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value.text if isinstance(value, QuotedString) else value


def choices_of(override: Override) -> list[tuple[str, Any]]:
    """The overrides that a swept one expands to, and their values; none of an interval, which only a search samples."""
    if override.is_interval_sweep():
        return []
    key = override.get_key_element()
    return [(f"{key}={Transformer.str(value)}", as_plain(value)) for value in override.sweep_iterator()]


def count(override: Override) -> int:
    """How many values a swept override expands to; 1 where only an optimizer can sample it."""
    value: Any = override.value()
    if not isinstance(value, RangeSweep):
        return max(1, len(choices_of(override)))
    start, stop, step = (Fraction(str(limit)) for limit in (value.start, value.stop, value.step))
    if not step:
        raise RequestError(f"{override.input_line}: the step of a range can't be 0.")
    return max(0, math.ceil((stop - start) / step))


def first(override: Override) -> list[str]:
    """The first override that a swept one expands to, or none; an override that is not swept, unchanged."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value: Any = override.value()
    if not isinstance(value, RangeSweep):
        return [line for line, _ in choices_of(override)[:1]]
    return [f"{override.get_key_element()}={value.start}"] if count(override) else []


def blamed(line: str, error: str) -> bool:
    """Whether an override, the choice of its group or the other one of a pair is what a line of an error is about."""
    key = line.lstrip("+~").partition("=")[0]
    names = {key, key.split(".")[0]} | (FOLDS if key in FOLDS else set())
    begins = tuple(f"{name}{sign}" for name in names for sign in ":=") + (f"{line}:",)
    return any(message.startswith(begins) for message in error.split("\n"))


def refuse_choice(override: Override, options: Sequence[str]) -> None:
    """Raise RequestError when `override` chooses what its group, whose choices are `options`, does not have."""
    group = override.key_or_group
    if override.is_sweep_override():
        ranged = isinstance(override.value(), RangeSweep)  # numbers, and perhaps very many
        lines = first(override) if ranged else [line for line, _ in choices_of(override)]
        values = [line.split("=", 1)[1] for line in lines]
    else:
        values = [str(override.value()) if override.value() is not None else "null"]
    known = ", ".join(options)
    if not values:
        raise RequestError(f"{override.input_line}: names no choice of {group}. There are {known}.")
    for value in values:
        if value not in options and (group, value) != ("experiment", "null"):
            end = suggestion(value, options) if nearest_key(value, options) else ""
            raise RequestError(f"{group}={value}: no such choice. {end}{' ' if end else ''}There are {known}.")
