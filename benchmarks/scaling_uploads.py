"""Part `scaling_uploads`: what checkpoints that pass through the server cost the points.

Four clients send batches of 100 points to a server with two workers, while one process uploads
files of 16 MB to a SeaweedFS: not at all, to it directly, and through that server. They take turns;
told are the points a second beside those without uploads, the uploads, and what a megabyte took of
the server's processor time.
"""

import contextlib
import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.processes import Worker
from benchmarks.scaling_load import watched
from benchmarks.scaling_servers import OURS, Servers, stand
from tests.object_store import BUCKET, object_store

PART = "scaling_uploads"
PEER = "no uploads"
TURNS, TURN_S = 5, 4.0
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
    with watched(servers.trees) as load:
        if road:
            uploader.send(wait_s=TURN_S, url=servers.urls[0] if road == "through" else "")
        point = servers.pressed(4, 100, TURN_S)
        told = uploader.answer() if road else {"megabytes": 0, "wall_s": 1.0}
    found.points = point.rows_a_second
    found.uploads = told["megabytes"] / told["wall_s"]
    found.server_ms = 1000 * load.trees_s[0] / (point.requests_a_second * TURN_S)
    return found


def _figures(road: str, seen: Mapping[str, list[_Turn]]) -> list[Figure]:
    here, without = seen[road], seen[""]
    how = "directly" if road == "direct" else "through the server"
    uploads = statistics.median(one.uploads for one in here)
    points = Figure(
        part=PART,
        what=f"points while files go {how}",
        ours=statistics.median(one.points for one in here),
        unit="points/s",
        peer=PEER,
        theirs=statistics.median(one.points for one in without),
        note=f"{uploads:.1f} MB/s beside them",
    )
    spent = Figure(
        part=PART,
        what=f"the server's processor for 100 points while files go {how}",
        ours=statistics.median(one.server_ms for one in here),
        unit="ms",
        peer=PEER,
        theirs=statistics.median(one.server_ms for one in without),
    )
    return [points, spent]


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
