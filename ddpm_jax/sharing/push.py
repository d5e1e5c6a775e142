"""`push_to_hub(workdir, "user/name")`: a model on the Hugging Face hub, with its card."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from typing import Any

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.evaluation import identity
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.reporting import redaction
from ddpm_jax.runtime import files
from ddpm_jax.sharing import card
from ddpm_jax.weights import pretrained
from ddpm_jax.workdir import metrics_file, pictures, run_folder

SHOWN = 16  # Images in the picture.
CALLS = 50  # Of the network, for each.


def push_to_hub(
    source: Any,
    name: str,
    *,
    step: int | None = None,
    weights: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    images: Any = None,
) -> str:
    """Uploads a model in the format of diffusers, with a card, in one commit.

    `from_pretrained(name)` reads it here, `DDPMPipeline.from_pretrained(name)` in diffusers. The
    card has a picture of samples, the data, the licence and, of a workdir, the figures of this very
    checkpoint in `evaluations.jsonl`. The run's config goes with it. Paths in either are cut to
    their last names. It needs `pip install "ddpm_jax[hub]"`, and a token of the hub: that of
    `hf auth login`, or HF_TOKEN.

    Args:
        source: the workdir of a run, or what `load` and `train` return.
        name: of the repository, "user/name", which is made where it does not exist.
        step, weights: of a workdir, as of `load`.
        license: for the card, as the hub names it, for example "mit"; None: that of the data where
            it is known, else "unknown".
        private: whether the repository is private, where it is made; None: as your account has it.
        images: uint8 [n, h, w, c] to show; None: 16, drawn by DDIM in 50 steps, unless the
            model takes an image.

    Returns:
        The address of the repository.

    Raises:
        UserError: an argument is wrong, diffusers cannot express the model, the hub refuses or
            cannot be reached. Nothing is committed then.
    """
    _check_name(name)
    trained, rows = _opened(source, step, weights)
    clip = trained.config is None or trained.config.sample.clip
    with tempfile.TemporaryDirectory() as temporary:
        folder = files.path(temporary) / "model"
        pretrained.save_pretrained(trained, folder, clip=clip)
        if trained.config is not None:
            settings = redaction.settings(json.loads(run_folder.dump(trained.config)))
            files.write(folder / card.CONFIG, (json.dumps(settings, indent=2) + "\n").encode())
        if images is not None:
            pictures.save_png(folder / card.PICTURE, pictures.grid(images))
        with _of_the_hub(name):
            address = _created(name, private)
        caption = "" if images is not None else _draw(trained, clip, folder / card.PICTURE)
        about = card.text(trained, name, rows=rows, license=license, caption=caption)
        files.write(folder / "README.md", about.encode())
        with _of_the_hub(name):
            _commit(name, folder)
    return address


def _check_name(name):
    """Refuses names that no repository can have, and says if the client is missing."""
    if not isinstance(name, str) or name.count("/") != 1 or not all(name.split("/")):
        last = name.strip("/").rpartition("/")[2] if isinstance(name, str) else ""
        raise UserError(
            "is no name of a repository, which has an owner", field="name", value=name,
            instead={"name": f"YOU/{last or 'digits'}"},
        )
    try:
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError(
            "push_to_hub needs huggingface_hub; install it with: pip install \"ddpm_jax[hub]\"."
        ) from None
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(f"name={name!r} is refused by the hub: {one_line(error)}") from None


def _opened(source, step, weights) -> tuple[Trained, list[dict[str, Any]]]:
    """The model, and the rows of `evaluations.jsonl` that are of its very parameters."""
    if isinstance(source, Trained):
        for field, value in (("step", step), ("weights", weights)):
            if value is not None:
                raise UserError(
                    "is for a workdir, and this is a model already; leave it out.", field=field,
                    value=value,
                )
        trained_lib.check(source)
        return source, []
    _, trained = run_folder.load_step(source, step=step, weights=weights or "ema")
    digest = identity.of_model(trained)
    rows = metrics_file.read(files.path(source) / "evaluations.jsonl")
    return trained, [
        row for row in rows
        if row["value"] is not None and row["protocol"].get("checkpoint") == digest
    ]


def _draw(trained, clip, path) -> str | None:
    """Writes a picture of samples and returns its caption; None where they would need an image."""
    if trained.model.condition_channels:
        return None
    calls = min(CALLS, trained.schedule.num_timesteps)
    grid = "trailing" if trained.schedule.beta[-1] == 1 else "uniform"
    images = sample_lib.sample(
        trained, 0, SHOWN, sampler="ddim", num_steps=calls, grid=grid, clip=clip, output="uint8")
    pictures.save_png(path, pictures.grid(images))
    classes = ", every class in turn" if trained.model.num_classes else ""
    return f"{SHOWN} samples of DDIM in {calls} steps, not selected{classes}."


def _created(name, private) -> str:
    import huggingface_hub

    return str(huggingface_hub.HfApi().create_repo(name, private=private, exist_ok=True))


def _commit(name, folder):
    import huggingface_hub

    huggingface_hub.HfApi().upload_folder(
        repo_id=name, folder_path=str(folder), commit_message="Add the model")


@contextlib.contextmanager
def _of_the_hub(name) -> Iterator[None]:
    """Turns an error of the hub's client into one line."""
    try:
        yield
    except Exception as error:  # Errors of the hub's client have no common class.
        cause = _cause(error)
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status == 401:
            raise UserError(
                f"{name} was not pushed: the hub knows no token of yours; run hf auth login, or "
                "set HF_TOKEN."
            ) from None
        if status == 403:
            raise UserError(
                f"{name} was not pushed: your token may not write to it; write a name of your own, "
                f"for example name='YOU/{name.rpartition('/')[2]}', or use a token that may write."
            ) from None
        raise UserError(
            f"{name} was not pushed ({type(cause).__name__}: {one_line(cause)[:200]}); nothing was "
            "committed: try again."
        ) from None


def _cause(error) -> BaseException:
    """The error with the hub's answer among those that led to this one, else the first of all."""
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    return error
