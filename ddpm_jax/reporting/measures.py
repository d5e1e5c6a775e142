"""Evaluations as text and as charts."""

import csv
import html
import io
from collections.abc import Mapping
from typing import Any

from ddpm_jax.reporting import charts, commands, elements
from ddpm_jax.reporting.charts import Series
from ddpm_jax.reporting.contents import Contents, Evaluation

_IN_SHORT = ("split", "num_images", "num_samples", "sampler", "num_steps", "weights")


def value(row: Mapping[str, Any]) -> str:
    """The value of a row with its standard error, or a chart or what else it is; HTML."""
    if isinstance(row.get("table"), dict):
        return sweep(row)
    if not isinstance(row.get("value"), (int, float)):
        return "pictures"
    error = row.get("standard_error")
    text = f"{row['value']:.4f}"
    return f"{text} &plusmn; {error:.4f}" if isinstance(error, (int, float)) else text


def in_short(protocol: Mapping[str, Any]) -> str:
    """The settings of a protocol that tell most, in a line."""
    pairs = [(key, protocol[key]) for key in _IN_SHORT if protocol.get(key) is not None]
    return ", ".join(f"{key} {elements.shown(value)}" for key, value in pairs) or "protocol"


def sweep(row: Mapping[str, Any]) -> str:
    """A chart of the score of each sampler by network calls, and the table; HTML."""
    calls = row["protocol"].get("steps") or []
    names = [str(count) for count in calls]
    chart = charts.line_chart(
        "Samplers", [Series(name, list(zip(calls, values))) for name, values in
                     row["table"].items()],
        x_label="network calls per image", y_label=str(row["protocol"].get("sweep_metric")),
    )
    cells = [
        (html.escape(name), *(charts.number(value) for value in values))
        for name, values in row["table"].items()
    ]
    return chart + elements.table(("sampler", *names), cells)


def rate_distortion(run: Contents) -> str:
    """Charts of the newest bits/dim: rate and distortion (Ho et al. 2020, Fig. 5); HTML."""
    curves = ((each, _curve(each)) for each in reversed(run.evaluations)
              if each.row["metric"] == "bpd")
    found = next(((each, curve) for each, curve in curves if curve), None)
    if found is None:
        return elements.missing(
            "The curve comes with bits/dim, which this measures:",
            commands.plain(run.name, "evaluate", evaluate__metrics=("bpd",)),
        )
    each, curve = found
    row, steps, rate, distortion = each.row, *zip(*curve)
    terms = [(name, charts.number(row[name])) for name in ("L_T", "L_1_to_T-1", "L_0", "rmse")
             if isinstance(row.get(name), (int, float))]
    figures = [charts.line_chart(
        title, [Series(label, list(zip(x, y)))], x_label=x_label, y_label=label, log_y=False,
    ) for title, x, x_label, y, label in (
        ("Distortion by rate", rate, "rate (bits/dim)", distortion, "distortion (RMSE)"),
        ("Distortion by reverse steps", steps, "reverse steps", distortion, "distortion (RMSE)"),
        ("Rate by reverse steps", steps, "reverse steps", rate, "rate (bits/dim)"),
    )]
    return (
        elements.facts([("bits/dim", charts.number(row["value"])), *terms])
        + f'<div class="charts">{"".join(figures)}</div>' + elements.command(each.command)
    )


def _curve(each: Evaluation) -> list[tuple[float, float, float]]:
    """(reverse steps, rate, distortion) of the file of a row; [] where it is not there."""
    path = each.files.get("rate_distortion.csv")
    if path is None:
        return []
    try:
        lines = list(csv.reader(io.StringIO(path.read_text())))[1:]
        return [(float(n), float(rate), float(distortion)) for n, rate, distortion in lines]
    except (OSError, ValueError):
        return []
