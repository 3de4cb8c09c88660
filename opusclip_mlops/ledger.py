"""Histories in MLflow: an experiment `opusclip registry` with a run for each registered model.

Params are the one thing in MLflow that is written once: of two processes that write another value
under the same key the database lets one through, over REST too. So the records are params, see
`chain`. Which run holds which model's history is a param as well, of the experiment's root run. The
experiment is made under a name of its own, with its root run, and then renamed: a name is given to
one experiment only, so two processes cannot end up with two roots.

A history whose run was erased has a successor, under the same key with a number behind it; that
one tells of it.

While a process makes the registry look like the history, the run has a tag
`opusclip.settling.<nonce>`: "<the last record it saw> <Unix time in ms>". By it is known what
a process that is slow, or was killed, left in the registry.
"""

from __future__ import annotations

import hashlib
import itertools
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from opusclip_mlops.chain import Chain, Problem, is_key, key_of, parts_of, read_chain
from opusclip_mlops.decisions import Decision, like, number_in, to_text
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.patience import patiently
from opusclip_mlops.refusals import MISSING, reason_of

EXPERIMENT = "opusclip registry"
ROOT_TAG = "opusclip.root"
MODEL_TAG = "opusclip.model"
_SETTLING = "opusclip.settling."
_FORGOTTEN_MS = _EARLY_MS = 600_000
_MOST_NAMESAKES = 20
_NOTE = "The history of a registered model. Params are its records; nothing here is to be changed."


@dataclass(frozen=True, slots=True)
class Notes:
    """A history as it stands, and from which records on somebody is still settling."""

    chain: Chain
    settling: Mapping[str, int] = field(default_factory=dict)
    forgotten: tuple[str, ...] = ()
    is_active: bool = True
    is_erased: bool = False

    @property
    def settled_to(self) -> int:
        """Up to here everybody has settled; later records may not show in the registry yet."""
        return min([self.chain.last_number, *self.settling.values()])


@dataclass(frozen=True, slots=True)
class Ledger:
    """The history of one registered model.

    Attributes:
        client: MLflow, where the histories are.
        model: The registered model's name.
        run_id: The run that holds it.
        before: The runs of histories before it, all of them erased, the first one first.
    """

    client: MlflowClient
    model: str
    run_id: str
    before: tuple[str, ...] = ()

    def read(self) -> Notes:
        """The history as it stands now; one that was erased has no records, and says so.

        Raises:
            RegistryError: MLflow did not answer.
        """
        run = patiently(self._cannot("read"), self._run)
        params = run.data.params if run else {}
        chain = read_chain(params, model=self.model, run_id=self.run_id)
        gone = [*self.before, *([] if run else [self.run_id])]
        problems = (*(Problem(0, f"its run {one} was erased") for one in gone), *chain.problems)
        settling, forgotten = _settling(run.data.tags if run else {})
        is_active = run is None or run.info.lifecycle_stage == LifecycleStage.ACTIVE
        chain = replace(chain, problems=problems)
        return Notes(chain, settling, forgotten, is_active, is_erased=run is None)

    def _run(self) -> Run | None:
        try:
            return self.client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            return None

    def append(self, record: Decision, *, text: str | None = None) -> bool:
        """Write a record under its number; False when another process was faster.

        Args:
            record: Made by `Chain.next`.
            text: A long text that the record names by its sha256.

        Raises:
            RegistryError: MLflow refused, or did not answer: whether the record is written is then
                open, and the next call sees.
        """
        if text is not None:
            self._keep(text)
        key, value = key_of(record.number), to_text(record)
        patiently(self._cannot("write"), lambda: self._log(key, value))
        return self._params().get(key) == value

    def announce(self, nonce: str, number: int) -> None:
        """Tell that from record `number` on the registry is being changed by this process."""
        value = f"{number} {time.time_ns() // 1_000_000}"
        tag = _SETTLING + nonce
        patiently(self._cannot("mark"), lambda: self.client.set_tag(self.run_id, tag, value))

    def withdraw(self, nonces: list[str]) -> None:
        """Take announcements back."""
        for nonce in nonces:
            patiently(self._cannot("mark"), partial(self._untag, _SETTLING + nonce))

    def _cannot(self, verb: str) -> str:
        return f"cannot {verb} the history of {self.model!r}"

    def _params(self) -> Mapping[str, str]:
        run = patiently(self._cannot("read"), lambda: self.client.get_run(self.run_id))
        params: Mapping[str, str] = run.data.params
        return params

    def _keep(self, text: str) -> None:
        params = [Param(key, value) for key, value in parts_of(text).items()]
        call = self.client.log_batch
        patiently(self._cannot("write"), lambda: call(self.run_id, params=params, synchronous=True))

    def _log(self, key: str, value: str) -> None:
        """Write a param; one that is written already is no fault, the reader sees whose it is."""
        try:
            self.client.log_param(self.run_id, key, value, synchronous=True)
        except MlflowException:
            if key not in self.client.get_run(self.run_id).data.params:
                raise

    def _untag(self, tag: str) -> None:
        try:
            self.client.delete_tag(self.run_id, tag)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise


