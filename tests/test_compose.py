"""Command lines: what they compose to, what is refused, and how fast."""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mcls as package
from mcls.config.compose import checker
from mcls.config.jobs import Request
from mcls.config.overrides import nearest_key
from mcls.errors import RequestError
from mcls.runs.folder import job_name

Main = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def ask(*overrides: str, multirun: bool = False, config_dir: Path | None = None, name: str = "train") -> Request:
    with checker(str(config_dir) if config_dir else None, name) as check:
        return check.check(list(overrides), multirun)


def refused(*overrides: str, **how: Any) -> str:
    with pytest.raises(RequestError) as caught:
        ask(*overrides, **how)
    return str(caught.value)


def test_all_mistakes_of_a_line_are_reported_together(mcls: Main, capsys: Capture) -> None:
    assert mcls("train", "optimizer=sgdd", "optimizer.lrr=1", "seed=-1", "sead=3", "foo", "trainer.epochs=2") == 2
    assert [line.split(" ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "foo:", "optimizer=sgdd:", "sead:", "seed:"
    ]  # fmt: skip


OWN_FILES = {
    "experiment/a": (
        "# @package _global_\ndefaults:\n  - override /optimizer: sgdd\n",
        "experiment/a.yaml: optimizer=sgdd: no such choice. Did you mean sgd? There are adam, adamw, rmsprop, sgd.",
    ),
    "experiment/b": (
        "# @package _global_\noptimizer:\n  lrr: 0.1\n",
        "experiment/b.yaml: optimizer.lrr: no such key, got 0.1. Did you mean optimizer.lr?",
    ),
    "experiment/c": (
        "# @package _global_\nlr: 0.1\n",
        "experiment/c.yaml: lr: no such key, got 0.1. Did you mean optimizer.lr?",
    ),
    "experiment/d": (
        "# @package _global_\ndefaults:\n  - override /optimizr: sgd\n",
        "experiment/d.yaml: override /optimizr: no such group in the defaults list.",
    ),
    "experiment/e": ("# @package _global_\nseed: ${foo}\n", "seed: ${foo} refers to a key that does not exist."),
    "model/f": (
        "_target_: mcls.models.MLP\n# (list of int > 0 widths\nhidden_units: [8]\n",
        "DIR/model/f.yaml, line 2: '# (list of int > 0 widths' is no constraint. Write the closing parenthesis and a "
        "description: # (float > 0) learning rate",
    ),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_mistake_in_a_file_of_ones_own_names_the_file(mcls: Main, tmp_path: Path, capsys: Capture, name: str) -> None:
    text, message = OWN_FILES[name]
    (tmp_path / name).parent.mkdir()
    (tmp_path / f"{name}.yaml").write_text(text)
    assert mcls("train", "--config-dir", str(tmp_path), name.replace("/", "=")) == 2
    assert capsys.readouterr().err == f"mcls: {message.replace('DIR', str(tmp_path))}\n"


def test_the_default() -> None:
    request = ask()
    assert request.choices == {
        "dataset": "blobs",
        "model": "mlp",
        "loss": "ce",
        "optimizer": "sgd",
        "schedule": "constant",
        "augment": "none",
        "mix": "none",
        "trainer": "default",
    }
    assert (request.sweep, request.folder) == (False, None)
    first = ["seed", "device", "precision", "threads", "deterministic", "outputs", "name", "cache", "trust"]
    assert list(request.config)[:9] == first
    assert request.config["model"] == {"_target_": "mcls.models.MLP", "hidden_units": [128, 64], "dropout": 0.0}
    assert "hydra" not in request.config and "experiment" not in request.config


def test_overrides_are_converted_to_what_the_rules_say() -> None:
    config = ask("trainer.epochs=1e1", "optimizer.lr=1", "model.hidden_units=[3.0]", "seed=7").config
    assert config["trainer"]["epochs"] == 10 and isinstance(config["trainer"]["epochs"], int)
    assert config["optimizer"]["lr"] == 1.0 and isinstance(config["optimizer"]["lr"], float)
    assert config["model"]["hidden_units"] == [3] and isinstance(config["model"]["hidden_units"][0], int)
    assert config["seed"] == 7


@pytest.mark.parametrize("group", ["optimizer", "dataset", "augment", "loss"])
def test_a_group_is_always_chosen_from(group: str) -> None:
    assert refused(f"~{group}") == f"{group}: must be one of the choices of its group, got null."
    assert refused(f"{group}=null").startswith(f"{group}=null: no such choice. ")


def test_the_last_of_two_values_counts() -> None:
    assert ask("seed=1", "seed=2").config["seed"] == 2
    assert ask("optimizer=adam", "optimizer=sgd").choices["optimizer"] == "sgd"


def test_experiments_set_values_that_the_command_line_overrides() -> None:
    request = ask("experiment=mnist-mlp", "trainer.epochs=3")
    assert request.choices["dataset"] == "mnist" and request.choices["experiment"] == "mnist-mlp"
    assert request.config["optimizer"]["lr"] == 0.01
    assert request.config["trainer"]["epochs"] == 3
    assert ask("experiment=fashion-softmax", "model=mlp").choices["model"] == "mlp"


def test_a_recipe_with_another_optimizer_or_data_set() -> None:
    assert refused("optimizer=adam", "experiment=blobs-mlp") == (
        "experiment=blobs-mlp sets optimizer.momentum, which optimizer=adam does not have. "
        "Take it away with ~optimizer.momentum"
    )
    config = ask("optimizer=adam", "experiment=blobs-mlp", "~optimizer.momentum").config
    assert "momentum" not in config["optimizer"] and config["optimizer"]["lr"] == 0.1
    assert refused("experiment=fashion-softmax", "dataset=blobs").endswith("with ~dataset.mean ~dataset.std")
    assert ask("experiment=fashion-softmax", "dataset=blobs", "~dataset.mean", "~dataset.std")
    assert refused("model=resnet18", "experiment=blobs-mlp").endswith(
        "which model=resnet18 does not have. Take it away with ~model.hidden_units"
    )
    assert ask("optimizer=adam,adamw", "experiment=blobs-mlp", "~optimizer.momentum", multirun=True).sweep
    assert refused("experiment=blobs-mlp", "~optimizer.lr") == "~optimizer.lr: a key can't be taken away, only changed."
    assert refused("optimizer=adam", "~optimizer.momentum").startswith("optimizer.momentum: no such key ")


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLS_DATA", "/somewhere")
    assert ask("dataset=mnist").config["dataset"]["root"] == "/somewhere"
    monkeypatch.delenv("MCLS_DATA")
    assert ask("dataset=mnist").config["dataset"]["root"] == "data"


@pytest.mark.parametrize(
    "lines",
    [
        ["seed=0,1,-1"],
        ["seed=range(-1,2)"],
        ["seed=choice(0,1.5)"],
        ["optimizer.lr=0.1,nan"],
        ["optimizer=sgd,adam", "optimizer.lr=0.1,0"],
        ["optimizer=sgd,nothing"],
        ["model.hidden_units=[8],[8,0]"],
        ["trainer.batch_size=full,all"],
        ["device=cpu,gpu"],
        ["typo=1,2"],
        ["+typo=1,2"],
        ["trainer=default,debug", "trainer.epochs=1,0"],
        ["hydra.mode=MULTIRUN", "seed=0,-1"],
    ],
    ids=" ".join,
)
def test_a_sweep_with_one_bad_value_is_refused(lines: list[str]) -> None:
    assert refused(*lines, multirun=True)


@pytest.mark.parametrize(
    "lines",
    [
        ["seed=0,1"],
        ["seed=range(3)"],
        ["seed=range(0,3)", "optimizer.lr=choice(0.1,1)"],
        ["optimizer=sgd,adam", "loss=ce,nll"],
        ["optimizer=glob(*)"],
        ["optimizer=glob(adam*)", "seed=1"],
        ["model.hidden_units=[8],[8,4]"],
        ["trainer.batch_size=full,4"],
        ["hydra.mode=MULTIRUN", "seed=0,1"],
        ["experiment=blobs-mlp,mnist-mlp"],
        ["optimizer=sgd,adam", "optimizer.momentum=0.9"],  # adam has none
        ["seed=0,1", "optimizer.lr=0.1,0.2", "sweep.zip=[seed,optimizer.lr]"],
    ],
    ids=" ".join,
)
def test_a_good_sweep_is_taken(lines: list[str]) -> None:
    assert ask(*lines, multirun=True).sweep


def test_a_sweep_that_hydra_says_by_its_mode(mcls: Main, tmp_path: Path) -> None:
    assert ask("hydra.mode=MULTIRUN", "seed=0,1").sweep
    assert mcls("train", "hydra.mode=MULTIRUN", "seed=1,2", "trainer=debug", "trainer.figures=false") == 0
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/result.json"))) == 2


def test_a_key_that_one_choice_has_is_set_in_its_jobs_alone() -> None:
    request = ask("optimizer=sgd,adam", "optimizer.momentum=0.5,0.9", "seed=1", multirun=True)
    assert [job.overrides for job in request.jobs] == [
        ["optimizer=sgd", "optimizer.momentum=0.5", "seed=1"],
        ["optimizer=sgd", "optimizer.momentum=0.9", "seed=1"],
        ["optimizer=adam", "seed=1"],
    ]
    told = refused("optimizer=sgd,adam", "optimizer.momentun=0.5,0.9", multirun=True)
    assert told == "optimizer.momentun: no such key. Did you mean optimizer.momentum?"


def test_lists_that_are_walked_side_by_side() -> None:
    lines = ("seed=0,1", "optimizer.lr=0.1,0.2", "loss=ce,nll", "sweep.zip=[optimizer.lr,loss]")
    jobs = [job.overrides[:3] for job in ask(*lines, multirun=True).jobs]
    assert jobs == [
        [f"seed={seed}", *pair]
        for seed in (0, 1)
        for pair in (["optimizer.lr=0.1", "loss=ce"], ["optimizer.lr=0.2", "loss=nll"])
    ]
    told = refused("seed=0,1", "optimizer.lr=0.1,0.2,0.3", "sweep.zip=[optimizer.lr,seed]", multirun=True)
    assert told == "sweep.zip: its keys must have equally many values, but optimizer.lr has 3, seed has 2."
    told = refused("seed=0,1", "sweep.zip=[optimizer.lr,seed]", multirun=True)
    assert told == "sweep.zip: optimizer.lr does not vary in this sweep. Give it several values."


@pytest.mark.parametrize(
    "lines",
    [
        ["optimizer.lr=1,0.5", "seed=0,1", "trainer.epochs=3"],
        ["model=mlp,linear-softmax", "loss=ce,nll", "model.dropout=0.1"],
        ["model.hidden_units=[${trainer.epochs},8]", "trainer.epochs=2,4", "seed=0,1"],
        ["optimizer.lr=${schedule.warmup_fraction},0.5", "schedule.warmup_fraction=0.1,0.2"],
        ["experiment=blobs-mlp,mnist-mlp", "trainer.batch_size=full,8"],
    ],
    ids=" ".join,
)
def test_the_frozen_configuration_of_a_job_is_what_its_own_command_line_composes(lines: list[str]) -> None:
    request = ask(*lines, multirun=True)
    assert len(request.jobs) == 4
    for job in request.jobs:
        alone = ask(*job.overrides)
        assert (job.config(request.bases), request.bases[job.base or 0].choices) == (alone.config, alone.choices)


def test_a_hundred_thousand_jobs_are_planned_in_seconds() -> None:
    begun = time.process_time()
    request = ask("seed=range(0,100000)", "sweep.max_jobs=100000", multirun=True)
    assert len(request.jobs) == 100_000 and time.process_time() - begun < 15


@pytest.mark.parametrize(
    ("lines", "multirun", "group", "many", "one"),
    [
        ([], True, "-m", "seed=0,1,2", ""),
        (["model=mlp", "seed=1"], True, "-m", "model=mlp seed=0,1,2", " model=mlp seed=1"),
        (["launcher=stacked", "name=a"], False, "launcher", "launcher=stacked sweep.name=a seed=0,1,2", " name=a"),
        (["search=tpe", "seed=3"], True, "search", "search=tpe seed=3 optimizer.lr=0.01,0.03,0.1", " seed=3"),
        (
            ["search=halving", "launcher=parallel", "launcher.jobs=2", "optimizer.lr=1"],
            False,
            "search",
            "search=halving launcher=parallel launcher.jobs=2 optimizer.lr=0.01,0.03,0.1",
            " optimizer.lr=1",
        ),
    ],
)
def test_a_sweep_in_which_nothing_varies(lines: list[str], multirun: bool, group: str, many: str, one: str) -> None:
    told = f"Use mcls train -m {many}, or for one run mcls train{one}."
    assert refused(*lines, multirun=multirun) == f"{group}: needs a key with several values. {told}"
    assert ask(*many.split(), "trainer.epochs=30", multirun=True).sweep
    assert not ask(*one.split()).sweep
    assert refused(*lines, "foo=1", multirun=True) == "foo: no such key. See mcls train --help."


def test_an_interval_without_m_needs_a_search_too() -> None:
    line = "optimizer.lr=interval(0.1,1)"
    assert f"Use mcls train -m search=tpe '{line}', or if" in refused(line)
    assert f"Use mcls train -m '{line}' search=gp, or if" in refused(line, "search=gp")


@pytest.mark.parametrize("line", ["seed=0,1", "seed=range(3)", "optimizer=sgd,adam", "optimizer=glob(*)"])
def test_several_values_without_m(line: str) -> None:
    key, value = line.split("=")
    assert refused(line) == (
        f"{line}: several values make a sweep. Use mcls train -m {shlex.quote(line)}, or if it is a text "
        f"\"{key}='{value}'\"."
    )


def test_the_hint_of_a_sweep_is_the_whole_command(tmp_path: Path) -> None:
    def said(*lines: str) -> str:
        with checker(tmp_path) as check, pytest.raises(RequestError) as error:
            check.check(list(lines), False)
        return str(error.value)

    flags = shlex.join(["--config-dir", str(tmp_path)])
    line = f"mcls train -m {flags} dataset=mnist optimizer.lr=0.1,0.2 trainer.epochs=3"
    assert f"Use {line}, or if" in said("dataset=mnist", "optimizer.lr=0.1,0.2", "trainer.epochs=3")
    both = said("dataset=mnst", "optimizer.lr=0.1,0.2")  # of the second error too
    assert "\n" in both and f"Use mcls train -m {flags} dataset=mnst optimizer.lr=0.1,0.2, or" in both


@pytest.mark.parametrize(
    "value", ["bilü", "a(b)", "a=b,c", "a(1),b", "it's (1)", 'it\'s "x" (y)', 'say "x" (y)', "$HOME (a)", "a\\ü"]
)
def test_a_path_that_must_be_quoted_is_printed_as_it_is_to_be_typed(value: str) -> None:
    message = refused(f"dataset.root={value}", "dataset=mnist")
    typed = message.partition("if it is a text ")[2] or message.partition("If it is a text, type ")[2]
    assert refused("a b=ü") == "a b=ü: not an override of the form key=value. Write key=value; see mcls train --help."
    (line,) = shlex.split(typed.removesuffix(".").removesuffix("; see mcls train --help"))
    assert ask(line, "dataset=mnist").config["dataset"]["root"] == value


def test_folders_that_the_user_gives() -> None:
    assert ask("hydra.run.dir=here").folder == "here"
    assert ask("hydra.sweep.dir=there", "seed=0,1", multirun=True).folder == "there"
    assert ask("hydra.sweep.dir=there").folder is None


def test_job_names_are_readable_and_safe() -> None:
    assert job_name(3, "optimizer.lr=0.1,seed=2") == "3_optimizer.lr=0.1,seed=2"
    assert job_name("0", "") == "0"
    assert job_name(1, "a=../../etc b") == "1_a=.._.._etc_b"
    assert len(job_name(2, "key=" + "x" * 500)) == 100


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("epoch", "trainer.epochs"),
        ("zzzzzz", None),
    ],
)
def test_nearest(word: str, found: str | None) -> None:
    assert nearest_key(word, ["optimizer.lr", "optimizer.momentum", "trainer.epochs", "seed"]) == found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's own YAML files."""
    folder = tmp_path / "conf"
    for group in ("optimizer", "dataset", "experiment"):
        (folder / group).mkdir(parents=True)
    (folder / "optimizer" / "nadam.yaml").write_text(
        "_target_: torch.optim.NAdam\n# (float > 0 <= 0.5) learning rate\nlr: 0.002\n"
    )
    (folder / "dataset" / "rings.yaml").write_text(
        "_target_: mcls.datasets.blobs\n"
        "# (int >= 10 <= 500) points\nn_samples: 200\n# (int > 0) numbers a point\nn_features: 3\n"
        "# (int > 1) classes\ncenters: 5\n# (float > 0) width\ncluster_std: 0.5\nrandom_state: 1\n"
        "test_fraction: 0.2\ntest_seed: 1\n# (float >= 0 < 1) part\nval_fraction: 0.2\nval_seed: 0\n"
    )
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /dataset: rings\n  - override /optimizer: nadam\n"
        "trainer:\n  epochs: 2\n"
    )
    return folder


