"""The guard: every decision about a registered model, judged, and written in one transaction."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops import gated, promotion
from opusclip_mlops.candidates import Bench
from opusclip_mlops.deciding import GateRefused, Judge
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.guarded import Ask
from opusclip_mlops.policy import read_policy
from opusclip_mlops.refusals import is_for_good
from opusclip_mlops.server import actors
from opusclip_mlops.server.judging import Judged, NotJudgedYet
from opusclip_mlops.server.served_artifacts import Served, ServedModels, ServedRuns
from opusclip_mlops.server.transaction import (
    BoundModels,
    BoundRuns,
    StoreClient,
    transaction,
)
from opusclip_mlops.smoke import SmokeResult, smoke_test

SMOKE_TESTS = "OPUSCLIP_SERVER_SMOKE_TESTS"
_MOST_ROUNDS = 100
_ANNOUNCEMENTS = "opusclip_mlops.server.announcements"
_DEFAULT_ROOT = "./mlruns"

_Answer = TypeVar("_Answer")
Action = Callable[[StoreClient, Judge], _Answer]


@dataclass(frozen=True)
class DatabaseGuard:
    """Decides about the registered models of one database."""

    store: SqlAlchemyStore

    def decide(self, ask: Ask) -> tuple[Decision, ...]:
        """Decide what is asked for, as the user who asks.

        Raises:
            GateRefused: The gate does not let the version through.
            OpusclipError: It was refused for another reason.
            MlflowException: The database does not answer, or others decide all the time.
        """
        if ask.what == "policy" and ask.text:
            read_policy(ask.text, source="the policy").check_model(ask.name)
        return self.run(ask.name, partial(decided, ask))

    def run(self, model: str, action: Action[_Answer]) -> _Answer:
        """Do something with a registered model in one transaction, alone.

        Args:
            model: Its name.
            action: Is given a client of the transaction and a judge; it may be called again, where
                there is something to judge first.

        Raises:
            GateRefused, OpusclipError, MlflowException: As `decide`.
        """
        judged = Judged(self._judge())
        for _ in range(_MOST_ROUNDS):
            try:
                answer = self._tried(model, action, judged)
            except NotJudgedYet as asked:
                judged.add(asked.case)
                continue
            _announce(self.store.db_uri)
            return answer
        text = f"others decide about {model!r} all the time: call again"
        raise MlflowException(text, TEMPORARILY_UNAVAILABLE)

    def _tried(self, model: str, action: Action[_Answer], judged: Judged) -> _Answer:
        """What was found changed by hand is kept where the gate refuses what was asked for."""
        refused: GateRefused | None = None
        with transaction(self.store, model, artifact_root=_root()) as client:
            try:
                return action(client, judged.verdict)
            except GateRefused as error:
                refused = error
        raise refused

    def _judge(self) -> Judge:
        return gated.gate(bench=_bench(self.store))


def refused(error: OpusclipError) -> MlflowException:
    """The error as MLflow's own: 400 with the reason, or 503 where it may pass."""
    cause = error.__cause__
    passes = isinstance(cause, MlflowException) and not is_for_good(cause)
    code = TEMPORARILY_UNAVAILABLE if passes else INVALID_PARAMETER_VALUE
    return MlflowException(" ".join(str(error).split()), code)


def is_server() -> bool:
    """Whether this process answers for MLflow's server."""
    return bool(os.environ.get(BACKEND_STORE_URI_ENV_VAR))


def decided(ask: Ask, client: StoreClient, judge: Judge) -> tuple[Decision, ...]:
    """Decide what is asked for in a transaction, as the user who asks.

    Raises:
        GateRefused, OpusclipError: As `DatabaseGuard.decide`.
        NotJudgedYet: There is something to judge first.
    """
    told: dict[str, Any] = {"came_by": ask.came_by, "client": client}
    if ask.what == "reconcile":
        return promotion.reconcile(ask.name, judge=judge, actor=actors.deciding(), **told)
    return (_DECISIONS[ask.what](ask, judge, {**told, "reason": ask.reason}),)


def _promoted(ask: Ask, judge: Judge, told: dict[str, Any]) -> Decision:
    return promotion.promote(
        ask.name,
        ask.version,
        to=ask.to,
        judge=judge,
        force=ask.force,
        actor=actors.deciding(),
        **told,
    )


def _rolled_back(ask: Ask, judge: Judge, told: dict[str, Any]) -> Decision:
    return promotion.rollback(
        ask.name, judge=judge, stage=ask.to, force=ask.force, actor=actors.deciding(), **told
    )


def _approved(ask: Ask, _: Judge, told: dict[str, Any]) -> Decision:
    return promotion.approve(ask.name, ask.version, to=ask.to, actor=actors.approving(), **told)


def _policy_set(ask: Ask, _: Judge, told: dict[str, Any]) -> Decision:
    return promotion.set_policy(ask.name, ask.text, actor=actors.deciding(), **told)


_DECISIONS = {
    "promote": _promoted,
    "rollback": _rolled_back,
    "approve": _approved,
    "policy": _policy_set,
}


def _bench(store: SqlAlchemyStore) -> Bench:
    """What versions are read with, outside of any transaction."""
    if not is_server():
        runs = BoundRuns(store, store.ManagedSessionMaker, artifact_root=_root())
        return Bench(StoreClient(runs, BoundModels(store, store.ManagedSessionMaker)), _smoke)
    served = Served.of()
    served_runs = ServedRuns(store, store.ManagedSessionMaker, artifact_root=_root())
    served_runs.served = served
    models = ServedModels(store, store.ManagedSessionMaker)
    models.runs = served_runs
    client = StoreClient(served_runs, models)
    may_run = os.environ.get(SMOKE_TESTS, "").strip().lower() in ("1", "true")
    return Bench(client, _smoke if may_run else _no_smoke, runs_examples=may_run)


def _smoke(location: str, timeout_s: float) -> SmokeResult:
    if not location:
        return SmokeResult(False, "nobody knows where its files are", 0.0)
    return smoke_test(location, timeout_s=timeout_s)


def _no_smoke(_location: str, _timeout_s: float) -> SmokeResult:
    return SmokeResult(False, "this server runs no models: start it with --smoke-tests", 0.0)


def _root() -> str:
    return os.environ.get(ARTIFACT_ROOT_ENV_VAR) or _DEFAULT_ROOT


def _announce(db_uri: str) -> None:
    """Have webhooks sent soon; what was decided stands whatever comes of that."""
    if find_spec(_ANNOUNCEMENTS):
        import_module(_ANNOUNCEMENTS).poke(db_uri)
