"""Runs every test on some processes at once; the few that fail there once more, one by one.

    python tests/run_all.py [pytest's options]

Tests here start servers and kill processes: on a machine that is full of other tests one may run
out of time. Whoever fails is named; who fails alone too, or in more than four files, fails the
whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PROCESSES = 4
MOST_FILES_AGAIN = 4
SOME_FAILED = 1
FAILED = Path(".pytest_cache/v/cache/lastfailed")


def pytest(*options: str) -> int:
    """Run pytest, and give its exit code."""
    line = [sys.executable, "-m", "pytest", *options]
    return subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def main(options: list[str]) -> int:
    """Run all, then those that failed; the exit code of the last."""
    FAILED.unlink(missing_ok=True)
    code = pytest("-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder", *options)
    failed = json.loads(FAILED.read_text()) if FAILED.exists() else {}
    files = {name.partition("::")[0] for name in failed}
    if code != SOME_FAILED or not 0 < len(files) <= MOST_FILES_AGAIN:
        return code
    print("failed beside others, now alone:", *failed, sep="\n  ", flush=True)
    return pytest("--last-failed", "--last-failed-no-failures", "none", *options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
