"""The sink of many ranks, ended at any act while ranks log, leave and are started anew."""

import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opusclip_mlops import delivery, merging_log
from opusclip_mlops.delivery import deliver, is_caught_up
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.merging_gaps import KEY
from opusclip_mlops.merging_log import MergingLog
from opusclip_mlops.records import Text
from opusclip_mlops.sessions import final_end
from opusclip_mlops.sinks import Sink
from opusclip_mlops.sinks.ranks import NAME, RanksSink
from tests.faults.training_ranks import World, lacking, to_be_merged
from tests.journeys import make_run
from tests.sinks.test_ranks import merged, merged_points

CASES = int(os.environ.get("OPUSCLIP_FUZZ_CASES", "2000")) // 20
_MOST_LOOKS = 300


class Died(BaseException):
    """What stands for kill -9: nobody catches it, and nothing is done afterwards."""


class Fate:
    """Says behind how many acts that reach the disk the sink ends: killed, or by a fault."""

    def __init__(self) -> None:
        self.left, self.fault = -1, Died()

    def meet(self) -> None:
        """Count an act.

        Raises:
            BaseException: it ends here.
        """
        self.left -= 1
        if self.left == 0:
            raise self.fault

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """An act that is not begun, or done but never known to be."""

        def call(*args: Any) -> Any:
            self.meet()
            done = act(*args)
            self.meet()
            return done

        return call


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    """What befalls all that the sink says, keeps and removes."""
    fate = Fate()
    said, wrote = fate.around(Journal.append), merging_log._write

    def append(self: Journal, record: Any, *, plain: Any = Journal.append) -> None:
        (said if self._name.startswith(NAME) else plain)(self, record)

    def write(file: int, payload: bytes, at_bytes: int) -> int:
        if fate.left == 1:
            os.pwrite(file, b"\5\0\0\0to", at_bytes)
        return int(fate.around(wrote)(file, payload, at_bytes))

    monkeypatch.setattr(Journal, "append", append)
    monkeypatch.setattr(merging_log, "_write", write)
    monkeypatch.setattr(merging_log, "_LEAST_BYTES", 400)
    for owner, name in ((RunFolder, "write_progress"), (MergingLog, "_drop_others")):
        monkeypatch.setattr(owner, name, fate.around(getattr(owner, name)))
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.LOOK_EVERY_S", 0.0)
    return fate


class Site:
    """Runs whose ranks go on whenever the sink waits; nobody waits for real."""

    def __init__(self, place: Path, fate: Fate) -> None:
        self._place, self._fate, self._numbers = place, fate, itertools.count()
        # No sink here needs MLflow's tables, which take seconds to make.
        (place / "mlflow.db").touch()
        self.world: World | None = None
        self._looks = 0
        self.closing: Callable[[], None] = lambda: None

    def open(self, name: str, folder: RunFolder) -> Sink:
        """Open the sink, whose files are closed once it is dead."""
        sink = RanksSink(folder)
        self.closing = sink._files.close
        return sink

    def run(self, seed: int, fates: list[tuple[int, BaseException]], *, steps: int) -> int:
        """Train and deliver with these ends of the sink; how many acts were left of the last."""
        folder = make_run(self._place, ["ranks"], name=f"{next(self._numbers):032x}")
        self.world = world = World(folder, random.Random(seed), steps=steps)
        self._looks, self._fate.left = 0, -1
        for self._fate.left, self._fate.fault in fates:
            with contextlib.suppress(Died):
                self._deliver(folder)
            world.pass_time()
        left, self._fate.left = self._fate.left, -1
        self._deliver(folder)
        self._check(folder, world)
        return left

    def sleep(self, _: float) -> None:
        """Let the ranks go on.

        Raises:
            AssertionError: it has looked too often since they are done.
        """
        assert self.world is not None
        self._looks += not self.world.acts
        assert self._looks < _MOST_LOOKS, "the run never ends"
        self.world.pass_time()

    def _deliver(self, folder: RunFolder) -> None:
        assert self.world is not None
        self.closing()
        while self.world.acts or not is_caught_up(folder, folder.progress("ranks")):
            deliver(folder, "ranks")
            self.world.go_on(1)

    def _check(self, folder: RunFolder, world: World) -> None:
        assert merged_points(folder) == to_be_merged(world.logged)
        assert final_end(folder) is not None
        texts = [one.text for one in merged(folder) if isinstance(one, Text) and one.key == KEY]
        assert told_to_lack(texts) == lacking(world.logged)


def told_to_lack(texts: list[str]) -> int:
    """Of how many points a run says that they lack a rank."""
    if not texts:
        return 0
    found = json.loads(texts[-1].partition("\n\n")[2])
    assert not found["late"]
    return sum(gap["points"] for by in found["lacking"].values() for gap in by.values())


@pytest.fixture
def site(tmp_path: Path, fate: Fate, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose time is that of its ranks."""
    site = Site(tmp_path, fate)
    monkeypatch.setattr(delivery, "time", SimpleNamespace(**{**vars(time), "sleep": site.sleep}))
    monkeypatch.setattr(delivery, "open_sink", site.open)
    monkeypatch.setattr(delivery, "LINGER_S", 0.0)
    monkeypatch.setattr(delivery, "print", lambda *_, **__: None, raising=False)
    return site


@pytest.mark.parametrize(("first", "batch_records"), [(1, 1), (2, 2), (3, 2000)])
def test_killed_at_every_act(
    site: Site, monkeypatch: pytest.MonkeyPatch, first: int, batch_records: int
) -> None:
    """Every merged point stands once, and what lacks a rank is told, in batches of any length.

    A third of the acts with each length; all of them with many cases.
    """
    monkeypatch.setattr(delivery, "BATCH_RECORDS", batch_records)
    places = itertools.count(first, 3) if CASES < 1000 else itertools.count(1)
    at = next(at for at in places if site.run(2, [(at, Died())], steps=2) > 0)
    assert at > 40


@pytest.mark.parametrize("first", range(0, CASES, 100))
def test_ended_anywhere_and_again(site: Site, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """By kill -9 or faults of the disk, time and again, with lag, leavers and restarts."""
    for seed in range(first, min(first + 100, CASES)):
        chance = random.Random(seed)
        monkeypatch.setattr(delivery, "BATCH_RECORDS", chance.choice([1, 2, 5, 2000]))
        fates = [
            (chance.randrange(1, 30), chance.choice([Died(), OSError(28, "No space left")]))
            for _ in range(chance.randrange(5))
        ]
        site.run(seed, fates, steps=4)
