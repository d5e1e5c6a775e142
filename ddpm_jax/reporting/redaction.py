"""Paths reduced to their last names: a page that is passed on says nothing of the machine."""

import re
from typing import Any

# Settings that name files, folders or runs, absolute or not.
PATHS = ("data.dir", "train.warm_start", "distill.teacher", "sample.inputs", "sample.mask",
         "sample.folder", "sample.guide_weights", "evaluate.references", "evaluate.inception",
         "evaluate.sweep_students", "evaluate.folder")
_ABSOLUTE = re.compile(
    r"(?:\w+://|(?<![\w.])~\w*[\\/]|\b[A-Za-z]:[\\/]|(?<![\w.)\]])[\\/])"
    r"(?:[^\s'\"\\/,;<>]+[\\/]+)*([^\s'\"\\/,;<>]+)"
)


def last_name(path: Any) -> str:
    """The last name of a path, local, of Windows or of a store: `runs/digits/` is `digits`."""
    parts = [part for part in re.split(r"[\\/]+", str(path)) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else ""


def setting(name: str, value: Any) -> Any:
    """The value of a setting without folders; `name` is for example "data.dir"."""
    if isinstance(value, (tuple, list)):
        return tuple(setting(name, item) for item in value)
    if not isinstance(value, str):
        return value
    return last_name(value) if name in PATHS else text(value)


def text(value: str) -> str:
    """A text with each absolute path in it reduced to its last name."""
    return _ABSOLUTE.sub(lambda match: match[1], value)


def tree(value: Any) -> Any:
    """JSON with every text in it reduced as by `text`, keys too."""
    if isinstance(value, dict):
        return {tree(key): tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tree(item) for item in value]
    return text(value) if isinstance(value, str) else value


def row(found: dict[str, Any]) -> dict[str, Any]:
    """A row of `evaluations.jsonl` without folders; its reference may be a relative path too."""
    found = tree(found)
    for part in (found, found["protocol"]):
        if isinstance(part.get("reference"), str):
            part["reference"] = last_name(part["reference"])
    return found


def settings(nested: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a config without folders: each setting as by `setting`."""
    return {
        group: values if not isinstance(values, dict) else {
            name: setting(f"{group}.{name}", value) for name, value in values.items()
        }
        for group, values in nested.items()
    }
