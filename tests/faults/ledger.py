"""What a trainer logged, in its own hand: a line before each call, and one once it returned.

The lines are in the page cache when `os.write` returns, so that they outlive the trainer as the
journal does. A call with no second line was under way when the trainer died.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RETURNED = b'"after_ms"'
"""Stands in the second line of each call."""


class Ledger:
    """Notes log calls; safe in threads and in forked children."""

    def __init__(self, path: str | Path | None = None) -> None:
        path = path or os.environ["LEDGER"]
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def log(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """Log metrics, and note it."""
        with self.call("metrics", step, values):
            tracker.log_metrics(values, step)

    def steps(
        self, tracker: Any, count: int, *, first: int = 0, wait_s: float = 0.0, who: str = "train"
    ) -> None:
        """Log two keys at each of some steps, with values that no other call has."""
        for step in range(first, first + count):
            self.log(tracker, {f"{who}/loss": step + 1 / 7, f"{who}/rate": -step / 3}, step)
            if wait_s:
                time.sleep(wait_s)

    @contextlib.contextmanager
    def call(self, kind: str, step: int, values: Mapping[str, Any]) -> Iterator[None]:
        """Note a call of any kind around the block; one that raises did not return."""
        name = f"{os.getpid()}.{threading.get_ident()}.{next(self._numbers)}"
        before_ms = time.time_ns() // 1_000_000
        self._write(call=name, kind=kind, step=step, values=dict(values), before_ms=before_ms)
        started_ns = time.perf_counter_ns()
        yield
        took_ns = time.perf_counter_ns() - started_ns
        self._write(call=name, after_ms=time.time_ns() // 1_000_000, took_ms=took_ns / 1e6)

    def say(self, word: str) -> None:
        """Leave word for the test."""
        self._write(word=word)

    def _write(self, **facts: Any) -> None:
        os.write(self._descriptor, json.dumps(facts).encode() + b"\n")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One log call; `after_ms` and `took_ms` are None where it never returned."""

    kind: str
    step: int
    values: dict[str, Any]
    before_ms: int
    after_ms: int | None = None
    took_ms: float | None = None

    @property
    def returned(self) -> bool:
        """Whether the call came back to the trainer."""
        return self.after_ms is not None


def calls_in(path: Path) -> list[Call]:
    """All calls of a ledger, in the order they began."""
    begun: dict[str, dict[str, Any]] = {}
    for facts in _lines(path):
        if "call" in facts:
            begun.setdefault(facts.pop("call"), {}).update(facts)
    return [Call(**facts) for facts in begun.values()]


def words_in(path: Path) -> list[str]:
    """What the trainer said."""
    return [facts["word"] for facts in _lines(path) if "word" in facts]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")]  # fmt: skip
