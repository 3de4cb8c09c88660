"""A process that dies at any step leaves nothing, or a decision that the next call carries out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from opusclip_mlops import chronicle, ledger
from opusclip_mlops.decisions import Actor
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.promotion import promote, reconcile, rollback
from opusclip_mlops.settling import open_desk
from tests.journeys import store
from tests.promoters import NAME, Gate, is_settled, make_model, marks, shown

WRITES = (
    "create_experiment", "create_run", "delete_experiment", "delete_run", "delete_tag",
    "delete_registered_model_alias", "log_batch", "log_param", "rename_experiment",
    "set_experiment_tag", "set_registered_model_alias", "set_registered_model_tag", "set_tag",
    "update_run", "transition_model_version_stage",
)  # fmt: skip


class Died(BaseException):
    """The process is no more."""


class Mortal:
    """A client of MLflow that dies at its n-th write: before it, or when it is done."""

    def __init__(self, client: MlflowClient, at: int, *, after: bool) -> None:
        self.client, self.left, self.after = client, at, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)
        return self._counted(call) if name in WRITES else call

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Died
            answer = call(*args, **options)
            if self.left == 0:
                raise Died
            return answer

        return counted


class Doomed(Mortal):
    """A client that dies when it is to set a tag of a model, or a stage, for the first time."""

    def __init__(self, client: MlflowClient, what: str) -> None:
        super().__init__(client, 1, after=False)
        self.what = what

    def __getattr__(self, name: str) -> Any:
        is_deadly = name.endswith((f"registered_model_{self.what}", f"version_{self.what}"))
        return super().__getattr__(name) if is_deadly else getattr(self.client, name)


class Weak:
    """A client whose writes are done, and then said to have failed; at every second one."""

    def __init__(self, client: MlflowClient) -> None:
        self.client, self.count = client, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)

        def answer(*args: Any, **options: Any) -> Any:
            self.count += 1
            result = call(*args, **options)
            if self.count % 2 == 0:
                raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)
            return result

        return answer if name in WRITES else call


def first(client: MlflowClient) -> object:
    return promote(NAME, 1, to="Production", judge=Gate(), client=client)


def over_staging(client: MlflowClient) -> object:
    promote(NAME, 2, to="Staging", judge=Gate(), client=client)
    return promote(NAME, 2, to="Production", judge=Gate(), client=client)


def back_and_out(client: MlflowClient) -> object:
    rollback(NAME, judge=Gate(), reason="flicker", client=client)
    return promote(NAME, 1, to="None", judge=Gate(), client=client)


def by_hand(client: MlflowClient) -> object:
    return reconcile(NAME, judge=Gate(refused=frozenset({3})), client=client)


def prepared(tmp_path: Path, work: Callable[..., object]) -> MlflowClient:
    """A store of its own, with what has to stand before the work can begin."""
    client = MlflowClient(store(tmp_path))
    make_model(client, versions=4)
    if work is not first:
        first(client)
    if work is back_and_out:
        promote(NAME, 2, to="Production", judge=Gate(), client=client)
    if work is by_hand:
        client.transition_model_version_stage(NAME, "3", "Production", True)
    return client


@pytest.mark.parametrize("work", [first, over_staging, back_and_out, by_hand])
def test_death_at_any_step_is_put_right_by_the_next_call(
    tmp_path: Path, work: Callable[[Any], object]
) -> None:
    """Nothing that was left is taken for a change by hand; one holder, its alias, a whole chain."""
    for step in range(1, 40):
        client = prepared(tmp_path / str(step), work)
        is_over = survives(work, client, step)
        assert work is by_hand or chronicle.observe(NAME, client=client) == ()
        promote(NAME, 4, to="Staging", judge=Gate(refused=frozenset({3})), client=client)
        assert shown(client)["Staging"] == [4]
        assert is_settled(client), step
        assert work is by_hand or not _by_hand(client)
        if is_over:
            assert step > 4
            return
    pytest.fail("more than 40 writes")


def survives(work: Callable[[Any], object], client: MlflowClient, step: int) -> bool:
    """Whether the work is done before the process dies, which it does after its n-th write."""
    try:
        work(Mortal(client, step, after=True))
    except Died:
        return False
    return True


def _by_hand(client: MlflowClient) -> list[str]:
    records = chronicle.history(NAME, client=client)
    return [one.kind for one in records if one.kind in ("external", "repair")]


def test_the_marks_of_the_dead_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten minutes the next call that settles removes them; hand-made changes count again."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    first(client)
    with pytest.raises(Died):
        promote(NAME, 2, to="Production", judge=Gate(), client=Mortal(client, 3, after=False))  # type: ignore[arg-type]
    assert len(marks(client)) == 1
    monkeypatch.setattr(ledger, "_FORGOTTEN_MS", -1)
    reconcile(NAME, judge=Gate(), client=client)
    assert marks(client) == []
    assert shown(client)["Production"] == [2]


def test_a_late_write_of_a_dead_process_is_known_for_what_it_is(tmp_path: Path) -> None:
    """It was announced: it is no change by hand, and the next call sets the holder again."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    desk = open_desk(client, NAME, actor=Actor("slow", "test"), came_by="API")
    first(client)
    view = desk.look()
    desk._announce(view.notes)
    promote(NAME, 2, to="Production", judge=Gate(), client=client)
    client.transition_model_version_stage(NAME, "1", "Production", True)
    assert chronicle.observe(NAME, client=client) == ()
    reconcile(NAME, judge=Gate(), client=client)
    assert shown(client) == {"Staging": [], "Production": [2], "production": 2}
    assert _by_hand(client) == []


