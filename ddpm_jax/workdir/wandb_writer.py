"""A run's metrics and pictures in Weights & Biases (wandb.ai), an optional package."""

import os
import uuid
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files


def check(project: str) -> None:
    """Raises UserError if a project is named and the package is not installed."""
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(
            f"config.train.wandb={project!r} needs the package wandb; pip install -e "
            '".[wandb]", or write --config.train.wandb="" for none.'
        ) from None


class WandbWriter:
    """One run of a project; a second start in the same workdir continues it.

    The service takes steps in order, and ignores those that it has; a resumed run repeats them
    bit for bit. Settings of wandb say who you are and whether anything is sent: `wandb login`,
    WANDB_ENTITY, WANDB_MODE=offline.

    Args:
        project: its name.
        workdir: keeps the run's id in `wandb_id.txt`, and wandb's files in `wandb/`; if it is in
            a store, those are where WANDB_DIR says.
        settings: of the run, JSON.
    """

    def __init__(self, project: str, workdir: Any, settings: dict[str, Any]):
        import wandb

        workdir = files.path(workdir)
        path = workdir / "wandb_id.txt"
        if not path.exists():
            files.write(path, uuid.uuid4().hex.encode())
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, id=path.read_text(), resume="allow", name=workdir.name,
            dir=None if files.in_store(workdir) else os.fspath(workdir), config=settings,
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the scalars of a step."""
        self._run.log(metrics, step=int(step))

    def images(self, name: str, uint8_grid: np.ndarray, step: int) -> None:
        """Logs a picture, uint8 [h, w, c] with c of 1, 3 or 4."""
        grey = uint8_grid.shape[-1] == 1
        # A picture, because wandb would guess the range of an array.
        picture = Image.fromarray(uint8_grid[..., 0] if grey else uint8_grid)
        self._run.log({name: self._image(picture)}, step=int(step))

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()