def test_the_users_own_files(own: Path) -> None:
    request = ask("optimizer=nadam", "dataset=rings", "dataset.n_samples=100", config_dir=own)
    assert request.config["optimizer"] == {"_target_": "torch.optim.NAdam", "lr": 0.002}
    assert request.config["dataset"]["n_samples"] == 100
    assert ask("dataset.random_state=5", "dataset=rings", config_dir=own).config["dataset"]["random_state"] == 5
    assert ask("experiment=mine", config_dir=own).choices["optimizer"] == "nadam"


def test_the_users_own_rules_hold(own: Path) -> None:
    assert refused("optimizer=nadam", "optimizer.lr=0.6", config_dir=own) == (
        "optimizer.lr: must be float > 0 <= 0.5, got 0.6."
    )
    assert refused("experiment=mine", "dataset.n_samples=501", config_dir=own) == (
        "dataset.n_samples: must be int >= 10 <= 500, got 501."
    )
    assert refused("optimizer=nadam", "optimizer.lrr=0.1", config_dir=own) == (
        "optimizer.lrr: no such key. Did you mean optimizer.lr?"
    )
    (own / "optimizer" / "bad.yaml").write_text("_target_: torch.optim.SGD\n# (float > 0) rate\nlr: -3\n")
    assert refused("optimizer=bad", config_dir=own) == "optimizer.lr: must be float > 0, got -3."
    (own / "experiment" / "bad.yaml").write_text("# @package _global_\nsead: 3\n")
    assert (
        refused("experiment=bad", config_dir=own) == "experiment/bad.yaml: sead: no such key, got 3. Did you mean seed?"
    )
    for content in ("trainer:\n  epochs: 2\n", "trainer: {epochs: 2}\n"):
        (own / "experiment" / "nopkg.yaml").write_text(content)
        assert refused("experiment=nopkg", config_dir=own) == (
            "experiment=nopkg: its file must begin with `# @package _global_`."
        )
    (own / "optimizer" / "nameless.yaml").write_text("lr: 0.1\n")
    nameless = "optimizer._target_: missing, it names the class or function of the optimizer."
    assert refused("optimizer=nameless", config_dir=own) == refused("optimizer._target_=null") == nameless
    (own / "optimizer" / "evil.yaml").write_text("_target_: os.system\ncommand: ls\n")
    assert refused("optimizer=evil", config_dir=own).startswith("optimizer._target_: os.system is not allowed here")
    (own / "optimizer" / "broken.yaml").write_text("a: [1\n")
    assert "\n" not in refused("optimizer=broken", config_dir=own)


