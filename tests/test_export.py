"""`mcls export`: what the file says and does by itself, outside mcls."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from mcls.inference import export
from mcls.inference.load import load_run
from mcls.runs.folder import RunFolder
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
CSV = ["dataset=csv", "dataset.target=kind", "trainer.batch_size=16", "trainer.epochs=2"]
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("blobs") / "run", data_root, "trainer.epochs=2")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    return train(tmp_path_factory.mktemp("mnist") / "run", data_root, "dataset=mnist", "trainer.epochs=1")


def expected(folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Probabilities, worked out step by step."""
    loaded = load_run(RunFolder(folder), device="cpu")
    tensor = torch.from_numpy(inputs)
    if loaded.mean is not None and loaded.std is not None:
        mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (loaded.mean, loaded.std))
        tensor = (tensor / 255 - mean) / std
    with torch.inference_mode():
        found: np.ndarray = loaded.model(tensor).softmax(1).numpy()
    return found


def digits(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)


def points(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", ["mnist", "blobs"])
def test_onnx_by_itself(mcls: Main, kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: Capture) -> None:
    folder: Path = request.getfixturevalue(kind)
    make, classes = (digits, DIGITS) if kind == "mnist" else (points, DIGITS[:4])
    path = tmp_path / "model.onnx"
    capsys.readouterr()
    assert mcls("export", str(folder), "--format", "onnx", "--output", str(path)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "largest difference from the run's model: " in said.out and len(said.out.splitlines()) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["mcls.classes"]) == classes
    assert json.loads(about["mcls.input_shape"]) == list(make(1).shape[1:])
    [given], [answer] = session.get_inputs(), session.get_outputs()
    assert given.type == ("tensor(uint8)" if kind == "mnist" else "tensor(float)")
    assert isinstance(given.shape[0], str) and answer.shape[1:] == [len(classes)]
    for count in (1, 2, 3, 64):
        [found] = session.run(None, {given.name: make(count)})
        np.testing.assert_allclose(found, expected(folder, make(count)), atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def table(path: Path, text: bool) -> np.ndarray:
    """A CSV file with columns of time and size, and one of colour for `text`. Returns its numbers (N, 2)."""
    random = np.random.default_rng(0)
    numbers = random.normal((1.7e9, 3), (50, 2), size=(60, 2))  # 1.7e9 and its neighbours are one float32
    rows = [f"{time!r},{size!r}{',red' if text else ''},{('a', 'b')[time > 1.7e9]}" for time, size in numbers.tolist()]
    path.write_text("\n".join([f"time,size{',colour' if text else ''},kind", *rows]))
    return numbers


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_numbers_of_a_table_are_standardised_inside(
    mcls: Main, form: str, tmp_path: Path, data_root: Path, capsys: Capture
) -> None:
    numbers = table(tmp_path / "t.csv", text=False)
    folder = train(tmp_path / "run", data_root, *CSV, f"dataset.path={tmp_path / 't.csv'}")
    capsys.readouterr()
    assert mcls("export", str(folder), "--format", form) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "input: float64 N x 2; output: probabilities N x 2; class names are in the metadata"
    assert said[2] == "input: the raw numeric columns of the table, in the order of mcls.encoder in the metadata"
    encoder = load_run(RunFolder(folder), device="cpu").encoder
    assert encoder is not None and encoder["columns"] == ["time", "size"]
    wanted = expected(folder, ((numbers - encoder["means"]) / encoder["stds"]).astype(np.float32))
    if form == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["mcls.input_type"]) == "float64"
        [found] = session.run(None, {"inputs": numbers})
    else:
        found = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(numbers)).detach().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    if form == "onnx":
        answers = []
        for model in (folder, folder / "model.onnx"):
            assert mcls("predict", str(model), str(tmp_path / "t.csv"), "--top", "2") == 0
            answers.append(list(csv.DictReader(capsys.readouterr().out.splitlines())))
        for one, other in zip(*answers, strict=True):
            assert one["class"] == other["class"]
            assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=2e-6)


def test_columns_of_text_are_encoded_outside(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    table(tmp_path / "t.csv", text=True)
    folder = train(tmp_path / "run", data_root, *CSV, f"dataset.path={tmp_path / 't.csv'}")
    capsys.readouterr()
    assert mcls("export", str(folder), "--format", "onnx") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("input: float32 N x 3;")
    assert said[2] == "input: the encoded columns of the table, as described by mcls.encoder in the metadata"


@pytest.mark.slow
def test_a_convolutional_network(mcls: Main, tmp_path: Path, data_root: Path, accept_cifar10: None) -> None:
    arguments = ["dataset=cifar10", "model=resnet18", "trainer.epochs=1", "trainer.batch_size=100"]
    folder = train(tmp_path / "cifar", data_root, *arguments)
    for form in ("onnx", "pt2"):
        assert mcls("export", str(folder), "--format", form) == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"inputs": images})[0], expected(folder, images), atol=1e-4)


