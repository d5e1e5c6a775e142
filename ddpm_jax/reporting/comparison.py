"""The parts of the page that compare several workdirs."""

import html
import json
from collections.abc import Mapping, Sequence

from ddpm_jax.reporting import charts, elements, measures
from ddpm_jax.reporting.charts import Series
from ddpm_jax.reporting.contents import Contents

_CURVES = {
    "loss": ("Loss", "loss"), "heldout_loss": ("Held-out loss", "loss"),
    "loss_quartile_1": ("Loss, first quarter of t (least noise)", "loss"),
    "loss_quartile_4": ("Loss, last quarter of t (most noise)", "loss"),
    "learning_rate": ("Learning rate", "rate"), "images_per_second": ("Speed", "images/s"),
}
# What belongs to the checkpoint, not to how it was measured.
_OF_THE_RUN = ("step", "checkpoint", "dtype", "conditions", "condition_images")


def all_of(runs: Sequence[Contents]) -> list[tuple[str, str, str]]:
    """(anchor, title, HTML) of every part."""
    parts = [
        ("compared-curves", "Curves of all", overlaid(runs)),
        ("compared-settings", "Settings that differ", differences(runs)),
        ("compared-values", "Evaluations by the same protocol", values(runs)),
    ]
    return [(anchor, title, elements.section(anchor, title, body)) for anchor, title, body in parts]


def overlaid(runs: Sequence[Contents]) -> str:
    """A figure for each metric with a line for each run."""
    figures = "".join(charts.line_chart(
        title, [Series(run.name, run.values(metric)) for run in runs],
        x_label="step", y_label=unit,
    ) for metric, (title, unit) in _CURVES.items())
    return f'<div class="charts">{figures}</div>' if figures else (
        elements.paragraph("None of them has logged anything yet.", "missing"))


def differences(runs: Sequence[Contents]) -> str:
    """A table of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [
        (html.escape(name), *(html.escape(elements.shown(run.settings.get(name))) for run in runs))
        for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1
    ]
    if not rows:
        return elements.paragraph("All settings are the same.")
    return elements.table(("setting", *(run.name for run in runs)), rows)


def values(runs: Sequence[Contents]) -> str:
    """A table of what at least two runs have measured in the same way, at their newest steps."""
    found: dict[str, dict[str, Mapping]] = {}
    for run in runs:
        for each in run.evaluations:
            protocol = {
                key: item for key, item in each.row["protocol"].items() if key not in _OF_THE_RUN}
            same = found.setdefault(json.dumps([each.name, protocol], sort_keys=True), {})
            if run.name not in same or each.row["step"] >= same[run.name].row["step"]:
                same[run.name] = each
    rows = []
    for same in found.values():
        one = next(iter(same.values()))
        if len(same) > 1 and isinstance(one.row.get("value"), (int, float)):
            cells = (
                f"{measures.value(same[run.name].row)}<br><small>step "
                f"{same[run.name].row['step']:,}</small>" if run.name in same else ""
                for run in runs
            )
            protocol = html.escape(measures.in_short(one.row["protocol"]))
            rows.append((html.escape(one.name), *cells, f"<small>{protocol}</small>"))
    if not rows:
        return elements.paragraph(
            "No two of them have measured the same metric on the same images by the same settings; "
            "--mode=evaluate with the same settings in each workdir does.", "missing",
        )
    return elements.table(("metric", *(run.name for run in runs), "protocol"), rows, "evaluations")
