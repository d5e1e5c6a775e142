"""What a user gets who does as a message says."""

import re

import numpy as np

import ddpm_jax
from ddpm_jax.data.source import from_array
from ddpm_jax.errors import UserError


def line(message):
    """The Python expression that a message about an array tells to write."""
    found = re.search(r"(?:write|images out:) (.*)\.$", message)
    assert found, message
    return found[1].partition(", or ")[0]  # The first of two lines.


def follow(images, steps=3):
    """The source of the images, after at most so many lines of advice were followed."""
    for _ in range(steps):
        try:
            return from_array(images)
        except UserError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 1000, text
            images = eval(line(text), {"images": images, "np": np, "ddpm_jax": ddpm_jax})
            if isinstance(images, ddpm_jax.data.Source):
                return images
    return from_array(images)
