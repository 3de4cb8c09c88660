"""Part `scaling_uploads`: what checkpoints that pass through the server cost the points.

Four clients send batches of 100 points to a server with two workers, while one process uploads
files of 16 MB to a SeaweedFS: not at all, to it directly, and through that server. They take turns,
and the uploads begin before the points are counted and end after; told are the points a second
beside those without uploads, the uploads, and the server's processor time by the points.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.processes import Worker
from benchmarks.scaling_servers import OURS, Servers, stand
from tests.object_store import BUCKET, object_store

PART = "scaling_uploads"
PEER = "no uploads"
CLIENTS, ROWS = 4, 100
TURNS, TURN_S, AROUND_S = 4, 3.0, 1.0
QUICK_TURNS = 1


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Send points while files are uploaded."""
    with (
        object_store() as store,
        _variables(store.environment()),
        stand(folder) as one,
        one.servers(OURS, workers=2, artifacts=f"s3://{BUCKET}/served") as servers,
        Worker("scaling_uploader.py", folder=folder) as uploader,
    ):
        seen: dict[str, list[_Turn]] = {"": [], "direct": [], "through": []}
        for turn in range(QUICK_TURNS if quick else TURNS):
            for road in sorted(seen, reverse=bool(turn % 2)):
                seen[road].append(_turn(servers, uploader, road))
    return [figure for road in ("direct", "through") for figure in _figures(road, seen)]


class _Turn:
    """What was measured while one road was taken."""

    points = uploads = server_ms = 0.0


def _turn(servers: Servers, uploader: Worker, road: str) -> _Turn:
    found = _Turn()
    if road:
        url = servers.urls[0] if road == "through" else ""
        # From before the first batch until after the last one that counts.
        uploader.send(wait_s=2 * AROUND_S + TURN_S, url=url)
        time.sleep(AROUND_S)
    point = servers.pressed(CLIENTS, ROWS, TURN_S)
    told = uploader.answer() if road else {"megabytes": 0, "wall_s": 1.0}
    found.points = point.rows_a_second
    found.uploads = told["megabytes"] / told["wall_s"]
    found.server_ms = point.server_ms
    return found


def _figures(road: str, seen: Mapping[str, list[_Turn]]) -> list[Figure]:
    here, without = seen[road], seen[""]
    how = "directly" if road == "direct" else "through the server"
    uploaded = Figure(
        part=PART, what=f"uploaded {how}", ours=statistics.median(one.uploads for one in here),
        unit="MB/s",
    )  # fmt: skip
    points = Figure(
        part=PART,
        what=f"points while files go {how}",
        ours=statistics.median(one.points for one in here),
        unit="points/s",
        peer=PEER,
        theirs=statistics.median(one.points for one in without),
    )
    spent = Figure(
        part=PART,
        what=f"the server's processor for {ROWS} points while files go {how}",
        ours=statistics.median(one.server_ms for one in here),
        unit="ms",
        peer=PEER,
        theirs=statistics.median(one.server_ms for one in without),
    )
    return [points, spent, uploaded]


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
