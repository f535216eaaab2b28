"""`mcls train --from RUN`: the same configuration, so the same weights; and with a change, that change alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.config.again import as_override, overrides_of
from mcls.config.compose import checker
from mcls.config.saved import saved_config
from mcls.config.schema import leaves
from mcls.runs.folder import RunFolder, read_yaml
from trained import TINY, train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
RUNS = Path(__file__).parent / "fixtures" / "runs" / "0.1"


def config(folder: Path) -> dict[str, Any]:
    return dict(leaves(read_yaml(folder / "config.yaml")))


def weights(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["weights_sha256"])


def test_without_a_change_the_weights_are_the_same(mcls: Main, tmp_path: Path, data_root: Path) -> None:
    """Of a recipe with changes, too, and of a run that was itself made from another."""
    keys = ["experiment=blobs-mlp", "optimizer.lr=0.01", "trainer.epochs=3", "model.hidden_units=[8,4]", "seed=3"]
    first = train(tmp_path / "first", data_root, *keys)
    assert mcls("train", "--from", str(first), f"hydra.run.dir={tmp_path}/second") == 0
    assert mcls("train", f"--from={tmp_path}/second", f"hydra.run.dir={tmp_path}/third") == 0
    assert config(first) == config(tmp_path / "second") == config(tmp_path / "third")
    assert weights(first) == weights(tmp_path / "second") == weights(tmp_path / "third")
    about = json.loads((tmp_path / "second" / "run.json").read_text())
    assert "--from" not in about["command"] and "model.hidden_units=[8,4]" in about["overrides"]
    assert not [line for line in about["overrides"] if line.startswith("dataset.centers")]  # as it is anyway


def test_a_change_changes_that_alone(mcls: Main, tmp_path: Path, data_root: Path) -> None:
    keys = ["optimizer=adam", "optimizer.lr=0.002", "trainer.epochs=2", "model.hidden_units=[8]"]
    first = train(tmp_path / "first", data_root, *keys)
    assert mcls("train", "trainer.epochs=1", "--from", str(first), f"hydra.run.dir={tmp_path}/second") == 0
    assert config(tmp_path / "second") == {**config(first), "trainer.epochs": 1}
    assert mcls("train", "--from", str(first), "optimizer=sgd", f"hydra.run.dir={tmp_path}/third") == 0
    found, plain = config(tmp_path / "third"), config(train(tmp_path / "plain", data_root))
    for key, value in found.items():
        assert value == (plain if key.startswith("optimizer.") else config(first))[key]
    assert found["optimizer._target_"] == "torch.optim.SGD" and found["model.hidden_units"] == [8]


def test_a_recipe_is_no_change(mcls: Main, tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would set some keys, and the run's others: neither of the two."""
    first = train(tmp_path / "first", data_root, "trainer.epochs=1")
    capsys.readouterr()
    assert mcls("train", "--from", str(first), "experiment=mnist-mlp") == 2
    told = "mcls: experiment: not with --from, which names a whole configuration. Omit one of them.\n"
    assert capsys.readouterr().err == told


def test_a_sweep_from_a_run(mcls: Main, tmp_path: Path, data_root: Path) -> None:
    first = train(tmp_path / "first", data_root, "trainer.epochs=1", "model.hidden_units=[8]")
    assert mcls("train", "-m", "--from", str(first), "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep") == 0
    jobs = sorted(path.parent for path in (tmp_path / "sweep").glob("*/config.yaml"))
    assert [config(job)["seed"] for job in jobs] == [1, 2]
    assert all(config(job) == {**config(first), "seed": config(job)["seed"]} for job in jobs)


@pytest.mark.parametrize("name", ["blobs-mlp", "csv-mlp", "images-small_resnet", "stopped-mlp"])
def test_from_runs_of_older_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The configuration that composes is the one that the folder is read back with."""
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / name)
    with checker() as check:
        found, _ = check.values(overrides_of(folder, [], check))
    saved = saved_config(folder)
    assert {**found, "outputs": None, "trust": []} == {**saved, "outputs": None}


@pytest.mark.parametrize(
    "value",
    [None, True, -3, 1e-05, 0.1, "a b", "it's", "C:\\x\\", "\\'", "", "null", "${seed}", ["a", ["b,c", 1.5]], {}],
)
def test_values_are_written_in_the_grammar_of_overrides(value: Any) -> None:
    with checker() as check:
        override = check.parse(f"x={as_override(value)}")
    from mcls.config.overrides import as_plain

    assert as_plain(override.value()) == value


def test_what_is_refused(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    first = train(tmp_path / "first", data_root, "trainer.epochs=1")
    for words, status, told in (
        (["--from", str(tmp_path)], 5, f"mcls: {tmp_path}: not a run folder"),
        (["--from", "gone"], 5, "mcls: gone: not a run folder, it has no run.json."),
        (["--from", str(first), "optimizer.lr=-1"], 2, "mcls: optimizer.lr: must be float > 0, got -1."),
        (["--from", str(first), "lr=1"], 2, "mcls: lr: no such key. Did you mean optimizer.lr?"),
    ):
        capsys.readouterr()
        assert mcls("train", *words, *TINY) == status
        error = capsys.readouterr().err
        assert told in error and len(error.splitlines()) == 1
    before = (first / "config.yaml").read_text()
    (first / "config.yaml").write_text(before.replace("mcls.models.MLP", "os.system"))
    assert mcls("train", "--from", str(first)) == 5
