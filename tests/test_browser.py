"""What becomes of browser tests where there is no browser."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import MISSING

ROOT = Path(__file__).resolve().parents[1]
BROWSER_TEST = """\
import pytest

@pytest.mark.browser
def test_draws(chromium):
    pass
"""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 error"), ("", "1 skipped")])
def test_only_ci_insists_on_a_browser(tmp_path: Path, ci: str, outcome: str) -> None:
    """With CI=true a browser test without a browser fails; elsewhere it is skipped."""
    file = tmp_path / "test_draws.py"
    file.write_text(BROWSER_TEST)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.browser",
            "-c",
            ROOT / "pyproject.toml",
            file,
        ],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "CI": ci, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout
    assert MISSING in done.stdout
    assert (done.returncode == 0) is (ci == "")


@pytest.mark.browser
def test_the_browser_found_here_starts(chromium: str) -> None:
    """What the fixture names is a browser that runs."""
    version = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=True)
    assert "Chrom" in version.stdout
