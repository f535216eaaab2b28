"""`mcls completion bash`: prints what makes TAB complete commands, overrides and run folders in bash (and zsh)."""

import argparse
from pathlib import Path

from mcls.commands import COMMANDS

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


def run(arguments: list[str]) -> int:
    """Print the script, or what may follow a line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mcls completion",
        description='Completion by the TAB key. Put this in ~/.bashrc or ~/.zshrc: eval "$(mcls completion bash)"',
    )
    parser.add_argument("shell", nargs="?", choices=["bash", "zsh"], default="bash")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    print(SCRIPT if options.line is None else "\n".join(following(options.line)), end="")
    return 0


def following(line: str) -> list[str]:
    """What may stand in the place of the last, begun word of a command line `mcls ...`."""
    words = line.split()[1:]
    if not words or (len(words) == 1 and not line.endswith(" ")):
        return [f"{command} " for command in COMMANDS]
    command, rest = words[0], line.split(None, 2)[2] if len(words) > 1 else ""
    if command == "data":
        if not rest.startswith("check "):
            return ["check "]
        rest = rest.removeprefix("check ")
    if command in ("train", "data"):
        return overrides(rest)
    return run_folders("" if line.endswith(" ") else words[-1])


def overrides(line: str) -> list[str]:
    """Groups, choices and keys that may follow on Hydra's command line."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from mcls.config.compose import checker

    with checker() as check:
        return DefaultCompletionPlugin(check.loader)._query("train", line)


def run_folders(begun: str) -> list[str]:
    """Run and sweep folders whose path begins so, at most three levels below what is typed."""
    root = Path(begun).parent if "/" in begun else Path("outputs")
    patterns = [f"{depth}{name}" for depth in ("*/", "*/*/", "*/*/*/") for name in ("run.json", "sweep.json")]
    found = {str(path.parent) for pattern in patterns for path in root.glob(pattern)}
    return sorted(path for path in found if path.startswith(begun))