def test_pt2_by_itself(mcls: Main, mnist: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.pt2"
    capsys.readouterr()
    assert mcls("export", str(mnist), "--format", "pt2", "--output", str(path)) == 0
    assert capsys.readouterr().err == ""
    extra = {"mcls.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(json.loads(extra["mcls.json"])["mcls.classes"]) == DIGITS
    for count in (1, 5):
        found = program(torch.from_numpy(digits(count))).detach().numpy()
        np.testing.assert_allclose(found, expected(mnist, digits(count)), atol=1e-5)


def test_safetensors_by_itself(mcls: Main, mnist: Path) -> None:
    assert mcls("export", str(mnist), "--format", "safetensors") == 0
    weights = load_run(RunFolder(mnist), device="cpu").model.state_dict()
    with safe_open(mnist / "model.safetensors", "pt") as file:
        about = file.metadata()
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())
    assert json.loads(about["mcls.classes"]) == DIGITS
    assert json.loads(about["mcls.mean"]) == [0.1307]
    assert json.loads(about["mcls.model"])["hidden_units"] == [128, 64]


def test_the_last_checkpoint(mcls: Main, blobs: Path, capsys: Capture) -> None:
    assert mcls("export", str(blobs), "--format", "safetensors", "--checkpoint", "last") == 0
    assert "last checkpoint of epoch 2" in capsys.readouterr().out


def test_a_copy_that_differs_is_not_written(
    mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(deployed: export.Deployed, loaded: object) -> tuple[bytes, export.Run]:
        return b"x", lambda inputs: deployed(inputs) + 2e-4

    monkeypatch.setitem(export.FORMS, "pt2", wrong)
    assert mcls("export", str(blobs), "--format", "pt2", "--output", str(tmp_path / "m.pt2")) == 1
    message = "the copy's probabilities are up to 2.0e-04 from the model's, more than 0.0001. No file was written."
    assert capsys.readouterr().err == f"mcls: --format pt2: {message}\n"
    assert not (tmp_path / "m.pt2").exists()

    def broken(deployed: export.Deployed, loaded: object) -> tuple[bytes, export.Run]:
        return b"x", lambda inputs: deployed(inputs) * float("nan")

    monkeypatch.setitem(export.FORMS, "pt2", broken)
    assert mcls("export", str(blobs), "--format", "pt2", "--output", str(tmp_path / "m.pt2")) == 1


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("safetensors", "safetensors")]
)
def test_a_missing_extra(
    mcls: Main, blobs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert mcls("export", str(blobs), "--format", form) == 4
    message = capsys.readouterr().err
    assert message.startswith(f"mcls: --format {form}: {package}") and message.count("\n") == 1
    assert message.endswith("Install what it takes: pip install 'mcls[onnx]'\n")


def test_what_is_refused(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert mcls("export", str(tmp_path), "--format", "onnx") == 5
    assert capsys.readouterr().err == f"mcls: {tmp_path}: not a run folder, it has no run.json.\n"
    folder = Path(shutil.copytree(blobs, tmp_path / "run"))
    (folder / "best.pt").unlink()
    assert mcls("export", str(folder), "--format", "onnx") == 5
    assert "best.pt: no such checkpoint yet" in capsys.readouterr().err
    assert mcls("export", str(blobs), "--format", "pt2", "--output", "/nowhere/m.pt2") == 4
    assert "/nowhere/m.pt2: cannot be written" in capsys.readouterr().err
    assert mcls("export", str(blobs), "--format", "safetensors", "--output", f"{blobs}/run.json/m") == 2
    expected = f"mcls: {blobs}/run.json/m: can't be a file (Not a directory). Name another one.\n"
    assert capsys.readouterr().err == expected
    assert mcls("export", str(blobs)) == 2
    assert capsys.readouterr().err == "mcls: --format: missing. See mcls export --help.\n"
    assert mcls("export", str(blobs), "--format", "pt2", "model=mlp") == 2
    told = "model=mlp: mcls export takes no other key than trust; everything else is as in the run."
    assert capsys.readouterr().err == f"mcls: {told}\n"


def test_another_precision_than_the_runs_is_told(mcls: Main, blobs: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(blobs, tmp_path / "run"))
    for precision in ("fp32", "bf16"):
        about = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**about, "precision": precision}))
        assert mcls("export", str(folder), "--format", "safetensors") == 0
        told = "computes in fp32; the run was measured in bf16\n" in capsys.readouterr().out
        assert told is (precision == "bf16")
