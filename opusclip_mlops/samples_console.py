"""Prints what came of verbs about samples: lines for people, JSON for scripts, a bar meanwhile."""

import contextlib
import json
import sys
from collections.abc import Iterator

from opusclip_mlops.wall_across import MadeWall
from opusclip_mlops.walls import Show


@contextlib.contextmanager
def progress_shown() -> Iterator[Show]:
    """A bar for what is being done, on a terminal; nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("looking for the runs", total=None)
        yield lambda what, done, of: bars.update(bar, description=what, completed=done, total=of)


def print_wall(made: MadeWall, *, as_json: bool) -> None:
    """Print where the page is, what is on it, and what is not."""
    if as_json:
        content = {name: getattr(made, name) for name in made.__dataclass_fields__}
        print(json.dumps(content, indent=2, ensure_ascii=False, default=str))
        return
    columns = f"{len(made.steps)} column{'s' if len(made.steps) != 1 else ''}"
    print(f"{made.file}: panel {made.title}, {columns}, {made.size_bytes / 2**20:.1f} MiB")
    for note in made.notes:
        print(f"  {note}")
    for why, count in made.holes.items():
        print(f"  {count} empty: {why}")
