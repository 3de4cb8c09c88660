"""All checks at once, none of them for longer than it may take."""

import threading
from collections.abc import Callable
from typing import Any

from opusclip_mlops.doctor.examining import examine
from opusclip_mlops.doctor.findings import Check, Finding, Subject, Told, failed, note, ok, skipped

Make = Callable[..., Subject]


def looked(subject: Subject, *checks: Check) -> list[Finding]:
    """What these checks find."""
    return examine(checks, subject, show=lambda *_: None)


def says(finding: Finding) -> Callable[[Subject], Finding]:
    """A look that finds this."""
    return lambda _: finding


def test_findings_come_in_the_order_of_the_checks(subject: Make) -> None:
    """Whichever check ends first; each one bears its check's name."""
    first_may_end = threading.Event()

    def first(_: Subject) -> Finding:
        first_may_end.wait(60)
        return ok("late")

    def second(_: Subject) -> Finding:
        first_may_end.set()
        return ok("early")

    found = looked(subject(), Check(name="a", look=first), Check(name="b", look=second))
    assert [(one.check, one.seen) for one in found] == [("a", "late"), ("b", "early")]


def test_what_builds_on_a_failure_is_skipped(subject: Make) -> None:
    """Along the whole chain, with the check that failed; a note stops nothing."""
    found = looked(
        subject(),
        Check(name="a", look=says(failed("down", "start it"))),
        Check(name="b", look=says(ok("")), after="a"),
        Check(name="c", look=says(ok("")), after="b"),
        Check(name="d", look=says(note("odd"))),
        Check(name="e", look=says(ok("well")), after="d"),
    )
    assert [one.state for one in found] == ["failed", "skipped", "skipped", "note", "ok"]
    assert [one.seen for one in found[1:3]] == ["a failed", "a failed"]


def test_a_reason_to_skip_is_passed_on(subject: Make) -> None:
    """What comes after a check that had nothing to look at says the same."""
    found = looked(
        subject(),
        Check(name="a", look=says(skipped("no server"))),
        Check(name="b", look=says(ok("")), after="a"),
    )
    assert [one.seen for one in found] == ["no server", "no server"]


def test_a_check_that_hangs_is_left_behind(subject: Make) -> None:
    """It failed, what builds on it is skipped, the others are not kept waiting."""
    never = threading.Event()

    def hang(_: Subject) -> Finding:
        never.wait()
        return ok("")

    found = looked(
        subject(),
        Check(name="a", look=hang, deadline_s=0.1),
        Check(name="b", look=says(ok("")), after="a"),
        Check(name="c", look=says(ok("well"))),
    )
    never.set()
    assert [one.state for one in found] == ["failed", "skipped", "ok"]
    assert found[0].seen == "no answer in time"


def test_a_check_that_breaks_says_how_and_no_secret(subject: Make) -> None:
    """Its fault is a failure of one line, without passwords."""

    def broken(_: Subject) -> Finding:
        raise ZeroDivisionError("at postgresql://me:correct-horse@host/db\nagain")

    found = looked(subject(), Check(name="a", look=broken))
    assert found[0].state == "failed"
    assert found[0].seen.startswith("the check itself broke: ZeroDivisionError: at postgresql://me")
    assert "horse" not in found[0].seen
    assert "\n" not in found[0].seen


def test_a_finding_can_be_told_from_anywhere(subject: Make) -> None:
    """`Told` ends a check with what it holds."""

    def tell(_: Subject) -> Finding:
        raise Told(failed("down", "start it"))

    assert looked(subject(), Check(name="a", look=tell)) == [
        Finding(check="a", state="failed", seen="down", todo="start it")
    ]


def test_what_measures_time_is_alone(subject: Make) -> None:
    """It begins when all others have ended, wherever it stands in the table."""
    ended: list[str] = []

    def look(name: str) -> Callable[[Subject], Finding]:
        def ends(_: Subject) -> Finding:
            ended.append(name)
            return ok("")

        return ends

    looked(
        subject(),
        Check(name="a", look=look("a"), alone=True),
        Check(name="b", look=look("b")),
        Check(name="c", look=look("c"), after="b"),
        Check(name="d", look=look("d"), after="c"),
    )
    assert ended == ["b", "c", "d", "a"]


def test_what_has_ended_is_shown(subject: Make) -> None:
    """Each check as it ends, and how many of how many."""
    shown: list[Any] = []
    checks = [Check(name="a", look=says(ok(""))), Check(name="b", look=says(ok("")), after="a")]
    examine(checks, subject(), show=lambda *told: shown.append(told))
    assert shown == [("a", 1, 2), ("b", 2, 2)]


def test_the_worse_of_two_findings_counts() -> None:
    """What both saw is told."""
    both = ok("here").worsened(failed("not private", "chmod")).worsened(note("small"))
    assert (both.state, both.todo) == ("failed", "chmod")
    assert both.seen == "here; not private; small"
