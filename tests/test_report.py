"""`mcls report`: what is on the page, that it needs and runs nothing else, and how it looks in a browser."""

import base64
import hashlib
import html
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import makers
from browser import Tab, busy_parts, document, needs_chromium, screenshot
from mcls.cli import main
from mcls.report.html import machine
from mcls.report.svg import Curve, chart, thinned, ticks

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]
EVIL = "</td></table><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[31m"


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / "mnist" / "run"
    arguments = ["dataset=mnist", "trainer.epochs=3", "trainer.batch_size=32", "optimizer.lr=0.01", "threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCLS_DATA", str(data_root))
        patch.setattr(sys, "argv", sys.argv)
        assert main(["train", *arguments, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "mnist" / "run"))


class Seen(html.parser.HTMLParser):
    """Elements and attributes of a page, and whether what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_everything_is_on_the_page(mcls: Main, run: Path, capsys: Capture) -> None:
    assert mcls("report", str(run)) == 0
    path = run / "report.html"
    page = path.read_text()
    assert capsys.readouterr().out == f"mnist/run/report.html, {len(page.encode()) / 1e6:.1f} MB, self-contained\n"
    result = json.loads((run / "result.json").read_text())
    words = " ".join(Seen(page).words)
    low, high = (bound * 100 for bound in result["test"]["interval"])
    assert f"{result['test']['accuracy'] * 100:.2f} %" in words
    assert f"95 % interval {low:.2f} to {high:.2f} %" in words
    assert "opened once" in words
    assert f"{result['best_epoch']} of 3" in words
    for row in result["test"]["per_class"]:
        assert f"{row['precision']:.4f} {row['recall']:.4f} {row['f1']:.4f} {row['support']}" in words
    counts = [str(count) for row in result["test"]["confusion"] for count in row]
    assert re.findall(r'<td class="h\d">(\d+)</td>', page) == counts
    assert page.count("<polyline") == 4
    shown = ("embedding", "surest", "mistakes", "reliability", "roc", "precision-recall")
    assert page.count("data:image/png;base64,") == sum((run / "figures" / f"{name}.png").exists() for name in shown)
    assert "mcls train dataset=mnist trainer.epochs=3" in words
    for line in (run / "config.yaml").read_text().splitlines():
        assert line in words or str(run.parents[2]) in line or "/" in line
    assert "scikit-learn" in words
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC mcls train, at its end 1", words)
    assert {path.name for path in run.glob(".*")} == set()


def test_it_needs_and_runs_nothing_else(mcls: Main, run: Path) -> None:
    assert mcls("report", str(run), "--output", "page.html") == 0
    page = Path("page.html").read_text()
    seen = Seen(page)
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[^\"]*", "", page))
    assert not {"link", "iframe", "object", "embed", "form", "a", "base"} & seen.elements
    (script,) = re.findall("<script>(.*?)</script>", page, re.S)  # no other is allowed by the policy of the page
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in page
    assert all(value.startswith("data:image/png;base64,") for name, value in seen.attributes if name in ("src", "href"))
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not (run / "report.html").exists()


def test_what_the_folder_says_is_escaped(mcls: Main, run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    clean = Path("clean.html")
    assert mcls("report", str(run), "--output", "clean.html") == 0
    for row in result["test"]["per_class"]:
        row["class"] = EVIL
    about = json.loads((run / "run.json").read_text())
    machine = {**about["environment"], EVIL: EVIL, "packages": {EVIL: EVIL}}
    choices = {**about["choices"], "dataset": EVIL, EVIL: EVIL}
    change(run / "result.json", test=result["test"])
    change(run / "run.json", environment=machine, choices=choices, command=EVIL, started=EVIL, device=EVIL)
    (run / "config.yaml").write_text(f"# </pre>{EVIL}\n")
    assert mcls("report", str(run), "--output", "evil.html") == 0
    page = Path("evil.html").read_text()
    assert Seen(page).elements == Seen(clean.read_text()).elements
    assert "\x1b" not in page
    assert page.count("<script") == 1
    assert "<img src=x" not in page


DAMAGED = [
    ("result.json", {"test": None, "val": None}),
    ("result.json", {"test": {"accuracy": "1"}}),
    ("result.json", {"test_openings": "many"}),
    ("result.json", {"best_epoch": None}),
    ("run.json", {"choices": []}),
    ("run.json", {"environment": {"packages": 1}}),
    ("run.json", {"command": "'"}),
]


@pytest.mark.parametrize(("file", "values"), DAMAGED)
def test_damaged_runs(mcls: Main, run: Path, capsys: Capture, file: str, values: dict[str, Any]) -> None:
    change(run / file, **values)
    assert mcls("report", str(run)) == 5
    out, err = capsys.readouterr()
    assert err.startswith(f"mcls: {run}") and "damaged, " in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("line", ['{"epoch": ', "[1]", '{"epoch": "x", "train": {"loss": 1}}', '{"train": 1}'])
def test_damaged_curves(mcls: Main, run: Path, capsys: Capture, line: str) -> None:
    (run / "metrics.jsonl").write_text(f"{line}\n")
    assert mcls("report", str(run)) == 5
    assert "damaged" in capsys.readouterr().err


def test_what_is_no_run(mcls: Main, run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert mcls("report", str(tmp_path)) == 5
    told = f"not a run folder, it has no run.json. List the runs in it: mcls runs {tmp_path}"
    assert capsys.readouterr().err == f"mcls: {tmp_path}: {told}\n"


def test_a_run_that_is_not_finished(mcls: Main, run: Path) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("  epochs: 3", "  epochs: 60"))
    (run / "result.json").write_text('{"status": "stopped", "reason": "stopped at step 7", "test_openings": 0}\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    best = max(json.loads(line)["val"]["accuracy"] for line in (run / "metrics.jsonl").read_text().splitlines()[:3])
    assert mcls("report", str(run)) == 0
    words = " ".join(Seen((run / "report.html").read_text()).words)
    assert "stopped after 3 of 60 epochs" in words and f"so far: {best * 100:.2f} %, selected on val" in words
    assert "stopped at step 7" in words and "test set opened 0 times" in words and "95 % interval" not in words
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert mcls("report", str(run)) == 0
    words = " ".join(Seen((run / "report.html").read_text()).words)
    assert "never started" in words and "no validation accuracy yet" in words


def test_links_are_not_followed(mcls: Main, run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "secret.png").write_bytes((run / "figures" / "reliability.png").read_bytes())
    (run / "figures" / "regions.png").symlink_to(tmp_path / "secret.png")
    (run / "figures" / "mistakes.png").unlink(missing_ok=True)
    (run / "figures" / "mistakes.png").write_text("<svg onload=alert(1)>")
    assert mcls("report", str(run), "--output", "page.html") == 0
    assert Path("page.html").read_text().count("data:image/png") == 5
    (run / "report.html").symlink_to(tmp_path / "elsewhere")
    capsys.readouterr()
    assert mcls("report", str(run)) == 5
    expected = f"mcls: {run}/report.html: refused, a link. Name another file with --output.\n"
    assert capsys.readouterr().err == expected
    assert mcls("report", str(run), "--output", "nowhere/page.html") == 4
    assert mcls("report", str(run), "--output", f"{run}/run.json/page.html") == 2


def test_without_val_and_without_figures(mcls: Main, run: Path) -> None:
    shutil.rmtree(run / "figures")
    change(run / "result.json", val=None)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in record.items() if key != "val"}) for record in records]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert mcls("report", str(run)) == 0
    page = (run / "report.html").read_text()
    assert "no validation set" in " ".join(Seen(page).words)
    assert page.count("<polyline") == 2
    assert "<img" not in page


def test_a_sweeps_job_is_repeated_alone(mcls: Main, run: Path) -> None:
    command = "mcls train -m dataset=mnist optimizer.lr=0.1,0.2"
    change(run / "run.json", command=command, overrides=["dataset=mnist", "optimizer.lr=0.1"])
    assert mcls("report", str(run)) == 0
    assert "<pre>mcls train dataset=mnist optimizer.lr=0.1</pre>" in (run / "report.html").read_text()


def test_what_no_sample_tells_is_left_empty(mcls: Main, run: Path) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    test["per_class"][3] |= {"precision": None, "recall": None, "f1": None, "support": 0}
    change(run / "result.json", test=test)
    assert mcls("report", str(run)) == 0
    assert "<td>3</td><td></td><td></td><td></td><td>0</td>" in (run / "report.html").read_text()


@pytest.mark.parametrize("count", [40, 10_000])
def test_of_many_classes_those_that_are_confused_most(mcls: Main, run: Path, count: int) -> None:
    """Whether the matrix is whole, as older versions have it, or only what is not 0."""
    test = json.loads((run / "result.json").read_text())["test"]
    row = {"precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 4}
    test["per_class"] = [{**row, "class": f"c{number}"} for number in range(count)]
    cells = [(label, label, 2) for label in range(count)] + [(35, 37, 3), (38, 35, 4)]
    if count == 40:
        test["confusion"] = [[0] * count for _ in range(count)]
        for truth, guess, samples in cells:
            test["confusion"][truth][guess] = samples
    else:
        test["confusion"] = dict(zip(("true", "predicted", "count"), zip(*cells, strict=True), strict=True))
    change(run / "result.json", test=test)
    assert mcls("report", str(run)) == 0
    page = (run / "report.html").read_text()
    words = " ".join(Seen(page).words)
    assert "c38 c35 4 66.7% c35 c37 3 60.0% class" in words
    picture = re.search('class="pixels"[^>]*base64,([^"]*)"', page)
    assert picture
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))).convert("RGBA"))[..., 3]
    side = 40 if count == 40 else 250
    assert pixels.shape == (side, side) and (pixels > 0).sum() == side + 2 * (count == 40)
    near = np.argwhere(pixels > 0)
    assert abs(near[:, 0] - near[:, 1]).max() <= 1, "confused classes are neighbours"
    assert "c35 1.0000 0.5000 0.6000 4" in words
    assert words.count(" 1.0000 0.5000 0.6000 4 ") == min(count, 1000)
    assert ("the 1,000 of 10,000 classes with the lowest F1" in words) is (count > 1000)
    assert len(page) < 2_000_000


def test_numbers_in_figures_have_a_legend(mcls: Main, run: Path) -> None:
    """A name that no installed font has is drawn as the number of its class."""
    assert mcls("report", str(run)) == 0
    assert "by its number" not in (run / "report.html").read_text()
    test = json.loads((run / "result.json").read_text())["test"]
    for number, name in enumerate(("<鱼>", "Żółw", "鸟")):
        test["per_class"][number]["class"] = name
    change(run / "result.json", test=test)
    assert mcls("report", str(run)) == 0
    assert "is shown by its number: #0 &lt;鱼&gt;, #2 鸟</p>" in (run / "report.html").read_text()


def test_starts_without_torch(run: Path) -> None:
    script = "import sys; from mcls.cli import main; code = main(['report', sys.argv[1]]); "
    script += "assert not {'torch', 'hydra', 'numpy', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    subprocess.run([sys.executable, "-c", script, str(run)], check=True, capture_output=True)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 20) == pytest.approx([5, 10, 15, 20])
    assert ticks(-0.013, 0.012) == pytest.approx([-0.01, -0.005, 0, 0.005, 0.01])
    assert ticks(1e-7, 3e-7) == pytest.approx([1e-7, 1.5e-7, 2e-7, 2.5e-7, 3e-7])


def test_epochs_are_whole_and_what_is_not_known_is_left_out() -> None:
    drawn = chart("loss", "epoch", [Curve("train", "red", [(1, 0.5), (2, 0.25)])])
    assert re.findall(r'text-anchor="middle">([^<]+)<', drawn) == ["1", "2"]
    about = {"device": "cpu", "environment": {"host": "mine", "commit": None, "packages": {"torch": "2", "timm": None}}}
    assert machine(about, full=False) == [("device", "cpu"), ("torch", "2")]


def test_charts() -> None:
    assert chart("loss", "epoch", [Curve("train", "red", [])]) == ""
    one = chart("<b>", "epoch", [Curve("train", "red", [(1, 0.5)])], marks=[1])
    assert "&lt;b&gt;" in one
    assert "nan" not in one
    assert chart("flat", "epoch", [Curve("train", "red", [(1, 0.0), (2, 0.0)])]).count("<polyline") == 1
    points = [(float(number), 0.0) for number in range(100_000)]
    assert len(thinned(points)) <= 401
    assert thinned(points)[0] == points[0]
    assert thinned(points)[-1] == points[-1]
    assert thinned(points[:3]) == points[:3]


@needs_chromium
def test_looks_like_something_in_a_browser(mcls: Main, run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    result["test"]["per_class"][0]["class"] = EVIL
    change(run / "result.json", test=result["test"])
    assert mcls("report", str(run)) == 0
    url = (run / "report.html").as_uri()
    assert busy_parts(screenshot(url, tmp_path)) > 0.3
    page = document(url, tmp_path)
    assert "<title>mnist/run</title>" in page and "<h1>mnist/run</h1>" in page
    assert "test accuracy on 100 samples" in page


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.textContent.trim() || element.closest("script")) continue;
    const text = rgba(element.closest("svg") ? style.fill : style.color);
    const [low, high] = [text, behind(element)].map((c) => luminance(c.slice(0, 3))).sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), element.className + " " + walker.currentNode.textContent.slice(0, 40)]);
  }
  for (const line of document.querySelectorAll("polyline")) { // for which 3 is enough
    const [low, high] = [getComputedStyle(line).stroke, getComputedStyle(line.closest("section")).backgroundColor]
      .map((c) => luminance(rgba(c).slice(0, 3))).sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05) * 1.5, line.outerHTML.slice(-60)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 5).concat([[found.length, ""]]);
})()"""


