from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.faults.site import Site
from tests.servers import mlflow_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow server for all: each site has an experiment of its own on it."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def site(tmp_path: Path, server: str) -> Iterator[Site]:
    """A site whose trainers reach the server."""
    place = Site(tmp_path, server)
    yield place
    place.close()


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    """A proxy before the server, without faults at first."""
    with FaultProxy(server) as between:
        yield between


@pytest.fixture
def faulty_site(tmp_path: Path, server: str, proxy: FaultProxy) -> Iterator[Site]:
    """A site whose trainers reach the server through the proxy."""
    place = Site(tmp_path, server, proxy.address, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3"})
    yield place
    place.close()


@pytest.fixture(scope="module")
def new_site(
    tmp_path_factory: pytest.TempPathFactory, server: str
) -> Iterator[Callable[[str], Site]]:
    """Makes sites that the tests of a module share."""
    sites: list[Site] = []

    def made(name: str) -> Site:
        sites.append(Site(tmp_path_factory.mktemp(name), server))
        return sites[-1]

    yield made
    for place in sites:
        place.close()
