"""Facts about `opusclip_mlops.faults`: what a backend does not take now is sent later."""

import json
import math
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from opusclip_mlops import faults
from opusclip_mlops.faults import AwaitsOthers, PutOff, attempted
from opusclip_mlops.records import Checkpoint, Record, Text, Video


class Store:
    """Takes records, but for those of the names that stand in `away`."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.tried: list[str] = []
        self.taken: list[str] = []

    def send(self, record: Record) -> None:
        """Take a record, or fail."""
        self.tried.append(name_of(record))
        if name_of(record) in self.away:
            raise ConnectionError(f"no room for {record}")
        self.taken.append(name_of(record))


class Clock:
    """A clock that stands still unless it is told to go."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def name_of(record: Record) -> str:
    assert isinstance(record, Text | Video | Checkpoint)
    return record.name if isinstance(record, Checkpoint) else record.key


def text(name: str) -> Text:
    return Text(1, 2, name, "words")


def checkpoint(name: str) -> Checkpoint:
    return Checkpoint(1, 2, 3, name, {"loss": math.nan, "best": math.inf}, True)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the waits are measured with."""
    found = Clock()
    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def drain(put_off: PutOff, store: Store, clock: Clock, *, tries: int = 20) -> None:
    """Try again as often as is said, each time when the wait is over."""
    for _ in range(tries):
        clock.now_s += faults.LAST_RETRY_S
        put_off.try_again(store.send)


def test_any_fault_of_a_backend_is_caught(store: Store) -> None:
    """It is returned, whatever it is; what ends the process is not one."""
    store.away = {"a"}
    assert attempted(lambda: store.send(text("b"))) is None
    assert isinstance(attempted(lambda: store.send(text("a"))), ConnectionError)

    def end() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempted(end)


def test_what_can_be_sent_is_sent_at_once(store: Store) -> None:
    """Nothing is put off then."""
    put_off = PutOff()
    for name in "abc":
        put_off.send_or_keep(text(name), store.send)
    assert store.taken == ["a", "b", "c"]
    assert put_off.is_empty
    assert put_off.encoded() == []


def test_what_fails_is_sent_later_in_order(store: Store, clock: Clock) -> None:
    """Each once, in the order it was logged in, when the store is there again."""
    put_off = PutOff()
    store.away = set("abc")
    for name in "abc":
        put_off.send_or_keep(text(name), store.send)
    assert not put_off.is_empty
    put_off.try_again(store.send)
    assert store.tried == ["a"]
    store.away = set()
    clock.now_s += faults.FIRST_RETRY_S
    put_off.try_again(store.send)
    assert store.taken == ["a", "b", "c"]
    assert put_off.is_empty


def test_a_store_that_fails_is_left_alone_for_a_while(store: Store, clock: Clock) -> None:
    """Waits grow from a second to a minute; meanwhile what is new is put off untried."""
    put_off = PutOff()
    store.away = {"a", "new"}
    put_off.send_or_keep(text("a"), store.send)
    waits_s = []
    for _ in range(9):
        begin_s, tried = clock.now_s, len(store.tried)
        while len(store.tried) == tried:
            clock.now_s += 0.5
            put_off.try_again(store.send)
        waits_s.append(clock.now_s - begin_s)
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    put_off.send_or_keep(text("new"), store.send)
    assert "new" not in store.tried


def test_after_a_success_the_waits_are_short_again(store: Store, clock: Clock) -> None:
    """A second outage begins like the first."""
    put_off = PutOff()
    for _ in range(2):
        store.away = {"a"}
        put_off.send_or_keep(text("a"), store.send)
        clock.now_s += faults.FIRST_RETRY_S
        put_off.try_again(store.send)
        put_off.try_again(store.send)
        store.away = set()
        clock.now_s += 2 * faults.FIRST_RETRY_S
        put_off.try_again(store.send)
        assert put_off.is_empty
    assert store.tried == ["a"] * 6


def test_one_bad_file_holds_up_no_other(store: Store, clock: Clock) -> None:
    """What is put off behind it has its turn; it is tried again for ever."""
    put_off = PutOff()
    store.away = {"bad", "a", "b"}
    for name in ("bad", "a", "b"):
        put_off.send_or_keep(text(name), store.send)
    store.away = {"bad"}
    drain(put_off, store, clock)
    assert store.taken == ["a", "b"]
    assert store.tried.count("bad") > 5
    store.away = set()
    drain(put_off, store, clock)
    assert store.taken == ["a", "b", "bad"]


def test_a_checkpoint_never_overtakes_another(store: Store, clock: Clock) -> None:
    """The last one that arrives is the last one that was saved, whatever fails meanwhile."""
    put_off = PutOff()
    store.away = {"c1", "a", "c2"}
    for record in (text("a"), checkpoint("c1"), checkpoint("c2"), text("b")):
        put_off.send_or_keep(record, store.send)
        drain(put_off, store, clock, tries=1)
    store.away = {"c1"}
    clock.now_s += faults.LAST_RETRY_S
    put_off.send_or_keep(checkpoint("c3"), store.send)
    drain(put_off, store, clock)
    assert not {"c2", "c3"} & set(store.taken)
    store.away = set()
    drain(put_off, store, clock)
    assert [name for name in store.taken if name[0] == "c"] == ["c1", "c2", "c3"]
    assert sorted(store.taken) == ["a", "b", "c1", "c2", "c3"]


def test_a_checkpoint_that_waits_for_other_machines_is_overtaken(
    store: Store, clock: Clock
) -> None:
    """What is behind it is sent at once, and it is tried again, also by the next process."""
    put_off = PutOff()

    def send(record: Record) -> None:
        if name_of(record) in away:
            raise AwaitsOthers("no share yet")
        store.send(record)

    away = {"c1", "c2"}
    for record in (checkpoint("c1"), checkpoint("c2"), checkpoint("c3"), text("a")):
        put_off.send_or_keep(record, send)
    assert store.taken == ["c3", "a"]
    assert put_off.fault == "2 files wait: for what other machines have not sent"
    for one in (put_off, PutOff(put_off.encoded())):
        for _ in range(9):
            clock.now_s += faults.LAST_RETRY_S
            one.try_again(send)
        one.send_or_keep(checkpoint("c4"), send)
    assert store.taken == ["c3", "a", "c4", "c4"]
    away = {"c1"}
    clock.now_s += faults.LAST_RETRY_S
    put_off.try_again(send)
    # One that the backend does not take now still lets no other by.
    store.away = {"c5"}
    for record in (checkpoint("c5"), checkpoint("c6")):
        put_off.send_or_keep(record, send)
    assert store.taken[4:] == ["c2"]
    away, store.away = set(), set()
    drain(put_off, store, clock)
    assert sorted(store.taken[5:]) == ["c1", "c5", "c6"]
    assert put_off.is_empty


def test_a_bad_checkpoint_holds_up_no_clip(store: Store, clock: Clock) -> None:
    """What was put off behind it is sent, but for the checkpoints after it."""
    put_off = PutOff()
    store.away = {"c1", "c2", "a", "b"}
    for record in (checkpoint("c1"), text("a"), checkpoint("c2"), text("b")):
        put_off.send_or_keep(record, store.send)
    store.away = {"c1"}
    drain(put_off, store, clock)
    assert sorted(store.taken) == ["a", "b"]
    again = PutOff(put_off.encoded())
    store.away = set()
    drain(again, store, clock)
    assert store.taken[2:] == ["c1", "c2"]


def test_a_first_checkpoint_waits_for_no_clip(store: Store, clock: Clock) -> None:
    """Only checkpoints keep their order among each other."""
    put_off = PutOff()
    store.away = {"a"}
    put_off.send_or_keep(text("a"), store.send)
    clock.now_s += faults.FIRST_RETRY_S
    put_off.send_or_keep(checkpoint("c1"), store.send)
    assert store.taken == ["c1"]


def test_what_is_put_off_outlives_the_process(store: Store) -> None:
    """It goes through JSON and back, NaN and infinities too, and is sent by the next process."""
    put_off = PutOff()
    records: list[Record] = [
        checkpoint("c1"),
        Video(1, -(2**63), "kite", "1.npy", 29.97, "ein Drache é😀"),
        text("a"),
    ]
    store.away = {"c1", "kite", "a"}
    for record in records:
        put_off.send_or_keep(record, store.send)
    kept = json.loads(json.dumps(put_off.encoded(), allow_nan=False))
    sent: list[Record] = []
    again = PutOff(kept)
    assert again.encoded() == kept
    again.try_again(sent.append)
    assert repr(sent) == repr(records)
    assert again.is_empty
    assert again.encoded() == []


def test_a_turn_is_kept_over_a_restart(store: Store, clock: Clock) -> None:
    """A new process does not begin with the bad one again."""
    put_off = PutOff()
    store.away = {"bad", "a"}
    for name in ("bad", "a"):
        put_off.send_or_keep(text(name), store.send)
    drain(put_off, store, clock, tries=1)
    store.away = set()
    PutOff(put_off.encoded()).try_again(store.send)
    assert store.taken == ["a", "bad"]


def test_what_is_told_names_no_content(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The log says what kind of record was put off and why, without a text that may be secret."""
    store.away = {"a"}
    PutOff().send_or_keep(text("a"), store.send)
    assert capsys.readouterr().out == "Text put off: ConnectionError\n"


