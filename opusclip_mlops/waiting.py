"""How far delivery is, shown on a terminal and silent in a pipe, and when it is waited for."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from opusclip_mlops.folder import Position, Progress, RunFolder

_CALLED = {"ranks": "the merged points", "relay": "the owner's machine"}
"""What sinks are called that no user has named."""

_BEING_MERGED = "what ranks log together is still being merged"


@contextlib.contextmanager
def delivery_shown(folder: RunFolder, sinks: list[str]) -> Iterator[Callable[[], None]]:
    """A bar for each sink, drawn anew each time the yielded function is called."""
    if not _is_terminal(sys.stderr):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("delivering to {task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {sink: bars.add_task(_CALLED.get(sink, sink), total=1) for sink in sinks}

        def show() -> None:
            total = max(1, sum(folder.size_bytes().values()))
            for sink, task in tasks.items():
                done = sum(folder.progress(sink).position.values())
                bars.update(task, total=total, completed=done)

        yield show


def _is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal; what stands in for stderr need not know."""
    try:
        return bool(getattr(stream, "isatty", lambda: False)())
    except ValueError:  # closed
        return False


def has_ended(folder: RunFolder, sinks: list[str]) -> bool:
    """Whether every sink has everything and knows the run's end.

    Alerts that are judged, and only wait for a webhook that is away, hold nobody up; nor does the
    machine that owns the run, once it was told all.
    """
    every = {sink: folder.progress(sink) for sink in sinks}
    # Behind the positions: what alerts say in between is lacking then.
    sizes = folder.size_bytes()
    return all(
        progress.has_all(sizes) and (progress.done or _is_as_good(sink, progress))
        for sink, progress in every.items()
    )


def _is_as_good(sink: str, progress: Progress) -> bool:
    """Whether nobody need wait for the rest of what a sink does."""
    return (sink == "alerts" and progress.error != "") or bool(progress.state.get("told_all"))


def undelivered(folder: RunFolder, sinks: list[str], *, goal: Position | None = None) -> list[str]:
    """One line for each sink that does not have everything, or has refused something.

    With a `goal` only what is in the journals up to there counts, and not the run's end: others go
    on with it.
    """
    lines = []
    sizes = folder.size_bytes()
    # A journal that is gone was delivered.
    wanted = sizes if goal is None else {name: goal[name] for name in goal.keys() & sizes.keys()}
    for sink in sinks:
        progress, called = folder.progress(sink), _CALLED.get(sink, sink)
        done = progress.position
        left = sum(max(0, size - done.get(name, 0)) for name, size in wanted.items())
        if silence := progress.state.get("owner_is_silent"):
            lines.append(silence)
        is_over = progress.done or progress.state.get("told_all")
        if left > 0 or (goal is None and not is_over):
            what = (
                f"{left:,} bytes are still on their"
                if left > 0
                else "the run's end is still on its"
            )
            why = f" ({progress.error})" if progress.error else ""
            is_merged = sink == "ranks"
            lines.append(f"{_BEING_MERGED if is_merged else f'{what} way to {called}'}{why}")
        if progress.damaged_bytes:
            lines.append(
                f"{progress.damaged_bytes:,} bytes of the journal were damaged: what they held is"
                f" not in {called}"
            )
        if progress.rejected:
            lines.append(f"{called} refused {progress.rejected} records: see {folder.rejected}")
    return lines
