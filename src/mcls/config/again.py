"""The configuration of a run as a command line, so that a new run can be like it but for a change."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from mcls.config.compose import Checker
from mcls.config.saved import saved_config
from mcls.config.schema import leaves
from mcls.errors import RequestError
from mcls.runs.folder import RunFolder, read_json

OWN_KEYS = ("outputs", "name", "tags", "note", "trust")  # what a new run's command line says anew


def as_override(value: Any) -> str:
    """`value` in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_override(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def overrides_of(folder: RunFolder, changes: Sequence[str], check: Checker) -> list[str]:
    """The overrides that make the configuration of the run in `folder`, but for what `changes` set.

    They name its choices, and the keys that are not as those choices have them today. A choice among the changes
    brings its own keys.

    Raises FolderError or RequestError, as `saved_config` does.
    """
    changed = {check.parse(line).key_or_group for line in check.renamed(list(changes))}
    if "experiment" in changed:
        raise RequestError("experiment: not with --from, which names a whole configuration. Omit one of them.")
    saved = saved_config(folder, [line for line in changes if line.startswith("trust=")])
    choices = read_json(folder.about)["choices"]
    lines = [
        f"{group}={choice}"
        for group, choice in choices.items()
        if group in check.groups and group not in changed and group != "experiment"
    ]
    today = dict(leaves(check.values(lines)[0]))
    for key, value in leaves(saved):
        group = key.split(".")[0]
        kept = key not in changed and key not in OWN_KEYS and (group not in changed or group not in check.groups)
        if kept and (key not in today or today[key] != value):
            lines.append(f"{key}={as_override(value)}")
    return lines
