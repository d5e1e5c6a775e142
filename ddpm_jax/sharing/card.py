"""The card of a model: what it is, what it was trained on, how well it does and how to sample."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ddpm_jax.evaluation import lines
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.reporting import redaction

PICTURE = "samples.png"
CONFIG = "run/config.json"  # Not in the folders that diffusers reads.
UNKNOWN = "unknown"  # The hub's word for a licence.


class _Data(NamedTuple):
    text: str
    licence: str  # By its identifier on the hub.


_DATA = {
    "cifar10": _Data("CIFAR-10 (Krizhevsky 2009; no licence is stated)", UNKNOWN),
    "digits": _Data(
        "the digits of scikit-learn, the test part of the Optical Recognition of Handwritten "
        "Digits data set (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, CC BY 4.0)",
        "cc-by-4.0",
    ),
    "fashion_mnist": _Data("Fashion-MNIST (Zalando Research, MIT licence)", "mit"),
    "mnist": _Data("MNIST (Y. LeCun, C. Cortes; CC BY-SA 3.0 according to Keras)", "cc-by-sa-3.0"),
}


def text(
    trained: Trained,
    name: str,
    *,
    rows: Sequence[dict[str, Any]] = (),
    license: str | None = None,
    caption: str | None = None,
) -> str:
    """The card, Markdown with a YAML head. It needs huggingface_hub.

    Args:
        trained: the model; that of a run knows its data and training.
        name: of its repository, "user/name".
        rows: of `evaluations.jsonl`, of this model.
        license: its identifier on the hub; None: that of the data, where it is known.
        caption: of the picture, "" for none; None: there is no picture.
    """
    import huggingface_hub

    data, head = _data(trained), huggingface_hub.ModelCardData(
        license=license or _licence(trained), library_name="diffusers",
        pipeline_tag=("image-to-image" if _takes_condition(trained)
                      else "unconditional-image-generation"),
        tags=["ddpm", "diffusion", "jax", "flax", "ddpm_jax"],
    )
    h, w, c = trained.image_shape
    parts = [
        f"---\n{head.to_yaml()}\n---", f"# {name.rpartition('/')[2]}",
        f"A denoising diffusion model (DDPM) of images of {h}x{w} pixels and {c} "
        f"channel{'s' * (c > 1)}, made with ddpm_jax, in the format of diffusers.",
        *([] if caption is None else [f"![Samples]({PICTURE})"]), *([caption] if caption else []),
        "## Model", "\n".join(f"- {line}" for line in [f"Data: {data}.", *_facts(trained)]),
        *(["## Figures", _figures(rows)] if rows else []),
        "## Use", "With ddpm_jax (`pip install \"ddpm_jax[hub]\"`):", _ours(trained, name),
        "With diffusers:", _theirs(trained, name),
    ]
    return "\n\n".join(parts) + "\n"


def _takes_condition(trained) -> bool:
    return trained.model.condition_channels > 0


def _source(trained) -> str:
    """The name of the data set, without version: "mnist:3.0.1" is "mnist"."""
    return "" if trained.config is None else trained.config.data.name.partition(":")[0]


def _licence(trained) -> str:
    return _DATA[_source(trained)].licence if _source(trained) in _DATA else UNKNOWN


def _data(trained) -> str:
    source = _source(trained)
    if source in _DATA:
        return _DATA[source].text
    if not source:
        return "not recorded"
    folder = redaction.last_name(trained.config.data.dir)
    named = ", ".join(f"`{name}`" for name in (redaction.last_name(source), folder) if name)
    return f"{named}, whose licence is unknown"


def _facts(trained) -> list[str]:
    """Of the network, the process, the training and the classes."""
    config, names = trained.config, trained.class_names
    facts = [
        f"Network: {trained_lib.num_params(trained.params):,} parameters in "
        f"{jnp.dtype(trained.model.dtype).name}; predicts {trained.diffusion.mean}; "
        f"{trained.schedule.num_timesteps:,} noising steps.",
    ]
    if config is not None:
        step = f"{trained.step:,} steps" if trained.step is not None else "steps"
        facts.append(
            f"Training: {step} of {config.train.batch_size:,} images; the settings are in "
            f"`{CONFIG}`."
        )
    if trained.model.num_classes:
        listed = ", ".join(f"{i} {each}" for i, each in enumerate(names))
        facts.append(f"Classes: {trained.model.num_classes}{f' ({listed})' if listed else ''}.")
    if _takes_condition(trained):
        facts.append(
            f"It takes an image of {trained.model.condition_channels} channels as a condition."
        )
    return facts


def _figures(rows) -> str:
    """A table of the values, with the protocol of each."""
    table = ["| metric | value | protocol |", "|---|---|---|"]
    for row in map(redaction.row, rows):
        name = lines.name(row["metric"], row["reference"])
        table.append(f"| {name} | {lines.value(row)} | {lines.details(row)} |")
    return "\n".join(table)


def _code(code) -> str:
    return f"```python\n{code}\n```"


def _ours(trained, name) -> str:
    h, w, _ = trained.image_shape
    condition = "" if not _takes_condition(trained) else (
        f", condition=condition)  # [16, {h}, {w}, {trained.model.condition_channels}] in [-1, 1]")
    return _code(
        "import ddpm_jax\n\n"
        f"trained = ddpm_jax.from_pretrained(\"{name}\")\n"
        f"images = ddpm_jax.sample(trained, 0, 16, output=\"uint8\"{condition or ')'}"
    )


def _theirs(trained, name) -> str:
    if not (trained.model.num_classes or _takes_condition(trained)):
        return _code(
            "from diffusers import DDPMPipeline\n\n"
            f"images = DDPMPipeline.from_pretrained(\"{name}\")(batch_size=16).images"
        )
    h, w, c = trained.image_shape
    labels = ", class_labels=labels" if trained.model.num_classes else ""
    given = "torch.cat([x, condition], dim=1)" if _takes_condition(trained) else "x"
    return _code("\n".join([
        "import torch", "from diffusers import DDPMScheduler, UNet2DModel", "",
        f"unet = UNet2DModel.from_pretrained(\"{name}\", subfolder=\"unet\")",
        f"scheduler = DDPMScheduler.from_pretrained(\"{name}\", subfolder=\"scheduler\")",
        f"x = torch.randn(16, {c}, {h}, {w})",
        *([f"labels = torch.arange(16) % {trained.model.num_classes}"] if labels else []),
        "for t in scheduler.timesteps:", "    with torch.no_grad():",
        f"        output = unet({given}, t{labels}).sample",
        "    x = scheduler.step(output, t, x).prev_sample  # in [-1, 1]",
    ]))
