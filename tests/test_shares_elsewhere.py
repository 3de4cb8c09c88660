"""Facts about `opusclip_mlops.shares_elsewhere`: what does not come is not waited for for ever."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from opusclip_mlops import shares_elsewhere
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.records import RunEnded, RunStarted
from opusclip_mlops.sessions import ELSEWHERE
from opusclip_mlops.shares_elsewhere import SharesElsewhere
from tests.journeys import append, make_run

MADE_MS = 2_000_000_000_000
ABSENT = {"weights-00001-of-00002.safetensors": 7, "optimizer-00001-of-00002.safetensors": 9}
LOOK_S = 60.0


class Looks:
    """A machine that looks every minute for what others have of a checkpoint."""

    def __init__(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now_s = folder, 100.0
        self.shares = SharesElsewhere(folder)
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(shares_elsewhere, "time", clock)

    def until_vain(self, name: str = "c1", absent: dict[str, int] = ABSENT, most: int = 99) -> int:
        """How many looks it takes until nothing is expected any more."""
        for look in range(most):
            if self.shares.is_vain(name, MADE_MS, absent):
                return look
            self.now_s += LOOK_S
        return most


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Of the first machine of two."""
    return Looks(make_run(tmp_path), monkeypatch)


def begin(looks: Looks, rank: int, attempt: int = 0, *, end: bool = False) -> None:
    """A rank begins, the second one on another machine, and ends."""
    name = f"s{rank}-{attempt}"
    elsewhere = f"{ELSEWHERE}1-b-0{CONTROL}" if rank else name + CONTROL
    began_ms = MADE_MS - 1000 + 2000 * attempt
    start = RunStarted(name, "b", 1, 0.0, began_ms, rank=rank, attempt=attempt, world_size=2)
    append(looks.folder, [start], journal=elsewhere)
    if end:
        ended = RunEnded(name, "FAILED", MADE_MS + 500)
        append(looks.folder, [ended], journal=elsewhere)


def test_a_machine_that_lives_has_an_hour(looks: Looks) -> None:
    """And so has each next file; of what is waited for at once all times pass together."""
    begin(looks, 0)
    begin(looks, 1)
    assert looks.until_vain(most=59) == 59
    assert not looks.shares.is_vain("c2", MADE_MS, ABSENT)
    one_less = dict([*ABSENT.items()][:1])
    assert looks.until_vain(absent=one_less) == 60
    looks.shares.forget("c1")
    assert looks.until_vain() == 60


@pytest.mark.parametrize("how", ["ended", "superseded"])
def test_what_its_writers_have_ended_without_is_soon_given_up(looks: Looks, how: str) -> None:
    """Behind the time in which their machine, which has it on its disk, would have sent more."""
    begin(looks, 0)
    begin(looks, 1, end=how == "ended")
    if how == "superseded":
        begin(looks, 0, attempt=1)
    assert looks.until_vain() == 4
    large = {"weights-00001-of-00002.safetensors": 2**30}
    assert looks.until_vain("c2", large) == 12


def test_time_in_which_nobody_looked_does_not_count_and_the_next_process_counts_on(
    looks: Looks,
) -> None:
    """An outage of MLflow, or a night without a shipper, takes no checkpoint from anybody."""
    begin(looks, 0)
    begin(looks, 1, end=True)
    assert looks.until_vain(most=2) == 2
    looks.now_s += 80_000.0
    assert not looks.shares.is_vain("c1", MADE_MS, ABSENT)
    looks.shares = SharesElsewhere(looks.folder)
    assert looks.until_vain() == 2