def test_a_file_with_a_shipped_name_is_refused_unless_it_is_a_copy(own: Path) -> None:
    shipped = Path(__file__).parents[1] / "configs" / "optimizer" / "sgd.yaml"
    path = own / "optimizer" / "sgd.yaml"
    path.write_bytes(shipped.read_bytes())
    assert ask(config_dir=own).choices["optimizer"] == "sgd"
    path.write_text("_target_: torch.optim.SGD\nlr: 3.0\n")
    assert refused(config_dir=own) == (
        f"--config-dir: {path} has the name of one of mcls's own files. Give it another name."
    )


@pytest.mark.parametrize(
    "defaults",
    ["\n  - adam", "\n- adam\n- _self_", " [adam, _self_]", "\n  - /optimizer/adam@_here_\n  - _self_"],
)
def test_files_that_inherit_from_shipped_ones(defaults: str, own: Path) -> None:
    (own / "optimizer" / "mine.yaml").write_text(f"defaults:{defaults}\namsgrad: true\nlr: 0.02\n")
    config = ask("optimizer=mine", "optimizer.eps=1", config_dir=own).config["optimizer"]
    assert config == {
        "_target_": "torch.optim.Adam",
        "lr": 0.02,
        "betas": [0.9, 0.999],
        "eps": 1.0,
        "weight_decay": 0.0,
        "head_lr_factor": 1.0,
        "decay_norm_and_bias": True,
        "amsgrad": True,
    }
    assert refused("optimizer=mine", "optimizer.lr=-1", config_dir=own) == "optimizer.lr: must be float > 0, got -1."


