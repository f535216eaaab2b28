"""What a person says about a run, its tags and its note: in config.yaml, where resume keeps them, and in run.json."""

from typing import Any

from mcls.errors import RequestError
from mcls.runs.folder import RunFolder, as_yaml, read_json, read_yaml
from mcls.runs.formats import encodable
from mcls.runs.table import overridden
from mcls.runs.tracking import publish_text, remarks
from mcls.system.files import publish

MOST = 2_000  # characters


def tag_list(text: str) -> list[str]:
    """The tags in `a,b`, each once."""
    return list(dict.fromkeys(tag for word in text.split(",") if (tag := word.strip())))


def set_remark(folder: RunFolder, key: str, text: str) -> None:
    """Write the `tags` or the `note` of a run anew; an empty text takes them away.

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
