"""A real Chromium without a window, driven by Playwright; the system's own, nothing downloaded."""

import contextlib
import importlib.util
import os
import shutil

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def path():
    return next(filter(None, map(shutil.which, NAMES)), None)


def lack():
    """Why there is no browser; "" where there is one."""
    if not importlib.util.find_spec("playwright"):
        return 'no Playwright: pip install -e ".[test]"'
    return "" if path() else f"no {' or '.join(NAMES[:2])} on the PATH: apt-get install chromium"


@contextlib.contextmanager
def started():
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses it to root.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path(), args=sandbox)
        yield browser
        browser.close()
