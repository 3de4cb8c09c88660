"""Tests marked `browser` drive the chromium of this machine.

Without one they are skipped, except with CI=true: there they fail, so that a check which has seen
no browser is never green.
"""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no browser: none of {', '.join(NAMES)} is on PATH (`make chromium` installs it)"


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
