"""A simulation of many shippers, servers and one PostgreSQL, event by event.

A node has so many points a second. Once in `every_s` seconds it sends what waits, 1000 rows at most
a request and the rest at once, and waits for the answer before it sends again, as the shipper does.
A request first needs a worker of a server, then a core of the database, then the next write of the
database's log to the disk, which all that wait share. One that is not answered in time, or refused
while the servers are away, is sent again after a pause that doubles; the work it had begun is done
in vain; who was refused opens its run anew by some small requests first, as a sink does. `python -m
benchmarks.scaling_forecast` tells what comes of it with the measured times.

Not in it: the network, a proxy before the servers, vacuum and checkpoints of the database, reading
clients, artifacts.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.figures import percentile

MOST_ROWS = 1000
Process = Iterator["float | Station | Log"]
"""Yields how long it waits in seconds, a station of which it wants a place, or the log."""


@dataclass(frozen=True)
class Cost:
    """Processor seconds: so many a request, and so many a row."""

    request_s: float
    row_s: float = 0.0

    def of(self, rows: int) -> float:
        """The mean for a request with so many rows."""
        return self.request_s + self.row_s * rows


@dataclass(frozen=True, kw_only=True)
class Site:
    """Servers and their database.

    `spread` says how far a request's times vary: 0 not at all, 1 as an exponential distribution
    does; it is their coefficient of variation. With `cores` all of it, clients too, shares that
    many, `speed` times as fast as those measured; else each worker and the database have their own.
    """

    servers: int = 1
    workers: int = 1
    database_cores: int = 1
    server: Cost
    database: Cost
    client: Cost = Cost(0.0)
    sync_s: float = 0.0
    spread: float = 0.5
    cores: int | None = None
    speed: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Shippers: their points a second, how often they send, and how long they wait.

    With `rows` they have as many points as they can send, in batches of that size. `away_s` is when
    the servers refuse everything: from and until. A node that was refused makes `reopenings`
    requests without rows before it sends again.
    """

    count: int
    points_a_second: float = 0.0
    rows: int = 0
    every_s: float = 1.0
    timeout_s: float = 30.0
    first_retry_s: float = 0.5
    last_retry_s: float = 10.0
    away_s: tuple[float, float] = (0.0, 0.0)
    reopenings: int = 0


@dataclass
class Outcome:
    """What came of it. `backlog` is in points; `lags_s` are a request's middle points'."""

    wall_s: float = 0.0
    counted_s: float = 0.0
    requests: int = 0
    points: int = 0
    repeats: int = 0
    backlog: float = 0.0
    backlog_half: float = 0.0
    server_busy: float = 0.0
    database_busy: float = 0.0
    took_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)

    @property
    def points_a_second(self) -> float:
        """What was answered in time."""
        return self.points / self.counted_s

    @property
    def growth(self) -> float:
        """By how many points a second the backlog grew in the second half."""
        return (self.backlog - self.backlog_half) / (self.wall_s / 2)

    def lag_s(self, percent: float) -> float:
        """So many of the requests had no older points."""
        return percentile(self.lags_s or [float("inf")], percent)


class Clock:
    """The simulated time, and what is due when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = itertools.count()

    def at(self, when_s: float, call: Callable[[], object]) -> None:
        """Have something called at a time; what is due at once goes in the order it came."""
        heapq.heappush(self._due, (when_s, next(self._serial), call))

    def run(self, until_s: float) -> None:
        """Let the time go on until then."""
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(self._due)
            call()
        self.now_s = until_s

    def start(self, process: Process) -> None:
        """Let a process go on to where it waits, and from there when its time has come."""

        def go_on() -> None:
            wanted = next(process, None)
            if isinstance(wanted, Station | Log):
                wanted.take(go_on)
            elif wanted is not None:
                self.at(self.now_s + wanted, go_on)

        go_on()


class Station:
    """So many places; who finds none waits in the order of coming."""

    def __init__(self, clock: Clock, places: int) -> None:
        self.places, self.busy_s = places, 0.0
        self._clock, self._free = clock, places
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self, call: Callable[[], object]) -> None:
        """Have something called once there is a place for it."""
        if self._free:
            self._free -= 1
            call()
        else:
            self._waiting.append(call)

    def leave(self, held_s: float) -> None:
        """Give up a place that was at work for so long."""
        self.busy_s += held_s
        if self._waiting:
            # By the clock: a long line of those that go on at once would be a deep one of calls.
            self._clock.at(self._clock.now_s, self._waiting.popleft())
        else:
            self._free += 1


class Log:
    """The database's log: one write at a time, for all that wait when it begins."""

    def __init__(self, clock: Clock, sync_s: float) -> None:
        self._clock, self._sync_s = clock, sync_s
        self._waiting: list[Callable[[], object]] = []
        self._is_busy = False

    def take(self, call: Callable[[], object]) -> None:
        """Have something called once what was written before it is on the disk."""
        self._waiting.append(call)
        if not self._is_busy:
            self._write()

    def _write(self) -> None:
        self._is_busy, served, self._waiting = True, self._waiting, []

        def written() -> None:
            self._is_busy = False
            if self._waiting:
                self._write()
            for call in served:
                call()

        self._clock.at(self._clock.now_s + self._sync_s, written)


