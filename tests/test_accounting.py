"""Facts about `opusclip_mlops.accounting`: every point left out is counted, whatever happens."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops import accounting
from opusclip_mlops.accounting import OTHER_KEYS, SHED, SKIPPED, Account, Totals, totals
from opusclip_mlops.records import Tags, Text, check_key, to_text_values

NOTHING = Totals(lost=0, skipped={}, shed={})
ROUNDS = 300


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no free block on a disk; returns the file that takes them."""
    path = place / "filling"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    return path


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that has made an account `a` of session `s1`."""
    start = (
        "import os, sys, signal; from pathlib import Path\n"
        "from opusclip_mlops.accounting import Account\n"
        "a = Account(Path(sys.argv[1]), 's1')\n"
    )
    argv = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


# What is counted


def test_points_are_counted_by_key(tmp_path: Path) -> None:
    """Each key has its own figure, for each of the two reasons, whatever it was left out with."""
    account = Account(tmp_path, "s1")
    account.count(SKIPPED, ["a", "b"])
    account.count(SKIPPED, ["b"])
    account.count(SKIPPED, ["a", "b"])
    account.count(SHED, ["b", "c/é"])
    account.count(SHED, [])
    account.count_lost()
    account.count_lost(4)
    assert totals(tmp_path) == Totals(lost=5, skipped={"a": 2, "b": 3}, shed={"b": 1, "c/é": 1})
    assert totals(tmp_path).dropped == 7


def test_nothing_left_out_is_a_figure_too(tmp_path: Path) -> None:
    """A run that lacks nothing says so, as does a folder without sessions."""
    assert totals(tmp_path) == NOTHING
    Account(tmp_path, "s1").close()
    assert totals(tmp_path) == NOTHING
    assert totals(tmp_path / "gone") == NOTHING


def test_all_sessions_are_summed_up(tmp_path: Path) -> None:
    """Several processes log to one run, one after the other too, even under one name."""
    for session in ("s1", "s2", "s1"):
        account = Account(tmp_path, session)
        account.count(SHED, ["a"])
        account.count_lost()
        account.close()
    assert totals(tmp_path) == Totals(lost=3, skipped={}, shed={"a": 3})


def test_sets_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every call leaves out other keys, the file stays small and each figure exact."""
    monkeypatch.setattr(accounting, "_SETS_BYTES", 20_000)
    account = Account(tmp_path, "s1")
    chance = random.Random(7)
    expected = dict.fromkeys((f"key/{number}" for number in range(30)), 0)
    for _ in range(3000):
        keys = [key for key in expected if chance.random() < 0.5]
        account.count(SHED, keys)
        for key in keys:
            expected[key] += 1
    assert totals(tmp_path).shed == expected
    assert account._ledger._end_bytes < 25_000


