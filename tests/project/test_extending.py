"""Every step of docs/extending.md is applied to a copy of the package and used there."""

import re
import shutil

import pytest

import pages

PAGE = pages.ROOT / "docs/extending.md"
# "In `FILE`:" before a block that changes a file, "A new file, `FILE`:" before a whole one.
STEP = re.compile(r"`([\w/]+\.py)`:\n\n```(diff|python)\n(.*?)```\n", re.DOTALL)
SECTIONS = {
    section.partition("\n")[0]: section for section in PAGE.read_text().split("\n## ")[1:]
}


def changed(text, diff):
    """A file after the hunks of a diff, which `@@` divides; each fits in one place."""
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or line for line in lines if line[0] != "+")
        after = "".join(line[1:] or line for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"{text.count(before)} places fit:\n{hunk}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder with the package and the configs after all steps of the page."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("ddpm_jax", "configs"):
        shutil.copytree(pages.ROOT / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "ddpm_jax/configs").symlink_to(folder / "configs")
    for name, language, code in STEP.findall(PAGE.read_text()):
        path = folder / name
        assert path.exists() == (language == "diff"), f"{name}: say whether it is new"
        path.write_text(changed(path.read_text(), code) if language == "diff" else code)
    return folder


@pytest.fixture(scope="module")
def errors(copy):
    programs = {
        name: "".join(code for language, code, _ in pages.blocks(STEP.sub("\n", section))
                      if language == "python")
        for name, section in SECTIONS.items()
    }
    return pages.run(programs, copy, PYTHONPATH=str(copy))


@pytest.mark.parametrize("section", SECTIONS)
def test_an_addition_works(section, errors):
    assert section not in errors, errors[section]


def test_files_exist(copy):
    for name in re.findall(r"`((?:\w+/)+\w+\.\w+)`", PAGE.read_text()):
        assert (copy / name).exists() or (pages.ROOT / name).exists(), name