class Simulation:
    """Nodes that send to a site.

    Args:
        site: Servers and database.
        nodes: Who sends.
        seed: The same one gives the same outcome.
    """

    def __init__(self, site: Site, nodes: Nodes, *, seed: int = 0) -> None:
        self._site, self._nodes = site, nodes
        self._draw = random.Random(seed)
        self._clock = Clock()
        self._servers = [Station(self._clock, site.workers) for _ in range(site.servers)]
        self._database = Station(self._clock, site.database_cores)
        self._cores = Station(self._clock, site.cores) if site.cores else None
        self._log = Log(self._clock, site.sync_s)
        self._outcome, self._warm_s = Outcome(), 0.0
        self._sent = [0] * nodes.count
        self._began_s = [nodes.every_s * n / nodes.count for n in range(nodes.count)]

    def run(self, wall_s: float, *, warm_s: float = 0.0) -> Outcome:
        """Let it go on for so long; requests that end in the first `warm_s` are not counted."""
        self._warm_s = warm_s
        for number in range(self._nodes.count):
            self._clock.start(self._node(number))
        self._clock.run(wall_s / 2)
        self._outcome.backlog_half = self._backlog()
        self._clock.run(wall_s)
        found = self._outcome
        found.wall_s, found.counted_s = wall_s, wall_s - warm_s
        found.backlog = self._backlog()
        places = sum(one.places for one in self._servers)
        found.server_busy = sum(one.busy_s for one in self._servers) / places / wall_s
        found.database_busy = self._database.busy_s / self._database.places / wall_s
        return found

    def _made(self, number: int) -> float:
        """How many points a node has had."""
        return max(0.0, self._clock.now_s - self._began_s[number]) * self._nodes.points_a_second

    def _backlog(self) -> float:
        return sum(self._made(n) - sent for n, sent in enumerate(self._sent))

    def _node(self, number: int) -> Process:
        yield self._began_s[number]
        while True:
            began_s = self._clock.now_s
            waiting = self._nodes.rows or int(self._made(number)) - self._sent[number]
            rows = min(MOST_ROWS, waiting)
            if rows > 0:
                yield from self._delivered(number, rows)
            left = int(self._made(number)) - self._sent[number]
            if not self._nodes.rows and left < MOST_ROWS:
                yield max(0.0, began_s + self._nodes.every_s - self._clock.now_s)

    def _delivered(self, number: int, rows: int) -> Process:
        """Send rows until they are answered in time."""
        pause_s, began_s = self._nodes.first_retry_s, self._clock.now_s
        is_shut = False
        while True:
            since_s, is_shut = self._clock.now_s, is_shut or self._is_away()
            if not self._is_away():
                for _ in range(self._nodes.reopenings if is_shut else 0):
                    yield from self._request(number % self._site.servers, 0)
                yield from self._request(number % self._site.servers, rows)
                if self._clock.now_s - since_s <= self._nodes.timeout_s:
                    break
            self._outcome.repeats += 1
            yield pause_s
            pause_s = min(2 * pause_s, self._nodes.last_retry_s)
        self._sent[number] += rows
        self._note(number, rows, began_s)

    def _note(self, number: int, rows: int, began_s: float) -> None:
        now_s, found = self._clock.now_s, self._outcome
        if now_s < self._warm_s:
            return
        found.requests += 1
        found.points += rows
        found.took_s.append(now_s - began_s)
        if rate := self._nodes.points_a_second:
            made_s = self._began_s[number] + (self._sent[number] - rows / 2) / rate
            found.lags_s.append(now_s - made_s)

    def _is_away(self) -> bool:
        from_s, until_s = self._nodes.away_s
        return from_s <= self._clock.now_s < until_s

    def _request(self, server: int, rows: int) -> Process:
        site = self._site
        yield from self._work(None, site.client.of(rows))
        yield from self._work(self._servers[server], site.server.of(rows))
        yield from self._work(self._database, site.database.of(rows))
        yield self._log

    def _work(self, station: Station | None, mean_s: float) -> Process:
        """Hold a place, and a core where they are shared, for as long as the work takes."""
        if not mean_s or (station is None and self._cores is None):
            return
        took_s = self._drawn(mean_s) / self._site.speed
        for one in (station, self._cores):
            if one is not None:
                yield one
        yield took_s
        for one in (self._cores, station):
            if one is not None:
                one.leave(took_s)

    def _drawn(self, mean_s: float) -> float:
        spread = self._site.spread
        return mean_s * (1 - spread + spread * self._draw.expovariate(1.0)) if spread else mean_s
