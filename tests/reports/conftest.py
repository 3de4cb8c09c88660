"""What the tests of reports share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.journeys import store
from tests.reports.reported_runs import Site, bare_run, register, rich_run


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Made once for all tests of reports; none of them changes it."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        # Where experiments are made, their artifacts lie.
        patch.chdir(folder)
        uri = store(folder)
        client = MlflowClient(uri)
        rich = rich_run(folder)
        plain = bare_run(client, "plain", {"val/psnr": [20.0, 30.0], "odd": [1.0]})
        register(client, rich)
    return Site(uri, client, rich, plain)


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., str]:
    """Makes runs in a store of the test alone: `bare(name, values, **options)`."""
    client = MlflowClient(store(tmp_path))
    return lambda name, values, **options: bare_run(client, name, values, **options)
