"""`import mcls`: a run in Python gives what the commands give, and wrong input is one typed error."""

import csv
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import mcls
from mcls.cli import main
from mcls.errors import DataError, FolderError, MclsError, RequestError, Stopped
from mcls.runs.checkpoint import load_checkpoint, weights_digest
from trained import TINY

RUNS = Path(__file__).parent / "fixtures" / "runs" / "0.1"
TABLE, POINTS, SHAPES = "csv-mlp", "blobs-mlp", "images-small_resnet"
INPUTS = {TABLE: "data/trees.csv", POINTS: "data/points.csv", SHAPES: "data/shapes/test"}
QUICK = [*TINY, "trainer.epochs=1", "device=cpu"]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path) -> None:
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)


def of_command(run: str, *inputs: str) -> tuple[list[str], list[str], np.ndarray]:
    """What `mcls predict` writes: the inputs, the names and the probabilities of all classes."""
    rows = {}
    for style in ("csv", "wide"):
        assert main(["predict", run, *inputs, "--device", "cpu", "--format", style, "--output", f"{style}.out"]) == 0
        rows[style] = list(csv.reader(Path(f"{style}.out").read_text().splitlines()))[1:]
    wide = np.array([row[1:] for row in rows["wide"]], dtype=float)
    return [row[0] for row in rows["csv"]], [row[1] for row in rows["csv"]], wide


def same(found: mcls.PredictionResult, other: mcls.PredictionResult) -> bool:
    return found.names == other.names and np.array_equal(found.probabilities, other.probabilities)


@pytest.mark.parametrize("name", INPUTS)
def test_predicts_what_the_command_predicts(name: str) -> None:
    run = mcls.load(name, device="cpu")
    inputs, names, probabilities = of_command(name, INPUTS[name])
    for given in (INPUTS[name], Path(INPUTS[name]), [INPUTS[name]]):
        found = run.predict(given)
        assert (list(found.inputs), list(found.names)) == (inputs, names)
        np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-7)
    assert found.probabilities.dtype == np.float32 and found.probabilities.shape == (len(names), len(run.classes))
    assert found.confidence.tolist() == found.probabilities.max(axis=1).tolist()
    assert same(run.predict(INPUTS[name], batch_size=len(names)), found)


def test_images_of_every_kind_are_those_of_the_files() -> None:
    run = mcls.load(SHAPES, device="cpu")
    paths = sorted(Path("data/shapes/test").rglob("*.png"))
    images = [Image.open(path) for path in paths]
    whole = run.predict(paths)
    assert len(whole.names) == 8 and set(whole.names) == {"dot", "ring"}
    array = np.stack([np.asarray(image) for image in images])
    assert array.shape == (8, 12, 12, 3)
    tensor = torch.tensor(array).movedim(-1, 1)
    for given in (images, array, list(array), tensor, [paths[0], images[1], *array[2:]]):
        assert same(run.predict(given), whole)
    assert run.predict(images).inputs == tuple(map(str, range(8)))
    for one in (images[3], array[3], tensor[3], str(paths[3])):
        assert run.predict(one).probabilities[0].tolist() == pytest.approx(whole.probabilities[3], abs=1e-6)
    assert run.predict([]).probabilities.shape == (0, 2)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
