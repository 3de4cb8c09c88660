"""Facts about files of blind votes: what counts, what is drawn, and what a crash leaves."""

import stat
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from opusclip_mlops.blind_votes import (
    Cast,
    Choice,
    Contender,
    Session,
    Sheet,
    append,
    cast_now,
    new_session,
    new_sheet,
    read_ballots,
    take_saved,
)
from opusclip_mlops.errors import PanelError

CELLS = tuple(f"{i:03d}-cell" for i in range(40))
A, B = (Contender(run_id=one * 32, called=f"run {one}", step=10) for one in "ab")


def session(seed: int = 1) -> Session:
    """A comparison over forty cells."""
    return new_session(panel="kites-00000001", panel_digest="d", cells=CELLS, a=A, b=B, seed=seed)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Sheet]:
    """A file with a sheet of one voter."""
    path, one = tmp_path / "votes.jsonl", session()
    sheet = new_sheet(one, "ann")
    append(path, [one, sheet])
    return path, sheet


def cast(path: Path, sheet: Sheet, *votes: tuple[int, Choice]) -> None:
    """Vote."""
    for pair, choice in votes:
        append(path, [cast_now(sheet, pair, choice)])


def test_a_choice_of_a_side_is_a_vote_for_who_is_there(begun: tuple[Path, Sheet]) -> None:
    """Left is A where A was drawn to the left; a tie is nobody's."""
    path, sheet = begun
    cast(path, sheet, (0, "left"), (1, "right"), (2, "tie"))
    first, second, third = read_ballots(path).counted
    assert first.vote == ("A" if sheet.pairs[0].a_is == "left" else "B")
    assert second.vote == ("A" if sheet.pairs[1].a_is == "right" else "B")
    assert (third.vote, third.cell, third.voter) == ("tie", sheet.pairs[2].cell, "ann")


def test_what_was_voted_last_on_a_pair_counts(begun: tuple[Path, Sheet]) -> None:
    """A vote that is undone is none; one that is made anew stands where it was made anew."""
    path, sheet = begun
    cast(path, sheet, (0, "left"), (1, "left"), (0, "undone"), (2, "tie"), (0, "right"))
    assert read_ballots(path).given(sheet) == {1: "left", 2: "tie", 0: "right"}
    cast(path, sheet, (1, "undone"))
    ballots = read_ballots(path)
    assert list(ballots.given(sheet)) == [2, 0]
    assert len(ballots.counted) == 2


def test_each_voter_has_an_order_and_sides_of_their_own() -> None:
    """Every cell once; the same seed and voter draw the same again, sides by a fair coin."""
    one = session()
    sheets = [new_sheet(one, f"voter {i}") for i in range(50)]
    assert all(sorted(pair.cell for pair in sheet.pairs) == list(CELLS) for sheet in sheets)
    assert len({sheet.pairs for sheet in sheets}) == 50
    assert new_sheet(session(), "voter 0").pairs == sheets[0].pairs
    assert new_sheet(msgspec.structs.replace(one, seed=2), "voter 0").pairs != sheets[0].pairs
    left = Counter(pair.a_is for sheet in sheets for pair in sheet.pairs)["left"]
    assert 0.45 < left / 2000 < 0.55
    first = Counter(sheet.pairs[0].cell for sheet in sheets)
    assert max(first.values()) < 8


