"""Machines with a network between them, of namespaces of this one's kernel, each removed at last.

Each has its own network and its own host name; files and processes are those of all. They reach one
another over a bridge, which stands in a namespace of its own, and nothing outside of it.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count()
_ADDRESSES = "10.231.7."


@dataclass(frozen=True)
class Machine:
    """One machine: its host name, its address, and the namespace that it is."""

    host: str
    address: str
    namespace: str
    _plug: tuple[str, str]

    def command(self, argv: Sequence[Any]) -> list[str]:
        """The same command, as it is run on this machine."""
        named = 'hostname "$0" && exec "$@"'
        inside = ["unshare", "--uts", "sh", "-c", named, self.host, *map(str, argv)]
        return ["ip", "netns", "exec", self.namespace, *inside]

    def unplug(self) -> None:
        """Have it reach nobody, and nobody reach it; it is not told."""
        self._switch("down")

    def plug_in(self) -> None:
        """Have it reach the others again."""
        self._switch("up")

    def _switch(self, state: str) -> None:
        bridge, port = self._plug
        _ip("-n", bridge, "link", "set", port, state)


def why_none() -> str:
    """Why no machines can be made here, empty where they can."""
    lacking = [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} is not installed"
    try:
        with machines(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.decode().strip()}"


@pytest.fixture(scope="module")
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines of a test module; skipped where none can be made."""
    if reason := why_none():
        pytest.skip(reason)
    with machines(2) as (one, other):
        yield one, other


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """This many machines on one bridge; the first is called node-a.

    Raises:
        subprocess.CalledProcessError: the kernel makes none.
    """
    _remove_left_over()
    name = f"opusclip-{os.getpid()}-{next(_numbers)}"
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(_namespace(f"{name}-bridge"))
        _ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", bridge, "link", "set", "bridge", "up")
        yield [_machine(stack, name, bridge, number) for number in range(count)]


def _remove_left_over() -> None:
    """Remove the machines of tests that were killed."""
    for path in Path("/run/netns").glob("opusclip-*"):
        pid = path.name.split("-")[1]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", path.name)


def _machine(stack: contextlib.ExitStack, name: str, bridge: str, number: int) -> Machine:
    letter = chr(ord("a") + number)
    namespace = stack.enter_context(_namespace(f"{name}-{letter}"))
    port = f"to-{letter}"
    _ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "lan0", "netns", namespace)
    _ip("-n", bridge, "link", "set", port, "master", "bridge", "up")
    address = f"{_ADDRESSES}{number + 1}"
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "lan0")
    for device in ("lo", "lan0"):
        _ip("-n", namespace, "link", "set", device, "up")
    return Machine(f"node-{letter}", address, namespace, (bridge, port))


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        yield name
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)
