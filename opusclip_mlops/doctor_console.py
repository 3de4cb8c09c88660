"""Prints what the doctor found: a line for each check, and what to do below it."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops.doctor import Finding, is_well

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "red", "skipped": "dim"}
_PLURALS = {"note": "notes", "warning": "warnings"}


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the checks, on a terminal; nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("looking", total=None)
        yield lambda what, done, of: bars.update(bar, description=what, completed=done, total=of)


def print_findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found, in the order of the checks, and how many of each kind."""
    if as_json:
        content = msgspec.json.encode({"is_well": is_well(found), "findings": list(found)})
        print(msgspec.json.format(content, indent=2).decode())
        return
    from rich.console import Console

    console = Console()
    looked_at = [one for one in found if one.state != "skipped"]
    widths = [max((len(getattr(one, part)) for one in looked_at), default=0) for part in _PARTS]
    for one in looked_at:
        _print_finding(console, one, *widths)
    for why, names in _not_looked_at(found).items():
        _print_line(console, (f"not looked at: {', '.join(names)}: {why}", _COLOURS["skipped"]))
    _print_line(console, (_counted(found), "bold"))


_PARTS = ("state", "check")


def _print_finding(console: "Console", one: Finding, state_width: int, name_width: int) -> None:
    state = (one.state.ljust(state_width), _COLOURS[one.state])
    _print_line(console, state, f"  {one.check.ljust(name_width)}  {one.seen}")
    if one.todo:
        _print_line(console, " " * (state_width + name_width + 4), ("do: ", "bold"), one.todo)


def _not_looked_at(found: Sequence[Finding]) -> dict[str, list[str]]:
    """The checks that were skipped, by the reason why."""
    names: dict[str, list[str]] = {}
    for one in found:
        if one.state == "skipped":
            names.setdefault(one.seen, []).append(one.check)
    return names


def _counted(found: Sequence[Finding]) -> str:
    counts: Counter[str] = Counter(one.state for one in found)
    told = [
        f"{count} {_PLURALS.get(state, state) if count > 1 else state}"
        for state in _COLOURS
        if (count := counts[state])
    ]
    return ", ".join(told)


def _print_line(console: "Console", *parts: str | tuple[str, str]) -> None:
    """One line that is never broken: a terminal wraps it, copying gives it whole."""
    from rich.text import Text

    console.print(Text.assemble(*parts), soft_wrap=True)
