"""Run folders written by older versions open with every command and give what they gave then."""

import csv
import json
import shutil
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from mcls.cli import main
from mcls.config.saved import saved_config
from mcls.config.schema import leaves, put, read_constraints
from mcls.errors import FolderError
from mcls.runs.folder import RunFolder, read_json, read_yaml
from mcls.runs.renamed import KEYS, SCHEMA, TARGETS

RUNS = Path(__file__).parent / "fixtures" / "runs" / "0.1"
INPUTS = {"blobs-mlp": "data/points.csv", "csv-mlp": "data/trees.csv", "images-small_resnet": "data/shapes/test"}


@pytest.fixture(autouse=True)
def old_runs(tmp_path, monkeypatch):
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", INPUTS)
def test_an_old_run_predicts_what_it_predicted(name):
    assert main(["predict", name, INPUTS[name], "--device", "cpu", "--output", "now.csv"]) == 0
    now, then = (list(csv.reader(Path(path).read_text().splitlines())) for path in ("now.csv", f"expected/{name}.csv"))
    assert len(now) > 1 and [row[:2] for row in now] == [row[:2] for row in then]
    assert [float(row[2]) for row in now[1:]] == pytest.approx([float(row[2]) for row in then[1:]], abs=1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_an_old_run_is_evaluated_exported_and_resumed(name):
    assert main(["evaluate", name, "--device", "cpu"]) == 0
    now, then = (
        json.loads(Path(p).read_text()) for p in (f"{name}/evaluation.json", f"expected/{name}.evaluation.json")
    )
    assert now["test"]["accuracy"] == then["test"]["accuracy"]
    assert now["test"]["loss"] == pytest.approx(then["test"]["loss"], abs=1e-5)
    assert main(["export", name, "--format", "safetensors"]) == 0
    assert main(["report", name]) == 0
    assert main(["resume", name, "trainer.epochs=11"]) == 0
    assert len(Path(name, "metrics.jsonl").read_text().splitlines()) == 11


def test_an_old_stopped_run_goes_on_and_ends_as_it_would_have():
    assert main(["resume", "stopped-mlp"]) == 0
    now, then = (
        json.loads(Path(p).read_text()) for p in ("stopped-mlp/result.json", "expected/stopped-mlp.result.json")
    )
    assert now["status"] == "finished" and now["steps"] == then["steps"]
    # 790 steps at a high rate amplify the rounding of other instructions than those of the machine of then
    same = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    assert now["test"]["loss"] == pytest.approx(then["test"]["loss"], abs=1e-3 if same else 0.05)


def test_old_runs_are_listed_and_compared_and_an_old_sweep_is_resumed(capsys):
    assert main(["runs", "."]) == 0
    assert main(["compare", "sweep/0_seed=0", "sweep/1_seed=1"]) == 0
    assert main(["resume", "sweep"]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_key_of_another_version_is_ignored_with_a_line_but_for_model_and_data(caplog):
    config = RunFolder(Path("blobs-mlp"))
    text = config.config.read_text()
    config.config.write_text(text + "  zap: 1\n")
    assert "zap" not in saved_config(config)["trainer"] and "trainer.zap is not known" in caplog.text
    config.config.write_text(text.replace("model:\n", "model:\n  zap: 1\n"))
    with pytest.raises(FolderError, match=r"model\.zap"):
        saved_config(config)
    config.config.write_text(text.replace("  monitor: accuracy\n", ""))
    assert saved_config(config)["trainer"]["monitor"] == "accuracy"
    assert saved_config(config)["sweep"]["test"] == "all"  # as it was then


@pytest.mark.parametrize(
    ("key", "value"), [("trainer", 0.5), ("trainer", {}), ("sweep", 3), ("trainer.epochs", {"zap": 1}), ("zap", 1)]
)
def test_a_key_of_the_wrong_shape_is_refused_not_filled_in(key, value):
    folder = RunFolder(Path("blobs-mlp"))
    config = read_yaml(folder.config)
    put(config, key, value)
    folder.write_config(config)
    with pytest.raises(FolderError, match=f"refused: {key}"):
        saved_config(folder, ["trainer.epochs=9"])


def test_config_yaml_says_what_format_it_is_in_and_a_newer_one_is_noticed(caplog):
    folder = RunFolder(Path("blobs-mlp"))
    folder.write_config(saved_config(folder))
    assert read_yaml(folder.config)["schema"] == SCHEMA
    assert saved_config(folder)["sweep"]["test"] == "all" and not caplog.text
    folder.config.write_text(folder.config.read_text().replace(f"schema: {SCHEMA}", f"schema: {SCHEMA + 1}"))
    assert "schema" not in saved_config(folder) and "newer version of mcls" in caplog.text


@pytest.mark.parametrize("name", INPUTS)
def test_an_old_run_is_read_under_the_names_of_today(name):
    folder = RunFolder(Path(name))
    config, about = saved_config(folder), read_json(folder.about)
    assert config["trainer"]["log_every_steps"] == read_yaml(folder.config)["trainer"]["log_every"]
    assert {key for key, _ in leaves(config)} == {key for key, _ in leaves(saved_config(folder))}
    assert not KEYS.keys() & ({key for key, _ in leaves(config)} | about["hyperparameters"].keys())


def test_old_names_of_keys_and_values_keep_working_and_are_named(capsys, tmp_path):
    shared = [
        "dataset=image_folder",
        "dataset.root=data/shapes",
        "trainer.epochs=1",
        "device=cpu",
    ]
    for name, keys in {
        "then": ["model=small_resnet", "trainer.balanced=true", "trainer.log_every=1", "schedule.warmup=0.5"],
        "now": [
            "model=small-resnet",
            "trainer.class_balanced_sampling=true",
            "trainer.log_every_steps=1",
            "schedule.warmup_fraction=0.5",
        ],
    }.items():
        assert main(["train", *shared, *keys, f"hydra.run.dir={name}"]) == 0
    said = capsys.readouterr()
    for line in ("model=small_resnet", "trainer.balanced=true: is called trainer.class_balanced_sampling=true now"):
        assert line in said.err + said.out
    assert read_yaml(Path("then/config.yaml")) == read_yaml(Path("now/config.yaml"))
    assert main(["resume", "then", "trainer.log_every=7", "trainer.epochs=2"]) == 0
    assert read_yaml(Path("then/config.yaml"))["trainer"]["log_every_steps"] == 7


def test_an_old_recipe_of_ones_own_is_read_under_the_names_of_today(capsys):
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\ntrainer:\n  clip_norm: 1.5\n  epochs: 1\n")
    assert main(["train", "--config-dir=own", "experiment=mine", "hydra.run.dir=mine", "device=cpu"]) == 0
    assert read_yaml(Path("mine/config.yaml"))["trainer"]["grad_clip_norm"] == 1.5
    typed = "trainer.grad_clip_norm=2.5"  # wins over the file, whatever the file calls it
    assert main(["train", "--config-dir=own", "experiment=mine", typed, "hydra.run.dir=typed", "device=cpu"]) == 0
    assert read_yaml(Path("typed/config.yaml"))["trainer"]["grad_clip_norm"] == 2.5


def test_every_renamed_key_and_value_exists_under_its_new_name():
    shipped = Path(str(files("mcls.configs")))
    keys = {f"{path.parent.name}.{key}" for path in shipped.glob("*/*.yaml") for key in read_constraints(path)}
    assert set(KEYS.values()) <= keys and not KEYS.keys() & keys
    assert all(
        target.rpartition(".")[2] in vars(import_module(target.rpartition(".")[0])) for target in TARGETS.values()
    )


@pytest.mark.parametrize("name", INPUTS)
def test_predict_and_export_need_the_model_and_the_checkpoint_alone(name):
    """What else stands in config.yaml may be of another version, or damaged."""
    folder = RunFolder(Path(name))
    config = read_yaml(folder.config)
    dataset = {"_target_": "mcls.datasets.of_another_time", "zap": [1]}
    folder.write_config({"model": config["model"], "dataset": dataset, "trainer": {"epochs": "many"}, "zap": 1})
    test_an_old_run_predicts_what_it_predicted(name)
    assert main(["export", name, "--format", "safetensors"]) == 0
    assert main(["evaluate", name]) == 5
    folder.write_config({**config, "model": {**config["model"], "zap": 1}})
    assert main(["predict", name, INPUTS[name]]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("name", INPUTS)
def test_an_old_run_is_exported_to_every_format(name, kind):
    """The exported file is compared with the model before it is put in its place."""
    assert main(["export", name, "--format", kind, "--output", f"model.{kind}"]) == 0
    assert Path(f"model.{kind}").stat().st_size > 1000


def test_tensorboard_reads_old_runs():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in INPUTS:
        events = EventAccumulator(name)
        events.Reload()
        epochs = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        assert [scalar.value for scalar in events.Scalars("val/accuracy")] == pytest.approx(
            [epoch["val"]["accuracy"] for epoch in epochs]
        )