def test_a_run_of_files_that_inherit_is_trained_evaluated_and_resumed(own: Path, mcls: Main, tmp_path: Path) -> None:
    (own / "trainer").mkdir()
    (own / "trainer" / "mine.yaml").write_text("defaults:\n- default\nepochs: 1\nfigures: false\n")
    (own / "dataset" / "mine.yaml").write_text("defaults: [blobs]\nn_samples: 200\n")
    (own / "optimizer" / "mine.yaml").write_text("defaults:\n  - adam\namsgrad: true\n")
    groups = "".join(f"- override {group}: mine\n" for group in ("trainer", "dataset", "optimizer"))
    (own / "mytrain.yaml").write_text(f"defaults:\n- train\n{groups}- _self_\nseed: 3\n")
    assert mcls("train", "--config-dir", str(own), "--config-name", "mytrain") == 0
    (run,) = tmp_path.glob("outputs/mine-mlp/*")
    assert mcls("evaluate", str(run)) == 0
    assert mcls("resume", str(run), "trainer.epochs=2") == 0
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    assert mcls("train", "--config-dir", str(own), "--config-name", "mytrain", "seed=-1") == 2


def test_the_users_own_files_train(own: Path, mcls: Main, tmp_path: Path) -> None:
    assert mcls("train", "--config-dir", str(own), "experiment=mine", "trainer.figures=false") == 0
    (result,) = tmp_path.glob("outputs/rings-mlp/*/result.json")
    assert len(json.loads(result.read_text())["test"]["per_class"]) == 5


