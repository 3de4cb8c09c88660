"""The values of models' versions in Production, asked for in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import Manifest
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line

AGAIN_S, AFTER_FAULT_S = 600.0, 30.0
"""How long an answer holds, and how long MLflow is left alone after a fault, in seconds."""

_STAGE = "Production"

Wanted = Mapping[str, set[str]]
"""The keys that are compared, by model."""


class Production:
    """Asks MLflow for the values that a run is compared with, and asks again as time goes by.

    Args:
        manifest: Where MLflow is.

    Attributes:
        values: What was found, by `<model> <key>`.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.values: dict[str, float] = {}
        self._manifest = manifest
        self._thread: threading.Thread | None = None
        self._found: dict[str, float] | None = None
        self._asked: Wanted = {}
        self._told = ""
        self._not_before_s = 0.0

    def look(self, wanted: Wanted) -> bool:
        """Ask for what is wanted where it is time to; whether there is news."""
        if self._thread and self._thread.is_alive():
            return False
        found, self._found = self._found, None
        has_news = found is not None and found != self.values
        self.values = self.values if found is None else found
        now_s = time.monotonic()
        if wanted and (wanted != self._asked or now_s >= self._not_before_s):
            self._asked, self._not_before_s = wanted, now_s + AGAIN_S
            # Here: two threads must not load it at once.
            load_mlflow()
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
        return has_news

    def _ask(self) -> None:
        fault = attempted(self._read)
        said = f"Production is not known: {one_line(str(fault))}" if fault else ""
        if fault:
            self._not_before_s = time.monotonic() + AFTER_FAULT_S
        if said and said != self._told:
            print(said, flush=True)
        self._told = said

    def _read(self) -> None:
        from opusclip_mlops import patience

        patience.ask_briefly()
        places = (self._manifest.tracking_uri, self._manifest.registry_uri)
        self._found = dict(
            pair
            for model, keys in self._asked.items()
            for pair in values_in_production(model, keys, *places)
        )


def values_in_production(
    model: str, keys: set[str], tracking_uri: str | None, registry_uri: str | None
) -> Iterator[tuple[str, float]]:
    """The last values of the run that the version in Production was made by.

    Raises:
        RegistryError: There is no such model, or MLflow does not answer.
    """
    from opusclip_mlops import patience
    from opusclip_mlops.standing import alias_of, read_standing

    client = patience.connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    standing = read_standing(client, model)
    versions = standing.inside(_STAGE) or {standing.aliases.get(alias_of(_STAGE), 0)}
    version = max(versions)
    if not version:
        return
    what = f"cannot read version {version} of {model!r}"
    made = patience.patiently(what, lambda: client.get_model_version(model, str(version)))
    if not (run_id := made.run_id):
        return
    run = patience.patiently(what, lambda: client.get_run(run_id))
    for key in sorted(keys & run.data.metrics.keys()):
        yield f"{model} {key}", float(run.data.metrics[key])