def find_ledger(
    client: MlflowClient, model: str, *, created_ms: int | None = None
) -> Ledger | None:
    """The history of a model that is there, None where it has none yet.

    Args:
        client: MLflow, where the histories are.
        model: The registered model's name.
        created_ms: When it was created, in Unix milliseconds: a model that was deleted and made
            again has a history of its own. None for the last model of that name.

    Raises:
        RegistryError: MLflow did not answer, or the experiment is not one of this package.
    """
    what = f"cannot find the history of {model!r}"
    experiment = patiently(what, lambda: client.get_experiment_by_name(EXPERIMENT))
    if experiment is None:
        return None
    root_id = _root_of(experiment)
    params = patiently(what, lambda: client.get_run(root_id)).data.params
    key = _key(model, created_ms) if created_ms else _last(params, model)
    runs = [*_runs(params, key)]
    return Ledger(client, model, runs[-1], tuple(runs[:-1])) if runs else None


def namesake(client: MlflowClient, model: str, *, created_ms: int) -> str:
    """The run of another history with records of a model of that name, the newest; empty for none.

    Raises:
        RegistryError: As `find_ledger`.
    """
    what = f"cannot look for histories of {model!r}"
    experiment = patiently(what, lambda: client.get_experiment_by_name(EXPERIMENT))
    if experiment is None:
        return ""
    runs = patiently(
        what,
        lambda: client.search_runs(
            [experiment.experiment_id],
            f"tags.`{MODEL_TAG}` {like(model)}",
            max_results=_MOST_NAMESAKES,
            order_by=["attributes.start_time DESC"],
        ),
    )
    told = [run for run in runs if any(map(is_key, run.data.params))]
    found = [run.info.run_id for run in told if run.data.tags.get(MODEL_TAG) == model]
    # Somebody may have begun the model's own since it was looked for.
    own = find_ledger(client, model, created_ms=created_ms) if found else None
    known = (own.run_id, *own.before) if own else ()
    return next((run_id for run_id in found if run_id not in known), "")


def open_ledger(client: MlflowClient, model: str, *, created_ms: int) -> Ledger:
    """The history of a model, made where there is none; any number of processes may do so at once.

    Raises:
        RegistryError: As `find_ledger`, where the experiment was deleted, and for MLflow's file
            store, which does not keep two processes from writing the same param.
    """
    if found := find_ledger(client, model, created_ms=created_ms):
        return found
    if urlsplit(client.tracking_uri).scheme in ("", "file"):
        raise RegistryError("a history needs MLflow on a database: its file store lets two write")
    experiment = the_experiment(client)
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RegistryError(f"experiment {EXPERIMENT!r} is deleted: restore it in MLflow")
    root = Ledger(client, model, _root_of(experiment))
    return _begun(root, _key(model, created_ms))


def succeed(erased: Ledger, *, created_ms: int) -> Ledger:
    """A history behind one that was erased; any number of processes may do so at once.

    Raises:
        RegistryError: As `open_ledger`.
    """
    experiment = the_experiment(erased.client)
    root = Ledger(erased.client, erased.model, _root_of(experiment))
    before = (*erased.before, erased.run_id)
    made = _begun(root, _numbered(_key(erased.model, created_ms), len(before) + 1))
    return replace(made, before=before)


