"""The simulation of many shippers: its queues against formulas, its nodes against what they do."""

import math
import random
from dataclasses import replace

import pytest

from benchmarks.fleet import Clock, Cost, Log, Nodes, Outcome, Process, Simulation, Site, Station
from benchmarks.scaling_forecast import Live, forecast, lives_in, predicted, site_of


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


MEASURED = {
    "server_ms of 10 rows": 7.0,
    "server_ms of 1000 rows": 40.0 - 0.33,
    "database_ms of 10 rows": 2.0,
    "database_ms of 1000 rows": 21.8,
    "client_ms of 10 rows": 0.4,
    "client_ms of 1000 rows": 1.39,
    "sync_ms of 100 rows": 2.0,
    "1 worker, 20 nodes x 400 points/s": 6000.0,
    "1 worker, 20 nodes x 400 points/s: lag, median": 1.5,
    "1 worker, 20 nodes x 400 points/s: lag, 99 of 100": 3.0,
    "1 worker, 20 nodes x 400 points/s: others took": 1.0,
    "1 worker, 20 nodes x 100 points/s": 2000.0,
    "1 worker, 20 nodes x 100 points/s: lag, median": 0.5,
    "1 worker, 20 nodes x 100 points/s: lag, 99 of 100": 0.6,
    "1 worker, 20 nodes x 100 points/s: others took": 0.0,
}


def test_the_simulation_s_times_are_those_measured() -> None:
    """A line through the times of 10 and of 1000 rows, in seconds; and the nodes, slowest first."""
    site = site_of(MEASURED)
    assert site.server.of(10) == pytest.approx(0.007)
    assert site.server.of(1000) == pytest.approx(0.03967)
    assert site.database == Cost(pytest.approx(0.0018), pytest.approx(0.00002))
    assert site.sync_s == 0.002
    assert [one.rate for one in lives_in(MEASURED)] == [100, 400]


def test_a_machine_that_others_share_is_slower() -> None:
    """Twenty nodes of 100 points/s find it idle; with one core of two taken, lags grow."""
    site, slow = site_of(MEASURED), Live(400.0, 1.0, 0.0, 0.0, 0.0)
    idle = predicted(site, replace(slow, others_cores=0.0))
    busy = predicted(site, slow)
    assert idle.points_a_second == pytest.approx(20 * 400, rel=0.1)
    assert idle.lag_s(50) < busy.lag_s(50)
    assert idle.server_busy < busy.server_busy


def test_a_forecast_s_lag_falls_with_the_servers() -> None:
    """A hundred nodes of 100 points/s are too many for one slow worker, and not for sixteen."""
    site = Site(server=Cost(0.4), database=Cost(0.001))
    told = {row[0]: row for row in forecast(site, 2.0, 1.0, nodes=100, wall_s=30.0)}
    assert [*told] == ["1", "2", "4", "8", "16"]
    lags_s = [float(row[1].removesuffix(" s")) for row in told.values()]
    assert lags_s == sorted(lags_s, reverse=True)
    assert lags_s[0] > 3 * lags_s[-1]