def test_what_waits_says_why_until_it_is_sent() -> None:
    """For whoever asks how delivery is getting on: S3's code and what to do, none of its text."""
    refusal = ClientError({"Error": {"Code": "InvalidAccessKeyId", "Message": "AKIA"}}, "PutObject")
    put_off = PutOff()

    def refuse(_: object) -> None:
        raise refusal

    assert (put_off.fault, put_off.faults) == ("", 0)
    put_off.send_or_keep(text("a"), refuse)
    put_off.send_or_keep(text("b"), refuse)
    assert put_off.fault == (
        "2 files wait: S3 says InvalidAccessKeyId: check AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY"
    )
    # The second was not tried: its turn had not come.
    assert put_off.faults == 1
    again = PutOff(put_off.encoded())
    again.try_again(lambda _: None)
    assert (again.fault, again.faults, again.is_empty) == ("", 0, True)


def test_what_waits_is_made_small(store: Store, clock: Clock) -> None:
    """A record that is put off is what `slim` makes of it, there and after a restart."""

    def slim(record: Record) -> Record:
        return text(name_of(record).upper())

    put_off = PutOff(slim=slim)
    store.away = {"a"}
    for name in "ab":
        put_off.send_or_keep(text(name), store.send)
    again = PutOff(put_off.encoded(), slim=slim)
    assert again.encoded() == put_off.encoded()
    drain(again, store, clock)
    assert store.taken == ["A", "B"]
