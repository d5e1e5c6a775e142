"""Compares records: the settings in which they differ, and what each reached.

    python -m benchmarks.record.compare runs/paper/record runs/fast/record

The last column is the difference in bits/dim to the first record, image by image. Its standard
error is far below that of each value, because images and noise are the same.
"""

import argparse
import json
import pathlib

import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax.evaluation import scores


def table(records):
    """A Markdown table of records.

    Args:
        records: the content of each `metrics.json`, by name; all are compared with the first.

    Raises:
        ValueError: a record has no training row, or another data set than the first.
    """
    for name, record in records.items():
        if "train" not in record:
            raise ValueError(f"{name} has no training row; let benchmarks.record.run finish.")
    settings = {
        name: dict(config_lib.leaves(record["train"]["config"]))
        for name, record in records.items()
    }
    first = next(iter(records))
    for name, own in settings.items():
        if own["data.name"] != settings[first]["data.name"]:
            raise ValueError(
                f"{name} is of {own['data.name']} and {first} of "
                f"{settings[first]['data.name']}; name records of one data set."
            )
    differing = [
        key for key, value in settings[first].items() if key.startswith(("model.", "train."))
        and any(own.get(key) != value for own in settings.values())
    ]
    lines = [
        "| record | " + "".join(f"{key} | " for key in differing)
        + "device | steps | minutes | images/s | loss | held-out loss | bits/dim | difference |",
        "|---" * (len(differing) + 9) + "|",
    ]
    for name, record in records.items():
        row = record["train"]
        cells = [
            name, *(f"{settings[name].get(key)}" for key in differing), row["device"],
            f"{row['step']:,}", f"{row['minutes']:.1f}", f"{row['images_per_second']:,.0f}",
            f"{row['loss']:.4f}", _value(record.get("held_out")), _value(record.get("bits")),
            _difference(record.get("bits"), records[first].get("bits")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(row):
    if row is None:
        return "none yet"
    return f"{row['value']:.4f}" + _error(row.get("standard_error"))


def _error(error):
    return f" +- {error:.4f}" if error is not None else ""


def _difference(row, first):
    """The difference of two rows of bits/dim, if they have the same images and noise."""
    if row is first or row is None or first is None:
        return ""
    same = ("num_images", "split", "seed", "images")
    if any(row["protocol"].get(key) != first["protocol"].get(key) for key in same):
        return "other images"
    each = np.array(row["each"]) - np.array(first["each"])
    return f"{each.mean():+.4f}" + _error(scores.standard_error(each))


def main(argv=None):
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=pathlib.Path, help="folders of metrics.json")
    folders = parser.parse_args(argv).records
    for folder in folders:
        if not (folder / "metrics.json").exists():
            parser.error(f"{folder} has no metrics.json; name one like runs/fast/record.")
    try:
        print(table({
            str(folder): json.loads((folder / "metrics.json").read_text()) for folder in folders
        }))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
