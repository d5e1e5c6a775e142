"""A mistake in a config file of the user's is one line with file, line and setting."""

import os
import re

import ml_collections
import pytest

from ddpm_jax import config_file
from ddpm_jax.configs import digits
from ddpm_jax.errors import UserError

START = """from ddpm_jax.configs import cifar10
def get_config():
    config = cifar10.get_config()
"""
STARTS = "it starts with `config = cifar10.get_config()`"
MISTAKES = {
    "config.train.bach_size = 4":
        "line 4: config.train.bach_size is no setting; did you mean config.train.batch_size?",
    "t = config.train; t.bach_size = 4":
        "line 4: config.bach_size is no setting; did you mean config.train.batch_size?",
    "config.update(dict(model=dict(chanels=4)))":
        "line 4: config.chanels is no setting; did you mean config.data.channels?",
    "config.seed = config.train.bach_size": "did you mean config.train.batch_size?",
    "config.trian.num_steps = 4":
        "line 4: config.trian.num_steps is no setting; did you mean config.train.num_steps?",
    "config['sede'] = 4": "line 4: config.sede is no setting; did you mean config.seed?",
    "config.train.batch_size = '4'":
        "line 4: config.train.batch_size must be a whole number, not 4 (str).",
    "config.train.batch_size = 1.5": "config.train.batch_size must be a whole number, not 1.5",
    "config.train.learning_rate = (1,)": "config.train.learning_rate must be a number, not (1,)",
    "config.model.channel_multipliers = 2":
        "config.model.channel_multipliers must be a tuple, not 2 (int).",
    "config.train = 5": "config.train must be a group, not 5 (int).",
    "config.train.num_steps == = 3":
        "line 4: invalid syntax: config.train.num_steps == = 3; a config is a file of Python.",
    " x = 3": "line 4: unexpected indent",
    "import no_such_package": "line 4: No module named 'no_such_package'; install it",
    "import no_such_package.inside": "line 4: No module named 'no_such_package'; install it",
    "import neighbour": "line 4: No module named 'neighbour'; it is beside the file: start in ",
    "from ddpm_jax.configs.cifar10 import nothing": "line 4: ImportError: cannot import name",
    "1 / 0": "line 4: ZeroDivisionError: division by zero",
    "open('/no/such/file')": "line 4: FileNotFoundError",
    "import numpy; numpy.linalg.inv(numpy.zeros((2, 2)))": "line 4: LinAlgError: Singular matrix",
    "config.nothing()": "line 4: config.nothing is no setting",
    "raise ValueError('a\\nb')": "line 4: ValueError: a b",
    "return": f"get_config returns nothing, not a ConfigDict; {STARTS}",
    "return dict(seed=0)": "get_config returns a dict, not a ConfigDict",
    "return config, 0": "get_config returns a tuple, not a ConfigDict",
    "import ml_collections; return ml_collections.FrozenConfigDict(config)":
        "get_config returns a FrozenConfigDict",
}


def refused(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        config_file.read(str(path))
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line and len(line) < 600
    return line


def test_a_config_by_its_name_or_file(tmp_path):
    mine = tmp_path / "digits.py"
    mine.write_text(
        "from ddpm_jax.configs import digits\n\ndef get_config(size='7'):\n"
        "    config = digits.get_config()\n    config.seed = int(size)\n    return config\n")
    assert config_file.named("digits") == digits.get_config() != config_file.named(str(mine))
    assert config_file.named(str(mine)).seed == 7 and config_file.named(f"{mine}:5").seed == 5
    with pytest.raises(UserError, match="--config=digit does not exist; name a file, .*digits."):
        config_file.named("digit")


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_names_file_line_and_setting(tmp_path, code):
    (tmp_path / "neighbour.py").write_text("")
    line = refused(tmp_path / "my.py", f"{START}    {code}\n    return config\n")
    assert MISTAKES[code] in line


@pytest.mark.parametrize("name, content, says", [
    ("my.py", "", f"has no function get_config; {STARTS}"),
    ("my.py", "get_config = 3", "has no function get_config"),
    ("my.yaml", "train:\n  num_steps: 3\n", "line 1: invalid syntax: train:"),
    ("my.json", '{"seed": true}', "line 1: NameError: name 'true' is not defined; a config is a"),
    ("my.py", b"\xff\xfe\x00\x01", "a config is a file of Python"),
    ("my.py", "import x\n".encode("utf-16"), "a config is a file of Python"),
])
def test_a_file_that_is_no_config_is_one_line(tmp_path, name, content, says):
    assert says in refused(tmp_path / name, content)


def test_a_mistake_in_a_config_that_it_imports_is_blamed_on_that(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_base.py").write_text(f"{START}    return config / 0\n")
    path = tmp_path / "my.py"
    path.write_text("import my_base\ndef get_config():\n    return my_base.get_config()\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/my_base.py, line 4: Type"):
        config_file.read(str(path))


def test_whole_floats_a_byte_order_mark_and_an_argument_are_read(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        START.replace("()", "(name)", 1) + "    config.train.num_steps = 1e3\n"
        "    config.train.batch_size = 16.0\n    config.data.name = name\n    return config\n",
        encoding="utf-8-sig",
    )
    config = config_file.read(f"{path}:digits")
    assert (config.train.num_steps, config.train.batch_size) == (1000, 16)
    assert type(config.train.num_steps) is int and config.data.name == "digits"


def test_a_config_of_plain_dicts_is_one(tmp_path):
    path = tmp_path / "my.py"
    path.write_text("import ml_collections\nget_config = ml_collections.ConfigDict\n")
    assert isinstance(config_file.read(str(path)), ml_collections.ConfigDict)


def test_a_path_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    for path, says in [(tmp_path, "is a folder"), (tmp_path / "no.py", "does not exist")]:
        with pytest.raises(UserError, match=says):
            config_file.check_path(str(path))
    path = tmp_path / "my.py"
    path.write_text("")
    config_file.check_path(f"{path}:argument")
    monkeypatch.setattr(os, "access", lambda *_: False)  # The superuser may read anything.
    with pytest.raises(UserError, match="may not be read by this user; chmod"):
        config_file.check_path(str(path))