KEYS = [
    "seed", "device", "lr", "optimizer", "optimizer.lr", "optimizer.betas", "model", "model.hidden_units", "dataset",
    "trainer.epochs", "trainer", "trainer.batch_size", "experiment", "hydra.run.dir", "hydra.job.num", "a.b.c", "",
    "trust", "dataset.root", "schedule", "hydra/launcher", "optimizer@x", "model._target_", "hydra", "é",
]  # fmt: skip
VALUES = [
    "1", "-1", "0.1", "nan", "inf", "null", "true", "sgd", "adam", "mlp", "[1,2]", "[]", "{a:1}", "1,2", "sgd,adam",
    "range(3)", "range(0)", "choice(a,b)", "interval(0,1)", "glob(*)", "glob(z)", "shuffle(1,2)", "'x'", '"', "[", "}",
    "${seed}", "${nothing}", "${oc.env:NOTHING}", "1e400", "9" * 400, "", " ", "a b", "\\", "\x00", "é", "mnist-mlp",
    "int(3)", "str([1])", "${", "../x", "$", "???", "cuda:99", "tag(a,1)", "sort(3,1)", "a=b", "1:2",
]  # fmt: skip


@pytest.mark.slow
def test_no_command_line_is_a_bug_of_mcls() -> None:
    """300 random command lines end well or with a RequestError of one line."""
    draw = random.Random(0)
    taken = wrong = 0
    surprises = []
    with checker() as check:
        for _ in range(300):
            lines = []
            for _ in range(draw.choice((1, 1, 2))):
                form = draw.choice(("{}={}",) * 6 + ("+{}={}", "++{}={}", "~{}", "~{}={}", "{}", "={1}", "{}=={}"))
                lines.append(form.format(draw.choice(KEYS), draw.choice(VALUES)))
            multirun = draw.random() < 0.5
            try:
                check.check(lines, multirun)
                taken += 1
            except RequestError as error:
                assert len(str(error).splitlines()) <= len(lines), lines
                wrong += 1
            except Exception as error:
                surprises.append((lines, multirun, f"{type(error).__name__}: {error}"))
    assert surprises == []
    assert taken > 3 and wrong > 200


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mcls", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