def test_nobody_else_reads_the_file(begun: tuple[Path, Sheet]) -> None:
    """It says which side is which."""
    assert stat.S_IMODE(begun[0].stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_made_private(begun: tuple[Path, Sheet]) -> None:
    """By the next vote."""
    path, sheet = begun
    path.chmod(0o644)
    cast(path, sheet, (0, "left"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_torn_line_costs_that_vote_only(begun: tuple[Path, Sheet]) -> None:
    """The next line begins anew, and the damage is counted."""
    path, sheet = begun
    cast(path, sheet, (0, "left"), (1, "left"))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_ballots(path).given(sheet) == {0: "left"}
    cast(path, sheet, (2, "right"))
    ballots = read_ballots(path)
    assert ballots.given(sheet) == {0: "left", 2: "right"}
    assert ballots.damaged == 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"vote","sheet":"none","pair":0,"choice":"left","timestamp_ms":1}',
        b'{"kind":"vote","sheet":"%s","pair":40,"choice":"left","timestamp_ms":1}',
        b'{"kind":"vote","sheet":"%s","pair":-1,"choice":"left","timestamp_ms":1}',
        b'{"kind":"vote","sheet":"%s","pair":0,"choice":"A","timestamp_ms":1}',
        b'{"kind":"sheet","id":"%s","voter":"eve","pairs":[]}',
        b"\xff\xfe",
        b"[" * 2000,
    ],
)
def test_lines_that_cannot_be_are_passed_over(begun: tuple[Path, Sheet], line: bytes) -> None:
    """Votes on no pair of no sheet, and what is no line, count for nothing."""
    path, sheet = begun
    with path.open("ab") as file:
        file.write(line.replace(b"%s", sheet.id.encode()) + b"\n")
    ballots = read_ballots(path)
    assert (ballots.damaged, ballots.counted) == (1, [])


def test_what_a_page_saved_is_added_once(begun: tuple[Path, Sheet], tmp_path: Path) -> None:
    """Again it adds nothing, nor does an older vote undo a newer one."""
    path, sheet = begun
    saved = tmp_path / "saved.jsonl"
    votes = [Cast(sheet=sheet.id, pair=i, choice="tie", timestamp_ms=i) for i in range(3)]
    saved.write_bytes(b"\n".join(msgspec.json.encode(one) for one in votes))
    assert take_saved(path, saved) == 3
    assert take_saved(path, saved) == 0
    cast(path, sheet, (0, "left"))
    assert take_saved(path, saved) == 0
    assert read_ballots(path).given(sheet) == {1: "tie", 2: "tie", 0: "left"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"kind":"vote","sheet":"other","pair":0,"choice":"tie","timestamp_ms":1}',
         "holds votes on sheet other, which "),
        ("hello", "is no file of votes that a page saved"),
        ('{"kind":"sheet","id":"x","voter":"eve","pairs":[{"cell":"c","a_is":"left"}]}',
         "is no file of votes that a page saved"),
    ],
)  # fmt: skip
def test_other_files_are_not_added(
    begun: tuple[Path, Sheet], tmp_path: Path, content: str, problem: str
) -> None:
    """Nothing of them is, and the file of votes is as it was."""
    path, _ = begun
    before = path.read_bytes()
    saved = tmp_path / "saved.jsonl"
    saved.write_text(content)
    with pytest.raises(PanelError, match=problem):
        take_saved(path, saved)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is no file of blind votes"),
        ("{}", "is no file of blind votes"),
        ('{"kind":"vote","sheet":"s","pair":0,"choice":"tie","timestamp_ms":1}', "is no file of"),
    ],
)
def test_what_is_no_file_of_votes_is_told(tmp_path: Path, content: Any, problem: str) -> None:
    """In one line."""
    path = tmp_path / "votes.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PanelError, match=problem):
        read_ballots(path)


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    """It is said to be none that is known."""
    path = tmp_path / "votes.jsonl"
    append(path, [msgspec.structs.replace(session(), format=2)])
    with pytest.raises(PanelError, match="is no file of blind votes"):
        read_ballots(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"id":"', b'"id":"../'),
        (b'"panel":"', b'"panel":"../'),
        (b'"run_id":"', b'"run_id":"../'),
        (b'01","panel_digest', b'01\\n","panel_digest'),
    ],
)
def test_names_lead_nowhere(tmp_path: Path, before: bytes, after: bytes) -> None:
    """What becomes a path in MLflow is checked where it is read."""
    path = tmp_path / "votes.jsonl"
    append(path, [session()])
    text = path.read_bytes()
    assert before in text
    path.write_bytes(text.replace(before, after, 1))
    with pytest.raises(PanelError, match="is no file of blind votes"):
        read_ballots(path)


def test_a_full_disk_is_told() -> None:
    """The vote was not kept."""
    mode = Path("/dev/full").stat().st_mode
    with pytest.raises(PanelError, match="/dev/full cannot be written"):
        append(Path("/dev/full"), [session()])
    assert Path("/dev/full").stat().st_mode == mode
