"""The process that mirrors to one place; a fault there harms no other place.

`python -m opusclip_mlops.mirror_worker` reads its work as JSON on stdin, writes a line of JSON for
each run to stdout, and ends when stdin is closed.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

# Whoever waits for this process is told; a client that tries again by itself says nothing for long.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

from opusclip_mlops.lean_mlflow import load_mlflow

if __name__ == "__main__":
    # Before anything here imports MLflow by itself.
    load_mlflow()

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Run

from opusclip_mlops.differences import Difference, LastingError
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.faults import attempted
from opusclip_mlops.lookout import Look, Lookout, every_run, experiment_ids, one_run
from opusclip_mlops.mirror_state import MirrorState
from opusclip_mlops.mirror_work import (
    BROKEN_CLIENT,
    Missing,
    Outcome,
    RunReport,
    Work,
    encoded,
    work_of,
)
from opusclip_mlops.mirror_writer import remove_left_work
from opusclip_mlops.mirroring import RunMirror, Sent, Source
from opusclip_mlops.new_store import alone_in_store
from opusclip_mlops.redaction import one_line
from opusclip_mlops.run_history import RunGoneError, open_history
from opusclip_mlops.signatures import is_long_over
from opusclip_mlops.sinks import NEEDS_NEW_PROCESS, Spoilt, Waiting
from opusclip_mlops.words import words_of

_FIRST_RETRY_S, _LAST_RETRY_S = 2.0, 60.0
_TRIES = 3
_MOST_OPEN = 64
_EXAMPLES = 5
_SKIPPED_S = 3600.0
_LAST_WORDS_S = 20.0


class MirrorWorker:
    """Mirrors runs to one place, one after another."""

    def __init__(self, work: Work, out: IO[bytes]) -> None:
        self._work, self._out = work, out
        with alone_in_store(work.tracking_uri or get_tracking_uri()):
            client = MlflowClient(work.tracking_uri, work.registry_uri)
        self._client = client
        history = open_history(client, database_uri=work.database_uri)
        self._source = Source(client=client, history=history, state=MirrorState())
        self._mirrors: dict[str, RunMirror] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        self._failed_in_row = 0
        self._began_s = time.monotonic()
        self._stopped = threading.Event()
        self._lookout: Lookout | None = None

    def stop(self) -> None:
        """Let the run under way be finished, and then return from `run`."""
        self._stopped.set()

    def run(self) -> None:
        """Do the work."""
        remove_left_work()
        try:
            if self._work.does == "follow":
                self._follow()
            else:
                self._report(attempted(self._once), "")
        finally:
            for mirror in self._mirrors.values():
                self._report(attempted(mirror.leave), "")

    # Once

    def _once(self) -> None:
        ids = list(self._work.run_ids)
        for run_id in ids:
            self._try_run(run_id, total=len(ids))
            if self._stopped.is_set():
                return
        experiments = experiment_ids(self._client, self._work.experiments)
        for number, run in enumerate(every_run(self._client, experiments), 1):
            if run.info.run_id not in ids:
                self._try_run(run.info.run_id, run, total=number)
            if self._stopped.is_set():
                return

    def _try_run(self, run_id: str, run: Run | None = None, *, total: int) -> None:
        if run_id in self._work.skip:
            return
        self._tell("begun", run_id, run, total=total)
        deadline_s = time.monotonic() + self._work.wait_s
        tries, wait_s = 0, 0.2
        while True:
            mirror = RunMirror(self._source, self._work.target, run_id)
            fault = attempted(functools.partial(self._do, mirror, run_id, run))
            self._drop(mirror, fault)
            tries += not isinstance(fault, Waiting)
            is_late = time.monotonic() > deadline_s and isinstance(fault, Waiting)
            if fault is None or _is_final(fault) or is_late or tries >= _TRIES:
                break
            self._stopped.wait(wait_s)
            wait_s = min(2 * wait_s, _FIRST_RETRY_S)
            run = None
        if fault is not None:
            is_final = isinstance(fault, LastingError)
            self._tell(_outcome_of(fault), run_id, run, error=_said(fault), is_final=is_final)

    def _do(self, mirror: RunMirror, run_id: str, found: Run | None) -> None:
        run = found or one_run(self._client, run_id)
        if self._work.does == "mirror":
            self._tell_sent(run, mirror.catch_up(run))
        elif self._work.does == "rename":
            self._tell_sent(run, mirror.catch_up(run, only_renames=True))
        else:
            self._compare(run, mirror)

    def _drop(self, mirror: RunMirror, fault: Exception | None) -> None:
        """Let go of a mirror after a fault, and of this process where only that is a way out."""
        if fault is None:
            return
        is_spoilt = mirror.is_open or isinstance(fault, Spoilt)
        if is_spoilt and self._work.target.kind in NEEDS_NEW_PROCESS:
            print(_said(fault), file=sys.stderr, flush=True)
            os._exit(BROKEN_CLIENT)
        mirror.abandon()

    def _compare(self, run: Run, mirror: RunMirror) -> None:
        compared = mirror.compare(run, as_it_is=self._work.does == "verify")
        found = compared.difference
        outcome: Outcome = "planned" if self._work.does == "plan" else "unequal"
        if self._work.does == "verify" and compared.held.is_empty:
            outcome = "absent"
        self._tell(
            "equal" if found.is_empty else outcome,
            run.info.run_id,
            run,
            points=len(found.lacking),
            media=len(found.lacking_media),
            words=len(found.words) + found.ends,
            extra=len(found.extra) + len(found.extra_media),
            held_points=len(compared.held.points),
            left_out=[Missing(one.name, one.reason) for one in compared.contents.left_out],
            examples=[*_advice(found, run), *_examples(found)],
        )

    # Follow

    def _follow(self) -> None:
        wait_s = _FIRST_RETRY_S
        while not self._stopped.is_set():
            began_s = time.monotonic()
            fault = attempted(self._poll)
            if fault is None:
                wait_s = _FIRST_RETRY_S
                self._stopped.wait(max(0.0, began_s + self._work.poll_s - time.monotonic()))
            else:
                self._report(fault, "")
                self._stopped.wait(wait_s)
                wait_s = min(2 * wait_s, _LAST_RETRY_S)

    def _poll(self) -> None:
        if self._lookout is None:
            experiments = experiment_ids(self._client, self._work.experiments)
            self._lookout = Lookout(
                self._client, experiments=experiments, run_ids=self._work.run_ids
            )
        for look in self._lookout.poll():
            if self._stopped.is_set():
                return
            self._look(look)

    def _look(self, look: Look) -> None:
        run_id = look.run.info.run_id
        not_before_s, wait_s = self._pauses.get(run_id, (0.0, _FIRST_RETRY_S))
        if time.monotonic() < max(not_before_s, self._skipped_until_s(run_id)):
            return
        mirror = self._mirrors.setdefault(
            run_id, RunMirror(self._source, self._work.target, run_id)
        )
        fault = attempted(lambda: self._update(mirror, look))
        if fault is None:
            if self._lookout is not None:
                self._lookout.settle(run_id)
            self._pauses.pop(run_id, None)
            if is_long_over(look.run) and not mirror.is_open:
                # What is known of it stands on disk.
                del self._mirrors[run_id]
            self._failed_in_row = 0
            self._close_some()
            return
        self._drop(mirror, fault)
        self._pauses[run_id] = (time.monotonic() + wait_s, min(2 * wait_s, _LAST_RETRY_S))
        if not isinstance(fault, Waiting):
            self._report(fault, run_id, look.run)
            self._failed_in_row += 1
            # Faults of several runs are the place's own: it is left alone for a while.
            self._stopped.wait(min(_LAST_RETRY_S, 2.0**self._failed_in_row / 4))

    def _skipped_until_s(self, run_id: str) -> float:
        """What this process has died at is tried again after an hour."""
        return self._began_s + _SKIPPED_S if run_id in self._work.skip else 0.0

    def _update(self, mirror: RunMirror, look: Look) -> None:
        sent = mirror.follow_up(look.run, look_at_all=look.at_all)
        if sent is None:
            self._tell("begun", look.run.info.run_id, look.run)
            sent = mirror.catch_up(look.run)
            self._tell_sent(look.run, sent)
        elif not sent.is_nothing:
            self._tell_sent(look.run, sent)

    def _close_some(self) -> None:
        open_ones = [one for one in self._mirrors.values() if one.is_open]
        for mirror in open_ones[: max(0, len(open_ones) - _MOST_OPEN)]:
            mirror.leave()

    # Telling

    def _tell_sent(self, run: Run, sent: Sent) -> None:
        self._tell(
            "equal" if sent.is_nothing else "mirrored",
            run.info.run_id,
            run,
            points=sent.points,
            media=sent.media,
            words=sent.words,
            rebuilt=sent.rebuilt,
            left_out=[Missing(one.name, one.reason) for one in sent.left_out],
        )

    def _report(self, fault: Exception | None, run_id: str, run: Run | None = None) -> None:
        if fault is not None:
            self._tell(_outcome_of(fault), run_id, run, error=_said(fault))

    def _tell(self, outcome: Outcome, run_id: str, run: Run | None = None, **about: object) -> None:
        name = run.info.run_name or "" if run else ""
        report = RunReport(
            target=str(self._work.target),
            run_id=run_id,
            run_name=name,
            outcome=outcome,
            **about,  # type: ignore[arg-type]
        )
        with contextlib.suppress(BrokenPipeError):
            self._out.write(encoded(report))
            self._out.flush()


def _advice(found: Difference, run: Run) -> Iterator[str]:
    if found.went_back:
        mirror = f"opusclip mirror {run.info.run_id}"
        yield f"the run went back: `{mirror}` shows the line as it now is"


def _examples(found: Difference) -> Iterator[str]:
    """Some of each kind of difference, and how many more there are."""
    for what, points in (("lacks", found.lacking), ("has too much", found.extra)):
        for one in points.some(_EXAMPLES):
            yield f"{what}: {one.key} = {one.value!r} at step {one.step}, {one.timestamp_ms} ms"
        yield from _more(what, len(points), "points")
    if found.ends:
        yield "differs: how the run ended"
    for part in found.words[:_EXAMPLES]:
        yield f"differs: {', '.join(words_of(part.record))}"
    yield from _more("differs", len(found.words), "texts about it")
    for part in found.lacking_media[:_EXAMPLES]:
        record = part.record
        yield f"lacks: {type(record).__name__} {getattr(record, 'key', '')}"
    yield from _more("lacks", len(found.lacking_media), "media")
    for medium in found.extra_media[:_EXAMPLES]:
        yield f"has too much: {medium.kind} {medium.key} at step {medium.step}"
    yield from _more("has too much", len(found.extra_media), "media")


def _more(what: str, count: int, of_what: str) -> Iterator[str]:
    if count > _EXAMPLES:
        yield f"{what}: {count - _EXAMPLES:,} more {of_what}"


def _is_final(fault: Exception) -> bool:
    return isinstance(fault, RunGoneError | LastingError)


def _outcome_of(fault: Exception) -> Outcome:
    if isinstance(fault, RunGoneError):
        return "gone"
    return "busy" if isinstance(fault, Waiting) else "failed"


def _said(fault: Exception) -> str:
    kind = "" if isinstance(fault, OpusclipError) else f"{type(fault).__name__}: "
    return one_line(f"{kind}{fault}")


def _end_with_parent(worker: MirrorWorker) -> None:
    """Stop when nobody holds the other end of stdin any more."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _stop(worker)


def _stop(worker: MirrorWorker) -> None:
    """Let the run under way be finished, if that takes no longer than it may.

    A mirror can be left anywhere: what it lacks is found by the next look.
    """
    worker.stop()
    threading.Timer(_LAST_WORDS_S, os._exit, (0,)).start()


def main() -> None:
    """Read the work, do it, and keep whatever libraries print off stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    work = work_of(sys.stdin.buffer.readline())
    if work.does != "follow" and (fault := attempted(lambda: MirrorWorker(work, out))):
        report = RunReport(target=str(work.target), outcome="failed", error=_said(fault))
        out.write(encoded(report))
        out.flush()
        return
    worker = MirrorWorker(work, out)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop(worker))
    threading.Thread(target=_end_with_parent, args=(worker,), daemon=True).start()
    worker.run()
    out.flush()
    # Neither a timer nor what a client library does at the end is waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
