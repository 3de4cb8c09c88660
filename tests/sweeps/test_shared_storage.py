"""A study that several machines share: PostgreSQL, and Optuna's gRPC proxy before it."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from opusclip_mlops.sweeps.claims import Claim
from opusclip_mlops.sweeps.studies import begin_study, open_study
from tests.databases import postgres
from tests.servers import free_port, stop
from tests.sweeps.small_sweeps import claims_of, config_of, end

PROXY = """
import sys, optuna
from optuna.storages import RDBStorage, run_grpc_proxy_server
address = sys.argv[1].replace("postgresql:", "postgresql+psycopg2:")
run_grpc_proxy_server(RDBStorage(address), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL of this file, by the address that the documentation gives."""
    with postgres() as uri:
        yield uri.replace("postgresql+psycopg2://", "postgresql://")


@pytest.fixture
def proxy(database: str) -> Iterator[str]:
    """Optuna's gRPC proxy before it."""
    port = free_port()
    argv = [sys.executable, "-c", PROXY, database, str(port)]
    process = subprocess.Popen(argv, process_group=0)
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        stop(process)


def shared_by_three(place: str, name: str) -> None:
    """Three workers, each with a connection of its own; one is lost in its first trial."""
    config = config_of(method="grid", parameters={"x": {"values": list(range(8))}})
    begin_study(place, name, config, parent_run_id="p", count=8)
    ran: list[Claim] = []

    def work() -> None:
        mine = claims_of(open_study(place, name))
        while not mine.is_over():
            if claim := mine.next():
                ran.append(claim)
                end(mine, claim, 1.0)

    lost = claims_of(open_study(place, name))
    first = lost.next()
    assert first
    lost.give_up(first)
    threads = [threading.Thread(target=work) for _ in range(3)]
    [one.start() for one in threads]
    [one.join(120) for one in threads]
    assert sorted(one.values["x"] for one in ran) == list(range(8))
    assert [one.attempt for one in ran if one.number == 0] == [2]


def test_workers_share_a_postgresql(database: str) -> None:
    """Each trial is run once, and a lost one again."""
    shared_by_three(database, "by-database")


def test_workers_share_a_proxy(proxy: str) -> None:
    """So that machines need no way to the database."""
    shared_by_three(proxy, "by-proxy")


def test_a_study_says_all_that_a_worker_needs(database: str) -> None:
    """On a machine that has neither the file nor the folder."""
    config = config_of(name="tune", run_cap=3)
    begin_study(database, "t", config, parent_run_id="abc", count=3)
    found = open_study(database, "t")
    assert (found.config, found.parent_run_id, found.count) == (config, "abc", 3)
