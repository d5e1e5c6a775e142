"""The rules of the house: who imports whom, who reads the config, what is called in one place."""

import ast
import functools
import pathlib

import pytest

from may_import import ROOMS

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "ddpm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY_FILE = [
    path for folder in ("ddpm_jax", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
HELPERS = {path.stem for path in (ROOT / "tests/helpers").glob("*.py")}
PURE = ("diffusion", "network", "samplers")
PURE_IMPORTS = {"collections", "contextlib", "ddpm_jax", "dataclasses", "flax", "functools", "jax",
                "jaxtyping", "math", "numpy", "operator", "typing"}
HEAVY = {"ddpm_jax", "flax", "jax", "numpy", "optax"}
# Who reads the config; `train` of training/loop.py hands it on to training/run.py.
READERS = ("cli.py", "config.py", "config_file.py", "validation.py", "planning.py", "lowering.py",
           "forecast.py", "training/run.py", "training/phases.py", "evaluation/evaluate.py",
           "inference/sample_command.py", "workdir/run_folder.py", "workdir/stored.py",
           "reporting/commands.py", "reporting/contents.py")
LONGEST = 60


def room(path):
    """The room of a file: its folder, or its own name above the folders."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def full_name(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(path, *, everywhere=True):
    """(full name, name in the file) of what a file imports; else only at its top level."""
    for node in ast.walk(tree(path)) if everywhere else tree(path).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", alias.asname or alias.name


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


def parameters(function):
    arguments = function.args
    return {arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


# Imports.


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_follow_the_table(path):
    if room(path) in ("__init__", "cli"):  # They may import all of it, inside their functions.
        return
    allowed = ROOMS[room(path)] | {room(path), "errors", "configs"}
    for target, _ in imports(path):
        if target.startswith("ddpm_jax."):
            assert target.split(".")[1] in allowed, f"{name(path)} imports {target}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(path) in PURE or name(path) == "errors.py"], ids=name
)
def test_the_pure_rooms_need_jax_alone(path):
    assert {target.split(".")[0] for target, _ in imports(path)} <= PURE_IMPORTS


def test_the_command_line_reads_flags_without_jax():
    light = ("ddpm_jax.errors", "ddpm_jax.arguments")
    for file in ("cli.py", "arguments.py", "__init__.py"):
        top = [t for t, _ in imports(PACKAGE / file, everywhere=False) if not t.startswith(light)]
        assert not {target.split(".")[0] for target in top} & HEAVY


def test_no_test_imports_another():
    assert not [
        f"{full_name(path)} imports {target}" for path in EVERY_FILE for target, _ in imports(path)
        if target.startswith("test_") or target.startswith("tests.")
    ]


# The config.


@pytest.mark.parametrize("path", [p for p in FILES if name(p) not in READERS], ids=name)
def test_the_config_stays_with_those_who_read_it(path):
    takers = [f.name for f in functions(path) if "config" in parameters(f)]
    if name(path) == "training/loop.py":
        assert takers == ["train"]
        return
    assert not takers
    sources = {target for target, _ in imports(path)}
    assert not {t for t in sources if t.startswith("ml_collections") or t == "ddpm_jax.config"}


# One place.


@pytest.mark.parametrize("path", FILES, ids=name)
def test_one_function_calls_pmap(path):
    calls = [node for node in ast.walk(tree(path))
             if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.pmap"]
    assert len(calls) == (1 if name(path) == "runtime/parallel.py" else 0)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_keys_are_made_where_the_table_of_addresses_is(path):
    """The network, which may not import the table, has its own addresses."""
    if name(path) in ("diffusion/randomness.py", "network/blocks.py"):
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("fold_in", "split"):
            assert ast.unparse(node.value) != "jax.random", f"{name(path)}:{node.lineno}"


# Names and lengths.


def private(word):
    return word.startswith("_") and not word.startswith("__")


def private_names(path):
    """The private names of our other modules that a file imports, reads or replaces."""
    modules = set()
    for target, local in imports(path):
        if target.partition(".")[0] in {"ddpm_jax", "benchmarks", *HELPERS}:
            modules.add(local)
            if private(target.rpartition(".")[2]):
                yield f"{full_name(path)}: {target}"
    for node in ast.walk(tree(path)):
        owner, word = None, ""
        if isinstance(node, ast.Attribute):
            owner, word = node.value, node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1:  # setattr(module, "_name", ...)
            owner, word = node.args[0], getattr(node.args[1], "value", "")
        if isinstance(word, str) and private(word):
            owner = ast.unparse(owner)
            if owner.islower() and owner.partition(".")[0] in modules:
                yield f"{full_name(path)}:{node.lineno}: {owner}.{word}"


def test_private_names_stay_in_their_file():
    assert not [use for path in EVERY_FILE for use in private_names(path)]


def test_every_file_is_tested():
    """By the test file of its name, or by one whose docstring names it."""
    tests = [path for path in EVERY_FILE if path.name.startswith("test_")]
    docstrings = " ".join(ast.get_docstring(tree(path)) for path in tests)
    there = {full_name(path) for path in tests}
    for path in FILES:
        mirrored = path.relative_to(PACKAGE).with_name(f"test_{path.name}").as_posix()
        assert not functions(path) or path.name == "__init__.py" or path.name in docstrings or (
            f"tests/{mirrored}" in there), name(path)


def test_no_file_is_a_drawer():
    assert not {"utils", "util", "misc", "common"} & {path.stem for path in EVERY_FILE}


def length(function, lines):
    """Lines of code of a function: without its docstring, comments and blank lines."""
    inside = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        inside -= set(range(function.body[0].lineno, function.body[0].end_lineno + 1))
    code = (lines[i - 1].strip() for i in inside)
    return len([line for line in code if line and not line.startswith("#")])


def test_functions_are_short():
    assert not {
        f"{full_name(path)}: {function.name}": length(function, path.read_text().splitlines())
        for path in EVERY_FILE for function in functions(path)
        if length(function, path.read_text().splitlines()) > LONGEST
    }
