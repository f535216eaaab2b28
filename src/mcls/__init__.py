"""mcls: train, sweep and honestly measure multi-class classifiers with one command, or from Python.

    import mcls

    run = mcls.train(["dataset=mnist", "trainer.epochs=1"])
    run = mcls.load("outputs/mnist-mlp/2026-11-21_14-44-22")
    run.predict("pictures/").names

`import mcls` loads neither torch nor numpy nor Hydra; the first use of `load` or `train` does.
"""

from typing import TYPE_CHECKING, Any

from mcls.version import __version__ as __version__

if TYPE_CHECKING:
    from mcls.inference.api import PredictionResult, Run, load, train

__all__ = ["PredictionResult", "Run", "load", "train"]


def __getattr__(name: str) -> Any:
    """The functions and classes of `mcls.inference.api`, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module 'mcls' has no attribute {name!r}")
    import mcls.inference.api as api

    globals().update({public: getattr(api, public) for public in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    """What the module offers, imported or not."""
    return [*globals(), *__all__]
