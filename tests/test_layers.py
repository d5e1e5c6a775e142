"""Who may import whom: arrows point down only."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "ddpm_jax"
LEVELS = [
    {"compilation_cache", "configs", "convolution", "files", "huge_pages", "metrics",
     "normalization", "parallel", "randomness"},
    {"checkpoints", "event_files", "images", "importance", "interruption", "neighbours", "parts",
     "references", "rows", "schedule", "sources", "state", "torch_file", "unet", "wandb_writer"},
    {"audit", "diffusion", "draws", "grids", "inception", "logs", "ownership", "pairs", "pictures",
     "rounds", "state_dicts", "tfds_source"},
    {"conditioning", "data", "diffusers_format", "losses", "plans", "samplers"},
    {"inpainting", "inversion", "likelihood", "progressive", "quality", "solvers"},
    {"bits", "plots", "sampling"},
    {"chains", "config", "sweep"},
    {"editing", "memory", "validation", "workdir"},
    {"device_data", "pretrained", "measures", "monitoring", "train_step"},
    {"diagnosis", "evaluation", "tasks", "warm_start"},
    {"training"},
    {"planning"},
    {"__init__", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
PURE = ("schedule", "diffusion", "losses", "samplers", "inversion", "inpainting", "convolution",
        "normalization", "unet")


def imported(path, *, everywhere=True):
    """Top-level names and, of this package, modules that a file imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ddpm_jax":
            yield from (f"ddpm_jax.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_module_has_a_level():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LEVEL) - {"configs"}


@pytest.mark.parametrize("name", sorted(set(LEVEL) - {"configs"}))
def test_imports_point_down(name):
    for target in imported(PACKAGE / f"{name}.py"):
        if target.startswith("ddpm_jax."):
            assert LEVEL[target.split(".")[1]] < LEVEL[name], f"{name} imports {target}"


@pytest.mark.parametrize("name", PURE)
def test_the_core_needs_jax_alone(name):
    allowed = {"jax", "flax", "numpy", "jaxtyping", "ddpm_jax", "collections", "dataclasses",
               "math", "typing"}
    assert {target.split(".")[0] for target in imported(PACKAGE / f"{name}.py")} <= allowed


def test_the_command_line_reads_flags_without_jax():
    heavy = {"jax", "flax", "numpy", "ddpm_jax", "optax"}
    for name in ("cli", "__init__"):
        top = {t.split(".")[0] for t in imported(PACKAGE / f"{name}.py", everywhere=False)}
        assert not top & heavy
