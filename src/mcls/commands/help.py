"""`mcls help KEY`: what a key, a group or a choice is, from the comments of the configuration files."""

import argparse

from mcls.commands.options import Parser, path
from mcls.config.compose import checker
from mcls.config.explain import explain_words
from mcls.system.console import columns


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls help",
        description="Explain keys (optimizer.lr, or lr), groups (optimizer) and choices (optimizer=adam): what they "
        "are for, what they may be, their defaults. mcls help COMMAND is mcls COMMAND --help.",
    )
    command.add_argument("words", nargs="+", metavar="KEY", help="a key, a group or a choice")
    command.add_argument("--config-dir", type=path, metavar="DIR", help="configuration files of your own")
    return command


def run(arguments: list[str]) -> int:
    """Explain the words. Returns the exit status."""
    options = parser().parse_args(arguments)
    with checker(options.config_dir) as check:
        print(explain_words(check, options.words, columns()))
    return 0