def test_keys_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number of names the others are counted together: the sum stays exact."""
    monkeypatch.setattr(accounting, "_MAX_NAMES", 11)
    account = Account(tmp_path, "s1")
    for number in range(20):
        account.count(SHED, [f"key/{number}", "loss"])
    shed = totals(tmp_path).shed
    assert sum(shed.values()) == 40
    assert shed["key/0"] == shed["key/6"] == 1
    assert shed[OTHER_KEYS] == 26


# Whatever happens


@pytest.mark.parametrize("kind", [SHED, SKIPPED])
def test_counts_outlive_the_process(kind: str, tmp_path: Path) -> None:
    """What a call returned for is there after `kill -9`."""
    code = (
        "for n in range(1000): a.count(sys.argv[2], ['x', 'y']); a.count(sys.argv[2], [f'k{n}'])\n"
        "a.count_lost(3); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = run(code, tmp_path, kind)
    assert process.wait() == -signal.SIGKILL
    expected = {"x": 1000, "y": 1000, **{f"k{n}": 1 for n in range(1000)}}
    found = totals(tmp_path)
    assert found.lost == 3
    assert (found.shed if kind == SHED else found.skipped) == expected


@pytest.mark.parametrize("after_lines", [1, 50, 2000])
def test_a_kill_at_any_moment_loses_no_count(after_lines: int, tmp_path: Path) -> None:
    """Killed in the midst of counting, at most the call under way is counted without returning."""
    code = (
        "n = 0\n"
        "while True:\n"
        "    a.count('shed', [f'k{n % 700}', 'x']); n += 1\n"
        "    os.write(1, b'%d\\n' % n)\n"
    )
    process = run(code, tmp_path)
    assert process.stdout is not None
    for _ in range(after_lines):
        process.stdout.readline()
    process.kill()
    rest = process.stdout.read().splitlines()
    process.wait()
    returned = int(rest[-1]) if rest else after_lines
    found = totals(tmp_path).shed
    assert found["x"] in (returned, returned + 1)
    assert sum(found.values()) == 2 * found["x"]


def test_threads_count_together(tmp_path: Path) -> None:
    """No count of any thread is lost, none is doubled."""
    account = Account(tmp_path, "s1")

    def count(name: str) -> None:
        for number in range(ROUNDS):
            account.count(SHED, ["all", name])
            account.count(SKIPPED, [f"{name}/{number % 20}"])
            account.count_lost()

    threads = [threading.Thread(target=count, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = totals(tmp_path)
    assert found.lost == found.shed["all"] == 8 * ROUNDS
    assert all(found.shed[f"t{n}"] == ROUNDS for n in range(8))
    assert sum(found.skipped.values()) == 8 * ROUNDS


def test_an_older_figure_never_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread is about to write, another one's count waits for it."""
    account = Account(tmp_path, "s1")
    account.count(SHED, ["x"])
    write_at = accounting._write_at
    is_writing, may_write = threading.Event(), threading.Event()

    def held_write(descriptor: int, content: bytes, at_bytes: int) -> None:
        if not is_writing.is_set():
            is_writing.set()
            may_write.wait()
        write_at(descriptor, content, at_bytes)

    monkeypatch.setattr(accounting, "_write_at", held_write)
    first, second = (threading.Thread(target=account.count, args=(SHED, ["x"])) for _ in range(2))
    first.start()
    is_writing.wait()
    second.start()
    second.join(0.2)
    has_waited = second.is_alive()
    may_write.set()
    first.join()
    second.join()
    assert has_waited
    assert totals(tmp_path).shed == {"x": 3}