@needs_chromium
def test_in_a_browser_no_error_no_request_contrast_in_both_schemes_and_a_table_that_sorts(
    mcls: Main, run: Path, tmp_path: Path
) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    test["confusion"][0] = [1, 5, 20, 40, 60, 80, 2, 3, 4, 0]  # all colours
    change(run / "result.json", test=test)
    change(run / "run.json", warnings=["data 2 files are skipped"], hyperparameters={"tags": "first", "note": "a note"})
    assert mcls("report", str(run)) == 0
    url = (run / "report.html").as_uri()
    with Tab("about:blank", tmp_path) as tab:
        for domain in ("Page", "Network", "Log", "Runtime"):
            tab.call(f"{domain}.enable")
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.call("Page.navigate", url=url)
            tab.value("document.querySelector('th button') && document.readyState === 'complete'")
            *worst, (texts, _) = tab.value(CONTRAST)
            assert texts > 200 and worst[0][0] >= 4.5, (scheme, worst)
        assert tab.value("[...document.images].every((image) => image.naturalWidth > 9)")
        column = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[{}].textContent)"
        before = tab.value(column.format(3))
        tab.value("document.querySelectorAll('.sortable th button')[3].click() || true")
        assert tab.value(column.format(3)) == sorted(before)
        tab.value("document.querySelectorAll('.sortable th button')[3].click() || true")
        assert tab.value(column.format(3)) == sorted(before, reverse=True)
        requested = [event["params"]["request"]["url"] for event in tab.events("Network.requestWillBeSent")]
        assert {each for each in requested if not each.startswith("data:")} == {url}
        assert tab.events("Log.entryAdded") == tab.events("Runtime.exceptionThrown") == []
        assert tab.events("Runtime.consoleAPICalled") == []


