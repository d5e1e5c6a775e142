"""The parts of the page for one workdir; what is not there leaves a sentence and a command."""

import html

import numpy as np
from PIL import Image

from ddpm_jax.evaluation import identity
from ddpm_jax.reporting import charts, commands, elements, embedding, measures
from ddpm_jax.reporting.charts import Series
from ddpm_jax.reporting.contents import Contents
from ddpm_jax.workdir import pictures
from ddpm_jax.workdir.logs import format_duration

# Shares of the bytes for pictures.
_PREVIEWS, _CHAINS, _SAMPLES, _MEASURED = 0.35, 0.25, 0.2, 0.1
_TIMES = ("step", "time", "seconds", "eta", "steps_per_second", "skipped_in_a_row", "skipped")
_QUARTILES = {
    f"loss_quartile_{n}": f"{n}. quarter of t" + {1: " (least noise)", 4: " (most)"}.get(n, "")
    for n in (1, 2, 3, 4)
}
_DRAWN = ("bound.png", "rate_distortion.png", "sweep.png")  # Here, from their numbers.
_CAPTIONS = {
    "nearest.png": "the samples most like copies (left), each with its nearest training images",
    "generation.png": "x_t, and below it the x_0 predicted from it, from noise to image",
    "completions.png": "images that share the x_t at the left",
    "draws.png": "conditions and draws for them",
}


def all_of(run: Contents, num_bytes: int, prefix: str = "") -> list[tuple[str, str, str]]:
    """(anchor, title, HTML) of every part.

    Args:
        run: of a workdir.
        num_bytes: of its pictures, at most.
        prefix: of the anchors.
    """
    parts = [
        ("overview", "Overview", overview(run)),
        ("curves", "Curves", curves(run)),
        ("previews", "Previews while training", previews(run, int(num_bytes * _PREVIEWS), prefix)),
        ("denoising", "Denoising", denoising(run, int(num_bytes * _CHAINS), prefix)),
        ("samples", "Samples", samples(run, int(num_bytes * _SAMPLES))),
        ("evaluations", "Evaluations", evaluations(run)),
        ("rate", "Rate and distortion", measures.rate_distortion(run)),
        ("nearest", "Nearest training images", nearest(run, int(num_bytes * _MEASURED))),
        ("pictures", "Other pictures", other_pictures(run, int(num_bytes * _MEASURED))),
        ("config", "Config, versions and commands", config_and_versions(run)),
    ]
    return [
        (prefix + anchor, title, elements.section(prefix + anchor, title, body))
        for anchor, title, body in parts if body
    ]


def overview(run: Contents) -> str:
    """The run in a few numbers."""
    wanted = run.settings["train.num_steps"]
    steps = f"{run.num_steps:,} of {wanted:,}"
    data = run.settings["data.name"]
    size = f"{run.settings['data.image_size']}x" \
        f"{run.settings['data.image_width'] or run.settings['data.image_size']}"
    pairs = [("steps", steps), ("data", f"{data}, {size}x{run.settings['data.channels']}")]
    for metric, name in (("loss", "loss"), ("heldout_loss", "held-out loss")):
        values = [(step, value) for step, value in run.values(metric) if value is not None]
        if values:
            pairs.append((name, f"{values[-1][1]:.4f} at step {values[-1][0]:,}"))
    seconds = [row["seconds"] for row in run.rows if row.get("seconds") is not None]
    if seconds:
        pairs.append(("time", format_duration(seconds[-1])))
    pairs.append(("checkpoints", ", ".join(f"{step:,}" for step in run.checkpoints) or "none"))
    parts = [elements.facts(pairs)]
    if run.num_steps < wanted:
        parts.append(elements.missing(
            f"The run is at step {run.num_steps:,} of {wanted:,}; where it was interrupted, this "
            "goes on:", commands.plain(run.name, "train"),
        ))
    if not run.checkpoints:
        parts.append(elements.paragraph(
            "There is no checkpoint, so nothing can be drawn or measured; what was logged is "
            "below.", "missing",
        ))
    parts += [elements.paragraph(note, "missing") for note in run.notes]
    return "".join(parts)


