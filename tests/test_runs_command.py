"""`mcls runs`: what it lists, averages, filters and says of folders that are not as they should be."""

import csv
import fcntl
import io
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcls.runs.folder import MAX_TEXT_BYTES, RunFolder, as_yaml, read_json
from mcls.runs.lock import locked
from trained import train

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SELECTED = "; val/accuracy: selected on val, so too high on average"
PLAIN = {"seed": 0, "dataset": "blobs", "model": "mlp", "optimizer.lr": 0.1}


def make(
    folder: Path,
    status: str | None = "finished",
    val: float | None = 0.9,
    keys: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run folder with its two JSON files alone."""
    folder.mkdir(parents=True)
    about = {"overrides": [], "started": "2026-01-01", "hyperparameters": {**PLAIN, **(keys or {}), **settings}}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(as_yaml({**PLAIN, **(keys or {}), **settings}))
    report = None if val is None else {"accuracy": val, "loss": 1 - val, "f1_macro": val, "ece": 0.1}
    test = {"accuracy": (val or 0) / 2, "loss": 1.0, "f1_macro": 0.5, "ece": 0.1}
    result = {"status": status, "epochs": 3, "total_seconds": 1.5, "val": report, "test": test}
    if status is not None:
        (folder / "result.json").write_text(json.dumps(result if status == "finished" else {"status": status}))
    return folder


def table(mcls: Main, capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    """The rows of `mcls runs --json`."""
    capsys.readouterr()
    assert mcls("runs", *arguments, "--json") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_real_runs_best_first(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    for name, rate in (("a", "1e-9"), ("b", "0.1")):
        train(tmp_path / "outputs" / "blobs-mlp" / name, data_root, f"optimizer.lr={rate}", "trainer.epochs=2")
    capsys.readouterr()
    assert mcls("runs") == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    header = ["run", "val/accuracy", "test/accuracy", "status", "optimizer.lr"]
    assert lines[0] == [*header, "val/interval", "against_best", "test/interval", "epochs", "seconds"]
    assert [line[4] for line in lines[1:]] == ["0.1", "1e-09"]
    assert [line[0] for line in lines[1:]] == ["outputs/blobs-mlp/b", "outputs/blobs-mlp/a"]
    result = RunFolder(tmp_path / "outputs" / "blobs-mlp" / "b").read_result()
    assert result is not None
    assert lines[1][1:4] == [f"{result['val']['accuracy']:.4f}", f"{result['test']['accuracy']:.4f}", "finished"]
    assert err == f"2 of 2 runs in outputs{SELECTED}\n"


def test_runs_are_compared_as_in_the_table_of_their_sweep(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    line = ("train", "-m", "trainer=debug", "trainer.figures=false", "sweep.test=all", "dataset.n_samples=300")
    assert mcls(*line, "optimizer.lr=0.1,1e-5,1e-6", "seed=0,1,2", "sweep.name=s") == 0
    assert mcls(*line, "optimizer.lr=0.1,1e-5", "dataset.val_seed=1", "sweep.name=other") == 0
    for name in ("s", "other"):
        with (tmp_path / "outputs" / "sweeps" / name / "sweep.csv").open() as file:
            swept = list(csv.DictReader(file))
        listed = {
            str(row["hyperparameters"]["optimizer.lr"]): row for row in table(mcls, capsys, f"outputs/sweeps/{name}")
        }
        for row in swept:
            values = listed[str(float(row["optimizer.lr"]))]["values"]
            assert values["val/interval"] == row["val interval"] and values["test/interval"] == row["test interval"]
            assert values["against_best"] == row["against the best"]
    words = [row["values"]["against_best"] for row in table(mcls, capsys)]
    assert words.count("best") == 2  # one for each val
    assert {row["values"]["against_best"] for row in table(mcls, capsys, "--all")} == {None}


def test_a_pruned_run_is_no_repeat_of_a_finished_one(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for seed in range(3):
        folder = make(tmp_path / "outputs" / f"a{seed}", seed=seed)
        if seed == 2:
            result = read_json(folder / "result.json") | {"ended_by": "search.pruner"}
            (folder / "result.json").write_text(json.dumps(result))
    assert sorted((row["n"], row["status"]) for row in table(mcls, capsys)) == [(1, "pruned"), (2, "finished")]


def test_seeds_are_averaged(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    values = [0.80, 0.92, 0.85]
    for seed, value in enumerate(values):
        make(tmp_path / "outputs" / f"a{seed}", val=value, seed=seed)
    make(tmp_path / "outputs" / "again", val=0.92, seed=1)  # the same run twice says no more than once
    make(tmp_path / "outputs" / "other", val=0.86, keys={"optimizer.lr": 0.2})
    first, second = table(mcls, capsys)
    assert (first["n"], first["run"], first["values"]["val/accuracy"]) == (1, "outputs/other", 0.86)
    assert second["n"] == 3
    assert second["values"]["val/accuracy"] == pytest.approx(statistics.mean(values))
    assert second["std"]["val/accuracy"] == pytest.approx(statistics.stdev(values))
    assert "seed" not in second["hyperparameters"]
    assert mcls("runs") == 0
    assert "0.8567 ± 0.0603" in capsys.readouterr().out
    assert [row["n"] for row in table(mcls, capsys, "--all")] == [1] * 5


def test_other_data_and_other_ends_are_not_averaged(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for seed, name in enumerate(("x", "y")):
        folder = make(tmp_path / "outputs" / name, seed=seed)
        (folder / "config.yaml").write_text(as_yaml({"seed": seed, "dataset": {"path": f"{name}.csv"}}))
    make(tmp_path / "outputs" / "stopped", status="stopped", seed=2)
    assert [row["n"] for row in table(mcls, capsys)] == [1, 1, 1]


METHODS: tuple[
    dict[str, dict[str, Any]], ...
] = (  # one and the same hyper-parameters as run.json of an older version has them
    {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1}},
    {"optimizer": {"_target_": "torch.optim.NAdam", "lr": 0.1}},
    {"optimizer": {"_target_": "torch.optim.NAdam", "lr": 0.2}},
    {"optimizer": {"_target_": "torch.optim.NAdam", "lr": 0.2}, "dataset": {"drop_columns": ["id", "x"]}},
    {"optimizer": {"_target_": "torch.optim.NAdam", "lr": 0.2}, "dataset": {"drop_columns": ["id"]}},
    {"optimizer": {"_target_": "torch.optim.NAdam", "lr": 0.2}, "trainer": {"epochs": 4}},
)


def test_different_methods_are_no_seeds_of_each_other(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for number, method in enumerate(METHODS):
        for seed in (0, 1):
            folder = make(tmp_path / "outputs" / f"{number}{seed}", val=0.9 - number / 100, seed=seed)
            free = {"seed": seed, "device": f"cuda:{seed}", "outputs": str(seed), "trust": [str(seed)] * seed}
            trainer = {"figures": bool(seed), **method.get("trainer", {})}
            (folder / "config.yaml").write_text(as_yaml({**free, **method, "trainer": trainer}))
    assert [(row["n"], row["run"][-2]) for row in table(mcls, capsys)] == [(2, str(number)) for number in range(6)]


def test_runs_in_another_arithmetic_are_no_seeds_of_each_other(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for seed, precision in enumerate(("fp32", "fp32", "bf16")):
        folder = make(tmp_path / "outputs" / f"a{seed}", seed=seed, precision="auto")
        about = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**about, "precision": precision}))
    assert sorted((row["n"], row["hyperparameters"]["precision"]) for row in table(mcls, capsys)) == [
        (1, "bf16"),
        (2, "fp32"),
    ]


def test_parts_of_one_name_have_a_column_that_tells_them_apart(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    targets = ("torch.optim.Adam", "torch.optim.NAdam", "mine.SGD", "torch.optim.SGD")
    for number, target in enumerate(targets):
        choice = "sgd" if target == "torch.optim.SGD" else "mine"
        folder = make(tmp_path / "outputs" / f"a{number}", val=0.9 - number / 10, optimizer=choice)
        (folder / "config.yaml").write_text(as_yaml({"seed": 0, "optimizer": {"_target_": target}}))
    assert mcls("runs", "optimizer=mine", "--sort", "run") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[4] for line in lines] == ["optimizer._target_", "Adam", "NAdam", "SGD"]
    assert mcls("runs", "--sort", "run") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[4:6] for line in lines] == [
        ["optimizer", "optimizer._target_"],
        ["mine", "torch.optim.Adam"],
        ["mine", "torch.optim.NAdam"],
        ["mine", "mine.SGD"],
        ["sgd", "torch.optim.SGD"],
    ]
    assert mcls("runs", "optimizer._target_=torch.optim.NAdam") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_real_runs_of_two_classes_under_one_name(mcls: Main, tmp_path: Path, data_root: Path, capsys: Capture) -> None:
    """Two optimizers that only `_target_` tells apart, and the HPARAMS tab's trial of each."""
    for number, target in enumerate(("Adam", "Adam", "NAdam")):
        folder = tmp_path / "outputs" / "blobs-mlp" / str(number)
        optimizer = ("optimizer=adam", f"optimizer._target_=torch.optim.{target}")
        train(folder, data_root, *optimizer, f"seed={number}", "trainer.epochs=1", "trainer.figures=false")
    assert sorted(row["n"] for row in table(mcls, capsys)) == [1, 2]
    about = [read_json(tmp_path / "outputs" / "blobs-mlp" / str(number) / "run.json") for number in range(3)]
    assert [each["hyperparameters"]["optimizer._target_"] for each in about] == [
        f"torch.optim.{target}" for target in ("Adam", "Adam", "NAdam")
    ]


def test_every_status(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for status in ("finished", "stopped", "failed", "running"):
        make(tmp_path / "outputs" / status, status=status)
    make(tmp_path / "outputs" / "killed", status="running")
    make(tmp_path / "outputs" / "never started", status=None)
    (tmp_path / "outputs" / "killed" / "lock").touch()
    (tmp_path / "outputs" / "killed" / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    with RunFolder(tmp_path / "outputs" / "running").lock():
        rows = table(mcls, capsys)
    found = {row["run"].split("/")[1]: row["status"] for row in rows}
    assert found == {name: name for name in ("finished", "stopped", "failed", "running", "killed", "never started")}
    assert {row["status"]: row["values"]["epochs"] for row in rows}["killed"] == 2


def test_looking_takes_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert not locked(path)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert locked(path)


def test_jobs_of_a_sweep_that_are_still_to_come(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    make(sweep / "0_optimizer.lr=0.1")
    about = {"command": "mcls train -m", "fixed": [], "jobs": [["optimizer.lr=0.1"], ["optimizer.lr=0.2"]]}
    (sweep / "sweep.json").write_text(json.dumps(about))
    rows = table(mcls, capsys)
    assert [(row["run"].rsplit("/")[-1], row["status"]) for row in rows] == [
        ("0_optimizer.lr=0.1", "finished"),
        ("1_optimizer.lr=0.2", "never started"),
    ]
    (sweep / "sweep.json").write_text("{")
    assert [row["status"] for row in table(mcls, capsys)] == ["finished", "damaged"]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["dataset=mnist"], "b"),
        (["dataset!=mnist"], "acd"),
        (["val/accuracy>0.75"], "ab"),
        (["val/accuracy>=0.7", "dataset=blobs"], "ac"),
        (["status=failed"], "d"),
        (["lr<0.1"], "c"),
        (["optimizer.lr<=1e-1", "status=finished"], "abc"),
        (["val/loss<0.15"], "a"),
        (["started>2025-12-31", "dataset<c"], "acd"),
    ],
)
def test_filters(mcls: Main, tmp_path: Path, capsys: Capture, filters: list[str], kept: str) -> None:
    make(tmp_path / "outputs" / "a", val=0.9)
    make(tmp_path / "outputs" / "b", val=0.8, dataset="mnist")
    make(tmp_path / "outputs" / "c", val=0.7, keys={"optimizer.lr": 0.01})
    make(tmp_path / "outputs" / "d", status="failed")
    assert [row["run"][-1] for row in table(mcls, capsys, *filters)] == list(kept)
    assert [row["run"][-1] for row in table(mcls, capsys, "outputs", *filters)] == list(kept)
    assert [row["run"][-1] for row in table(mcls, capsys, *filters, "outputs")] == list(kept)


def test_a_filter_on_a_measure_picks_no_lucky_seeds(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for seed, value in enumerate((0.6, 0.9)):
        make(tmp_path / "outputs" / f"a{seed}", val=value, seed=seed)
    assert table(mcls, capsys, "val/accuracy>0.8") == []
    assert [row["n"] for row in table(mcls, capsys, "val/accuracy>0.7")] == [2]
    assert [row["n"] for row in table(mcls, capsys, "seed=1", "val/accuracy>0.8")] == [1]


def test_sort(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for name, value, rate in (("a", 0.9, 3.0), ("b", 0.7, 10.0), ("c", 0.8, 2.0)):
        make(tmp_path / "outputs" / name, val=value, keys={"optimizer.lr": rate})
    make(tmp_path / "outputs" / "d", val=None)

    def names(*arguments: str) -> str:
        return "".join(row["run"][-1] for row in table(mcls, capsys, *arguments))

    assert names() == names("--sort", "val/loss") == "acbd"
    assert names("--sort", "lr") == "dcab"
    assert names("--sort", "run") == "abcd"


def test_csv_and_markdown(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    make(tmp_path / "outputs" / "a", val=1 / 3, model="=cmd|x")
    make(tmp_path / "outputs" / "b", val=0.25)
    assert mcls("runs", "--csv") == 0
    out, err = capsys.readouterr()
    first, second = csv.DictReader(io.StringIO(out))
    assert (first["run"], float(first["val/accuracy"]), first["model"]) == ("outputs/a", 1 / 3, "'=cmd|x")
    assert second["n"] == "1"
    assert err == "2 of 2 runs in outputs\n"
    assert mcls("runs", "--md") == 0
    assert capsys.readouterr().out.splitlines() == [
        "| run | val/accuracy | test/accuracy | status | model | epochs | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| outputs/a | 0.3333 | 0.1667 | finished | =cmd\\|x | 3 | 1.5 |",
        "| outputs/b | 0.2500 | 0.1250 | finished | mlp | 3 | 1.5 |",
    ]


def test_a_terminal_gets_the_columns_that_fit(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):  # a value differs once, another in all runs
        rare = {f"trainer.rare_{key}": key if number == 2 else 0 for key in range(1, 20)}
        make(tmp_path / "outputs" / f"run{number}", val=0.5 + number / 10, keys={**rare, "optimizer.lr": number})
    assert mcls("runs") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()[0].split()) == 4 + 20 + 2
    assert err == f"4 of 4 runs in outputs{SELECTED}\n"
    monkeypatch.setenv("COLUMNS", "60")
    assert mcls("runs") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        "              val/      test/                   rare_  rare_",
        "run           accuracy  accuracy  status    lr  1      2",
        "outputs/run3  0.8000    0.4000    finished  3   0      0",
    ]
    assert max(map(len, out.splitlines())) <= 60
    shown = len(out.splitlines()[-1].split())
    assert err.replace("\n", " ") == f"4 of 4 runs in outputs; {26 - shown} more columns: --csv{SELECTED} "
    assert mcls("runs", "--md") == 0
    assert "trainer.rare_19" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "10")
    assert mcls("runs") == 0
    lines = capsys.readouterr().out.splitlines()  # a list
    assert lines[:4] == ["run3", "  val/accuracy=0.8000,", "  test/accuracy=0.4000,", "  status=finished"]


def test_a_terminal_gets_every_key_that_was_typed(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        keys = {f"trainer.key_{key}": 10 * key + number for key in range(1, 20)}
        folder = make(tmp_path / "outputs" / f"run{number}", keys={**keys, "trainer.rare": number})
        about = read_json(folder / "run.json") | {"overrides": [f"{key}={value}" for key, value in keys.items()]}
        (folder / "run.json").write_text(json.dumps(about))
    monkeypatch.setenv("COLUMNS", "80")
    assert mcls("runs") == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    listed = " ".join(out.partition("run1\n")[2].partition("run0\n")[0].split()).split(", ")
    assert listed[3:] == [f"key_{key}={10 * key + 1}" for key in range(1, 20)]
    assert "3 more columns" in err  # trainer.rare, epochs and seconds


def test_narrow_lines_keep_what_tells_the_jobs_of_a_sweep_apart(
    mcls: Main, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        keys = {"optimizer.lr": 10.0**-number, "trainer.epochs": 7, "model.hidden_units": f"[{number}]"}
        name = f"{number}_model.hidden_units={number},optimizer.lr={10.0**-number:g},trainer.epochs=7"
        folder = make(tmp_path / "outputs" / "sweeps" / "2026-01-01_00-00-00" / name, keys=keys)
        typed = {**keys, "trainer.epochs": 7 + number % 2}
        about = read_json(folder / "run.json") | {"overrides": [f"{key}={value}" for key, value in keys.items()]}
        about["hyperparameters"].update(typed)
        (folder / "run.json").write_text(json.dumps(about))
    monkeypatch.setenv("COLUMNS", "80")
    assert mcls("runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 12 and max(map(len, lines)) <= 80  # one row each
    ends = {int(line.split()[0].rpartition("/")[2]): line.split()[-3:] for line in lines[2:]}
    assert ends == {number: [f"{10.0**-number:g}", str(7 + number % 2), f"[{number}]"] for number in range(12)}
    assert "trainer.epochs" in lines[1]  # as `epochs` it would be taken for those that were trained
    monkeypatch.setenv("COLUMNS", "40")
    assert mcls("runs") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    for number in range(12):
        own = out.partition(f"/{number}\n")[2].partition("\nsweeps/")[0].split()
        assert {f"lr={10.0**-number:g},", f"trainer.epochs={7 + number % 2},", f"hidden_units=[{number}]"} <= {*own}


HOSTILE = {
    "not json": ("run.json", b"{"),
    "a list": ("run.json", b"[]"),
    "deep": ("run.json", b"[" * 100_000),
    "long number": ("run.json", b'{"seed": ' + b"9" * 5000 + b"}"),
    "odd settings": ("run.json", b'{"hyperparameters": [1]}'),
    "odd overrides": ("run.json", b'{"overrides": 1}'),
    "odd status": ("result.json", b'{"status": "\\u001b[2Jowned"}'),
    "odd accuracy": ("result.json", b'{"status": "finished", "val": {"accuracy": "\\u001b[31m"}}'),
    "no number": ("result.json", b'{"status": "finished", "val": {"accuracy": NaN}}'),
    "odd val": ("result.json", b'{"status": "finished", "val": 1}'),
    "no text": ("result.json", b"\xff\xfe"),
    "too large": ("result.json", b" " * (MAX_TEXT_BYTES + 1)),
    "odd metrics": ("metrics.jsonl", b'{"epoch": }\n'),
}


def test_damaged_and_hostile_folders_are_rows(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    for name, (file, content) in HOSTILE.items():
        (make(tmp_path / "outputs" / name, status="running") / file).write_bytes(content)
    (make(tmp_path / "outputs" / "link") / "run.json").unlink()
    (tmp_path / "outputs" / "link" / "run.json").symlink_to("/etc/passwd")
    os.mkfifo(make(tmp_path / "outputs" / "fifo", status="running") / "lock")
    (make(tmp_path / "outputs" / "folder") / "run.json").unlink()
    (tmp_path / "outputs" / "folder" / "run.json").mkdir()
    control = {"\x1b[31m": 1, "model": "\x1b]0;title\x07\n"}
    make(tmp_path / "outputs" / "control", keys=control)
    make(tmp_path / "outputs" / "good", keys={"\x1b[31m": 2})
    found = {row["run"].split("/")[1]: row["status"] for row in table(mcls, capsys)}
    assert found == {
        **dict.fromkeys([*HOSTILE, "link", "folder"], "damaged"),
        **{"fifo": "killed", "control": "finished", "good": "finished"},
    }
    for shape in ([], ["--csv"], ["--md"], ["--json"]):
        assert mcls("runs", *shape) == 0
        out = capsys.readouterr().out
        assert all(character.isprintable() or character == "\n" for character in out)
    assert mcls("runs") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "outputs: no such folder. Start with mcls train, or name the folder: mcls runs DIR."),
        (["nowhere"], "nowhere: no such folder. Start with mcls train, or name the folder: mcls runs DIR."),
        (["made", "odd"], "odd: neither a folder nor a filter such as dataset=cifar10 or 'val/accuracy>0.9'."),
        (["model=mlp", "none"], "none: no such folder. Start with mcls train, or name the folder: mcls runs DIR."),
        (
            ["made", "model=mlp", "made/a"],
            "made/a: a second folder beside made. Name only one, the one that contains both.",
        ),
        (["made", "val/accuracy=>0.5"], "val/accuracy=>0.5: no such comparison operator. Available: = != > < >= <=."),
        (
            ["made", "test/accuracy>abc"],
            "test/accuracy>abc: test/accuracy is a number, got 'abc'. Use for example 'test/accuracy>0.5'.",
        ),
        (["made", "modle=mlp"], "modle: no run has this key. Did you mean model?"),
        (["made", "accuracy>1"], "accuracy: no run has this key. Did you mean val/accuracy or test/accuracy?"),
        (["made", "--sort", "qqqq"], "qqqq: no run has this key."),
    ],
)
def test_wrong_requests(mcls: Main, tmp_path: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    make(tmp_path / "made" / "a")
    assert mcls("runs", *arguments) == 2
    assert capsys.readouterr().err == f"mcls: {message}\n"


def test_no_runs(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "outputs").mkdir()
    assert mcls("runs") == 0
    assert capsys.readouterr() == ("", "0 of 0 runs in outputs\n")
    assert table(mcls, capsys) == []


def test_a_thousand_runs_in_a_second(tmp_path: Path) -> None:
    confusion = [[100] * 10] * 10
    for number in range(1000):
        folder = make(tmp_path / f"run{number}", val=number / 1000, keys={f"key{i}": i for i in range(30)}, size=number)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "confusion": confusion}, indent=1))
        (folder / "figures").mkdir()
    script = "import sys; from mcls.cli import main; code = main(['runs', sys.argv[1]]); "
    script += "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules); sys.exit(code)"
    plain = (
        "import json, pathlib, sys\nfor path in pathlib.Path(sys.argv[1]).rglob('*.json'): json.loads(path.read_text())"
    )

    def processor_seconds(code: str) -> tuple[float, str]:  # not those of the clock: other programs may be at work
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    assert len(processor_seconds(script)[1].splitlines()) == 1001
    listed, read = (min(processor_seconds(code)[0] for _ in range(3)) for code in (script, plain))
    assert listed < max(1, 5 * read)  # a second, where reading and parsing the files takes a fifth of it


def test_runs_on_other_data_are_kept_apart_and_repeats_are_counted(mcls: Main, tmp_path: Path, capsys: Capture) -> None:
    """The same file name and configuration; the rows in it have changed, and val with them."""
    line = [
        "train",
        "dataset=csv",
        "dataset.path=t.csv",
        "dataset.target=y",
        "trainer.epochs=1",
        "trainer.figures=false",
    ]
    (tmp_path / "t.csv").write_text("x,y\n" + "1,a\n2,b\n" * 40)
    assert mcls(*line, "hydra.run.dir=runs/first") == mcls(*line, "hydra.run.dir=runs/again") == 0
    (tmp_path / "t.csv").write_text("x,y\n" + "1,a\n2,b\n9,b\n" * 30)
    assert mcls(*line, "hydra.run.dir=runs/other") == 0
    capsys.readouterr()
    assert mcls("runs", "runs") == 0
    out, err = capsys.readouterr()
    assert "runs/other" in out and len(out.strip().splitlines()) == 3
    assert err.startswith("2 of 3 runs in runs") and "1 older repeat of the same configuration and seed: --all" in err