def test_names_of_machine_and_folders_are_left_out_unless_asked_for(mcls: Main, run: Path, tmp_path: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    environment = {**about["environment"], "host": "my-machine"}
    command = r"mcls train dataset.root=/home/me/data 'outputs=~/x y/out' trust=[/a/b] cache=C:\Users\me\cache a/b"
    change(run / "run.json", environment=environment, command=command, warnings=["images  1 skipped: /home/me/7.png."])
    assert mcls("report", str(run)) == 0
    page = html.unescape((run / "report.html").read_text())
    short = "mcls train dataset.root=…/data 'outputs=…/x y/out' trust=[…/b] cache=…/cache a/b"
    assert f"<pre>{short}</pre>" in page and "skipped: …/7.png.</li>" in page
    assert "my-machine" not in page and str(tmp_path) not in page and "Folders are shortened" in page
    assert mcls("report", "--full", str(run)) == 0
    page = html.unescape((run / "report.html").read_text())
    assert f"<pre>{command}</pre>" in page and "my-machine" in page and "Folders are shortened" not in page


def test_tags_note_and_each_opening_of_the_test_set(mcls: Main, run: Path) -> None:
    remarks = {"tags": "first,<b>", "note": "a note & more"}
    change(run / "run.json", hyperparameters=remarks)
    assert mcls("evaluate", str(run)) == 0
    result = json.loads((run / "result.json").read_text())
    change(run / "result.json", test_openings=result["test_openings"] + 3)  # of a version that kept no ledger
    assert mcls("report", str(run)) == 0
    page = (run / "report.html").read_text()
    assert '<span class="tag">first</span> <span class="tag">&lt;b&gt;</span>' in page and "a note &amp; more" in page
    words = " ".join(" ".join(Seen(page).words).split())
    assert re.search(r"at its end 1 \S+ \S+ UTC mcls evaluate 1 not recorded 3 How it was", words)


def test_what_the_data_were_warned_of_is_on_the_page(mcls: Main, tmp_path: Path) -> None:
    rows = "".join(f"{row % 7},{'aAb'[row % 3]}\n" for row in range(90))
    Path("t.csv").write_text(f"x,label\n{rows}")
    csv = ["dataset=csv", "dataset.path=t.csv", "dataset.target=label", "trainer.epochs=1", "trainer.figures=false"]
    assert mcls("train", *csv, "name=t") == 0
    (warning,) = json.loads(Path("outputs/t/run.json").read_text())["warnings"]
    assert warning.startswith("data t.csv, column 'label': 'A', 'a' are different classes.")
    assert mcls("report", "outputs/t") == 0
    page = html.unescape(Path("outputs/t/report.html").read_text())
    assert "are different classes. If they are the same, use one spelling.</li>" in page


@needs_chromium
def test_fits_a_phone(mcls: Main, run: Path, tmp_path: Path) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    for row, name in zip(test["per_class"], makers.CIFAR10_CLASSES, strict=True):
        row["class"] = name
    change(run / "result.json", test=test)
    assert mcls("report", str(run)) == 0
    page = html.escape((run / "report.html").read_text())
    script = """onload = () => {
      const inner = document.querySelector("iframe").contentDocument;
      const names = [...inner.querySelectorAll(".confusion th, .numbers td:first-child")];
      document.title = [inner.documentElement.scrollWidth, ...names.map((name) => name.offsetHeight)].join(" ");
    }"""
    frame = f'<iframe style="border: 0; width: 360px; height: 9000px" srcdoc="{page}"></iframe>'
    (tmp_path / "outer.html").write_text(f'<!doctype html><meta charset="utf-8">{frame}<script>{script}</script>')
    title = re.search("<title>(.*?)</title>", document((tmp_path / "outer.html").as_uri(), tmp_path))
    assert title is not None
    width, *heights = map(int, title[1].split())
    assert width == 360
    assert len(heights) == 31
    assert max(heights) < 40, "a name is broken into several lines"