def curves(run: Contents) -> str:
    """What was logged, by step."""
    if not run.rows:
        return elements.missing(
            "Nothing was logged yet: a row comes every config.train.log_every steps.",
            commands.plain(run.name, "train"),
        )
    groups = [
        ("Loss", "loss", {"loss": "training", "heldout_loss": "held out"}),
        ("Loss by quarter of t", "loss", _QUARTILES),
        ("Learning rate", "rate", {"learning_rate": "rate"}),
        ("Norm of the gradient", "norm", {"grad_norm": "before clipping"}),
        ("Speed", "images/s", {"images_per_second": "training"}),
        ("Share of the time in steps that count", "goodput", {"goodput": "goodput"}),
    ]
    named = {metric for _, _, metrics in groups for metric in metrics}
    others = dict.fromkeys(metric for row in run.rows for metric in row)
    groups += [
        (metric, metric, {metric: metric}) for metric in others if metric not in (*named, *_TIMES)
    ]
    if any(value for _, value in run.values("skipped")):
        groups.append(("Skipped updates", "updates", {"skipped": "in all"}))
    figures = [
        charts.line_chart(
            title, [Series(label, run.values(metric)) for metric, label in metrics.items()],
            x_label="step", y_label=unit,
        ) for title, unit, metrics in groups
    ]
    held_out = "" if any(value is not None for _, value in run.values("heldout_loss")) else (
        elements.paragraph(
            "There is no held-out loss: it comes every config.train.eval_every steps where images "
            "are held out and config.train.eval_images is not 0.", "missing",
        )
    )
    return f'<div class="charts">{"".join(figures)}</div>{held_out}'


def previews(run: Contents, num_bytes: int, prefix: str) -> str:
    """Grids that training drew, behind a slider."""
    line = commands.train(run.settings, run.name)
    if not run.previews:
        return elements.missing(
            "There are none yet: training draws one every config.train.sample_every steps.", line)
    fitted = embedding.fitted([path for _, path in run.previews], num_bytes)
    labels = [f"step {run.previews[place][0]:,}" for place in fitted.kept]
    if not labels:
        return elements.paragraph(fitted.note, "missing")
    frames = [[("samples of the average of the parameters", each)] for each in fitted.pictures]
    return elements.slides("Step", frames, labels, f"{prefix}slider-previews") + (
        elements.paragraph(fitted.note, "note") + elements.command(line)
    )


