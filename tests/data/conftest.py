"""Fixtures of the tests of data sets."""

import pytest
from absl import logging


@pytest.fixture
def logged(monkeypatch):
    """The warnings in the log."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(params=[False, True], ids=["in memory", "streamed"])
def streamed(request, monkeypatch):
    """Whether the images are too large for memory."""
    from ddpm_jax.data import source as source_lib

    if request.param:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    return request.param
