"""MLflow's own registry store, with a guard before all that moves a version."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from mlflow.entities.model_registry import (
    ModelVersion,
    ModelVersionTag,
    RegisteredModel,
    RegisteredModelTag,
)
from mlflow.entities.model_registry.model_version_stages import get_canonical_stage
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.prompt.registry_utils import has_prompt_tag
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.validation import _validate_model_renaming

from opusclip_mlops import chain
from opusclip_mlops.deciding import Judge
from opusclip_mlops.decisions import HELD
from opusclip_mlops.errors import OpusclipError, RegistryError
from opusclip_mlops.guarded import Ask
from opusclip_mlops.ledger import find_ledger
from opusclip_mlops.server import actors, joining
from opusclip_mlops.server.guard import Action, DatabaseGuard, decided, refused
from opusclip_mlops.server.places import stock_uri
from opusclip_mlops.server.transaction import BoundModels, BoundRuns, StoreClient
from opusclip_mlops.standing import HISTORY_TAG, alias_of, read_standing

_Answer = TypeVar("_Answer")
_REGISTERED_BY = "opusclip.registered_by"
_STAGE_OF = {alias_of(stage): stage for stage in HELD}


class RegistryStore(SqlAlchemyStore):
    """Registered models in a database, as stock MLflow keeps them; only their gate moves versions.

    Attributes:
        guard: Decides what MLflow's own calls cannot say.
    """

    def __init__(self, db_uri: str) -> None:
        super().__init__(stock_uri(db_uri))  # type: ignore[no-untyped-call]
        _check_runs_are_here(self.db_uri)
        self._stock: Any = BoundModels(self, self.ManagedSessionMaker)
        self.guard = DatabaseGuard(self)
        if "mlflow.server" in sys.modules:
            joining.await_requests()

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Move a version as the model's policy allows; the holder before it is archived always.

        Raises:
            MlflowException: There is no such version or stage, or the gate refuses.
        """
        to = get_canonical_stage(stage)
        is_wrong = archive_existing_versions and to not in HELD
        if is_wrong or self._is_free(name, version):
            asked = (name, version, stage, archive_existing_versions)
            moved: ModelVersion = self._stock.transition_model_version_stage(*asked)
            return moved
        ask = Ask(what="promote", name=name, version=str(version), to=to, came_by=actors.came_by())
        with _told():
            self.guard.decide(ask) if to in HELD else self.guard.run(name, partial(_take_out, ask))
        there: ModelVersion = self._stock.get_model_version(name, version)
        return there

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Name a version; to name it `staging` or `production` is to promote it.

        Raises:
            MlflowException: There is no such version, the gate refuses, or the alias would be
                taken for that of a stage, such as `Production`.
        """
        to = _STAGE_OF.get(alias)
        if _is_like_a_stage(alias) and not self._is_free(name, version):
            raise MlflowException(
                f"alias {alias} would be taken for {alias.casefold()}, which goes with the stage: "
                "name that one, or another",
                INVALID_PARAMETER_VALUE,
            )
        if to is None or self._is_free(name, version):
            self._stock.set_registered_model_alias(name, alias, version)
            return
        ask = Ask(what="promote", name=name, version=str(version), to=to, came_by=actors.came_by())
        with _told():
            self.guard.decide(ask)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Take an alias away; not that of a stage that a version holds.

        Raises:
            MlflowException: There is no such model, or its stage is held.
        """
        stage = _STAGE_OF.get(alias)
        if stage is None or self._is_free(name):
            self._stock.delete_registered_model_alias(name, alias)
            return

        def act(client: StoreClient, _: Judge) -> None:
            if holders := [one for one, held in _held(client, name).items() if held == stage]:
                raise RegistryError(
                    f"alias {alias} goes with {stage}, which version {holders[0]} of {name!r} "
                    "holds: promote another version, or move it to Archived"
                )
            client.models.delete_registered_model_alias(name, alias)

        self._run(name, act)

    def delete_model_version(self, name: str, version: str) -> None:
        """Delete a version that holds no stage.

        Raises:
            MlflowException: There is no such version, or it holds a stage.
        """
        if self._is_free(name, version):
            self._stock.delete_model_version(name, version)
            return

        def act(client: StoreClient, _: Judge) -> None:
            if stage := _held(client, name).get(int(version)):
                raise RegistryError(
                    f"version {version} of {name!r} holds {stage} and is not deleted: promote "
                    "another version first, or move it to Archived"
                )
            client.models.delete_model_version(name, version)

        self._run(name, act)

    def delete_registered_model(self, name: str) -> None:
        """Delete a registered model that has no version in Staging or Production.

        Raises:
            MlflowException: There is no such model, or a version of it holds a stage.
        """
        if self._is_free(name):
            self._stock.delete_registered_model(name)
            return

        def act(client: StoreClient, _: Judge) -> None:
            for version, stage in _held(client, name).items():
                raise RegistryError(
                    f"{name!r} is not deleted, its version {version} holds {stage}: move it to "
                    "Archived first"
                )
            client.models.delete_registered_model(name)

        self._run(name, act)

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a registered model that has no history yet.

        Raises:
            MlflowException: There is no such model, the name is taken, or it has a history.
        """
        _validate_model_renaming(new_name)
        if self._is_free(name):
            self._check_no_history(new_name)
            renamed: RegisteredModel = self._stock.rename_registered_model(name, new_name)
            return renamed

        def act(client: StoreClient, _: Judge) -> RegisteredModel:
            made_ms = read_standing(client, name).created_ms
            if find_ledger(client, name, created_ms=made_ms):
                raise RegistryError(f"{name!r} keeps its name: its history is under that")
            made: RegisteredModel = client.models.rename_registered_model(name, new_name)
            return made

        return self._run(name, act)

    def create_registered_model(
        self, name: str, tags: Sequence[RegisteredModelTag] | None = None, *args: Any, **more: Any
    ) -> RegisteredModel:
        """Make a registered model.

        Raises:
            MlflowException: There is one, or a tag is one of a history.
        """
        for tag in tags or ():
            _check_tag(tag.key)
            if tag.key == IS_PROMPT_TAG_KEY:
                self._check_no_history(name)
        made: RegisteredModel = self._stock.create_registered_model(name, tags, *args, **more)
        return made

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Tag a registered model, but not with the tags of its history.

        Raises:
            MlflowException: There is no such model, or it is a tag of the history.
        """
        _check_tag(tag.key)
        if tag.key == IS_PROMPT_TAG_KEY:
            self._check_no_history(name)
        self._stock.set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Take a tag of a registered model away, but not one of its history.

        Raises:
            MlflowException: There is no such model, or it is a tag of the history.
        """
        _check_tag(key)
        self._stock.delete_registered_model_tag(name, key)

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Sequence[ModelVersionTag] | None = None,
        *args: Any,
        **more: Any,
    ) -> ModelVersion:
        """Make a version; where MLflow has a login, it is marked with who is logged in.

        Raises:
            MlflowException: There is no such model.
        """
        kept = [one for one in tags or () if one.key != _REGISTERED_BY or not actors.is_known()]
        if actors.is_known():
            kept.append(ModelVersionTag(_REGISTERED_BY, actors.deciding().name))
        made: ModelVersion = self._stock.create_model_version(
            name, source, run_id, kept, *args, **more
        )
        return made

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        """Tag a version, but say nothing else of who registered it where that is known.

        Raises:
            MlflowException: There is no such version, or the tag is the mark of who registered it.
        """
        _check_mark(tag.key)
        self._stock.set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        """Take a tag of a version away, but not the mark of who registered it where that is known.

        Raises:
            MlflowException: There is no such version, or the tag is the mark of who registered it.
        """
        _check_mark(key)
        self._stock.delete_model_version_tag(name, version, key)

    def _is_free(self, name: str, version: str | None = None) -> bool:
        """Whether it is a prompt of MLflow's without a history: its aliases are anybody's.

        Raises:
            MlflowException: There is no such model or version.
        """
        if version is not None:
            self._stock.get_model_version(name, version)
        model: RegisteredModel = self._stock.get_registered_model(name)
        # As MLflow's client looks at it, which hides such models from all but prompts' own calls.
        return has_prompt_tag(model._tags) and not self._has_history(name)

    def _has_history(self, name: str) -> bool:
        """Whether anything was decided about a model of that name, one that was deleted too."""
        runs = BoundRuns(self, self.ManagedSessionMaker, artifact_root="")
        with _told():
            return find_ledger(StoreClient(runs, self._stock), name) is not None

    def _check_no_history(self, name: str) -> None:
        if self._has_history(name):
            raise MlflowException(
                f"{name!r} is no prompt: it is the name of a history of decisions",
                INVALID_PARAMETER_VALUE,
            )

    def _run(self, name: str, action: Action[_Answer]) -> _Answer:
        with _told():
            return self.guard.run(name, action)


@contextmanager
def _told() -> Iterator[None]:
    """Refuse as MLflow does, so that its clients and pages show why."""
    try:
        yield
    except OpusclipError as error:
        raise refused(error) from error


def _take_out(ask: Ask, client: StoreClient, judge: Judge) -> None:
    """Move a version to Archived or None: a decision where it holds a stage, else MLflow's own."""
    version = int(ask.version)
    if version in _held(client, ask.name):
        try:
            decided(ask, client, judge)
        except RegistryError:
            # One that was moved in by hand is put back, and needs no more than MLflow's own.
            if version in _held(client, ask.name):
                raise
        else:
            return
    client.models.transition_model_version_stage(ask.name, version, ask.to, False)


