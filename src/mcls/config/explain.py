"""What groups, choices and keys are, by the comments of their YAML files: `mcls help`, `mcls train --help`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mcls.config.compose import Checker
from mcls.config.files import compose_files
from mcls.config.overrides import meaning, suggestion
from mcls.config.schema import Constraint, describe_constraint, leaves, read_defaults, yaml_text
from mcls.config.validate import choice_file, config_roots, constraints_of, read_choice
from mcls.errors import RequestError

Entry = tuple[str, Constraint, str]  # a choice that has a key, the key's constraint, and its default as it is typed
PLAIN = re.compile(r"(?!null)[\w.,\[\]+-]+")  # a value that neither a shell nor Hydra's grammar takes for another
KEY_INDENT, HELP_INDENT = " " * 2, " " * 6


def explain_command(check: Checker, lines: list[str], width: int) -> str:
    """The help of `mcls train`: the groups, and each key of the configuration that `lines` choose."""
    config, hydra = check.compose(lines)
    pages = Pages(check, hydra, width)
    groups = [pages.hanging(f"{group}: {', '.join(pages.choices(group))}") for group in check.groups]
    text: str = hydra.help.template
    text = text.replace("$APP_CONFIG_GROUPS", "\n".join(groups))
    return text.replace("$CONFIG", "\n".join(pages.sections(config))).rstrip("\n")


def explain_words(check: Checker, words: Sequence[str], width: int) -> str:
    """What each of `words` is: a group, one of its choices, a key or the end of one. Raises RequestError."""
    pages = Pages(check, compose_files(check.name, [])[1], width)
    return "\n\n".join(pages.word(word.strip().lstrip("-+~")) for word in words)


@dataclass(frozen=True)
class Pages:
    """Explanations, in lines of `width` characters.

    Args:
        hydra: Hydra's part of a configuration, which says what is chosen and where the files are.
    """

    check: Checker
    hydra: DictConfig
    width: int

    def word(self, word: str) -> str:
        """One word explained, under the name that mcls has for it."""
        known = self.keys()
        meant = meaning(word)
        if meant and not any(key == word or key.endswith(f".{word}") for key in (*known, *self.check.groups)):
            if " " in meant:
                return f"{word}: in mcls that is {meant}"
            word = meant
        group, sign, choice = word.partition("=")
        if group in self.check.groups:
            return self.choice(group, choice) if sign else self.group(group)
        named = [key for key in known if key == group] or [key for key in known if key.endswith(f".{group}")]
        inside = [key for key in known if key.startswith(f"{group}.")]
        if not named and not inside:
            raise RequestError(f"{group}: no such key. {suggestion(group, [*known, *self.check.groups])}")
        blocks = [self.key(key, known[key]) for key in named]
        blocks += ["\n".join(self.line(key, known[key][0][1].help) for key in inside)] if inside else []
        others = [key for key in known if key.endswith(f".{group}") and key not in named]
        return "\n\n".join([*blocks, f"See also: {', '.join(others)}"] if others else blocks)

    def group(self, group: str) -> str:
        """The choices of a group, each with the comment that its file begins with."""
        lines = [f"{group}: default {group}={self.hydra.runtime.choices.get(group) or 'null'}", ""]
        lines += [self.line(f"{group}={choice}", self.about(group, choice)) for choice in self.choices(group)]
        return "\n".join([*lines, "", f"The keys of one: mcls help {group}={self.choices(group)[0]}"])

    def choice(self, group: str, choice: str) -> str:
        """A choice of a group and its keys."""
        self.check.check_choice(self.check.parse(f"{group}={choice}"))
        config, hydra = compose_files(self.check.name, [f"{group}={choice}"])
        pages = Pages(self.check, hydra, self.width)
        own = {group: config[group]} if config.get(group) is not None else {}
        lines = list(pages.sections(own)) or [pages.hanging(f"{group}={choice}: {pages.about(group, choice)}")]
        return "\n".join([*lines, *([] if own else ["", f"Its keys: mcls train {group}={choice} --help"])]).lstrip("\n")

    def key(self, key: str, entries: Sequence[Entry]) -> str:
        """A key: what it is for, what it may be, its default, and how it is typed."""
        blocks = []
        group = key.partition(".")[0]
        for rule in dict.fromkeys(entry[1].text for entry in entries):
            same = [entry for entry in entries if entry[1].text == rule]
            defaults = list(dict.fromkeys(entry[2] for entry in same))
            named = [
                f"{value} with {group}={', '.join(entry[0] for entry in same if entry[2] == value)}"
                for value in defaults
            ]
            everywhere = len(same) == len(self.choices(group)) and len(defaults) == 1
            choice, constraint, value = same[0]
            usual = not choice or choice == self.hydra.runtime.choices.get(group)
            typed = f"{'' if usual else f'{group}={choice} '}{key}={value if PLAIN.fullmatch(value) else 'VALUE'}"
            table = {
                "type": describe_constraint(rule),
                "default": value if everywhere or not choice else "; ".join(named),
                "to set": f"mcls train {typed}",
            }
            lines = [self.hanging(f"{key}: {constraint.help}"), ""]
            lines += [self.wrapped(text, f"  {title:<9}", " " * 11) for title, text in table.items()]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def keys(self) -> dict[str, list[Entry]]:
        """Every key, with the choices that have it: first the one that is the default."""
        roots, entries_of = config_roots(self.hydra), dict[str, list[Entry]]()
        pairs = [(group, choice) for group in self.check.groups for choice in self.choices(group)]
        for group, choice in [("", ""), *pairs]:
            file, prefix = (f"{group}/{choice}.yaml", f"{group}.") if group else (f"{self.check.name}.yaml", "")
            path, rules = choice_file(file, self.hydra), read_choice(file, prefix, self.hydra)
            defaults = dict(leaves(read_defaults(path, roots))) if path and rules else {}
            for key, rule in rules.items():
                name = key.removeprefix(prefix)
                if rule.help and name in defaults:
                    entries = entries_of.setdefault(key, [])
                    first = choice == self.hydra.runtime.choices.get(group)
                    entries.insert(0 if first else len(entries), (choice, rule, typed_value(defaults[name])))
        return entries_of

    def sections(self, config: Any) -> Iterator[str]:
        """The keys of a configuration with their explanations, a section for each group."""
        rules, last = constraints_of(self.hydra), ""
        plain: Any = OmegaConf.to_container(OmegaConf.create(config))
        for key, value in leaves(plain):
            group = key.partition(".")[0]
            if "." in key and group != last:
                choice = self.hydra.runtime.choices.get(group)
                title = f"{group}={choice}: {self.about(group, choice)}" if choice else group
                yield "\n" + self.hanging(title.removesuffix(": "))
                last = group
            if (rule := rules.get(key, Constraint())).help:
                yield self.line(f"{key}={typed_value(value)}", f"({rule.text}) {rule.help}")

    def choices(self, group: str) -> list[str]:
        """The names of a group's choices."""
        names: list[str] = self.check.loader.get_group_options(group)
        return names

    def about(self, group: str, choice: str) -> str:
        """The comment that the file of a choice begins with, up to what is indented: commands and what to expect."""
        path, lines = choice_file(f"{group}/{choice}.yaml", self.hydra), []
        for line in path.read_text("utf-8").splitlines() if path else []:
            if not line.startswith("#") or line.startswith(("# (", "#   ")):
                break
            lines.append(line.removeprefix("#").strip())
        return " ".join(line for line in lines if not line.startswith("@package"))

    def line(self, title: str, text: str) -> str:
        """A line, and an explanation beneath it."""
        return f"{KEY_INDENT}{title}\n{self.wrapped(text, HELP_INDENT, HELP_INDENT)}"

    def hanging(self, text: str) -> str:
        """A paragraph whose later lines are indented."""
        return self.wrapped(text, "", "    ")

    def wrapped(self, text: str, begin: str, later: str) -> str:
        """A paragraph; no word is broken."""
        wrapper = TextWrapper(self.width, begin, later, break_long_words=False, break_on_hyphens=False)
        return wrapper.fill(text)


def typed_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(typed_value, value))}]"
    return value if isinstance(value, str) else yaml_text(value)