HEAVY = ("torch", "torchvision", "numpy", "sklearn", "matplotlib", "tensorboard", "pandas", "scipy", "PIL")


def imported(process: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[-1].strip() for line in lines}


@pytest.mark.parametrize("arguments", [[], ["--version"], ["--help"], ["trian"]], ids=" ".join)
def test_the_dispatcher_imports_next_to_nothing(arguments: list[str], tmp_path: Path) -> None:
    modules = imported(command(*arguments, cwd=tmp_path))
    assert "mcls.cli" in modules
    assert not modules & {*HEAVY, "hydra", "omegaconf", "yaml", "argparse"}


@pytest.mark.parametrize(
    ("arguments", "status"), [(["optimizer.lr=-1"], 2), (["--help"], 0), (["--cfg", "job"], 0), (["-m", "typo=1,2"], 2)]
)
def test_errors_and_help_come_before_torch(arguments: list[str], status: int, tmp_path: Path) -> None:
    process = command("train", *arguments, cwd=tmp_path)
    assert process.returncode == status
    modules = imported(process)
    assert "mcls.config.compose" in modules
    assert not modules & set(HEAVY)
    assert list(tmp_path.iterdir()) == []


def test_version_and_help(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "-V"):
        assert mcls(flag) == 0
        assert capsys.readouterr() == (f"mcls {package.__version__}\n", "")
    shown = []
    for arguments in ([], ["--help"], ["-h"]):
        assert mcls(arguments) == 0
        shown.append(capsys.readouterr())
    assert len(set(shown)) == 1
    assert shown[0].err == "" and "usage: mcls COMMAND" in shown[0].out and "  train " in shown[0].out