def denoising(run: Contents, num_bytes: int, prefix: str) -> str:
    """x_t and the x_0 predicted from it, behind a slider for each chain."""
    if not run.chains:
        return elements.missing(
            "There is no chain with its way yet; this draws one:",
            commands.plain(run.name, "sample", sample__task="strip"),
        )
    parts = []
    for number, chain in enumerate(run.chains, 1):
        tiles = [_tiles(images) for images in np.stack([chain.x_t, chain.x_0], axis=1)]
        # Both pictures of a frame are one for the choice, so that they stay together.
        fitted = embedding.fitted([_beside(pair) for pair in tiles], num_bytes // len(run.chains))
        frames = [[("left x_t, right the x_0 predicted from it", each)] for each in fitted.pictures]
        labels = [chain.labels[place] for place in fitted.kept]
        parts += [
            elements.slides("Time", frames, labels, f"{prefix}slider-chain-{number}")
            if frames else "", elements.paragraph(fitted.note, "note"),
            elements.command(chain.command),
        ]
    return "".join(parts)


def _tiles(images):
    """Pictures of x_t and x_0, uint8 [h, w, c], of [2, n, h, w, c]; few where they are large."""
    largest = max(images.shape[2:4])
    count = max(1, min(images.shape[1], (256 // largest) ** 2))
    return [pictures.grid(each[:count], min_tile=1, border=1) for each in images]


def _beside(pair) -> Image.Image:
    return pictures.as_pil([pictures.beside(*pair, gap=max(2, pair[0].shape[1] // 8))])[0]


def samples(run: Contents, num_bytes: int) -> str:
    """Pictures of `--mode=sample`."""
    if not run.samples:
        return elements.missing(
            "There are none yet; this draws some:", commands.plain(run.name, "sample"))
    return "".join(
        _each(drawn.path, drawn.title, drawn.command, num_bytes // len(run.samples))
        for drawn in reversed(run.samples)
    )


def _each(path, title, line, num_bytes):
    fitted = embedding.fitted([path], num_bytes)
    return "".join([
        *(elements.picture(each, title, title) for each in fitted.pictures),
        elements.paragraph(fitted.note, "note"), elements.command(line),
    ])


def evaluations(run: Contents) -> str:
    """A table of values with their protocols."""
    if not run.evaluations:
        return elements.missing(
            "Nothing was measured yet; this measures bits/dim:",
            commands.plain(run.name, "evaluate"),
        )
    rows = [(
        f"{each.row['step']:,}", html.escape(each.name), measures.value(each.row),
        elements.details(
            measures.in_short(each.row["protocol"]),
            elements.facts((key, elements.shown(value)) for key, value in _protocol(each.row)),
            *(elements.paragraph(remark, "note") for remark in each.row.get("remarks") or ()),
            elements.command(each.command),
        ),
    ) for each in run.evaluations]
    return elements.table(("step", "metric", "value", "protocol"), rows, "evaluations")


def _protocol(row):
    """(name, value) of what a value goes with: results beside it, then its protocol."""
    beside = {key: value for key, value in row.items() if key not in (
        "step", "metric", "reference", "value", "standard_error", "protocol", "remarks", "table")}
    return [
        (key, value) for key, value in (*beside.items(), *row["protocol"].items())
        if not identity.is_digest(value)
    ]


def nearest(run: Contents, num_bytes: int) -> str:
    """Samples beside the training images that are nearest to them."""
    found = _measured(run, num_bytes, nearest=True)
    return found or elements.missing(
        "Samples were not compared with the training images yet; this does it:",
        commands.plain(run.name, "evaluate", evaluate__metrics=("nearest_pixels",),
                       evaluate__num_samples=1000),
    )


def other_pictures(run: Contents, num_bytes: int) -> str:
    """What else evaluations have drawn; "" for nothing."""
    return _measured(run, num_bytes, nearest=False)


def _measured(run, num_bytes, *, nearest):
    """Pictures of the newest evaluation of each kind."""
    newest = {each.name: each for each in run.evaluations}
    found = [
        (each, name, path) for each in newest.values() for name, path in each.files.items()
        if name.endswith(".png") and name not in _DRAWN
        and each.name.startswith("nearest") == nearest
    ]
    return "".join(_each(
        path, f"{each.name}, step {each.row['step']:,}: {_CAPTIONS.get(name, name)}", each.command,
        num_bytes // len(found),
    ) for each, name, path in found)


def config_and_versions(run: Contents) -> str:
    """The command of the run, its versions, and every setting."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    groups = dict.fromkeys(name.rpartition(".")[0] for name in run.settings)
    tables = [elements.details(
        f"config.{group}" if group else "config", elements.table(("setting", "value"), [
            (html.escape(name), html.escape(elements.shown(value)))
            for name, value in run.settings.items() if name.rpartition(".")[0] == group
        ]),
    ) for group in groups]
    return "".join([
        elements.paragraph("The run itself, from the start:"),
        elements.command(commands.train(run.settings, run.name)),
        elements.paragraph("This page:"),
        elements.command(commands.plain(run.name, "report")),
        elements.paragraph(
            f"Versions: {versions}." if versions else
            "A checkpoint has the versions of the libraries, and there is none."),
        elements.paragraph(
            "Paths of folders and files are reduced to their last names, here and in the commands.",
            "note"),
        *tables,
    ])
