"""Servers and stores with the guard, and models for them to decide about."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from opusclip_mlops.faults import attempted
from opusclip_mlops.server.models import RegistryStore
from tests.journeys import store
from tests.promoters import NAME, make_model
from tests.servers import _loaded_mlflow, _stopped_after, free_port

STRICT = "stages: {Production: {metrics: {val/psnr: {min: 30}}}}\n"


@contextlib.contextmanager
def guarded_server(folder: Path, *, uri: str = "", port: int | None = None) -> Iterator[Any]:
    """Run `mlflow server` with the guard on a database, sqlite's in the folder by default.

    Gives its URL and its process, whose group may be killed.
    """
    number = str(port or free_port())
    argv = [
        *("server", "--host", "127.0.0.1", "--port", number, "--workers", "1"),
        *("--backend-store-uri", f"opusclip+{uri or store(folder)}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with tempfile.NamedTemporaryFile() as output:
        server = _loaded_mlflow().serve(argv, folder, output.name)
        url = f"http://127.0.0.1:{number}"
        with _stopped_after(server, f"{url}/health", output):
            yield url, server


def guarded(folder: Path, *, versions: int = 3) -> tuple[RegistryStore, MlflowClient]:
    """A guarded store, and a stock client, of a database with a model that nobody has promoted."""
    uri = store(folder)
    client = MlflowClient(uri)
    make_model(client, versions=versions)
    return RegistryStore(f"opusclip+{uri}"), client


def measured(client: MlflowClient, psnr: float, *, name: str = NAME) -> int:
    """A version of a run that has measured something; gives its number."""
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "val/psnr", psnr)
    source = client.get_run(run_id).info.artifact_uri
    return int(client.create_model_version(name, source=source, run_id=run_id).version)


def at_once(calls: Sequence[Callable[[], object]]) -> list[Exception | None]:
    """Call all of them at the same time; what each raised."""
    start = threading.Barrier(len(calls))
    raised: list[Exception | None] = [None] * len(calls)

    def act(number: int) -> None:
        start.wait()
        raised[number] = attempted(calls[number])

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
