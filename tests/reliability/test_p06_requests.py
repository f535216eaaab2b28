"""P6: no wrong command or configuration ever shows a traceback, begins a run, or goes unnamed."""

import random
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from steps import QUICK

from mcls.config.compose import Checker, checker
from mcls.config.saved import check_saved
from mcls.config.schema import read_constraints
from mcls.config.validate import CONFIGS
from mcls.errors import FolderError, RequestError
from mcls.runs.folder import RunFolder, read_json, read_yaml

Run = Callable[..., Any]
Size = Callable[[int, int], int]
Count = Callable[[str], None]
ROOT = Path(__file__).parents[2] / "configs"
KEYS = sorted(
    set(read_constraints(ROOT / "train.yaml"))
    | {f"{path.parent.name}.{key}" for path in ROOT.glob("*/*.yaml") for key in read_constraints(path)}
)
GROUPS = sorted({path.parent.name for path in ROOT.glob("*/*.yaml")})
VALUES = (
    *("1", "0", "-1", "0.1", "1e3", "1e400", "nan", "inf", "true", "null", "''", "abc", "[1]", "[[1]]"),
    *("{a:1}", "[", "}", "${seed}", "${nope}", "${", "${oc.env:NOPE}", "${oc.env:HOME}", "???", "a=b"),
    *("a b", "\\", "'", '"', "é", "\x1b[31m", "0,1", "range(3)", "choice(1,2)", "interval(0,1)", "glob(*)"),
    *("glob(*,[])", "9" * 400, "!!python/object:os.x", "\n", "os.system", "torch.load", "../../x", "/"),
    *(
        "x" * 5000,
        "1_000",
        "0x10",
        "-",
        "~",
        "+",
        "extend_list(1)",
        "sort(3,2)",
    ),
)
FIXED = (
    *("lr", "--lr", "=", "==", "=1", "+", "++", "~", "~seed", "~optimizer", "+seed=1", "++seed=1", "hydra=true"),
    *("+=\\", "model=[[1]]", "model=[mlp,resnet18]", "model@x=mlp", "+model@hydra=mlp", "model@=mlp"),
    *("hydra/launcher=nope", "hydra.run.dir=${nope}", "hydra.callbacks.x._target_=os.system", "hydra.job.chdir=1"),
    *("hydra.sweeper._target_=os.system", "+experiment=nope", "experiment=[]", "experiment=null", "dataset=null"),
    *("trainer=null", "seed.x=1", "optimizer.lr.x=1", "optimizer={}", "optimizer={lr:1}", "trainer={}"),
    *(
        "trainer.=1",
        ".seed=1",
        "seed.=1",
        "a.b.c.d.e=1",
        "defaults=[]",
    ),
)


def typo(draw: random.Random, word: str) -> str:
    """One letter more, less, twice or swapped."""
    place = draw.randrange(len(word))
    letter = draw.choice(string.ascii_letters + string.punctuation)
    return draw.choice(
        (
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
            word[:place] + letter + word[place:],
            word[:place] + word[place + 1 : place + 2] + word[place : place + 1] + word[place + 2 :],
        )
    )


def overrides(number: int) -> Iterator[str]:
    """Fixed ones, keys with values of every kind, typos, and rubbish."""
    draw = random.Random(6)
    yield from FIXED
    for count in range(number - len(FIXED)):
        key = draw.choice(KEYS if draw.random() < 0.7 else GROUPS)
        key = typo(draw, key) if draw.random() < 0.3 else key
        line = draw.choice(("", "", "", "+", "++", "~")) + key + "=" + draw.choice(VALUES)
        if count % 10 == 0:
            line = "".join(draw.choice(string.printable) for _ in range(draw.randrange(1, 30)))
        yield typo(draw, line) if draw.random() < 0.1 else line


@pytest.fixture(scope="module")
def check() -> Iterator[Checker]:
    """What `mcls train` asks before anything else."""
    with checker() as found:
        yield found


def leaks(check: Callable[[str], Any], lines: Iterator[str]) -> tuple[list[str], int]:
    """Which lines end in anything else than an answer, and how many are refused."""
    wrong, refused = [], 0
    for line in lines:
        try:
            check(line)
        except RequestError as error:
            refused += 1
            if len(str(error).strip()) < 10:
                wrong.append(f"{line!r}: says {error}")
        except Exception as error:
            wrong.append(f"{line!r}: {type(error).__name__} {str(error)[:80]}")
    return wrong, refused


