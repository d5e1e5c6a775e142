"""Every block of every page runs, or says why not; every flag, file and name on it exists.

`<!-- no-run: REASON -->` before a block leaves it out. Python blocks of a page run in order, in
one namespace, where `runs/` has small models.
"""

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import ddpm_jax
from ddpm_jax import cli
from ddpm_jax.configs import cifar10

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- no-run: (?P<reason>[^>]+) -->\n+)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL
)
ENDINGS = ("py", "json", "jsonl", "npz", "png", "csv", "md")
SETTINGS = set(cli._leaves(cifar10.get_config()))


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """(language, code, why it is not run or None) of each block."""
    found = list(BLOCK.finditer(page.read_text()))
    assert page.read_text().count("```") == 2 * len(found)
    return [(m["language"], m["code"], m["reason"]) for m in found]


def commands(code):
    """The commands of a shell block, as lists of words, continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line):
            words = shlex.split(command, comments=True)
            if words and "=" not in words[0]:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_files_and_names_exist(page):
    text = page.read_text()
    for setting in re.findall(r"(?<![\w/])(?:--)?config\.([a-z_]+\.[a-z_]+)", text):
        assert setting in SETTINGS, f"{page_id(page)}: config.{setting} is no setting"
    folders = "tests|configs|benchmarks|docs|ddpm_jax|notebooks"
    for path in re.findall(rf"`((?:{folders})/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{page_id(page)}: {path} does not exist"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), f"{page_id(page)}: {target} does not exist"
    for module, name in re.findall(r"`([a-z_]+)\.([a-zA-Z_]\w*)(?:\([^`]*)?`", text):
        if module in ddpm_jax._MODULES and name not in ENDINGS:
            home = importlib.import_module(f"ddpm_jax.{module}")
            group = module == "config" and name in cifar10.get_config()
            assert group or hasattr(home, name) or f"{module}.{name}" in SETTINGS, (
                f"{page_id(page)}: {module}.{name} does not exist")
    for name in re.findall(r"ddpm_jax\.(\w+)", text):
        assert name in ddpm_jax.__all__ or name == "configs", (
            f"{page_id(page)}: ddpm_jax.{name} does not exist")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_such(page):
    for language, code, reason in blocks(page):
        if language != "bash":
            continue
        assert reason, f"{page_id(page)}: say why this is not run:\n{code}"
        for words in commands(code):
            check(words, page_id(page))


def check(words, page):
    """A command of a shell block: its program and its flags exist."""
    said = f"{page}: {' '.join(words)}"
    if words[0].startswith("$"):
        words = ["main.py", *words[1:]]
    elif words[:2] == ["python", "-m"]:
        path = ROOT / (words[2].replace(".", "/") + ".py")
        assert path.exists(), said
        return
    elif words[0] == "python":
        assert (ROOT / words[1]).exists(), said
        words = words[1:]
    if words[0] not in ("main.py", "ddpm-jax"):
        assert words[0] in ("pip", "pytest", "flake8"), said
        return
    for word in words[1:]:
        flag, _, value = word.lstrip("-").partition("=")
        if flag == "config":
            assert (ROOT / value).exists() or (ROOT / "configs" / f"{value}.py").exists(), said
        elif flag == "mode":
            assert value in cli.MODES, said
        elif flag.startswith("config."):
            assert flag.removeprefix("config.") in SETTINGS, said
        else:
            assert flag == "workdir", said


MODELS = """
import ddpm_jax
from ddpm_jax.configs import digits, digits_conditional

for name, module in (("digits", digits), ("digits_conditional", digits_conditional)):
    config = module.get_config()
    config.model.channels, config.model.channel_multipliers = 4, (1, 1)
    config.train.num_steps = config.train.warmup_steps = 1
    config.train.batch_size, config.train.eval_images = 8, 0
    config.train.sample_images, config.train.sample_num_steps = 1, 2
    ddpm_jax.train(config, f"runs/{name}")
"""


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=page_id)
def test_python_blocks_run(page, tmp_path):
    """Where `runs/` has small models, in a process with one device: eight compile longer."""
    code = "".join(
        block for language, block, reason in blocks(page) if language == "python" and not reason
    )
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "page.py").write_text(("import models\n" if "runs/" in code else "") + code)
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