def test_another_size_or_mode_is_prepared_as_the_file_is(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
    image.save("one.png")
    run = mcls.load(SHAPES, device="cpu")
    expected = run.predict("one.png")
    assert same(run.predict(image), expected)
    if mode in ("L", "RGB", "RGBA"):
        array = np.asarray(image)
        assert same(run.predict(array), expected) and same(run.predict(array[None]), expected)
    if mode == "RGB":
        assert same(run.predict(torch.tensor(array).movedim(-1, 0)), expected)


def test_a_stack_of_greys(mcls: Callable[..., int]) -> None:
    import mcls as package

    run = package.train(["dataset=mnist", *QUICK])
    greys = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for index, grey in enumerate(greys):
        Image.fromarray(grey).save(f"{index}.png")
    whole = run.predict([f"{index}.png" for index in range(5)])
    for given in (greys, greys[:, None], greys[..., None], torch.from_numpy(greys)):
        assert same(run.predict(given), whole)
    assert run.predict(greys[0]).names == whole.names[:1]


class Frame:
    """What is asked of a data frame."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns, self.cells = list(columns), columns

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self.cells[name]


def trees() -> list[dict[str, Any]]:
    """The rows of the table with their numbers as numbers, in a column order of their own."""
    with Path(INPUTS[TABLE]).open() as file:
        rows = list(csv.DictReader(file))
    return [
        {"colour": row["colour"], **{name: float(row[name]) if row[name] else None for name in ("weight", "height")}}
        for row in rows
    ]


def frames(rows: list[dict[str, Any]]) -> Iterator[Any]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    yield Frame(columns)
    for package in ("pandas", "polars"):
        try:
            yield __import__(package).DataFrame(columns)
        except ImportError:
            continue


def test_tables_of_every_kind_are_that_of_the_file() -> None:
    run, rows = mcls.load(TABLE, device="cpu"), trees()
    whole = run.predict(INPUTS[TABLE])
    assert len(whole.names) == len(rows) == 120
    cells = [[row[name] for name in ("height", "weight", "colour")] for row in rows]
    for given in (rows, *frames(rows), cells, np.array(cells, dtype=object)):
        assert same(run.predict(given), whole)
    assert same(run.predict([{name: str(cell or "") for name, cell in row.items()} for row in rows]), whole)
    assert run.predict(rows[7]).names == run.predict(cells[7]).names == whole.names[7:8]
    assert run.predict([]).names == run.predict(Frame({name: [] for name in rows[0]})).names == ()


def test_values_are_the_text_of_a_csv_file(tmp_path: Path) -> None:
    """A data frame turns 5 with a missing cell beside it into 5.0 and true into True."""
    lines = [f"{index % 3},{'true' if index % 2 else 'false'},{index / 7},{index % 2}" for index in range(60)]
    Path("t.csv").write_text("\n".join(["zone,flag,size,class", *lines]))
    keys = ["dataset=csv", "dataset.path=t.csv", "dataset.target=class", "dataset.categorical_columns=[zone]"]
    run = mcls.train([*keys, "dataset.missing_values_strategy=mean", "trainer.batch_size=8", *QUICK])
    rows = [{"zone": float(index % 3), "flag": index % 2 == 1, "size": np.float64(index / 7)} for index in range(60)]
    assert same(run.predict(rows), run.predict("t.csv"))
    Path("u.csv").write_text("zone,flag,size\n,true,1\n2,,2\n1,true,\n")
    gaps = [[float("nan"), True, 1], [2, None, 2], [1, True, np.nan]]
    assert same(run.predict(gaps), run.predict("u.csv"))


def test_numbers_of_every_kind_are_those_of_the_file() -> None:
    run = mcls.load(POINTS, device="cpu")
    with Path(INPUTS[POINTS]).open() as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    whole = run.predict(INPUTS[POINTS])
    columns = dict(zip("xy", zip(*rows, strict=True), strict=True))
    for given in (rows, np.array(rows), torch.tensor(rows), Frame(columns)):
        assert same(run.predict(given), whole)
    assert run.predict(rows[0]).names == run.predict(np.array(rows[0], dtype=np.float32)).names == whole.names[:1]


WRONG = [
    (SHAPES, np.zeros((12, 12, 3), np.float32), r"images are uint8, 0 to 255, got float32\. Convert them"),
    (SHAPES, np.zeros((2, 2, 12, 12, 3), np.uint8), r"an array of shape \(2, 2, 12, 12, 3\)\. This run takes PIL"),
    (SHAPES, np.zeros((2, 5, 12, 12), np.uint8), r"an array of shape \(2, 5, 12, 12\)\."),
    (SHAPES, np.zeros((0, 12), np.uint8), r"an array of shape \(0, 12\)\."),
    (SHAPES, np.zeros(12, np.uint8), r"an array of shape \(12,\)\."),
    (SHAPES, 7, r"got int\. This run takes PIL images"),
    (SHAPES, {"a": 1}, r"got dict\. This run takes PIL images"),
    (SHAPES, [b"png"], r"got bytes\. This run takes PIL images"),
    (SHAPES, "data/trees.csv", r"data/trees\.csv: cannot be read \(not a picture\)"),
    (TABLE, [{"height": 1, "weight": 2, "color": "dark"}], "the table has no column 'colour'. Did you mean 'color'?"),
    (TABLE, Frame({"weight": [1], "colour": ["dark"]}), "the table has no column 'height'"),
    (TABLE, [[1, 2, "dark"], [1, "a lot", "dark"]], r"the table, row 1, column 'weight': 'a lot' is not a number"),
    (TABLE, [[1, 2]], "row 0: got 2 cells. This run has 3 columns: 'height', 'weight', 'colour'"),
    (TABLE, [[1, 2, "dark"], 3], "row 1: got int"),
    (TABLE, 3, r"got int\. This run takes a data frame, a list of dictionaries, rows of cells, or paths"),
    (POINTS, [[1.0, 2.0, 3.0]], r"must be of shape \(2,\) or \(N, 2\), got \(1, 3\)"),
    (POINTS, [[1.0, 2.0], [3.0]], "cannot be made an array"),
    (POINTS, [["a", "b"]], "must be numbers, got <U1"),
    (POINTS, [[1.0, 2.0], [1.0, float("nan")]], "row 1: nan is not a finite number"),
]


@pytest.mark.parametrize(("run", "given", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_wrong_inputs_are_one_data_error(run: str, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        mcls.load(run, device="cpu").predict(given)
    assert "\n" not in str(caught.value)


def test_what_can_not_be_loaded() -> None:
    with pytest.raises(FolderError, match="not a run folder"):
        mcls.load("data")
    with pytest.raises(RequestError, match="checkpoint: must be best or last, got 'newest'"):
        mcls.load(TABLE, checkpoint="newest")
    with pytest.raises(RequestError, match="device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        mcls.load(TABLE, device="gpu")
    with pytest.raises(RequestError, match="trust: must be a list of packages, got 'mine'"):
        mcls.load(TABLE, trust="mine")
    with pytest.raises(RequestError, match="nowhere: no such file or folder"):
        mcls.load(TABLE).predict("nowhere")
    with pytest.raises(AttributeError, match="'mcls' has no attribute 'predict'"):
        mcls.predict  # noqa: B018


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_what_a_run_holds(name: str, checkpoint: str) -> None:
    run = mcls.load(Path(name), device="cpu", checkpoint=checkpoint)
    assert run.folder == Path(name) and not run.model.training
    weights = load_checkpoint(Path(name) / f"{checkpoint}.pt")["model"]
    assert weights_digest(run.model.state_dict()) == weights_digest(weights)
    assert run.result == json.loads(Path(name, "result.json").read_text())
    assert run.config["trainer"]["epochs"] > 1 and list(run.classes) == [
        row["class"] for row in run.result["test"]["per_class"]
    ]
    one = {TABLE: trees()[0], POINTS: [1.0, 2.0], SHAPES: "data/shapes/test/dot/00.png"}[name]
    with torch.inference_mode():
        logits = run.model(run.preprocess(one)[None])
    found = logits.softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(found, run.predict(one).probabilities[0], atol=1e-6)
    with pytest.raises(DataError, match="preprocess: must be one input, got "):
        run.preprocess(INPUTS[name])


def test_trains_what_the_command_trains(tmp_path: Path) -> None:
    keys = ["dataset.n_samples=100", *QUICK]
    level, handlers = logging.getLogger("mcls").level, list(logging.getLogger("mcls").handlers)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = mcls.train(keys)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert (logging.getLogger("mcls").level, logging.getLogger("mcls").handlers) == (level, handlers)
    assert run.folder.parent == Path("outputs/blobs-mlp")
    assert json.loads((run.folder / "run.json").read_text())["command"].startswith("mcls train dataset.n_samples=100 ")
    named = mcls.train([*keys, "hydra.run.dir=~/named"])
    assert named.folder == Path("~/named").expanduser()
    assert main(["train", *keys, "hydra.run.dir=by command"]) == 0
    digests = {folder.result["weights_sha256"] for folder in (run, named, mcls.load("by command"))}
    assert len(digests) == 1


REFUSED = [
    (["optimizer.lr=-1"], "optimizer.lr: must be float > 0, got -1"),
    (["optmizer.lr=1"], "optmizer.lr: no such key. Did you mean optimizer.lr?"),
    (["seed=1,2"], "seed=1,2: several values make a sweep"),
    (["hydra.mode=MULTIRUN", "seed=1,2"], "hydra.mode: mcls.train makes one run"),
    ("seed=1", r"overrides: must be a list, got 'seed=1'. Write \['seed=1'\]"),
    (["model=resnet18"], "model=resnet18 requires images"),
    ([f"hydra.run.dir={TABLE}"], "hydra.run.dir: csv-mlp already holds a run"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_wrong_keys_are_request_errors(overrides: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        mcls.train([*overrides, *QUICK] if isinstance(overrides, list) else overrides)
    assert not list(Path("outputs").rglob("run.json"))


def test_trains_outside_the_main_thread() -> None:
    found: list[mcls.Run | BaseException] = []

    def work() -> None:
        try:
            found.append(mcls.train(QUICK))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], mcls.Run) and found[0].result["status"] == "finished"


INTERRUPTED = """
import os, signal, sys, threading
import mcls
from mcls.errors import MclsError
from mcls.training.trainer import Trainer
epoch, times = Trainer.train_epoch, int(sys.argv[1])
def train_epoch(*arguments):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
    return epoch(*arguments)
Trainer.train_epoch = train_epoch
try:
    mcls.train(["trainer.epochs=2", "trainer.figures=false", "device=cpu"])
except (MclsError, KeyboardInterrupt) as error:
    print(type(error).__name__)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize(("times", "error"), [(1, "Stopped"), (2, "KeyboardInterrupt")])
def test_an_interrupt_is_an_exception(times: int, error: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{error}\nTrue\n"), done.stderr
    assert issubclass(Stopped, MclsError)
    if times == 1:
        folder = next(Path("outputs").rglob("run.json")).parent
        assert mcls.load(folder, device="cpu", checkpoint="last").result["status"] == "stopped"


def test_a_program_with_hydra_keeps_its_own() -> None:
    with initialize_config_dir(str(Path("blobs-mlp").absolute()), version_base="1.3"):
        mcls.train(QUICK)
        assert compose("config").dataset.n_samples == 400


def test_import_is_instant() -> None:
    code = (
        "import sys, mcls; assert mcls.__version__ and {'load', 'train'} <= set(dir(mcls))\n"
        "print({'torch', 'numpy', 'hydra', 'omegaconf', 'yaml', 'PIL'} & set(sys.modules))\n"
        "mcls.load; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
