"""Rows as text."""

from ddpm_jax.evaluation import lines

FID = {
    "step": 1500, "metric": "fid", "reference": "train", "value": 12.34567, "n": 64,
    "remarks": ["few images"], "protocol": {
        "step": 1500, "weights": "ema", "checkpoint": "sha256:0123456789abcdef", "eta": 0.123456,
    },
}
LOSS = {
    "step": 3000, "metric": "loss", "reference": None, "value": 0.5, "standard_error": 0.01,
    "protocol": {"step": 3000, "weights": "raw"},
}
GRID = LOSS | {"metric": "progressive", "value": None}


def test_a_value_has_its_error():
    assert [lines.value(row) for row in (FID, LOSS, GRID)] == ["12.3457", "0.5000 +- 0.0100", ""]


def test_details_are_numbers_and_protocol_without_digests():
    assert lines.details(FID) == "n 64, weights ema, eta 0.1235"
    assert lines.details(LOSS) == "weights raw"


def test_a_table_has_a_line_for_each_checkpoint_and_weights():
    assert lines.table([FID, LOSS, GRID]).splitlines() == [
        "step   weights  fid/train  loss",
        "1,500  ema      12.3457",
        "3,000  raw                 0.5000 +- 0.0100",
    ]
