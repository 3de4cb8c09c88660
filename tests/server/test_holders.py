"""A process that holds something is known to be gone where that can be seen, and only there."""

import subprocess
import sys

import pytest

from opusclip_mlops.server.holders import is_gone, new_holder

CODE = "from opusclip_mlops.server.holders import new_holder; print(new_holder(), flush=True)"


def test_a_process_that_ended_is_gone() -> None:
    """Not while it lives; a pid that another process was given later is not it."""
    argv = [sys.executable, "-c", f"{CODE}; input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        holder = other.stdout.readline().strip()
        assert not is_gone(holder)
        boot, namespace, pid, started_s, name = holder.split(":")
        earlier = f"{float(started_s) - 1:.2f}"
        assert is_gone(":".join((boot, namespace, pid, earlier, name)))
        other.kill()
        other.wait()
        assert is_gone(holder)
    assert not is_gone(new_holder())
    assert new_holder() != new_holder()


@pytest.mark.parametrize("place", [0, 1])
def test_of_another_machine_nothing_is_seen(place: int) -> None:
    """Nor of another container, which has pids of its own."""
    parts = [*new_holder().split(":")[:2], "999999999", "1.00", "x"]
    assert is_gone(":".join(parts))
    parts[place] = "other"
    assert not is_gone(":".join(parts))


@pytest.mark.parametrize("holder", ["", "x", "a:b:c:d:e", ":::", "a:b:-1:0:0", "7"])
def test_rubbish_is_nobody_who_is_gone(holder: str) -> None:
    """It is waited for, as for a stranger."""
    assert not is_gone(holder)
