"""Rows of `evaluations.jsonl` as text: for the console, and for the card of a model."""

from typing import Any

from ddpm_jax.evaluation import identity

_SHOWN = ("step", "metric", "reference", "value", "standard_error", "protocol", "remarks")


def name(metric: str, reference: str | None) -> str:
    """A metric's name in TensorBoard and `config.evaluate.best`: "fid/train", or "bpd"."""
    return metric if reference is None else f"{metric}/{reference}"


def value(row: dict[str, Any]) -> str:
    """The value of a row with its standard error; "" where it has none."""
    if row["value"] is None:
        return ""
    error = row.get("standard_error")
    return f"{row['value']:.4f}" + ("" if error is None else f" +- {error:.4f}")


def details(row: dict[str, Any]) -> str:
    """The further numbers of a row and its protocol, without digests."""
    rest = {key: x for key, x in row.items() if key not in _SHOWN} | row["protocol"]
    return ", ".join(
        f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}"
        for key, x in rest.items() if key != "step" and not identity.is_digest(x)
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Values by checkpoint and weights, a column for each metric that has values."""
    names = list(dict.fromkeys(
        name(row["metric"], row["reference"]) for row in rows if row["value"] is not None
    ))
    cells = {}
    for row in rows:
        key = f"{row['step']:,}", row["protocol"]["weights"]
        cells.setdefault(key, {})[name(row["metric"], row["reference"])] = value(row)
    texts = [("step", "weights", *names)]
    texts += [(*key, *(values.get(each, "") for each in names)) for key, values in cells.items()]
    widths = [max(map(len, column)) for column in zip(*texts)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in texts
    )
