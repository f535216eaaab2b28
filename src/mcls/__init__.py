"""mcls: train, sweep and honestly measure multi-class classifiers with one command."""

__version__ = "0.1.0"
