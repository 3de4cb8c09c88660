"""Tests marked `browser` drive the chromium of this machine.

Without one they are skipped, except with CI=true: there they fail, so that a check which has seen
no browser is never green.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no browser: none of {', '.join(NAMES)} is on PATH (`make chromium` installs it)"

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
"""What the MLflow UI keeps in a browser that has been there before: no tours, no assistant."""

STAGES = {"_mlflow_user_setting_dismiss_next_model_registry_ui": "true"}
"""The switch `New model registry UI`, turned off: versions have a menu of stages."""


def chromium_path() -> str | None:
    """The browser's program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a browser test on a machine without a browser."""
    if item.get_closest_marker("browser") and chromium_path() is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)


@pytest.fixture
def chromium() -> str:
    """The browser's program, for playwright's `executable_path`; the test is marked `browser`."""
    path = chromium_path()
    assert path, "mark this test with pytest.mark.browser"
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser, driven by playwright; the test is marked `browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)


def open_mlflow(browser: Browser, address: str, **settings: str) -> Page:
    """A page of the MLflow UI, for somebody who has been there before.

    Args:
        browser: The browser.
        address: The page's whole address.
        settings: What the UI keeps in the browser besides, such as `STAGES`.
    """
    page = browser.new_context(viewport={"width": 1400, "height": 1100}).new_page()
    kept = json.dumps({**SETTINGS, **settings})
    page.add_init_script(f"for (const [k, v] of Object.entries({kept})) localStorage.setItem(k, v)")
    page.goto(address, wait_until="domcontentloaded")
    return page
