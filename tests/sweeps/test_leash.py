"""What ties a program to the process that started it."""

import os
import subprocess
import sys

from opusclip_mlops.sweeps import leash


def test_who_comes_too_late_ends_at_once() -> None:
    """Its parent died before it could be tied: nobody would end it later."""
    words = [sys.executable, "-I", "-S", str(leash.__file__), "1", "/bin/echo", "here"]
    done = subprocess.run(words, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (-15, b"")


def test_words_are_no_shells() -> None:
    """They reach the program as they are."""
    words = [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid()), "/bin/echo", "$(x)"]
    assert subprocess.run(words, capture_output=True, timeout=60).stdout == b"$(x)\n"
