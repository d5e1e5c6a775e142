"""Tables of quality by calls: each cell once, finished ones kept."""

import pytest

from ddpm_jax.evaluation import sampler_sweep
from curves import assert_png

STEPS = (10, 50, 20)
VALUES = {"ddim": [13.36, 4.67, 6.84], "heun": [40.5, 3.123456789, 8.0]}


def score(sampler, calls):
    return {"value": VALUES[sampler][STEPS.index(calls)]}


def test_every_cell_is_measured_once_even_when_interrupted(tmp_path):
    asked = []

    def interrupted(sampler, calls):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append((sampler, calls))
        return score(sampler, calls)

    with pytest.raises(KeyboardInterrupt):
        sampler_sweep.measure(tmp_path / "parts", VALUES, STEPS, interrupted)
    again = []
    cells = sampler_sweep.measure(
        str(tmp_path / "parts"), VALUES, STEPS,
        lambda *cell: again.append(cell) or score(*cell),
    )
    assert asked == [("ddim", 10), ("ddim", 50), ("ddim", 20), ("heun", 10)]
    assert again == [("heun", 50), ("heun", 20)]
    assert {s: [cell["value"] for cell in row] for s, row in cells.items()} == VALUES


def test_the_table_has_rows_of_samplers_and_columns_of_calls(tmp_path, figures):
    cells = sampler_sweep.measure(tmp_path / "parts", VALUES, STEPS, score)
    cells["heun"][0]["standard_error"] = 1.25
    sampler_sweep.save(tmp_path, "fid/train", STEPS, cells)
    assert (tmp_path / "sweep.csv").read_text() == (
        "sampler,10,50,20\nddim,13.36,4.67,6.84\nheun,40.5,3.12346,8\n"
    )
    assert (tmp_path / "sweep.md").read_text() == (
        "| fid/train | 10 | 50 | 20 |\n| --- | --- | --- | --- |\n"
        "| ddim | 13.36 | 4.67 | 6.84 |\n| heun | 40.5 ± 1.2 | 3.123 | 8 |\n"
    )
    axes, = figures[0].axes
    assert [line.get_label() for line in axes.containers] == ["ddim", "heun"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ddim", "heun"]
    for container, (first, last, middle) in zip(axes.containers, VALUES.values()):
        line = container.lines[0]
        assert list(line.get_xdata()) == [10, 20, 50]
        assert list(line.get_ydata()) == [first, middle, last]
    bars = [container.lines[2] for container in axes.containers]
    assert not bars[0] and bars[1][0].get_segments()[0][:, 1].tolist() == [39.25, 41.75]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("fid/train", "network calls per image")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "50", "20"]
    assert_png(tmp_path / "sweep.png", 1)


def test_scores_of_zero_and_below_are_drawn(tmp_path, figures):
    cells = {"ddim": [{"value": -0.001}, {"value": 0.0}]}
    sampler_sweep.save(tmp_path, "kid/train", (10, 20), cells)
    assert figures[0].axes[0].get_yscale() == "linear"
