"""The simulation of many shippers: its queues against formulas, its nodes against what they do."""

import math
import random
from dataclasses import replace

import pytest

from benchmarks.fleet import Clock, Cost, Log, Nodes, Outcome, Process, Simulation, Site, Station
from benchmarks.scaling_forecast import checks, compared, foretold, site_of


def waited_s(*, places: int, load: float, is_even: bool, arrivals: int = 60_000) -> float:
    """The mean wait at a station for work of a second, with arrivals at random."""
    draw, clock, waits = random.Random(7), Clock(), []
    station = Station(clock, places)

    def customer() -> Process:
        came_s = clock.now_s
        yield station
        waits.append(clock.now_s - came_s)
        took_s = 1.0 if is_even else draw.expovariate(1.0)
        yield took_s
        station.leave(took_s)

    def source() -> Process:
        for _ in range(arrivals):
            yield draw.expovariate(load * places)
            clock.start(customer())

    clock.start(source())
    clock.run(math.inf)
    return sum(waits) / len(waits)


def erlang_wait_s(places: int, load: float) -> float:
    """The mean wait in M/M/c by Erlang's formula, for work of a second."""
    offered = load * places
    terms = sum(offered**n / math.factorial(n) for n in range(places))
    last = offered**places / math.factorial(places) / (1 - load)
    return last / (terms + last) / (places * (1 - load))


@pytest.mark.parametrize(("places", "load"), [(1, 0.5), (1, 0.8), (4, 0.8)])
def test_a_station_keeps_people_waiting_as_the_formula_says(places: int, load: float) -> None:
    """M/M/c: within a tenth of Erlang's formula; for one place that is load / (1 - load)."""
    expected = erlang_wait_s(places, load)
    if places == 1:
        assert expected == pytest.approx(load / (1 - load))
    assert waited_s(places=places, load=load, is_even=False) == pytest.approx(expected, rel=0.1)


def test_even_work_is_waited_for_half_as_long() -> None:
    """M/D/1: load / (2 (1 - load)), after Pollaczek and Khinchine."""
    found = waited_s(places=1, load=0.8, is_even=True)
    assert found == pytest.approx(0.8 / (2 * (1 - 0.8)), rel=0.1)


def test_a_write_of_the_log_serves_all_that_waited_when_it_began() -> None:
    """Two that come during a write share the next one."""
    clock, ended = Clock(), []
    log = Log(clock, 1.0)

    def commit(at_s: float) -> Process:
        yield at_s
        yield log
        ended.append(clock.now_s)

    for at_s in (0.0, 0.2, 0.9):
        clock.start(commit(at_s))
    clock.run(10.0)
    assert ended == [1.0, 2.0, 2.0]


