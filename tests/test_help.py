"""`mcls help` and `mcls train --help`: every key with its type, default and explanation, before torch is imported."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcls.commands import COMMANDS
from mcls.config.compose import Checker, checker
from mcls.config.explain import Pages, explain_command, explain_words
from mcls.config.files import compose_files
from mcls.config.overrides import MEANINGS, SYNONYMS, as_plain, nearest_key

Main = Callable[..., int]


@pytest.fixture(scope="module")
def check() -> Iterator[Checker]:
    with checker() as made:
        yield made


@pytest.fixture(scope="module")
def pages(check: Checker) -> Pages:
    return Pages(check, compose_files("train", [])[1], 80)


def test_every_key_of_every_choice_is_explained(check: Checker, pages: Pages) -> None:
    keys = pages.keys()
    assert len(keys) >= 110
    for key, entries in keys.items():
        text = pages.key(key, entries)
        assert text.startswith(f"{key}: ") and "\n  type     " in text and "\n  default  " in text, key
        assert all(rule.help for _, rule, _ in entries)
        words = shlex.split(text.partition("to set   ")[2].splitlines()[0])
        if "VALUE" not in words[-1]:  # what it offers is what a command line takes
            entries[0][1].check(key, as_plain(check.parse(words[-1]).value()))


def test_defaults_are_those_that_are_composed(check: Checker, pages: Pages) -> None:
    keys = pages.keys()
    text = explain_command(check, [], 80)
    shown = dict(re.findall(r"^  ([a-z_.\d]+)=(.*)$", text, re.M))
    assert len(shown) >= 60
    assert shown == {key: keys[key][0][2] for key in shown}


def test_a_key_of_several_choices_names_them(check: Checker) -> None:
    text = explain_words(check, ["optimizer.lr"], 80)
    assert text == "\n".join(
        [
            "optimizer.lr: learning rate, before the schedule",
            "",
            "  type     float > 0",
            "  default  0.05 with optimizer=sgd; 0.001 with optimizer=adam, adamw, rmsprop",
            "  to set   mcls train optimizer.lr=0.05",
        ]
    )
    assert explain_words(check, ["lr"], 80) == text == explain_words(check, ["--learning-rate"], 80)
    assert "optimizer=adam optimizer.betas=[0.9,0.999]" in explain_words(check, ["betas"], 80)
    assert explain_words(check, ["name"], 80).endswith("See also: sweep.name, dataset.name, model.name")
    assert "above the" not in explain_words(check, ["sweep"], 80) and "sweep.zip" in explain_words(check, ["sweep"], 80)


def test_groups_and_choices(check: Checker) -> None:
    text = explain_words(check, ["optimizer"], 80)
    assert text.startswith("optimizer: default optimizer=sgd\n") and "  optimizer=adamw\n      Adam with" in text
    text = explain_words(check, ["optimizer=rmsprop"], 80)
    assert text.startswith("optimizer=rmsprop: RMSprop.\n  optimizer.lr=0.001\n      (float > 0) learning rate")
    assert "mcls train experiment=mnist-mlp --help" in explain_words(check, ["experiment=mnist-mlp"], 80)
    assert explain_words(check, ["pretrained"], 80).startswith("model=pretrained: ")


def test_synonyms_mean_keys_that_there_are(check: Checker, pages: Pages) -> None:
    keys = pages.keys()
    for meant, words in SYNONYMS.items():
        group, _, choice = meant.partition("=")
        known = meant in keys or meant in check.groups or choice in (pages.choices(group) if choice else [])
        assert known or meant in ("mcls resume RUN", "--config-dir DIR"), meant
        named = {
            key.rpartition(".")[2] for key in keys if not key.startswith("launcher.")
        }  # whose gpus a cluster lends
        ours = set(words.split()) & named
        assert ours <= {meant.rpartition(".")[2]}, f"{ours} of {meant} are keys of mcls"
    assert len(MEANINGS) == sum(len(words.split()) for words in SYNONYMS.values())  # no word means two


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("early_stopping", "Did you mean trainer.patience?"),
        ("gpus", "Did you mean trainer.devices?"),
        ("num_workers", "Did you mean trainer.workers?"),
        ("trainer.max_epochs", "Did you mean trainer.epochs?"),
        ("bs", "Did you mean trainer.batch_size?"),
        ("wd", "Did you mean optimizer.weight_decay?"),
        ("pretrained", "Did you mean model=pretrained?"),
        ("imgsz", "Did you mean dataset.size, of dataset=huggingface, image_folder, image_table?"),
        ("resume", "Did you mean mcls resume RUN?"),
        ("foo", "See mcls train --help."),
        ("dataset.rot", "See mcls train --help."),
    ],
)
def test_unknown_keys_suggest_what_means_the_same(
    word: str, meant: str, mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", f"{word}=1") == 2
    assert capsys.readouterr() == ("", f"mcls: {word}: no such key. {meant}\n")


def test_a_key_is_not_another_of_the_same_letters() -> None:
    assert nearest_key("foo", ["trainer.oom"]) is None
    assert nearest_key("model.nam", ["name", "model.name"]) == "model.name"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lr", "0.1"], "--lr: no such option. Keys have no dashes: optimizer.lr=VALUE."),
        (["--batch-size=3"], "--batch-size=3: no such option. Keys have no dashes: trainer.batch_size=3."),
        (["--resume"], "--resume: no such option. Use mcls resume RUN."),
        (["--ckpt=a"], "--ckpt=a: no such option. Use mcls resume RUN."),
        (["--multirn"], "--multirn: no such option. Did you mean --multirun?"),
    ],
)
def test_keys_typed_as_flags(flags: list[str], told: str, mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", *flags) == 2
    assert capsys.readouterr().err == f"mcls: {told} See mcls train --help.\n"


def test_help_of_commands(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["help"], ["--help"]):
        assert mcls(*words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    with pytest.raises(SystemExit):
        mcls("help", "report")
    assert capsys.readouterr().out.startswith("usage: mcls report")
    assert mcls("help", "zzzz") == 2
    assert capsys.readouterr().err == "mcls: zzzz: no such key. See mcls train --help.\n"


def test_80_columns_hold_the_help(check: Checker) -> None:
    texts = [explain_command(check, [], 80), *(explain_words(check, [group], 80) for group in check.groups)]
    assert [line for text in texts for line in text.splitlines() if len(line) > 80] == []
    assert [name for name, text in COMMANDS.items() if len(f"  {name:<10} {text}") > 80] == []


def test_torch_and_numpy_are_not_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from mcls.cli import main; main(['help', 'lr']); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
