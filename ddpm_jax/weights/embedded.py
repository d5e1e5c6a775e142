"""Models that travel in the package: `from_pretrained("digits")`; a card is beside each."""

import pathlib

FOLDER = pathlib.Path(__file__).parent / "models"


def names() -> list[str]:
    """What they are called."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name: str) -> pathlib.Path | None:
    """The file of the model of this name; None where there is none."""
    path = FOLDER / f"{name}.safetensors"
    return path if name in names() else None