def test_a_mark_explains_what_was_decided_since_and_nothing_else(tmp_path: Path) -> None:
    """One from the future nothing at all; one of now nothing in a stage that nobody moved since."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    first(client)
    promote(NAME, 2, to="Production", judge=Gate(), client=client)
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    client.set_tag(run_id, "opusclip.settling.x", "1 99999999999999")
    client.transition_model_version_stage(NAME, "1", "Production", True)
    assert [one.version for one in chronicle.observe(NAME, client=client)] == [1]
    (made,) = reconcile(NAME, judge=Gate(refused=frozenset({1})), client=client)
    assert (made.kind, marks(client)) == ("repair", [])
    client.set_tag(run_id, "opusclip.settling.x", f"3 {time.time_ns() // 1_000_000}")
    client.transition_model_version_stage(NAME, "2", "Archived")
    assert [one.how for one in chronicle.observe(NAME, client=client)] == ["taken out"]


def test_a_head_that_nobody_names_is_found(tmp_path: Path) -> None:
    """A call that died before it named the head is fine, the next one names it; not so later."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    for version, deadly, made in ((1, "tag", 1), (2, "tag", 1), (2, "stage", 2)):
        with pytest.raises(Died):
            promote(NAME, version, to="Staging", judge=Gate(), client=Doomed(client, deadly))  # type: ignore[arg-type]
        assert len(chronicle.history(NAME, client=client)) == made
        assert chronicle.verify_history(NAME, client=client) == []
    reconcile(NAME, judge=Gate(), client=client)
    text = "its head is not named: the end may be missing"
    tags = dict(client.get_registered_model(NAME).tags)
    for tag, value in tags.items():
        client.delete_registered_model_tag(NAME, tag)
        assert [str(one) for one in chronicle.verify_history(NAME, client=client)] == [text]
        with pytest.raises(RegistryError, match=text):
            promote(NAME, 3, to="Staging", judge=Gate(), client=client)
        client.set_registered_model_tag(NAME, tag, value)
    client.delete_registered_model_tag(NAME, "opusclip.history.head")
    options = {"force": True, "reason": "known", "client": client}
    assert promote(NAME, 3, to="Staging", judge=Gate(), **options).problems == (text,)
    promote(NAME, 1, to="Staging", judge=Gate(), client=client)


def test_writes_that_are_done_and_seem_to_fail_are_done_once(tmp_path: Path) -> None:
    """An answer that is lost on its way is asked for again; no record is doubled."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    for version in (1, 2):
        promote(NAME, version, to="Production", judge=Gate(), client=Weak(client))  # type: ignore[arg-type]
    assert [one.version for one in chronicle.history(NAME, client=client)] == [1, 2]
    assert shown(client) == {"Staging": [], "Production": [2], "production": 2}
    assert is_settled(client)
    assert marks(client) == []


def test_somebody_who_moves_versions_all_the_time_is_an_error(tmp_path: Path) -> None:
    """Settling ends, and says that something else is at work."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    first(client)

    class Stubborn(Mortal):
        def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **options: Any) -> Any:
                answer = call(*args, **options)
                client.set_registered_model_alias(NAME, "production", "1")
                return answer

            return counted

    with pytest.raises(RegistryError, match="something else moves the versions"):
        promote(NAME, 2, to="Production", judge=Gate(), client=Stubborn(client, 0, after=True))  # type: ignore[arg-type]
    reconcile(NAME, judge=Gate(), client=client)
    assert is_settled(client)
