"""Who may import whom, what the pure rooms may import, where jax.pmap is called and keys made."""

import ast
import pathlib

import pytest
from may_import import ROOMS

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "ddpm_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
PURE = ("diffusion", "network", "samplers")
PURE_IMPORTS = {"collections", "contextlib", "ddpm_jax", "dataclasses", "flax", "functools", "jax",
                "jaxtyping", "math", "numpy", "typing"}
HEAVY = {"ddpm_jax", "flax", "jax", "numpy", "optax"}


def room(path):
    """The room of a file: its folder, or its own name above the folders."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def imported(path, *, everywhere=True):
    """Full names of what a file imports; only at its top level unless `everywhere`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_follow_the_table(path):
    if room(path) in ("__init__", "cli"):  # They may import all of it, inside their functions.
        return
    allowed = ROOMS[room(path)] | {room(path), "errors", "configs"}
    for target in imported(path):
        if target.startswith("ddpm_jax."):
            assert target.split(".")[1] in allowed, f"{name(path)} imports {target}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(path) in PURE or name(path) == "errors.py"], ids=name
)
def test_the_pure_rooms_need_jax_alone(path):
    assert {target.split(".")[0] for target in imported(path)} <= PURE_IMPORTS


@pytest.mark.parametrize("path", FILES, ids=name)
def test_one_function_calls_pmap(path):
    calls = sum(
        isinstance(node, ast.Attribute) and node.attr == "pmap"
        and isinstance(node.value, ast.Name) and node.value.id == "jax"
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert calls == (name(path) == "runtime/parallel.py")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_keys_are_made_where_the_table_of_addresses_is(path):
    """The network, which may not import the table, has its own addresses."""
    if name(path) in ("diffusion/randomness.py", "network/blocks.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("fold_in", "split"):
            assert ast.unparse(node.value) != "jax.random", f"{name(path)}:{node.lineno}"


def test_the_command_line_reads_flags_without_jax():
    for file in ("cli.py", "__init__.py"):
        top = [t for t in imported(PACKAGE / file, everywhere=False) if "errors" not in t]
        assert not {target.split(".")[0] for target in top} & HEAVY
