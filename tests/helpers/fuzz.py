"""What random tests share: how many examples they draw, and what an error may look like.

By default each test draws the same few examples every time; `DDPM_JAX_FUZZ=1000` draws 1,000 new
ones.
"""

import os

import hypothesis

from ddpm_jax.errors import UserError

LONG = int(os.environ.get("DDPM_JAX_FUZZ", 0))


def settings(examples):
    return hypothesis.settings(
        max_examples=LONG or examples, deadline=None, derandomize=not LONG, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[phase for phase in hypothesis.Phase if phase.name != "explain"],
    )


def assert_one_line(error, most=2000):
    """The error is of ours, and can be printed as one line of bounded length."""
    text = str(error)
    assert isinstance(error, UserError) and "\n" not in text and 10 < len(text) < most, text
