"""Prints what came of blind votes: lines for people, JSON for scripts, an address meanwhile."""

import json
import sys
from pathlib import Path

from opusclip_mlops.blind_results import BlindResult, Tally
from opusclip_mlops.blind_voting import Poll


def tell_address(address: str, poll: Poll) -> None:
    """Print where the page can be opened, on stderr; which side is which is not said."""
    lines = [
        f"voter {poll.sheet.voter}, {len(poll.sheet.pairs)} pairs of panel {poll.session.panel}; "
        "open in a browser on this machine:",
        address,
        f"votes are kept in {poll.votes}; Ctrl-C stops, the same command goes on",
        *poll.notes,
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def print_page(poll: Poll, page: Path, *, as_json: bool) -> None:
    """Print where the page is, and how its votes come back."""
    if as_json:
        content = {
            "page": str(page),
            "votes": str(poll.votes),
            "sheet": poll.sheet.id,
            "voter": poll.sheet.voter,
            "pairs": len(poll.sheet.pairs),
            "notes": poll.notes,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print(f"{page}: {len(poll.sheet.pairs)} pairs for voter {poll.sheet.voter}")
    saved = f"votes-{poll.sheet.id}.jsonl"
    print(f"  add what it saves by: opusclip ab --status {poll.votes} --add {saved}")
    for note in poll.notes:
        print(f"  {note}")


def print_result(found: BlindResult, *, as_json: bool) -> None:
    """Print who is preferred so far, on which prompts, and by whom."""
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    print(found.sentence)
    if found.balanced_share is not None:
        print(f"  A's share where each prompt counts once: {found.balanced_share:.1%}")
    for what, tallies in (("prompts", found.prompts), ("voters", found.voters)):
        voted = [one for one in tallies if one.a + one.b + one.ties]
        if voted:
            print(f"  {what}: A, B, ties")
        for one in voted:
            print(f"    {_tally(one)}")
    for note in found.notes:
        print(f"  {note}")


def _tally(one: Tally) -> str:
    return f"{one.name}: {one.a}, {one.b}, {one.ties}"
