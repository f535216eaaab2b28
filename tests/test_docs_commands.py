"""The commands on the pages that people read, typed one after the other in a folder that has what the pages assume."""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcls.commands import COMMANDS

Main = Callable[..., int]
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = ("board", "serve")  # these wait for a browser: their line is parsed, and their own tests start them
CLASSES = ("cat", "dog", "owl")
QUICK = {"trainer.epochs": "1", "threads": "1"}  # set in every training
# a page's value, and one that takes seconds on a small data set
SHORTER = {
    "seed=range(0,8)": "seed=range(0,2)",
    "search.trials=30": "search.trials=2",
    "optimizer.lr=0.001,0.003,0.01,0.03,0.1,0.3": "optimizer.lr=0.01,0.1",
    "launcher.jobs=4": "launcher.jobs=2",
    "seed=range(0,4)": "seed=0",
    "launcher=slurm-gpu": "launcher=parallel",  # there is no cluster here
}
# what stands for a run of the reader's own, and the folder that the test makes
PLACES = {
    "outputs/blobs-mlp/DATE_TIME": "points",
    "outputs/mnist-mlp/DATE_TIME": "digits",
    "outputs/sweeps/S/4_...": "digits",
    "outputs/sweeps/S/5_...": "others",
    "seven.png": str(ROOT / "docs" / "images" / "seven.png"),
    "docs/images/seven.png": str(ROOT / "docs" / "images" / "seven.png"),
    "dataset.target=COLUMN": "dataset.target=class",
}


def commands(page: Path) -> list[tuple[str, str]]:
    """Each command of a page that begins an indented line, without the prompt, and the line after it."""
    lines = re.sub(r" *\\\n *", " ", page.read_text("utf-8")).splitlines()
    found = [
        (re.match(r"    (?:\$ )?(mcls .+)", line), after) for line, after in zip(lines, [*lines[1:], ""], strict=True)
    ]
    return [(line[1], after.strip()) for line, after in found if line]


def typed(command: str) -> list[str]:
    """The words after `mcls` as a shell hands them over, with runs and files that exist, and a short training."""
    words = [PLACES.get(word, SHORTER.get(word, word)) for word in shlex.split(command, comments=True)[1:]]
    if "RUN" in words:
        words[words.index("RUN")] = "rows" if "test.csv" in words else "digits"
    if words[0] == "train" and "--summary" not in words:
        words = [word for word in words if word.split("=")[0] not in QUICK] + [f"{key}={QUICK[key]}" for key in QUICK]
        if "search=halving" in words:  # which needs an epoch for each rung
            words[words.index("trainer.epochs=1")] = "trainer.epochs=5"
        if {"trainer.devices=2", "launcher=parallel"} & set(words):
            words = [word.replace("dataset=cifar10", "dataset=fashion_mnist") for word in words]  # see accept_cifar10
        if any("pretrained" in word or "finetune" in word for word in words):
            words.append("model.weights=null")  # the weights need a network
        if "model=pretrained" in words:
            words.append("dataset.size=32")
    return words


@pytest.fixture
def reader(mcls: Main, accept_cifar10: None, tmp_path: Path, data_root: Path) -> Main:
    """The folder of somebody who reads a page: pictures, tables, runs, configuration files."""
    random = np.random.default_rng(0)
    rows = ["id,width,height,target,breed,class"]
    (tmp_path / "images").mkdir()
    for number in range(60):
        name = CLASSES[number % 3]
        picture = Image.fromarray(random.integers(80 * (number % 3), 80 * (number % 3) + 90, (32, 32, 3), np.uint8))
        picture.save(tmp_path / "images" / f"{number}.png")
        for root in ("DIR", "pictures"):
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / root / name / f"{number}.jpg")
        width, height = random.normal(number % 3, 0.3, 2)
        rows.append(f"{number},{width:.3f},{height:.3f},Class_{number % 3},{name},{name}")
    for table in ("train.csv", "test.csv", "table.csv", "wine.csv"):
        (tmp_path / table).write_text("\n".join(rows) + "\n", "utf-8")
    (tmp_path / "my_configs" / "model").mkdir(parents=True)
    (tmp_path / "my_configs" / "model" / "resnet50.yaml").write_text("_target_: torchvision.models.resnet50\n")
    quick = ["trainer.epochs=2", "trainer.figures=false", "threads=1"]
    table_keys = ["dataset=csv", "dataset.path=train.csv", "dataset.target=target", "dataset.drop_columns=[id]"]
    assert mcls("train", "outputs=.", "name=points", *quick) == 0
    assert mcls("train", "outputs=.", "name=rows", *table_keys, *quick) == 0
    for run, seed in (("digits", 0), ("others", 1)):
        assert mcls("train", "outputs=.", f"name={run}", f"seed={seed}", "dataset=mnist", *quick) == 0
    return mcls


def test_every_page_is_seen() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page: Path, reader: Main, capsys: pytest.CaptureFixture[str]) -> None:
    for command, after in commands(page):
        words = typed(command)
        if words[0] in SERVERS:
            importlib.import_module(f"mcls.commands.{words[0]}").parser().parse_args(words[1:])
            continue
        capsys.readouterr()
        status = reader(*words)
        out, err = capsys.readouterr()
        if after.startswith("mcls: "):
            assert (status, out, err) == (2, "", f"{after}\n"), command
        else:
            assert status == 0, f"{command}\n{err}"


@pytest.mark.slow
def test_the_lines_of_python_run(reader: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    shutil.copytree(tmp_path / "digits", tmp_path / "outputs" / "mnist-mlp" / "2026-11-21_14-44-22")
    found: dict[str, object] = {}
    exec(compile(code, "python.md", "exec"), found)
    assert len(found["found"].names) == 60  # type: ignore[attr-defined]


def test_commands_in_the_text_and_their_options_exist() -> None:
    texts = [text for page in PAGES for text in re.findall(r"`mcls ([a-z][^`]*)`", page.read_text("utf-8"))]
    assert len(texts) >= 50
    wrong = []
    for text in texts:
        name, *rest = text.replace("\\|", " ").replace("|", " ").split()
        flags = [word.strip("[],.") for word in rest if word.startswith(("--", "[--"))]
        if name not in COMMANDS:
            wrong.append(text)
            continue
        known = importlib.import_module(f"mcls.commands.{name}").parser()._option_string_actions
        if name != "train" and [flag for flag in flags if flag.split("=")[0] not in known]:
            wrong.append(text)
    assert wrong == []