def test_fuzzed_overrides(check: Checker, tmp_path: Path, monkeypatch: Any, size: Size, count: Count) -> None:
    monkeypatch.chdir(tmp_path)
    number = size(500, 2000)
    wrong, refused = leaks(lambda line: check.check([line], False), overrides(number))
    assert not wrong, "\n".join(wrong)
    assert refused > number // 2
    assert list(tmp_path.iterdir()) == []
    count(f"{number} fuzzed overrides, {refused} refused in a sentence, 0 tracebacks")


def test_control_hydra_itself_leaks(tmp_path: Path, monkeypatch: Any) -> None:
    """Hydra's own compose on the same lines: it must leak, or the fuzzer asks nothing."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    monkeypatch.chdir(tmp_path)
    leaked = 0
    with checker():
        for line in overrides(150):
            try:
                compose("train", [line])
            except (HydraException, OmegaConfBaseException):
                continue
            except Exception:
                leaked += 1
    assert leaked > 0


def test_command_lines(mcls: Run, tmp_path: Path, size: Size, count: Count) -> None:
    lines = list(overrides(600))
    chosen = random.Random(7).sample([line for line in lines if "\0" not in line], size(15, 60))
    slowest = 0.0
    for line in chosen:
        child = mcls("train", line, "--cfg", "job", *QUICK)
        assert child.status in (0, 2), (line, child.stderr)
        assert "Traceback" not in child.stderr and "bug in mcls" not in child.stderr
        if child.status == 2:
            assert child.stderr.startswith(("mcls: ", "usage: ")), (line, child.stderr)
            slowest = max(slowest, child.seconds)
    assert not (tmp_path / "outputs").exists()
    count(f"{len(chosen)} command lines, the slowest refusal {slowest:.2f} s in a warm process")


def damaged_yaml(number: int, text: str) -> Iterator[str]:
    """A configuration with lines lost, doubled, changed, and with rubbish in it."""
    draw = random.Random(8)
    for _ in range(number):
        lines = text.splitlines()
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(lines))
            key = lines[place].split(":")[0]
            lines[place : place + 1] = draw.choice(
                (
                    [],
                    [lines[place]] * 2,
                    [f"{key}: {draw.choice(VALUES)}"],
                    [typo(draw, lines[place] + " ")],
                    [f"  {lines[place]}"],
                    ["".join(draw.choice(string.printable) for _ in range(20))],
                )
            )
            lines = lines or [""]
        yield "\n".join(lines)


def test_fuzzed_files(mcls: Run, tmp_path: Path, count: Count) -> None:
    """500 config.yaml that were tampered with: read or refused, never anything else, never slowly."""
    assert mcls("train", "trainer.epochs=1", *QUICK).status == 0
    folder = RunFolder(next(tmp_path.glob("outputs/*/*")))
    choices, text = read_json(folder.about)["choices"], folder.config.read_text()
    refused = taken = 0
    for content in damaged_yaml(500, text):
        folder.config.write_text(content, "utf-8")
        begun = time.monotonic()
        try:
            check_saved(read_yaml(folder.config), choices, (), folder.config)
            taken += 1
        except FolderError as error:
            assert str(error).startswith(f"{folder.config}: ")
            refused += 1
        assert time.monotonic() - begun < 1
    assert refused > 250 and taken > 5
    count(f"{refused + taken} fuzzed config.yaml, {refused} refused by name")


def test_fuzzed_experiments(tmp_path: Path, size: Size, count: Count) -> None:
    """Recipes of the user's own, with mistakes in them."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = (ROOT / "experiment" / "mnist-mlp.yaml").read_text()
    wrong = []
    number = size(30, 200)
    with checker(str(tmp_path)) as check:
        for content in damaged_yaml(number, text):
            (folder / "mine.yaml").write_text(content, "utf-8")
            found, _ = leaks(lambda line: check.check([line], False), iter(["experiment=mine"]))
            wrong += [f"{content}\n{line}" for line in found]
    assert not wrong, "\n\n".join(wrong)
    count(f"{number} fuzzed recipes")


def test_files_that_are_no_configuration_are_ignored(mcls: Run) -> None:
    assert mcls("train", "--config-dir", "/etc", "--cfg", "job").status in (0, 2)
    assert yaml.safe_load("a: 1") == {"a": 1} and CONFIGS == "mcls.configs"
