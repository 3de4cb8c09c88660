"""Facts about what blind votes say: all of them, by prompt and by voter."""

import json

from opusclip_mlops.blind_results import Tally, result_of
from opusclip_mlops.blind_votes import (
    Ballots,
    Choice,
    Contender,
    cast_now,
    new_session,
    new_sheet,
)

CELLS = tuple(f"{i:03d}-cell" for i in range(12))
A, B = (
    Contender(run_id=one * 32, called=f"run {one}", step=step) for one, step in (("a", 5), ("b", 9))
)


def ballots(**voters: list[str]) -> Ballots:
    """Votes of each voter on their sheet, by whom they are for ("A", "B", "tie", "left")."""
    session = new_session(panel="kites-00000001", panel_digest="d", cells=CELLS, a=A, b=B, seed=1)
    found = Ballots(session=session)
    for voter, votes in voters.items():
        sheet = new_sheet(session, voter)
        found.take(sheet)
        for number, vote in enumerate(votes):
            a_is = sheet.pairs[number].a_is
            b_is: Choice = "right" if a_is == "left" else "left"
            sides: dict[str, Choice] = {"A": a_is, "B": b_is, "tie": "tie", "left": "left"}
            found.take(cast_now(sheet, number, sides[vote]))
    return found


def test_all_votes_of_all_voters_count() -> None:
    """The preference, each voter's votes, and who is A and B."""
    found = result_of(ballots(ann=["A"] * 10 + ["tie", "B"], bob=["A"] * 12))
    assert found.preference.verdict == "A"
    assert found.voters == (
        Tally(name="ann", a=10, b=1, ties=1),
        Tally(name="bob", a=12, b=0, ties=0),
    )
    assert found.sentence.startswith("panel kites-00000001, A run a (step 5), B run b (step 9): ")
    assert ": 22 votes for A, 1 for B, 1 tie: A is preferred; " in found.sentence
    assert found.notes == ()
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["verdict"] == "A"
    assert content["preference"]["votes_a"] == 22
    assert content["a"] == {"run_id": "a" * 32, "called": "run a", "step": 5}
    assert sum(one["a"] for one in content["prompts"]) == 22


def test_each_prompt_counts_once_in_the_balanced_share() -> None:
    """A prompt with votes of two voters weighs no more than one with a vote of one."""
    found = result_of(ballots(ann=["A"] * 12, bob=["B"] * 6))
    assert found.preference.share.value == 12 / 18
    assert found.balanced_share == (6 * 0.5 + 6 * 1.0) / 12
    assert found.notes == ("The prompts have from 1 to 2 votes each.",)


def test_without_a_vote_nothing_is_said() -> None:
    """Nor is anything divided by none."""
    found = result_of(ballots(ann=[]))
    assert (found.preference.verdict, found.balanced_share, found.notes) == ("undecided", None, ())
    assert len(found.prompts) == 12


def test_names_in_a_file_do_not_move_the_cursor() -> None:
    """Voters and runs may be called anything there."""
    found = result_of(ballots(**{"eve\x1b[2J\nB is preferred": ["left"] * 12}))
    assert found.voters[0].name == "eve[2J B is preferred"
    assert all(one.isprintable() for one in found.notes)


def test_a_voter_who_takes_one_side_is_told() -> None:
    """Twelve times the left one: perhaps a key that was held down."""
    found = result_of(ballots(ann=["left"] * 12, bob=["A"] * 12))
    sided = "Voter ann chose the left side 12 of 12 times: did they look?"
    assert sided in found.notes
    assert not any("bob" in one for one in found.notes)
