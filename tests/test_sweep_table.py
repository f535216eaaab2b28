"""The table of a sweep: settings averaged over seeds, and which of them val can't tell from the best."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcls.config.jobs import Job
from mcls.significance import holm, mcnemar
from mcls.sweep import table
from mcls.sweep.plan import Sweep, read_sweep

Main = Callable[..., int]
REPORT: dict[str, Any] = {"loss": 1.0, "f1_macro": 0.5, "ece": 0.1, "per_class": [], "confusion": []}


def sweep_of(path: Path, jobs: Sequence[tuple[list[str], float | None, int]]) -> Sweep:
    """A sweep of finished jobs: overrides, val accuracy (None of a failed one) right ones of 100 val samples."""
    plan = Sweep(path, "mcls train -m", ["dataset"], [Job(["dataset=blobs", *lines]) for lines, _, _ in jobs])
    for number, (_, accuracy, right) in enumerate(jobs):
        folder = plan.folder(number)
        folder.path.mkdir(parents=True)
        result: dict[str, Any] = {"status": "failed", "reason": "step 2: nan", "test_openings": 0}
        if accuracy is not None:
            result = {"status": "finished", "test_openings": 0, "epochs": 3, "best_epoch": 3, "total_seconds": 1.0}
            result |= {"val": {**REPORT, "accuracy": accuracy, "n": 100}, "test": None, "val_correct": f"{right:026x}"}
        folder.result.write_text(json.dumps(result))
    return plan


def lr(rate: float, seed: int) -> list[str]:
    """The overrides of a job."""
    return [f"optimizer.lr={rate}", f"seed={seed}"]


def test_a_row_per_setting_with_paired_comparison_over_seeds(tmp_path: Path) -> None:
    """The t-test over the same seeds is scipy's, the correction statsmodels' (by hand: sorted p times 2 and 1)."""
    from scipy import stats

    val = {0.1: [0.80, 0.82, 0.84, 0.81], 0.2: [0.79, 0.82, 0.85, 0.80], 0.3: [0.70, 0.73, 0.74, 0.71]}
    plan = sweep_of(tmp_path, [(lr(rate, seed), value, 0) for rate in val for seed, value in enumerate(val[rate])])
    header, rows = table.table_of(table.read_settings(plan))
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["optimizer.lr"], row["n"], row["jobs"]) for row in found] == [
        ("0.1", 4, "0 1 2 3"),
        ("0.2", 4, "4 5 6 7"),
        ("0.3", 4, "8 9 10 11"),
    ]
    p = [float(stats.ttest_rel(val[0.1], val[rate]).pvalue) for rate in (0.2, 0.3)]
    assert p[1] < 0.01 < p[0]
    words = [row["against the best"] for row in found]
    assert words == ["best", f"tied (p = {p[0]:.2g})", f"worse (p = {2 * p[1]:.2g})"]
    low, high = stats.t.interval(0.95, 3, loc=0.8175, scale=stats.sem(val[0.1]))
    assert found[0]["val interval"] == f"{low:.4f} to {high:.4f}" and found[0]["val sd"] == "0.0171"


def test_one_seed_is_compared_by_the_same_val_samples(tmp_path: Path) -> None:
    right = [(1 << 90) - 1, ((1 << 80) - 1) << 2, (1 << 60) - 1]
    plan = sweep_of(tmp_path, [(lr(0.1 * n, 0), mask.bit_count() / 100, mask) for n, mask in enumerate(right, 1)])
    words = table.against_best(table.read_settings(plan))
    p = [mcnemar(10, 0), mcnemar(30, 0)]
    assert words == ["best", f"worse (p = {p[0]:.2g})", f"worse (p = {2 * p[1]:.2g})"]


def test_a_seed_that_failed_ranks_its_setting_behind_and_is_named(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, [(lr(0.1, 0), 0.9, 0), (lr(0.1, 1), None, 0), (lr(0.2, 0), 0.8, 0), (lr(0.2, 1), 0.8, 0)])
    header, rows = table.table_of(table.read_settings(plan))
    assert [row[1] for row in rows] == ["0.2", "0.1"]
    assert dict(zip(header, rows[1], strict=True))["status"] == "1 failed, 1 finished"
    assert rows[1][-1] == "job 1: step 2: nan"


def test_a_pruned_job_is_no_repeat_of_finished_ones(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, [(lr(0.1, seed), val, 0) for seed, val in enumerate((0.8, 0.9, 0.1))])
    result = plan.folder(2).result
    report = {**json.loads(result.read_text()), "ended_by": "search.pruner"}
    result.write_text(json.dumps(report))
    header, (row,) = table.table_of(table.read_settings(plan))
    found = dict(zip(header, row, strict=True))
    assert (found["n"], found["val accuracy"], found["status"]) == (2, "0.8500", "2 finished, 1 pruned")


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    assert holm({1: 0.04, 2: 0.01, 3: 0.03}) == pytest.approx({1: 0.06, 2: 0.03, 3: 0.06})


def test_the_table_exists_after_every_job_and_its_command_trains_the_best_again(
    mcls: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    written = table.write_table

    def counted(plan: Sweep) -> Any:
        settings = written(plan)
        seen.append((plan.path / "sweep.csv").read_text().count("finished"))
        return settings

    monkeypatch.setattr("mcls.sweep.runner.write_table", counted)
    lines = ["dataset.n_samples=200", "trainer.epochs=2", "trainer.figures=false", "optimizer.lr=0.001,0.1"]
    assert mcls("train", "-m", *lines, "sweep.name=s") == 0
    assert seen[:2] == [1, 2]
    plan = read_sweep(tmp_path / "outputs" / "sweeps" / "s")
    best = table.read_settings(plan)[0]
    command = shlex.split(table.command_of(plan, best))
    assert mcls(*command[1:], "name=again") == 0
    again = json.loads((tmp_path / "outputs" / "again" / "result.json").read_text())
    assert again["weights_sha256"] == best.repeats[0].result["weights_sha256"]
    right = int(again["val_correct"], 16).bit_count()
    assert right == round(again["val"]["accuracy"] * again["val"]["n"])
