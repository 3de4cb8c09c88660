"""Facts about `opusclip_mlops.shares_elsewhere`: what does not come is not waited for for ever."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from opusclip_mlops import shares_elsewhere
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.records import RunEnded, RunStarted, Text
from opusclip_mlops.sessions import ELSEWHERE
from opusclip_mlops.shares_elsewhere import SharesElsewhere
from tests.journeys import append, end, make_run

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
        leave(looks, rank)


def leave(looks: Looks, rank: int, *, silent: bool = False) -> None:
    """A rank has ended by its machine's word; or by this one's, which hears nothing of it."""
    told_in = f"{ELSEWHERE}1-b-0" if rank else f"s{rank}-0"
    reason = "nothing was heard of its machine for 60 s" if silent else ""
    ended = RunEnded(f"s{rank}-0", "FAILED", MADE_MS + 500, reason)
    append(looks.folder, [ended], journal=("+relay" if silent else told_in) + CONTROL)


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


def test_whichever_file_comes_gives_all_others_their_time_again(looks: Looks) -> None:
    """Those that make a checkpoint whole, too, were it never looked at before; and each once."""
    begin(looks, 0)
    begin(looks, 1)
    for name in ("c1", "c3"):
        if name == "c1":
            assert not looks.shares.is_vain(name, MADE_MS, ABSENT)
        assert looks.until_vain("c2", most=59) == 59
        looks.now_s -= LOOK_S
        looks.shares.has_come(name)
    assert looks.until_vain("c2", most=30) == 30
    looks.shares.has_come("c3")
    assert looks.until_vain("c2", most=29) == 29
    # Another attempt has written it anew.
    assert not looks.shares.is_vain("c3", MADE_MS, ABSENT)
    looks.shares.has_come("c3")
    assert looks.until_vain("c2", most=59) == 59


def test_a_file_that_takes_longer_than_an_hour_is_waited_for(looks: Looks) -> None:
    """Ten GiB over a link that sends two MiB a second: whether its writers live or have ended."""
    begin(looks, 0)
    begin(looks, 1)
    large = {"weights-00001-of-00002.safetensors": 10 * 2**30}
    assert looks.until_vain(absent=large, most=101) == 101
    leave(looks, 1)
    assert looks.until_vain("c2", large, most=200) == 101


def test_what_its_writers_have_ended_without_is_given_up_sooner(looks: Looks) -> None:
    """Behind the time in which their machine, which has it on its disk, would have sent more."""
    begin(looks, 0)
    begin(looks, 1, end=True)
    assert looks.until_vain() == 16
    large = {"weights-00001-of-00002.safetensors": 2**30}
    assert looks.until_vain("c2", large) == 24


def test_writers_of_whom_nothing_is_known_have_not_ended(looks: Looks) -> None:
    """The first word of their machine may come late; unless the whole run has ended."""
    begin(looks, 0)
    assert looks.until_vain(most=59) == 59
    leave(looks, 0)
    end(looks.folder)
    assert looks.until_vain("c2") == 16


def test_who_was_started_anew_since_has_not_written_it(looks: Looks) -> None:
    """Those that wrote it have ended, though the ranks that came behind them live."""
    begin(looks, 0)
    begin(looks, 1, end=True)
    begin(looks, 0, attempt=1)
    begin(looks, 1, attempt=1)
    assert looks.until_vain() == 16


def test_ranks_that_are_started_anew_have_not_sent_all(looks: Looks) -> None:
    """Their shares lie on the disk of a machine that may send still, and hold up no run's end."""
    begin(looks, 0)
    begin(looks, 1)
    begin(looks, 0, attempt=1)
    assert looks.until_vain(most=59) == 59


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_machine_that_is_heard_again_has_the_whole_time_to_send(
    looks: Looks, is_silent: bool
) -> None:
    """Its small words come before its large files: an end, or what was logged before it."""
    begin(looks, 0, end=True)
    begin(looks, 1)
    if is_silent:
        leave(looks, 1, silent=True)
    assert looks.until_vain(most=15) == 15
    if is_silent:
        append(looks.folder, [Text(MADE_MS, 1, "note", "late")], journal=f"{ELSEWHERE}1-b-0")
    else:
        leave(looks, 1)
    assert looks.until_vain() == 16


def test_whose_machine_stays_silent_is_given_up_before_the_hour(looks: Looks) -> None:
    """A share that never comes does not hold up the run's end for so long."""
    begin(looks, 0, end=True)
    begin(looks, 1)
    leave(looks, 1, silent=True)
    assert looks.until_vain() == 16


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
    assert looks.until_vain() == 14


def test_what_an_earlier_version_counted_is_counted_on(looks: Looks) -> None:
    """Its mark has no word of ends."""
    begin(looks, 0)
    begin(looks, 1)
    (looks.folder.path / "uploads").mkdir()
    (looks.folder.path / "uploads" / "c1.awaited").write_bytes(b"[3540.0,2]")
    assert looks.until_vain() == 1