def _held(client: StoreClient, name: str) -> dict[int, str]:
    """Who is in Staging or Production, by the registry or by the history."""
    standing = read_standing(client, name)
    found = {version: held for version, held in standing.stages.items() if held in HELD}
    ledger = find_ledger(client, name, created_ms=standing.created_ms)
    records = ledger.read().chain.records if ledger else ()
    holders = ((chain.holder(records, stage), stage) for stage in HELD)
    there = {one: stage for one, stage in holders if one is not None and one in standing.stages}
    return {**there, **found}


def _is_like_a_stage(alias: str) -> bool:
    return alias not in _STAGE_OF and str(alias).casefold() in _STAGE_OF


def _check_tag(key: str) -> None:
    if str(key).startswith(HISTORY_TAG):
        raise MlflowException(
            f"tag {key[:80]} belongs to the model's history: only decisions write it",
            INVALID_PARAMETER_VALUE,
        )


def _check_mark(key: str) -> None:
    if key == _REGISTERED_BY and actors.is_known():
        raise MlflowException(
            f"tag {_REGISTERED_BY} says who registered the version: nobody changes it",
            INVALID_PARAMETER_VALUE,
        )


def _check_runs_are_here(db_uri: str) -> None:
    """A decision is one transaction: runs and models are in one database."""
    runs = os.environ.get(BACKEND_STORE_URI_ENV_VAR) or _opened_for_runs()
    if runs and stock_uri(runs) != db_uri:
        raise MlflowException(
            "runs and registered models are in two databases: leave --registry-store-uri out, the "
            "guard needs both in one",
            INVALID_PARAMETER_VALUE,
        )


def _opened_for_runs() -> str:
    """The database that this server has opened for runs, empty where it is no server yet."""
    handlers = sys.modules.get("mlflow.server.handlers")
    return str(getattr(getattr(handlers, "_tracking_store", None), "db_uri", ""))