@pytest.mark.parametrize("is_new", [False, True])
def test_a_count_in_the_midst_of_a_count(
    is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before and just after a figure is written, a signal handler may count the same key."""
    account = Account(tmp_path, "s1")
    if not is_new:
        account.count(SHED, ["x"])
    write_at, moments = accounting._write_at, iter(["before", "after"])

    def interrupted_write(descriptor: int, content: bytes, at_bytes: int) -> None:
        moment = next(moments, "")
        if moment == "before":
            account.count(SHED, ["x"])
        write_at(descriptor, content, at_bytes)
        if moment == "after":
            account.count(SHED, ["x"])

    monkeypatch.setattr(accounting, "_write_at", interrupted_write)
    account.count(SHED, ["x"])
    assert totals(tmp_path).shed == {"x": 3 if is_new else 4}


def test_forked_children_count_for_themselves(tmp_path: Path) -> None:
    """Forked while other threads count, children neither stand still nor touch others' figures."""
    code = (
        "import threading\n"
        "going = True\n"
        "def go():\n"
        "    n = 0\n"
        "    while going or n < 500: a.count('skipped', ['thread']); n += 1\n"
        "    done.append(n)\n"
        "done = []; thread = threading.Thread(target=go); thread.start()\n"
        "a.count('shed', ['x'])\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        for _ in range(100): a.count('shed', ['x'])\n"
        "        a.count_lost(2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "for _ in range(20): a.count('shed', ['x']); os.wait()\n"
        "going = False; thread.join(); print(done[0])\n"
    )
    process = run(code, tmp_path)
    by_thread = int(process.communicate(timeout=60)[0])
    expected = Totals(lost=40, skipped={"thread": by_thread}, shed={"x": 1 + 20 * 100 + 20})
    assert totals(tmp_path) == expected


def test_a_signal_handler_may_count(tmp_path: Path) -> None:
    """A handler that counts in the midst of a count neither stands still nor loses one."""
    code = (
        "handled = 0\n"
        "def count(*_):\n"
        "    global handled\n"
        "    handled += 1; mine = f'h{handled}'\n"
        "    a.count('shed', ['x']); a.count('shed', [mine])\n"
        "signal.signal(signal.SIGALRM, count)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)\n"
        "for n in range(20000): a.count('shed', ['x'])\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(handled)\n"
    )
    process = run(code, tmp_path)
    handled = int(process.communicate(timeout=60)[0])
    shed = totals(tmp_path).shed
    assert handled > 0
    assert shed.pop("x") == 20000 + handled
    assert shed == {f"h{number}": 1 for number in range(1, handled + 1)}


# Faults of the disk


def test_a_full_disk_has_room_for_counts(small_disk: Path) -> None:
    """After the disk is full, known and new keys are counted, and no call raises."""
    account = Account(small_disk, "s1")
    account.count(SHED, ["a", "b"])
    fill(small_disk)
    for _ in range(100):
        account.count(SHED, ["a", "b"])
        account.count(SKIPPED, ["c"])
        account.count_lost()
    assert totals(small_disk) == Totals(lost=100, skipped={"c": 100}, shed={"a": 101, "b": 101})


def test_names_that_find_no_room_are_counted_together(small_disk: Path) -> None:
    """On a full disk the sum stays exact; once there is room again, so does each key's figure."""
    account = Account(small_disk, "s1")
    filling = fill(small_disk)
    keys = [f"a-rather-long-name-of-a-key/{number:05d}" for number in range(2000)]
    for key in keys:
        account.count(SHED, [key, "x"])
    shed = totals(small_disk).shed
    assert sum(shed.values()) == 4000
    assert shed[keys[0]] == 1
    assert shed[OTHER_KEYS] > 100
    filling.unlink()
    account._ledger._retry_at_s = 0.0
    account.count(SHED, [keys[-1], "x"])
    assert totals(small_disk).shed[keys[-1]] == 1


def test_trying_in_vain_takes_no_room(small_disk: Path) -> None:
    """However often a name finds no room, the next one that does stands right behind the last."""
    account = Account(small_disk, "s1")
    fill(small_disk)
    number, end_bytes = 0, -1
    while account._ledger._end_bytes != end_bytes:
        end_bytes = account._ledger._end_bytes
        account.count(SHED, [f"a-rather-long-name-of-a-key/{number:05d}"])
        number += 1
    for _ in range(50):
        account._ledger._retry_at_s = 0.0
        account.count(SHED, ["another-rather-long-name"])
    assert account._ledger._end_bytes == end_bytes


def test_an_account_that_cannot_be_opened_is_kept_in_memory(small_disk: Path) -> None:
    """Begun on a full disk, it counts all the same and writes it down once there is room."""
    filling = fill(small_disk)
    account = Account(small_disk, "s1")
    account.count(SHED, ["a", "b"])
    account.count_lost(3)
    assert list(small_disk.glob("*.account")) == []
    filling.unlink()
    account.close()
    assert totals(small_disk) == Totals(lost=3, skipped={}, shed={"a": 1, "b": 1})


def test_a_refused_figure_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk refused to take is written with a later count, of whatever key."""
    account = Account(tmp_path, "s1")
    account.count(SHED, ["a"])
    write_at = accounting._write_at

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(accounting, "_write_at", refuse)
    account.count(SHED, ["a"])
    account.count(SHED, ["b"])
    assert totals(tmp_path).shed == {"a": 1}
    monkeypatch.setattr(accounting, "_write_at", write_at)
    account._ledger._retry_at_s = 0.0
    account.count_lost()
    assert totals(tmp_path) == Totals(lost=1, skipped={}, shed={"a": 2, OTHER_KEYS: 1})


def test_counting_goes_on_without_the_folder(tmp_path: Path) -> None:
    """Neither a folder that is gone nor a closed account raises anything."""
    account = Account(tmp_path / "gone", "s1")
    account.count(SHED, ["a"])
    account.close()
    account.count(SHED, ["a"])
    account.close()
    assert totals(tmp_path / "gone") == NOTHING


def test_what_comes_after_the_end_is_not_counted_twice(tmp_path: Path) -> None:
    """A closed account stays as it is, however often it is closed."""
    account = Account(tmp_path, "s1")
    account.count(SHED, ["a"])
    account.close()
    account.count(SHED, ["a", "b"])
    account.count(SHED, ["a"])
    account.close()
    assert totals(tmp_path).shed == {"a": 1}
    assert [path.name for path in tmp_path.glob("*.account")] == ["s1.account"]


def test_ctrl_c_in_the_midst_of_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted before the interrupt came is written at the end, whatever else was."""
    account = Account(tmp_path, "s1")
    account.count(SHED, ["a"])
    write_at = accounting._write_at

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(accounting, "_write_at", interrupt)
    with pytest.raises(KeyboardInterrupt):
        account.count(SHED, ["a"])
    monkeypatch.setattr(accounting, "_write_at", write_at)
    account.close()
    assert totals(tmp_path).shed == {"a": 2}


def test_damage_takes_no_more_than_itself(tmp_path: Path) -> None:
    """An entry that was torn is passed over, those behind it count."""
    account = Account(tmp_path, "s1")
    account.count(SHED, ["a"])
    end_bytes = account._ledger._end_bytes
    account.count(SHED, ["b"])
    account.close()
    path = tmp_path / "s1.account"
    content = bytearray(path.read_bytes())
    content[end_bytes - 8] ^= 0xFF
    path.write_bytes(content)
    assert totals(tmp_path).shed == {"b": 1}
    path.write_bytes(content[: end_bytes + 10])
    assert totals(tmp_path).shed == {}


def test_an_account_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    """It is an error, not a zero."""
    (tmp_path / "s1.account").mkdir()
    with pytest.raises(OSError, match=r"s1\.account"):
        totals(tmp_path)


# What is logged about it


def test_nothing_left_out_is_logged() -> None:
    """Three tags say 0, and there is no list."""
    (tags,) = NOTHING.records()
    assert tags == Tags(
        {"opusclip.dropped": "0", "opusclip.skipped": "0", "opusclip.lost_records": "0"}
    )


@pytest.mark.parametrize(
    "left_out",
    [
        Totals(lost=1, skipped={}, shed={}),
        Totals(lost=0, skipped={"a": 2}, shed={}),
        Totals(lost=0, skipped={}, shed={"a": 3}),
        Totals(lost=1, skipped={"a": 2, "b": 5}, shed={"a": 3, OTHER_KEYS: 9}),
    ],
)
def test_what_was_left_out_is_logged(left_out: Totals) -> None:
    """Tags hold the sums, a text the figure of each key."""
    tags, text = left_out.records(timestamp_ms=7, step=8)
    skipped, shed = sum(left_out.skipped.values()), sum(left_out.shed.values())
    assert isinstance(tags, Tags)
    assert to_text_values(tags.values, what="tag") == {
        "opusclip.dropped": str(left_out.lost + shed),
        "opusclip.skipped": str(skipped),
        "opusclip.lost_records": str(left_out.lost),
    }
    assert isinstance(text, Text)
    assert (text.timestamp_ms, text.step, text.key) == (7, 8, "opusclip/left_out")
    check_key(text.key)
    assert json.loads(text.text) == {
        "lost_records": left_out.lost,
        "shed": left_out.shed,
        "skipped": left_out.skipped,
    }


def test_the_list_is_bounded() -> None:
    """Of many keys those with the highest figures are named, and the rest is summed up."""
    shed = {f"{'k' * 240}/{number}": number for number in range(1, 5001)}
    text = Totals(lost=0, skipped={}, shed=shed).records()[1]
    assert isinstance(text, Text)
    found = json.loads(text.text)["shed"]
    assert len(found) == accounting.MAX_SHOWN_KEYS + 1
    assert sum(found.values()) == sum(shed.values())
    assert next(iter(found)).endswith("/5000")
    assert len(text.text) < 200_000
