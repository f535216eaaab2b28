"""k-fold cross-validation: `dataset.folds` and `dataset.fold`, with groups of samples that stay together."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from makers import write_mnist
from mcls.config.compose import checker
from mcls.config.instantiate import build
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.significance import paired_t
from mcls.sweep import table
from mcls.sweep.plan import read_sweep

Main = Callable[..., int]
QUICK = ("trainer.epochs=2", "trainer.figures=false", "dataset.n_samples=200")


def read(*lines: str) -> Dataset:
    """The data set of a command line."""
    with checker() as check:
        config = check.check(list(lines), False).config
    found: Dataset = build("dataset", config["dataset"])
    return found


def folds(number: int, *lines: str) -> list[Dataset]:
    return [read(f"dataset.folds={number}", f"dataset.fold={fold}", *lines) for fold in range(number)]


def val_of(found: Dataset) -> Split:
    assert found.val is not None
    return found.val


def write_pictures(root: Path, classes: str = "ab", groups: int = 6, each: int = 3) -> None:
    """CLASS/GROUP/NUMBER.png, groups of one name in all classes."""
    random = np.random.default_rng(0)
    for name in classes:
        for group in range(groups):
            (root / name / f"g{group}").mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"g{group}" / f"{number}.png")


def write_table(path: Path, rows: int = 120, groups: int = 20) -> Path:
    random = np.random.default_rng(0)
    lines = [
        f"{random.normal():.3f},{random.normal():.3f},p{n % groups},{'no' if n % 3 else 'yes'}" for n in range(rows)
    ]
    path.write_text("\n".join(["x,y,patient,kind", *lines]) + "\n")
    return path


def test_the_folds_of_a_table_are_scikit_learns_and_each_row_is_in_one(tmp_path: Path) -> None:
    lines = (
        "dataset=csv",
        f"dataset.path={write_table(tmp_path / 't.csv')}",
        "dataset.target=kind",
        "dataset.val_seed=3",
    )
    whole = read(*lines, "dataset.val_fraction=0", "dataset.drop_columns=[patient]").train
    found = folds(4, *lines, "dataset.drop_columns=[patient]")
    cuts = StratifiedKFold(4, shuffle=True, random_state=3).split(whole.targets, whole.targets)
    for each, (first, second) in zip(found, cuts, strict=True):
        assert each.train.names == tuple(whole.names[row] for row in first)
        assert val_of(each).names == tuple(whole.names[row] for row in second)
        assert each.open_test().names == found[0].open_test().names
    assert sorted(name for each in found for name in val_of(each).names) == sorted(whole.names)


def test_a_table_with_groups_parts_none_in_any_split(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    lines = ("dataset=csv", f"dataset.path={path}", "dataset.target=kind", "dataset.group=patient")
    rows = path.read_text().splitlines()
    whole = read(*lines, "dataset.val_fraction=0").train

    def patient(name: str) -> str:
        return rows[int(name.removeprefix("row ")) - 1].split(",")[2]

    groups = [patient(name) for name in whole.names]
    numbers = [sorted(set(groups)).index(name) for name in groups]
    found = folds(3, *lines)
    assert found[0].encoder is not None and found[0].encoder["columns"] == ["x", "y"]
    for each in found:
        parts = [{patient(name) for name in part.names} for part in (each.train, val_of(each), each.open_test())]
        assert all(parts) and not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]
    tested = StratifiedGroupKFold(3, shuffle=True, random_state=0).split(groups, whole.targets, numbers)
    assert {len(test) for _, test in tested} == {len(val_of(each)) for each in found}
    held = read(*lines, "dataset.val_fraction=0.3")
    assert not {patient(name) for name in held.train.names} & {patient(name) for name in val_of(held).names}


@pytest.mark.parametrize("name", ["blobs", "mnist"])
def test_the_built_in_sets_have_folds(name: str, tmp_path: Path) -> None:
    if name == "mnist":
        write_mnist(tmp_path, train=100)
    lines = (f"dataset={name}", *([f"dataset.root={tmp_path}"] if name == "mnist" else []))
    whole = read(*lines, "dataset.val_fraction=0").train
    found = folds(5, *lines)
    assert isinstance(whole.inputs, torch.Tensor)
    values = sorted(float(inputs.sum()) for each in found for inputs in torch.as_tensor(val_of(each).inputs[:]))
    assert values == sorted(float(inputs.sum()) for inputs in whole.inputs)
    for each in found:
        assert len(each.train) + len(val_of(each)) == len(whole)
        counts = torch.stack([torch.bincount(part.targets) / len(part) for part in (whole, val_of(each))])
        assert (counts[0] - counts[1]).abs().max() < 0.02


def test_a_folder_of_images_has_folds_of_train_and_val_and_groups_by_level(tmp_path: Path) -> None:
    write_pictures(tmp_path / "flat")
    found = folds(3, "dataset=image_folder", f"dataset.root={tmp_path / 'flat'}", "dataset.group=1", "dataset.size=4")
    for each in found:
        parts = [{name.split("/")[1] for name in part.names} for part in (each.train, val_of(each), each.open_test())]
        assert all(parts) and not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]
    for part in ("train", "val", "test"):
        write_pictures(tmp_path / "cut" / part, groups=2)
    found = folds(2, "dataset=image_folder", f"dataset.root={tmp_path / 'cut'}")
    names = [name for each in found for name in val_of(each).names]
    assert len(names) == len(set(names)) == 24 and {name.split("/")[0] for name in names} == {"train", "val"}
    with pytest.raises(DataError, match=r"val/a/g0/0\.png: group 'g0' is in train and in val\. Put it in one split"):
        read("dataset=image_folder", f"dataset.root={tmp_path / 'cut'}", "dataset.group=1")
    with pytest.raises(DataError, match=r"in 1 folder below its class, fewer than dataset\.group=2"):
        read("dataset=image_folder", f"dataset.root={tmp_path / 'flat'}", "dataset.group=2")


def test_a_table_of_images_has_folds_that_part_no_group(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", groups=8, each=2)
    files = sorted((tmp_path / "images").rglob("*.png"))
    rows = [f"{file.relative_to(tmp_path)},{file.parts[-3]},{file.parts[-2]}" for file in files]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    lines = ("dataset=image_table", f"dataset.path={tmp_path / 't.csv'}")
    for each in folds(3, *lines, "dataset.group=patient"):
        parts = [{name.split("/")[2] for name in part.names} for part in (each.train, val_of(each))]
        assert all(parts) and not parts[0] & parts[1]
    renamed, same = read(*lines, "dataset.group_column=patient"), read(*lines, "dataset.group=patient")
    assert renamed.train.names == same.train.names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("dataset.folds=5", "dataset.folds: 5, but dataset.fold is not set. Set it, or train all: mcls train -m"),
        ("dataset.fold=1", "dataset.fold: 1 of how many? Set dataset.folds, such as dataset.folds=5."),
        ("dataset.folds=5 dataset.fold=5", "dataset.fold: must be 0 to 4 with dataset.folds=5, got 5."),
        ("dataset.folds=1 dataset.fold=0", "dataset.folds: must be int > 1 or null, got 1."),
        ("-m dataset.folds=2,3 dataset.fold=0,2", "dataset.fold: must be 0 to 1 with dataset.folds=2, got 2."),
        ("-m dataset.folds=5 seed=1,2", "dataset.folds: 5, but dataset.fold is not set."),
        (
            "dataset.n_samples=40 dataset.folds=30 dataset.fold=0",
            "dataset.folds: 30, but the smallest class has 7 samples outside the test set. Lower it to 7 at most, "
            "or add some.",
        ),
    ],
)
def test_folds_that_do_not_go_are_one_line(
    lines: str, message: str, mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls("train", *lines.split(), "trainer.figures=false") == 2
    err = capsys.readouterr().err
    assert f"mcls: {message}" in err and err.count("mcls: ") == 1


def test_more_folds_than_groups_of_a_class_and_rows_without_a_group_are_refused(tmp_path: Path) -> None:
    lines = ("dataset=csv", "dataset.target=kind", "dataset.group=patient", "dataset.folds=5", "dataset.fold=0")
    path = write_table(tmp_path / "t.csv", groups=4)
    with pytest.raises(
        RequestError, match=r"^dataset\.folds: 5, but the smallest class has \d groups of samples outside"
    ):
        read(f"dataset.path={path}", *lines)
    text = path.read_text()
    (tmp_path / "test.csv").write_text("x,y,patient,kind\n1,2,new,no\n1,2,p3,no\n")
    with pytest.raises(
        DataError, match=r"test\.csv, row 3, column 'patient': 'p3' is in .*t\.csv too\. Put each group"
    ):
        read(f"dataset.path={path}", f"dataset.test_path={tmp_path / 'test.csv'}", *lines)
    path.write_text(text.replace("p2", "", 1))
    with pytest.raises(DataError, match=r"t\.csv, row 4, column 'patient': no group\. Fill it in, or remove the row"):
        read(f"dataset.path={path}", *lines)


def test_a_sweep_over_folds_is_one_setting_each_with_an_interval_that_knows_the_overlap(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("dataset.folds=3", "dataset.fold=0,1,2", "optimizer.lr=0.001,0.1", "sweep.name=s")
    assert mcls("train", "-m", *QUICK, *lines) == 0
    plan = read_sweep(tmp_path / "outputs" / "sweeps" / "s")
    settings = table.read_settings(plan)
    assert [len(setting.repeats) for setting in settings] == [3, 3] and settings[0].overlap == 0.5
    header, rows = table.table_of(settings)
    row = dict(zip(header, rows[0], strict=True))
    assert row["n (folds)"] == 3 and "dataset.fold" not in header
    found = settings[0].measured("val")
    wide = stats.t.interval(0.95, 2, loc=np.mean(found), scale=np.std(found, ddof=1) * math.sqrt(1 / 3 + 1 / 2))
    assert settings[0].interval("val") == pytest.approx((max(0.0, wide[0]), min(1.0, wide[1])))
    assert "dataset.fold=0,1,2" in table.command_of(plan, settings[0])
    tested = [job.result["test"] is not None for setting in settings for job in setting.repeats]
    assert tested == [True] * 3 + [False] * 3
    capsys.readouterr()
    assert mcls("runs", "--json") == 0
    assert [row["n"] for row in json.loads(capsys.readouterr().out)] == [3, 3]


def test_the_paired_test_is_the_corrected_one() -> None:
    """Nadeau and Bengio's: t = mean / sqrt((1/n + overlap) * variance); without overlap it is the paired t-test."""
    differences = [0.02, 0.01, 0.03, 0.015, 0.01]
    plain = float(stats.ttest_1samp(differences, 0).pvalue)
    t = np.mean(differences) / math.sqrt((1 / 5 + 1 / 4) * np.var(differences, ddof=1))
    assert paired_t(differences, 0.0) == pytest.approx(plain)
    assert paired_t(differences, 0.25) == pytest.approx(2 * float(stats.t.sf(t, 4)))
    assert plain < paired_t(differences, 0.25)
    assert paired_t([0.01, 0.01], 0.0) == 0.5  # equal differences are no proof
