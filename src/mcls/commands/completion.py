"""`mcls completion bash`: prints what makes TAB complete a command line in bash (and zsh)."""

import argparse
import importlib
from pathlib import Path
from typing import cast

from mcls.commands import COMMANDS
from mcls.commands.options import Parser

COMPLETED_KINDS = ("anything", "float", "int", "text")  # that a rule may name

SCRIPT = """_mcls_complete() {
  local word="${COMP_LINE:0:COMP_POINT}" choices
  choices=$(mcls completion --line "$word" 2>/dev/null)
  word="${word##* }"
  local cut="${word%"${word##*[=:]}"}"
  COMPREPLY=($(compgen -W "$choices" -- "$word"))
  [[ "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
  return 0
}
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
complete -o nospace -o default -F _mcls_complete mcls
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = Parser(
        prog="mcls completion",
        description='TAB completion. Put this in ~/.bashrc or ~/.zshrc: eval "$(mcls completion bash)"',
    )
    command.add_argument("shell", nargs="?", choices=["bash", "zsh"], default="bash")
    command.add_argument("--line", help=argparse.SUPPRESS)
    return command


def run(arguments: list[str]) -> int:
    """Print the script, or what may follow a line. Returns the exit status."""
    options = parser().parse_args(arguments)
    print(SCRIPT if options.line is None else "\n".join(following(options.line)), end="")
    return 0


def following(line: str) -> list[str]:
    """What may stand in the place of the last, begun word of a command line `mcls ...`."""
    words = line.split()[1:]
    begun = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        return [f"{command} " for command in COMMANDS]
    command, last = words[0], words[-1]
    if command not in COMMANDS:
        return []
    if begun.startswith("-") or last.startswith("-") or (len(words) == 1 and command in ("data", "tune", "completion")):
        actions = parser_of(command)._actions
        flags = {flag: one for one in actions for flag in one.option_strings if one.help != argparse.SUPPRESS}
        if begun.startswith("-"):
            return [flag for flag in flags if flag.startswith(begun)]
        if last in flags and flags[last].nargs != 0:
            return list(flags[last].choices or [])
        if len(words) == 1:
            return [choice for one in actions if not one.option_strings for choice in one.choices or []]
    if command in ("train", "baseline", "data", "tune") and words[1:2] != ["doubts"]:
        return overrides(words[2 if command in ("data", "tune") else 1 :], begun)
    own: dict[str, str] = importlib.import_module("mcls.commands.runs").ACTIONS if command == "runs" else {}
    first = [f"{action} " for action in own if len(words) == 1 and action.startswith(begun)]
    return [*first, *run_folders(begun)]


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    return cast(argparse.ArgumentParser, importlib.import_module(f"mcls.commands.{command}").parser())


def overrides(words: list[str], begun: str) -> list[str]:
    """Groups, choices, keys and values that may follow `words` on Hydra's command line in the place of `begun`."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from mcls.config.compose import checker
    from mcls.config.schema import Constraint
    from mcls.config.validate import constraints_of

    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--config-dir")
    own, words = flags.parse_known_args(words)
    words = [word for word in words if "=" in word and not word.startswith("-")]
    key, sign, value = begun.partition("=")
    listed = value[: value.rfind(",") + 1]  # of a sweep, `sgd,` of optimizer=sgd,ad
    begun = begun.replace(listed, "", 1) if listed else begun
    with checker(own.config_dir) as check:
        lines: list[str] = DefaultCompletionPlugin(check.loader)._query("train", " ".join([*words, begun]))
        if sign and key not in check.groups:
            rule = constraints_of(check.compose(words)[1]).get(key, Constraint())
            lines += [f"{key}={value}" for value in literals(rule.text)]
    lines = [line for line in dict.fromkeys(lines) if line.startswith(begun)]
    return [line.replace("=", f"={listed}", 1) for line in lines] if listed else lines


def literals(rule: str) -> list[str]:
    """The alternatives of a constraint that are literal words."""
    words = [word.strip() for word in rule.replace("bool", "true | false").split("|")]
    return [word for word in words if word not in COMPLETED_KINDS and word.replace("_", "").isalnum()]


def run_folders(begun: str) -> list[str]:
    """Run and sweep folders whose path begins so, at most three levels below what is typed."""
    root = Path(begun).parent if "/" in begun else Path("outputs")
    patterns = [f"{depth}{name}" for depth in ("*/", "*/*/", "*/*/*/") for name in ("run.json", "sweep.json")]
    folders = {str(path.parent) for pattern in patterns for path in root.glob(pattern)}
    return sorted(path for path in folders if path.startswith(begun))
