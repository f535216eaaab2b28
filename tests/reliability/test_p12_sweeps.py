"""P12: failed or killed jobs never change the others; the table names them; a second call does what is missing."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import QUICK, outcome, result

pytestmark = pytest.mark.full
Run = Callable[..., Any]
Count = Callable[[str], None]
KEYS = ("dataset.n_samples=300", "trainer.epochs=2", "model.dropout=0.1", "trainer.checkpoint_every_steps=1", *QUICK)
SWEEP = ("train", "-m", "seed=range(1,13)", "hydra.sweep.dir=sweep", "sweep.test=all", *KEYS)


@pytest.fixture(scope="module")
def solos(server: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Each job by itself."""
    found = {}
    for seed in range(1, 13):
        root = tmp_path_factory.mktemp(f"solo{seed}")
        assert server.run("train", f"seed={seed}", *KEYS, cwd=root, MCLS_DATA=str(digits)).status == 0
        found[seed] = outcome(next(iter(root.glob("outputs/*/*"))))
    return found


def jobs(root: Path) -> dict[int, Path]:
    """The job folders by seed."""
    return {int(folder.name.split("_")[0]) + 1: folder for folder in (root / "sweep").glob("*_*")}


def test_three_fail_and_nine_do_not_notice(mcls: Run, solos: Any, tmp_path: Path, count: Count) -> None:
    planted = {"3": "bug", "7": "machine", "11": "nan"}
    child = mcls(*SWEEP, setup=[["fail_for_seeds", planted]])
    assert child.status == 1, child.stderr
    assert child.stderr.count("failed: ") == 3
    assert child.stderr.splitlines()[-1].startswith("mcls: 3 of the sweep's jobs failed (2, 6, 10)")
    found = jobs(tmp_path)
    assert f"job 2: {result(found[3])['reason']} (and 2 more)" in child.stdout
    for seed, folder in found.items():
        if str(seed) in planted:
            assert result(folder)["status"] == "failed"
        else:
            assert outcome(folder) == solos[seed]
    times = {seed: (folder / "result.json").stat().st_mtime_ns for seed, folder in found.items()}
    child = mcls("resume", "sweep")
    assert child.status == 0, child.stderr
    for seed, folder in jobs(tmp_path).items():
        assert outcome(folder) == solos[seed]
        touched = (folder / "result.json").stat().st_mtime_ns != times[seed]
        assert touched is (str(seed) in planted)
    count("12 jobs, 3 planted failures: 9 equal to their solo runs; a second call did the 3")


def test_the_same_command_again_does_what_is_missing(mcls: Run, solos: Any, tmp_path: Path) -> None:
    assert mcls(*SWEEP, setup=[["fail_for_seeds", {"5": "bug"}]]).status == 1
    times = {seed: (folder / "result.json").stat().st_mtime_ns for seed, folder in jobs(tmp_path).items()}
    assert mcls(*SWEEP).status == 0
    for seed, folder in jobs(tmp_path).items():
        assert outcome(folder) == solos[seed]
        assert ((folder / "result.json").stat().st_mtime_ns != times[seed]) is (seed == 5)


def test_a_sweep_that_was_killed(
    start: Run, mcls: Run, solos: Any, tmp_path: Path, size: Callable[[int, int], int], count: Count
) -> None:
    draw, points = random.Random(12), size(2, 10)
    for point in range(points):
        root = tmp_path / str(point)
        root.mkdir()
        child = start(*SWEEP, cwd=root)
        begun = time.monotonic()
        while not (root / "sweep" / "sweep.json").exists() and time.monotonic() < begun + 20:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 3))
        child.kill()
        child.wait()
        again = mcls("resume", "sweep", cwd=root)
        assert again.status == 0, again.stderr
        found = jobs(root)
        assert set(found) == set(range(1, 13))
        assert all(outcome(folder) == solos[seed] for seed, folder in found.items())
    count(f"killed at {points} points: 12 of 12 jobs equal to their solo runs after mcls resume")


def test_control_another_seed_is_another_outcome(solos: Any) -> None:
    assert len({solo["result"]["weights_sha256"] for solo in solos.values()}) == 12
