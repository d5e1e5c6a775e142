"""Names for the results of `--mode=sample`: no request takes the files of another.

STEM.json has the request whose results are beside it. The same request again takes the same name,
and the results are the same; another one that would take it gets STEM_2, STEM_3 and so on. The
newest results are in the folder as latest.png, latest.npz and latest.json too.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from ddpm_jax.runtime import files

LATEST = "latest"
_ENDINGS = (".json", ".png", ".npz", ".gif", ".mp4", "")  # "" is a folder of PNGs.
_NO_MATTER = ("folder", "batch_size")  # They change where and how fast.


def request(
    sample: Mapping[str, Any], step: int, data: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the results depend on besides the run, to be stored as JSON.

    Args:
        sample: the group `config.sample`; the files that it names are told by their content.
        step: updates that the parameters have seen.
        data: what names the images that new ones are drawn for, if they are.
    """
    named = [*sample["inputs"], *([sample["mask"]] if sample["mask"] else [])]
    sample = {name: value for name, value in sample.items() if name not in _NO_MATTER}
    digests = {name: files.sha256(files.path(name)) for name in named}
    asked = {"step": step, "sample": sample, "sha256": digests, "data": dict(data or {})}
    return json.loads(json.dumps({key: value for key, value in asked.items() if value != {}}))


def stem_for(stem: str, asked: Mapping[str, Any]) -> str:
    """The path without ending for the results of a request, which is written there as JSON.

    Args:
        stem: what it is where nothing else has that name.
        asked: of `request`.
    """
    names = (stem if number == 1 else f"{stem}_{number}" for number in itertools.count(1))
    found = next(name for name in names if _stored(name) == asked or not _taken(name))
    write(found, asked)
    return found


def write(stem: str, asked: Mapping[str, Any]) -> None:
    """Writes the request beside its results."""
    files.write(f"{stem}.json", (json.dumps(asked, indent=2) + "\n").encode())


def _stored(stem) -> Any:
    """The request in STEM.json; None where there is none, or no JSON."""
    path = epath.Path(f"{stem}.json")
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        return None


def _taken(stem) -> bool:
    return any(epath.Path(f"{stem}{ending}").exists() for ending in _ENDINGS)
