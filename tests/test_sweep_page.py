"""What a sweep leaves for people: sweep.png, its copy in TensorBoard, and the page of `mcls report SWEEP`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mcls.report.sweep_figures import SweptSetting, geometric, key_axis, sweep_figure

Main = Callable[..., int]
QUICK = ("train", "-m", "dataset.n_samples=200", "trainer.epochs=3")


def points(line: Line2D) -> tuple[list[float], list[float]]:
    x, y = line.get_data()
    return np.asarray(x).tolist(), np.asarray(y).tolist()


def setting(values: dict[str, str], *val: float) -> SweptSetting:
    return SweptSetting(values, val, [([1, 2], [accuracy / 2, accuracy]) for accuracy in val])


@pytest.mark.parametrize(
    ("numbers", "log"),
    [
        ([0.001, 0.01, 0.1], True),
        ([16, 32, 64, 128], True),
        ([1, 2, 3, 4], False),
        ([10, 20, 30, 40, 50, 60, 70, 80, 90, 100], False),
        ([0.0, 0.1, 1.0], False),
        ([0.01, 0.1], True),
        ([1, 2], False),
    ],
)
def test_geometric_values_get_a_logarithmic_axis(numbers: list[float], log: bool) -> None:
    assert geometric(numbers) is log


def test_words_and_lists_are_counted() -> None:
    axis = key_axis("model.hidden_units", [setting({"model.hidden_units": value}, 0.5) for value in ("[64]", "[8,8]")])
    assert (axis.kind, sorted(axis.places.values())) == ("words", [0.0, 1.0])


def test_the_picture_shows_means_spreads_and_every_learning_curve() -> None:
    rates = {"0.01": (0.7, 0.8), "0.1": (0.85, 0.95), "1": (0.2, 0.4)}
    settings = [setting({"optimizer.lr": rate}, *rates[rate]) for rate in ("0.1", "0.01", "1")]
    figure = sweep_figure([*settings, SweptSetting({"optimizer.lr": "1e30"}, [], [])], "a sweep")
    key, curves = figure.axes
    assert key.get_xscale() == "log" and key.get_xlim()[1] < 10
    drawn = {}
    for container in key.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bar,) = container.lines
        x, y = points(line)
        drawn[x[0]] = (y[0], bar.get_segments()[0][1][1] - y[0])
    for rate, val in rates.items():
        assert drawn[float(rate)] == pytest.approx((sum(val) / 2, abs(val[1] - val[0]) / 2**0.5))
    assert len(curves.lines) == 6
    best = [line for line in curves.lines if line.get_linewidth() > 1]
    assert sorted(points(line)[1][-1] for line in best) == [0.85, 0.95]


def test_two_keys_make_a_heat_map_and_three_parallel_coordinates() -> None:
    grid = [
        setting({"optimizer.lr": rate, "trainer.batch_size": size}, 0.5 + index / 10 + place / 100)
        for index, rate in enumerate(("0.01", "0.1"))
        for place, size in enumerate(("16", "32", "64"))
    ]
    (image,) = [image for axes in sweep_figure(grid, "").axes for image in axes.get_images()]
    assert np.asarray(image.get_array()).tolist() == [
        [0.5, 0.6],
        [0.51, pytest.approx(0.61)],
        [0.52, pytest.approx(0.62)],
    ]
    three = [SweptSetting({**each.values, "optimizer": "sgd"}, each.val, each.curves) for each in grid]
    last = sweep_figure(three, "").axes[-1]
    names = [label.get_text() for label in last.get_xticklabels()]
    assert names == ["optimizer.lr", "trainer.batch_size", "optimizer", "val accuracy"]
    assert len([line for line in last.lines if len(points(line)[0]) == 4]) == 6


def test_a_sweep_leaves_its_picture_and_its_page(
    mcls: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mcls(*QUICK, "optimizer.lr=0.01,0.1,1e30", "seed=0,1", "sweep.name=s", "trainer.figures=true") == 1
    folder = tmp_path / "outputs" / "sweeps" / "s"
    picture = (folder / "sweep.png").read_bytes()
    assert "its picture in sweep.png" in capsys.readouterr().out
    (events,) = folder.glob("events.out.tfevents.*")
    values = [value for event in EventFileLoader(str(events)).Load() for value in event.summary.value]
    assert [value.tag for value in values] == ["sweep"]
    assert picture in values[0].tensor.string_val or values[0].image.encoded_image_string == picture
    assert mcls("report", str(folder)) == 0
    page = (folder / "report.html").read_text()
    assert page.count("<script") == 1 and "data:image/png;base64," in page
    result = json.loads((folder / "0_optimizer.lr=0.01,seed=0" / "result.json").read_text())
    assert f"{result['val']['n']}" and "mcls train -m" in page
    failed = re.findall(r"<tr><td>(\d+)</td><td>optimizer.lr=1e\+30 seed=\d</td><td>failed</td>", page)
    assert failed == ["4", "5"]


def test_no_picture_where_the_jobs_draw_none(mcls: Main, tmp_path: Path) -> None:
    assert mcls(*QUICK, "seed=0,1", "sweep.name=s", "trainer.figures=false") == 0
    folder = tmp_path / "outputs" / "sweeps" / "s"
    assert not (folder / "sweep.png").exists()
    assert mcls("report", str(folder)) == 0
    assert (folder / "sweep.png").exists()