def _begun(root: Ledger, key: str) -> Ledger:
    """The history under a key of the root run, made where there is none."""
    client, model = root.client, root.model
    what = f"cannot begin a history of {model!r}"
    experiment_id = patiently(what, lambda: client.get_run(root.run_id)).info.experiment_id
    run_id = _new_run(client, what, experiment_id, model)
    patiently(what, lambda: root._log(key, run_id))
    winner = root._params()[key]
    if winner != run_id:
        with suppress(MlflowException):
            client.delete_run(run_id)
    return Ledger(client, model, winner)


def _runs(params: Mapping[str, str], key: str) -> Iterator[str]:
    """The runs under a key, each the successor of the one before it."""
    for number in itertools.count(1):
        run_id = params.get(_numbered(key, number))
        if run_id is None:
            return
        yield run_id


def _numbered(key: str, number: int) -> str:
    return key if number == 1 else f"{key}.{number}"


def _root_of(experiment: Experiment) -> str:
    root_id = experiment.tags.get(ROOT_TAG)
    if not root_id:
        raise RegistryError(
            f"experiment {EXPERIMENT!r} holds no histories: it has no tag {ROOT_TAG}; rename it"
        )
    return str(root_id)


def _key(model: str, created_ms: int | None) -> str:
    return f"{hashlib.sha256(model.encode()).hexdigest()[:32]}.{created_ms}"


def _last(params: Mapping[str, str], model: str) -> str:
    """The key of the model of that name that was created last."""
    start = _key(model, None).removesuffix("None")
    made_ms = [key.removeprefix(start) for key in params if key.startswith(start)]
    known = [one for one in made_ms if number_in(one) is not None]
    return start + max(known, key=int, default="")


def the_experiment(client: MlflowClient) -> Experiment:
    """The experiment of all histories, made where there is none."""
    what = f"cannot make the experiment {EXPERIMENT!r}"

    def by_name() -> Experiment | None:
        return patiently(what, lambda: client.get_experiment_by_name(EXPERIMENT))

    if found := by_name():
        return found
    made_id = _made_experiment(client, what)
    reason = ""
    try:
        client.rename_experiment(made_id, EXPERIMENT)
    except MlflowException as error:
        reason = reason_of(error)
    experiment = by_name()
    if experiment is None or experiment.experiment_id != made_id:
        with suppress(MlflowException):
            client.delete_experiment(made_id)
    if experiment is None:
        raise RegistryError(f"{what}: {reason}")
    return experiment


def _made_experiment(client: MlflowClient, what: str) -> str:
    """An experiment with a root run, under a name that nobody else has."""
    create = client.create_experiment
    experiment_id: str = patiently(what, lambda: create(f"{EXPERIMENT} {uuid.uuid4().hex}"))
    root_id = _new_run(client, what, experiment_id, "which run holds which history")
    patiently(what, lambda: client.set_experiment_tag(experiment_id, ROOT_TAG, root_id))
    return experiment_id


def _new_run(client: MlflowClient, what: str, experiment_id: str, model: str) -> str:
    tags = {MODEL_TAG: model, MLFLOW_RUN_NOTE: _NOTE}
    create = client.create_run
    run: Run = patiently(what, lambda: create(experiment_id, run_name=model, tags=tags))
    # `set_terminated` prints where the run is to be seen.
    patiently(what, lambda: client.update_run(run.info.run_id, status="FINISHED"))
    return str(run.info.run_id)


def _settling(tags: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Who is settling from which record on, and whose mark is too old, or rubbish."""
    settling, forgotten = {}, []
    now_ms = time.time_ns() // 1_000_000
    for tag, value in tags.items():
        if not tag.startswith(_SETTLING):
            continue
        nonce = tag.removeprefix(_SETTLING)
        seen, said_ms = map(number_in, (*value.split(" ", 1), "")[:2])
        if seen is None or said_ms is None or said_ms > now_ms + _EARLY_MS:
            forgotten.append(nonce)
            continue
        settling[nonce] = seen
        if now_ms - said_ms > _FORGOTTEN_MS:
            forgotten.append(nonce)
    return settling, tuple(forgotten)
