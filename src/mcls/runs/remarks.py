"""Tags and note of a run: in config.yaml, where resume keeps them, and in run.json."""

from typing import Any

from mcls.errors import RequestError
from mcls.runs.folder import RunFolder, as_yaml, read_json, read_yaml, relative
from mcls.runs.formats import encodable
from mcls.runs.table import overridden
from mcls.runs.tracking import publish_text, remarks
from mcls.system.files import publish

KEYS = ("tags", "note")
MOST = 2_000  # characters


def tag_list(text: str) -> list[str]:
    """The tags in `a,b`, each once."""
    return list(dict.fromkeys(tag for word in text.split(",") if (tag := word.strip())))


def set_remark(folder: RunFolder, key: str, text: str) -> None:
    """Replace the `tags` or the `note` of a run; an empty text removes them.

    Raises RequestError for a text that can't be kept, MachineError when the run is being trained or can't be written.
    """
    if len(text) > MOST or not encodable(text):
        wrong = f"{len(text):,} characters" if len(text) > MOST else "bytes that are no text"
        raise RequestError(f"{key}: must be at most {MOST:,} characters of text, got {wrong}. Put it into a file.")
    with folder.lock():
        config, about = read_yaml(folder.config), read_json(folder.about)
        value: Any = tag_list(text) if key == "tags" else text.strip() or None
        settings = about.get("hyperparameters", overridden(about.get("overrides", [])))
        settings = {name: other for name, other in settings.items() if name != key}
        settings |= {key: ",".join(value) if key == "tags" else value} if value else {}
        publish(folder.config, as_yaml({**config, key: value}).encode())
        folder.write_json(folder.about, {**about, "hyperparameters": settings})
        publish_text(folder.path, "note", remarks(settings))


def set_remarks(folder: RunFolder, config: dict[str, Any]) -> list[str]:
    """Write the tags and the note of `config` that differ from the run's. Returns a line for each; raises as above."""
    saved, lines = read_yaml(folder.config), []
    for key in KEYS:
        if (value := config[key] or None) != (saved.get(key) or None):
            text = ",".join(value or ()) if key == "tags" else value or ""
            set_remark(folder, key, text)
            lines.append(f"{relative(folder.path)}: {f'{key} {text}' if text else f'no {key}'}")
    return lines


def newest_remarks(config: dict[str, Any], typed: list[str], folder: RunFolder) -> dict[str, Any]:
    """`config` with the tags and the note that the run has, except what is `typed` now and was not when it began."""
    new = {
        line.lstrip("+").partition("=")[0] for line in set(typed) - set(read_json(folder.about).get("overrides", []))
    }
    saved = read_yaml(folder.config)
    return config | {key: saved[key] for key in KEYS if key in saved and key not in new}
