"""What the TAB key offers, asked for as bash asks for it."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcls.commands import COMMANDS
from mcls.commands.completion import SCRIPT, following

MONITORS = ("accuracy", "loss", "f1_macro", "balanced_accuracy", "mcc", "kappa", "auroc", "average_precision", "top_k")


def test_commands_are_offered() -> None:
    assert [word.strip() for word in following("mcls ")] == list(COMMANDS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mcls train model=res", ["model=resnet18", "model=resnet18-finetune"]),
        ("mcls train dataset=mnist optimizer=ad", ["optimizer=adam", "optimizer=adamw"]),
        ("mcls data ", ["check", "doubts"]),
        ("mcls data check dataset=bl", ["dataset=blobs"]),
        ("mcls train precision=", [f"precision={name}" for name in ("auto", "fp32", "fp32_medium", "bf16", "fp16")]),
        ("mcls train -m trainer.monitor=", [f"trainer.monitor={name}" for name in MONITORS]),
        ("mcls train optimizer=sgd optimizer.nesterov=t", ["optimizer.nesterov=true"]),
        ("mcls data check --output look dataset=mn", ["dataset=mnist"]),
        ("mcls train device=c", ["device=cpu", "device=cuda"]),
        ("mcls train optimizer.lr=", ["optimizer.lr=0.05"]),
        (
            "mcls data check dataset=csv dataset.missing_values_strategy=",
            [f"dataset.missing_values_strategy={way}" for way in ("error", "drop", "mean")],
        ),
    ],
)
def test_overrides_are_offered(line: str, offered: list[str]) -> None:
    assert following(line) == offered


def test_choices_of_ones_own_and_of_a_sweep_are_offered(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("defaults: [sgd]\n")
    for flag in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}"):
        assert following(f"mcls train {flag} optimizer=mi") == ["optimizer=mine"]
    assert following("mcls train -m optimizer=sgd,adam") == ["optimizer=sgd,adam", "optimizer=sgd,adamw"]


def test_run_folders_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("blobs-mlp/a", "mnist-mlp/b"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "run.json").write_text("{}")
    assert following("mcls resume ") == ["outputs/blobs-mlp/a", "outputs/mnist-mlp/b"]
    assert following("mcls evaluate outputs/mn") == following("mcls data doubts outputs/mn") == ["outputs/mnist-mlp/b"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mcls export outputs/run --format ", ["onnx", "pt2", "safetensors"]),
        ("mcls evaluate outputs/run --split ", ["train", "val", "test"]),
        ("mcls evaluate outputs/run --m", ["--mistakes"]),
        ("mcls evaluate outputs/run --output ", []),
        ("mcls completion ", ["bash", "zsh"]),
        ("mcls completion --l", []),
        ("mcls train --multi", ["--multirun"]),
        ("mcls data check --o", ["--output"]),
        ("mcls tune ", ["lr"]),
        ("mcls runs p", ["prune "]),
        ("mcls tune lr optimizer=adamw optimizer.head", ["optimizer.head_lr_factor="]),
        ("mcls nothing ", []),
    ],
)
def test_flags_and_their_choices_are_offered(line: str, offered: list[str]) -> None:
    assert following(line) == offered


def test_every_command_has_its_help_offered() -> None:
    for command in COMMANDS:
        assert "--help" in following(f"mcls {command} -"), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_parser(command: str) -> None:
    module = importlib.import_module(f"mcls.commands.{command}")
    assert module.parser().prog == f"mcls {command}" and module.parser() is not module.parser()


def test_torch_is_not_imported() -> None:
    lines = [f"mcls {command} -" for command in COMMANDS] + ["mcls train precision="]
    script = f"import sys; from mcls.commands.completion import following; [following(line) for line in {lines}]; "
    subprocess.run([sys.executable, "-c", f"{script} assert not {{'torch', 'numpy'}} & set(sys.modules)"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    wrapper = tmp_path / "mcls"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m mcls "$@"\n')
    wrapper.chmod(0o755)
    ask = 'COMP_LINE="mcls train model=re"; COMP_POINT=${#COMP_LINE}; _mcls_complete; echo "${COMPREPLY[@]}"'
    found = subprocess.run(
        ["bash", "-c", f"PATH={tmp_path}:$PATH\n{SCRIPT}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() in (["resnet18", "resnet18-finetune"], ["model=resnet18", "model=resnet18-finetune"])
