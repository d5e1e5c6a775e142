"""Checks of a PNG file of curves."""

import numpy as np
from PIL import Image


def assert_png(path, panels):
    """A picture with a curve in the colour of curves in each of its panels."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 350 * panels < image.width < 800 * panels and 300 < image.height < 800
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 100
    columns = [panel.sum() for panel in np.array_split(blue, panels, axis=1)]
    assert min(columns) > 100
    dark, light = pixels.max(axis=2) < 100, pixels.min(axis=2) > 200
    assert dark.sum() > 500 and light.mean() > 0.5  # Axes and words on a light background.