def test_every_command_says_the_version_of_mcls(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "--version") == 0
    assert capsys.readouterr() == (f"mcls {package.__version__}\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["completion", "bash"], ["--help"], ["train", "--help"]], ids=" ".join)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_does_not_fit_is_one_line(arguments: list[str], buffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mcls", *arguments],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            text=True,
        )
    assert (done.returncode, done.stderr) == (4, "mcls: standard output: No space left on device. Make room.\n")


def test_help_of_train_lists_groups_and_keys(tmp_path: Path) -> None:
    text = command("train", "--help", cwd=tmp_path).stdout
    for word in (
        "mcls train experiment=mnist-mlp",
        "dataset: blobs, cifar10",
        "loss.label_smoothing=0.0",
        "--config-dir",
    ):
        assert word in text
    assert "Zsh" not in text and "Hydra's version" not in text


def test_cfg_shows_the_configuration_and_nothing_else(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcls("train", "--cfg", "job", "optimizer.lr=0.5") == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert mcls("train", "--cfg", "job", "optimizer.lr=-1") == 2
    assert not Path("outputs").exists()


def without(streams: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit status of `mcls ARGUMENTS` under a shell's redirections `streams`, and what it printed all the same."""
    line = f"{shlex.join([sys.executable, '-m', 'mcls', *arguments])} {streams}"
    done = subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&- <&-"])
def test_standard_streams_may_be_closed(streams: str, tmp_path: Path) -> None:
    """As cron and daemons leave them: like /dev/null, and no file that is opened takes the place of one."""
    assert (
        without(streams, "train", "trainer.epochs=1", "trainer.figures=false", "hydra.run.dir=run", cwd=tmp_path)[0]
        == 0
    )
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"
    null = streams.replace("&-", "/dev/null")
    for arguments in (["--version"], [], ["runs", "run"], ["runs", "nowhere"], ["train", "lr=1"]):
        assert without(streams, *arguments, cwd=tmp_path) == without(null, *arguments, cwd=tmp_path), arguments


FILES = {
    "experiment/trusting": "# @package _global_\ntrust: [subprocess]\n",
    "experiment/calling": "# @package _global_\nhydra: {callbacks: {x: {_target_: subprocess.getoutput, cmd: id}}}\n",
    "experiment/listed": "# @package _global_\nhydra: {callbacks: {x: [{_target_: subprocess.getoutput, cmd: id}]}}\n",
    "experiment/logging": "# @package _global_\nhydra: {hydra_logging: {version: 1, handlers: "
    "{x: {(): subprocess.getoutput, cmd: touch hacked}}, root: {handlers: [x]}}}\n",
    "experiment/surroundings": "# @package _global_\nhydra: {job: {env_set: {PYTHONPATH: elsewhere}}}\n",
    "model/inherited": "# @package _global_\ndefaults: [/model/mlp@model]\ntrust: [subprocess]\n",
    "primary": "defaults: [train, _self_]\ntrust: [subprocess]\n",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=trusting"], "trust: a file says ['subprocess']"),
        (["experiment=calling"], "hydra: _target_ subprocess.getoutput is not allowed here."),
        (["experiment=listed"], "hydra: _target_ subprocess.getoutput is not allowed here."),
        (["experiment=logging"], "hydra: () subprocess.getoutput is not allowed here."),
        (["experiment=logging", "--help"], "hydra: () subprocess.getoutput is not allowed here."),
        (["experiment=surroundings"], "hydra.job.env_set: set by a file"),
        (["model=inherited"], "trust: a file says ['subprocess']"),
        (["--config-name", "primary"], "trust: a file says ['subprocess']"),
        (["--config-name", "primary", "-m", "seed=1,2"], "trust: a file says ['subprocess']"),
        (["experiment=trusting", "trust=${trust}"], "the configuration"),
        (["trust=[subprocess]"], "trust: subprocess is not a package of your own."),
        (["trust=[torch.hub]"], "trust: torch.hub is not a package of your own."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore:.*_self_")
def test_only_the_command_line_trusts(
    arguments: list[str], message: str, mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        path = Path("conf", f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert mcls("train", "--config-dir", "conf", arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (message in error or message == "the configuration"), error
    assert [path.name for path in Path().iterdir()] == ["conf"]


def test_a_runs_folder_as_configuration_is_answered_with_its_command(
    mcls: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("seed: 3\ntrust: []\n")
    Path("run/run.json").write_text('{"overrides": ["seed=3", "outputs=my runs"]}')
    assert mcls("train", "--config-dir", "run", "--config-name", "config") == 2
    told = "run is a run's folder. To train the same again: mcls train seed=3 'outputs=my runs'\n"
    assert capsys.readouterr().err == f"mcls: --config-name: {told}"
    Path("run/run.json").unlink()
    assert mcls("train", "--config-dir", "run", "--config-name", "config") == 2
    assert "a bug" not in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["run"]


TYPED = [
    ("dataset.drop_columns=[sepal length (cm)]", "dataset.drop_columns=['sepal length (cm)']"),
    ("dataset.drop_columns=[sepal length (cm), it's]", r"dataset.drop_columns=['sepal length (cm)','it\'s']"),
    ("dataset.missing_values=[NA,nan,null]", "dataset.missing_values=['NA','nan','null']"),
    ("dataset.path=~/t.csv", "dataset.path='~/t.csv'"),
    ("dataset.target=1.5", "dataset.target='1.5'"),
    ("optimizer.lr=\u22120.1", "optimizer.lr=-0.1"),
    ("seed=\u20131", "seed=-1"),
    ("outputs=\u201cmy runs\u201d", "outputs='my runs'"),
    ("\u2013m", "-m"),
    ("\u2014multirun", "--multirun"),
]


@pytest.mark.parametrize(("line", "meant"), TYPED)
def test_a_hint_is_what_works(line: str, meant: str) -> None:
    """It is typed into a shell as it stands, and is then taken, by Hydra too, or refused for another reason."""
    told = refused("dataset=csv", line)
    typed = shlex.split(told.partition("ype ")[2])
    assert typed == [meant], told
    if "=" in meant and "-1" not in meant and "-0" not in meant:
        key, _, value = line.partition("=")
        found: Any = ask("dataset=csv", *typed).config
        for part in key.split("."):
            found = found[part]
        wanted = [part.strip() for part in value[1:-1].split(",")] if "[" in value else value.strip("\u201c\u201d")
        assert found == (wanted if isinstance(wanted, list) else str(Path(wanted).expanduser()))


def test_whole_numbers_are_texts_where_texts_are_asked_for() -> None:
    dataset = ask(
        "dataset=csv", "dataset.target=7", "dataset.missing_values=[-999,NA]", "dataset.drop_columns=[1]"
    ).config
    found = dataset["dataset"]
    assert (found["target"], found["missing_values"], found["drop_columns"]) == ("7", ["-999", "NA"], ["1"])
    assert "must be text or null, got true" in refused("dataset=csv", "dataset.target=true")


def test_home_is_known_to_every_key_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for choice, key in (("csv", "path"), ("csv", "test_path"), ("mnist", "root"), ("image_folder", "root")):
        assert ask(f"dataset={choice}", f"dataset.{key}='~/x'").config["dataset"][key] == "/home/me/x"
    assert ask("outputs='~/x'").config["outputs"] == "/home/me/x"
    assert ask("model=resnet18-finetune", "model.weights='~/x'").config["model"]["weights"] == "/home/me/x"


def test_no_recipe_can_be_said(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("experiment=null").config == ask().config
    assert mcls("train", "experiment=null", "--cfg", "job") == 0
    assert "seed: 0" in capsys.readouterr().out


def test_a_plugin_that_is_not_installed_is_named(mcls: Main, capsys: pytest.CaptureFixture[str]) -> None:
    plugins = {
        "hydra/sweeper=optuna": "Use search=tpe",
        "hydra/launcher=joblib": "The jobs of a sweep run one after the other",
    }
    for line, instead in plugins.items():
        assert mcls("train", "-m", line, "seed=1,2") == 2
        assert capsys.readouterr().err == f"mcls: {line}: not installed. {instead}.\n"


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    line = "cd $(mktemp -d -p .) && rmdir $PWD && " + shlex.join([sys.executable, "-m", "mcls", "train"])
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        4,
        "mcls: the working directory was deleted. Change to one that exists.\n",
    )
