"""Which registered models somebody may have touched: told from the registry's list of them.

A row of that list changes with every stage, alias and deleted version, so that a registry of
thousands of models is asked a page at a time. What a row does not show, as a process that was
killed before its first write, is found by a close look at all of them now and then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel

CLOSE_LOOK_S = 60.0
"""How long after a close look at all models the next one is due, in seconds, at the least."""

_SHARE_OF_TIME = 1 / 20
_PAGE_MODELS = 1_000

Row = tuple[object, ...]


class Rows:
    """The registered models, and how the list showed each when it was last looked at.

    Args:
        client: MLflow.
        names: The only models to look at, each time; all that there are when empty.
    """

    def __init__(self, client: MlflowClient, names: Sequence[str] = ()) -> None:
        self._client, self._names = client, tuple(names)
        self._seen: dict[str, Row] = {}
        self._now: dict[str, Row] = {}
        self._began_s = self._due_s = 0.0

    def to_look_at(self) -> list[str]:
        """Names of those that changed, or are new; now and then of all.

        Raises:
            MlflowException, OSError: MLflow refused, or did not answer.
        """
        if self._names:
            return list(self._names)
        self._now = {model.name: _row(model) for model in _listed(self._client)}
        self._began_s = time.monotonic()
        if self._began_s >= self._due_s:
            self._seen = {}
        return [name for name, row in self._now.items() if self._seen.get(name) != row]

    def looked_at(self, name: str) -> None:
        """Take note that a model is in order as the list showed it."""
        if name in self._now:
            self._seen[name] = self._now[name]

    def close(self) -> None:
        """End a look; the longer a close one took, the longer until the next."""
        if self._began_s >= self._due_s:
            took_s = time.monotonic() - self._began_s
            self._due_s = time.monotonic() + max(CLOSE_LOOK_S, took_s / _SHARE_OF_TIME)


def _listed(client: MlflowClient) -> Iterator[RegisteredModel]:
    token = None
    while True:
        page = client.search_registered_models(max_results=_PAGE_MODELS, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _row(model: RegisteredModel) -> Row:
    return (
        model.creation_timestamp,
        model.last_updated_timestamp,
        tuple(sorted((one.version, one.current_stage) for one in model.latest_versions)),
        tuple(sorted(model.aliases.items())),
        tuple(sorted(model.tags.items())),
    )
