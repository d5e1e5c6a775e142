"""The page as a whole: what stands in it, what may not, and mistakes in one line.

Covers sections.py, comparison.py, measures.py, elements.py and page.py too.
"""

import errno
import html
import os
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import ddpm_jax
import recorded_run
from ddpm_jax.errors import UserError
from ddpm_jax.reporting import report as report_lib
from ddpm_jax.workdir import pictures

PAGE = pathlib.Path(__file__).parents[2] / "docs/report/digits.html"
VOID = {"meta", "link", "img", "input", "br"}


class Checker(HTMLParser):
    """Elements that are closed in order, with ids that are there once."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.hrefs, self.sources = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.hrefs += [attrs["href"]] if "href" in attrs else []
        self.sources += [attrs["src"]] if "src" in attrs else []
        if tag == "img":
            assert attrs["alt"] and attrs["width"] and attrs["height"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(*workdirs, path=None):
    written = ddpm_jax.report(workdirs[0] if len(workdirs) == 1 else workdirs, path)
    with open(written, encoding="utf-8") as file:
        return file.read()


def body(text):
    return html.unescape(re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded_run.recorded(tmp_path_factory.mktemp("xada") / "birds")


@pytest.fixture(scope="module")
def whole(run):
    return page(run)


def test_it_is_one_file_that_asks_for_nothing(whole, run):
    assert (run / "report.html").stat().st_size < report_lib.LARGEST
    checked = Checker(whole)
    assert len(checked.ids) == len(set(checked.ids))
    assert all(href == "data:," or href[1:] in checked.ids for href in checked.hrefs)
    assert all(source.startswith("data:image/png;base64,") for source in checked.sources)
    assert "default-src 'none'; img-src data:;" in whole
    assert "http" not in whole.replace("http-equiv", "") and "url(" not in whole


def test_neither_paths_nor_names_of_the_machine_are_in_it(whole, run):
    text = re.sub(r"base64,[\w+/=]+", "", whole)
    for secret in (*recorded_run.SECRETS, str(run.parent), os.uname().nodename + "/"):
        assert secret not in text, secret
    assert "my birds" in text and "birds.npz" in text and "first" in text


def test_every_part_is_there_with_its_command(whole):
    text = re.sub(r"</?span>", "", body(whole))
    for part in ("Overview", "Curves", "Loss by quarter of t", "Previews while training",
                 "Denoising", "Samples", "Evaluations", "Rate and distortion",
                 "Nearest training images", "Config, versions and commands"):
        assert part in text, part
    assert text.count('class="missing"') == 2  # Of the steps to go, and the checkpoint.
    for command in (
        "python main.py --config=digits --workdir=birds", "--mode=report",
        "--config.sample.task=strip", "--config.sample.sampler=ddim",
        "--config.evaluate.metrics=\"('bpd',)\"",
    ):
        assert command in text, command
    assert "4.5000 &plusmn; 0.1000" in whole
    assert whole.count('type="range"') == 2 and "1,000 network calls to go" in whole


@pytest.mark.parametrize("kind, sentences", [
    (recorded_run.begun, ("Nothing was logged yet",)),
    (recorded_run.logged, ("The run is at step 1,000 of 1,500", "There is no checkpoint",
                           "There are none yet", "There is no chain", "Nothing was measured",
                           "The curve comes with bits/dim", "were not compared")),
])
def test_what_is_missing_leaves_a_sentence_and_a_command(tmp_path, kind, sentences):
    text = page(kind(tmp_path / "birds"))
    Checker(text)
    assert all(sentence in body(text) for sentence in sentences)
    assert text.count("--mode=evaluate") >= 3 and "--mode=sample" in text


def test_damaged_files_cost_their_part_alone(tmp_path):
    run = recorded_run.recorded(tmp_path / "birds")
    for name in ("samples/strip.npz", "samples/step_00000500.png", "samples/ema_ddim.json"):
        (run / name).write_bytes(b"\x89PNG damaged")
    with open(run / "evaluations.jsonl", "a") as file:
        file.write('{"step": 1}\n{"cut off')
    text = body(page(run))
    for sentence in ("1 cannot be read: damaged.", "strip.npz cannot be read",
                     "ema_ddim.json cannot be read", "1 rows of evaluations.jsonl cannot be read"):
        assert sentence in text, sentence
    assert "step 1,500" in text and "4.5000" in text


def test_several_are_compared(tmp_path, run):
    other = recorded_run.recorded(tmp_path / "birds", **{"diffusion.schedule": "cosine"})
    text = page(run, other, path=tmp_path / "both.html")
    checked = Checker(text)
    assert len(checked.ids) == len(set(checked.ids))
    text = body(text)
    differing = text.split("Settings that differ</h2>")[1].split("</section>")[0]
    assert re.findall(r"<td>(.*?)</td>", differing) == ["diffusion.schedule", "linear", "cosine"]
    values = text.split("by the same protocol</h2>")[1].split("</section>")[0]
    assert values.count("4.5000") == 2 and "sweep" not in values
    assert "birds (2)" in text and not (other / "report.html").exists()


def test_protocols_that_differ_are_not_put_side_by_side(tmp_path, run):
    other = recorded_run.recorded(tmp_path / "other")
    rows = (other / "evaluations.jsonl").read_text()
    (other / "evaluations.jsonl").write_text(rows.replace("sha256:1", "sha256:2"))
    assert "No two of them have measured" in page(run, other, path=tmp_path / "both.html")


def test_large_runs_stay_below_the_bound(tmp_path):
    workdirs = []
    for name in ("a", "b"):
        workdirs.append(recorded_run.recorded(tmp_path / name))
        rows = (workdirs[-1] / "metrics.jsonl").read_text()
        (workdirs[-1] / "metrics.jsonl").write_text(rows * 400)
        for step in range(1, 31):
            noise = np.random.default_rng(step).integers(0, 256, (400, 400, 3), np.uint8)
            pictures.save_png(workdirs[-1] / f"samples/step_{step:08d}.png", noise)
    text = page(*workdirs)
    assert len(text) < report_lib.LARGEST and "to keep this page small" in text


def test_the_page_in_the_documentation_is_small_and_says_nothing_of_a_machine():
    text = PAGE.read_text()
    assert len(text) < 2_000_000 and 'type="range"' in text
    Checker(text)
    shown = body(re.sub(r"base64,[\w+/=]+", "", text))
    assert not re.search(r"(?<![\w<./])/\w", shown) and "class=\"missing\"" not in shown


def test_a_name_with_markup_is_text(tmp_path):
    text = page(recorded_run.recorded(tmp_path / "<img src=x> & 'b'"))
    assert "<img src=x>" not in text
    Checker(text)


def refused(*arguments):
    with pytest.raises(UserError) as caught:
        ddpm_jax.report(*arguments)
    message, = str(caught.value).splitlines()
    return message


def test_mistakes_are_one_line(tmp_path, run, monkeypatch):
    assert "is no folder; name that of a run" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert message.count("empty") == 2 and "nothing was trained there" in message
    newer = recorded_run.begun(tmp_path / "newer") / "config.json"
    newer.write_text(newer.read_text().replace('"dropout"', '"dropout_of_later"'))
    assert "newer: the stored config cannot be read" in (message := refused(tmp_path / "newer"))
    assert "of another version of this package" in message
    assert "is a folder; name a file" in refused(run, tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run, tmp_path / "file/report.html")
    assert "has no workdir" in refused([])
    monkeypatch.setattr(report_lib, "LARGEST", 1000)
    assert "more than 0; name fewer workdirs" in refused(run)


def test_the_page_is_written_whole_or_not_at_all(run, whole, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert ddpm_jax.report(run) == str(run / "report.html")
    before = (run / "report.html").read_bytes()
    assert before.decode() == whole
    monkeypatch.setattr("os.replace", full)
    assert "No space left on device" in refused(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("report.html.*"))