def outcome(wall_s: float = 60.0, *, site: Site | None = None, **nodes: object) -> Outcome:
    """What comes of nodes at a server that takes 10 ms a request and 0.1 ms a row."""
    site = site or Site(server=Cost(0.010, 0.0001), database=Cost(0.001), sync_s=0.001)
    return Simulation(site, Nodes(**nodes)).run(wall_s)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_outcome() -> None:
    """And another one another."""
    site = Site(server=Cost(0.010), database=Cost(0.001))
    few = Nodes(count=5, points_a_second=10)
    one, again, other = (Simulation(site, few, seed=seed).run(20.0) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_a_server_gives_no_more_than_its_time_allows() -> None:
    """Clients that never pause keep one worker busy: 1000 rows take 0.11 s."""
    found = outcome(count=8, rows=1000)
    assert found.points_a_second == pytest.approx(1000 / 0.11, rel=0.05)
    assert found.server_busy > 0.98
    twice = Site(servers=2, server=Cost(0.010, 0.0001), database=Cost(0.001), sync_s=0.001)
    double = outcome(count=8, rows=1000, site=twice)
    assert double.points_a_second == pytest.approx(2 * found.points_a_second, rel=0.05)


def test_cores_that_are_shared_are_a_bound_for_all_together() -> None:
    """Four workers on one core give what one gives, less what the database takes."""
    site = Site(workers=4, server=Cost(0.010), database=Cost(0.010), database_cores=4, cores=1)
    assert outcome(count=8, rows=10, site=site).requests / 60 == pytest.approx(50, rel=0.05)
    slow = Site(workers=4, server=Cost(0.01), database=Cost(0.01), cores=1, speed=0.5)
    assert outcome(count=8, rows=10, site=slow).requests / 60 == pytest.approx(25, rel=0.05)


def test_a_quiet_node_s_points_wait_half_a_turn() -> None:
    """The middle point of a batch is half of `every_s` old, and nothing is left behind."""
    found = outcome(count=10, points_a_second=100, every_s=2.0)
    assert found.lag_s(50) == pytest.approx(1.0 + 0.03, abs=0.03)
    assert abs(found.growth) < 100
    assert found.points / found.requests == pytest.approx(200, rel=0.02)
    assert not found.repeats


def test_batches_grow_when_the_servers_are_late_and_the_backlog_when_that_is_not_enough() -> None:
    """200 requests a second of one row each are too many; the same points in fewer are not."""
    late = outcome(count=200, points_a_second=5, timeout_s=math.inf)
    assert late.points / late.requests > 5 * 2
    assert abs(late.growth) < 100
    lost = outcome(count=200, points_a_second=100, timeout_s=math.inf)
    assert lost.growth > 200 * 100 - 1000 / 0.11 - 1000


def test_what_is_not_answered_in_time_is_sent_again() -> None:
    """More nodes than can be answered within the time wait in vain, and make it worse."""
    patient = outcome(count=400, points_a_second=30, timeout_s=math.inf)
    hasty = outcome(count=400, points_a_second=30, timeout_s=5.0)
    assert hasty.repeats
    assert hasty.points < patient.points


def test_after_an_outage_everything_arrives() -> None:
    """What waited is sent in large batches; no node begins again later than its longest pause."""
    found = outcome(120.0, count=20, points_a_second=50, away_s=(20.0, 50.0))
    assert found.repeats >= 20
    assert found.backlog < 20 * 50 * 3
    assert 30.0 <= max(one for one in found.took_s) <= 30.0 + 10.0 + 1.0


def test_what_swings_in_is_not_counted() -> None:
    """The rate is that of the time that counts: a node that begins late has none before."""
    site = Site(server=Cost(0.010), database=Cost(0.001), spread=0.0)
    one = Nodes(count=1, points_a_second=50, every_s=1.0)
    counted = Simulation(site, one).run(22.0, warm_s=2.0)
    assert counted.points_a_second == pytest.approx(50, rel=0.03)
    assert counted.requests < Simulation(site, one).run(22.0).requests


def test_a_node_that_was_refused_opens_its_run_first() -> None:
    """Five small requests more for each node, once; and nobody who was never refused."""
    away = Nodes(count=20, points_a_second=50, away_s=(20.0, 50.0))
    site = Site(server=Cost(0.010, 0.0001), database=Cost(0.001), sync_s=0.001)
    plain, opened = (
        Simulation(site, replace(away, reopenings=n)).run(120.0).server_busy for n in (0, 5)
    )
    # A hundred requests of 10 ms in 120 s; a few batches come later and are larger for it.
    assert opened - plain == pytest.approx(20 * 5 * 0.010 / 120, rel=0.5)
    never = replace(away, away_s=(0.0, 0.0))
    assert outcome(site=site, count=20, points_a_second=50).points == pytest.approx(
        Simulation(site, replace(never, reopenings=5)).run(60.0).points
    )


MEASURED = {
    "server_ms of 10 rows": 7.0,
    "server_ms of 1000 rows": 40.0 - 0.33,
    "database_ms of 10 rows": 2.0,
    "database_ms of 1000 rows": 21.8,
    "client_ms of 10 rows": 0.4,
    "client_ms of 1000 rows": 1.39,
    "sync_ms of 100 rows": 2.0,
    "1 worker, 8 clients x 10 rows": 1000.0,
    "1 worker, 8 clients x 10 rows: others_cores": 0.1,
    "2 servers x 4 workers, 16 clients x 1000 rows": 30000.0,
    "1 worker, 20 nodes x 400 points/s": 6000.0,
    "1 worker, 20 nodes x 400 points/s: lag, median": 1.5,
    "1 worker, 20 nodes x 400 points/s: lag, 99 of 100": 3.0,
}


def test_the_simulation_s_times_are_those_measured() -> None:
    """A line through the times of 10 and of 1000 rows, in seconds."""
    site = site_of(MEASURED)
    assert site.server.of(10) == pytest.approx(0.007)
    assert site.server.of(1000) == pytest.approx(0.03967)
    assert site.database == Cost(pytest.approx(0.0018), pytest.approx(0.00002))
    assert site.sync_s == 0.002


def test_all_that_was_measured_alike_is_simulated() -> None:
    """Clients without a pause and nodes that have points; nothing else that stands beside them."""
    found = {one.what: one for one in checks(MEASURED)}
    pressed, arranged, live = found.values()
    assert (pressed.site.servers, pressed.site.workers, pressed.nodes.count) == (1, 1, 8)
    assert (arranged.site.servers, arranged.site.workers, arranged.nodes.rows) == (2, 4, 1000)
    assert (live.nodes.count, live.nodes.points_a_second) == (20, 400.0)
    assert {one.site.cores for one in found.values()} == {2}


def test_an_error_is_the_simulated_beside_the_measured() -> None:
    """One worker that takes 7 ms a request of 10 rows is said to take 1,400 points/s, not 1,000."""
    first = next(compared(MEASURED))
    assert first.theirs == 1000.0
    assert first.ours == pytest.approx(10 / 0.007, rel=0.05)
    assert {one.what for one in compared(MEASURED)} < set(MEASURED)


def test_a_forecast_s_lag_falls_with_the_servers_and_grows_with_the_times() -> None:
    """A hundred nodes of two points/s are too many for one slow worker, and not for sixteen."""
    site, nodes = Site(server=Cost(0.2), database=Cost(0.001)), Nodes(count=100, points_a_second=2)
    lags_s = []
    for servers in (1, 2, 16):
        told = {one.what: one.ours for one in foretold(site, nodes, servers, wall_s=30.0)}
        row = f"100 nodes x 2 points/s, every 1 s, {servers} servers"
        lags_s.append(told[f"{row}: lag, median"])
        assert told[f"{row}, dearer: lag, median"] >= told[f"{row}: lag, median"]
    assert lags_s == sorted(lags_s, reverse=True)
    assert lags_s[0] > 3 * lags_s[-1]


def test_the_start_is_no_growth_of_the_backlog() -> None:
    """Four workers that take 104,700 points/s in the largest batches hold 100,000 points/s."""
    site = Site(server=Cost(0.007, 0.0000312), database=Cost(0.0019, 0.000018))
    nodes = Nodes(count=1000, points_a_second=100.0)
    told = {one.what: one.ours for one in foretold(site, nodes, 1)}
    row = "1000 nodes x 100 points/s, every 1 s, 1 servers"
    assert told[f"{row}: backlog grows by"] == 0.0
    assert told[f"{row}, dearer: backlog grows by"] > 1000.0
