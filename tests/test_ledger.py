"""Histories in MLflow: one run for each model, one record for each number, whoever is first."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import EXPERIMENT, find_ledger, namesake, open_ledger, succeed
from tests.journeys import store
from tests.promoters import erase

MADE_MS = 1_700_000_000_000


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


def draft(nonce: str, model: str = "clip") -> Decision:
    return Decision(kind="promotion", model=model, version=1, to_stage="Staging", nonce=nonce)


def test_a_history_is_made_once_and_found_again(client: MlflowClient) -> None:
    """Another model has another one, and so has a model that was made anew under the name."""
    assert find_ledger(client, "clip", created_ms=MADE_MS) is None
    first = open_ledger(client, "clip", created_ms=MADE_MS)
    assert open_ledger(client, "clip", created_ms=MADE_MS) == first
    assert find_ledger(client, "clip", created_ms=MADE_MS) == first
    other = open_ledger(client, "clip2", created_ms=MADE_MS)
    anew = open_ledger(client, "clip", created_ms=MADE_MS + 1)
    assert len({first.run_id, other.run_id, anew.run_id}) == 3
    assert find_ledger(client, "clip") == anew
    assert find_ledger(client, "nobody") is None


def test_many_who_begin_at_once_begin_one(client: MlflowClient) -> None:
    """One experiment, one root run, one history; what the others made is deleted."""
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: open_ledger(client, "clip", created_ms=MADE_MS).run_id, range(16))
        )
    assert len(set(made)) == 1
    active = client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
    assert sorted(one.name for one in active) == ["Default", EXPERIMENT]
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == {made[0], experiment.tags["opusclip.root"]}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_of_many_who_write_a_number_one_has_written_it(client: MlflowClient) -> None:
    """The others are told; what stands there is what the winner wrote."""
    ledger = open_ledger(client, "clip", created_ms=MADE_MS)
    chain = ledger.read().chain
    records = [chain.next(draft(str(number))) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(ledger.append, records))
    assert written.count(True) == 1
    notes = ledger.read()
    assert notes.chain.records == (records[written.index(True)],)
    assert notes.chain.problems == ()
    assert ledger.append(records[written.index(True)])


def test_long_texts_are_kept_beside(client: MlflowClient) -> None:
    """Longer than a param; writing the same text twice is no fault."""
    ledger = open_ledger(client, "clip", created_ms=MADE_MS)
    text = "x" * 20_000
    for nonce in ("a", "b"):
        assert ledger.append(ledger.read().chain.next(draft(nonce)), text=text)
    assert list(ledger.read().chain.texts.values()) == [text]


def test_who_is_settling_is_seen(client: MlflowClient) -> None:
    """Announcements lower the record that all have settled to; taking back twice is no fault."""
    ledger = open_ledger(client, "clip", created_ms=MADE_MS)
    for nonce in ("a", "b"):
        ledger.append(ledger.read().chain.next(draft(nonce)))
    assert ledger.read().settled_to == 2
    ledger.announce("one", 1)
    ledger.announce("two", 0)
    notes = ledger.read()
    assert (notes.settling, notes.settled_to, notes.forgotten) == ({"one": 1, "two": 0}, 0, ())
    for _ in range(2):
        ledger.withdraw(["one", "two"])
    assert ledger.read().settling == {}


def test_rubbish_in_the_marks_is_taken_away(client: MlflowClient) -> None:
    """A mark that nobody understands, or of the future, counts as forgotten, explains nothing."""
    ledger = open_ledger(client, "clip", created_ms=MADE_MS)
    ledger.append(ledger.read().chain.next(draft("a")))
    huge, late = "9" * 4_400, time.time_ns() // 1_000_000 + 900_000
    values = ("", "x y", "0", "-1 5", "0 2 3", f"{huge} 1", f"0 {huge}", f"0 {late}")
    for number, value in enumerate(values):
        client.set_tag(ledger.run_id, f"opusclip.settling.{number}", value)
    notes = ledger.read()
    assert (len(notes.forgotten), notes.settling, notes.settled_to) == (len(values), {}, 1)


def test_histories_of_the_same_name_are_found(client: MlflowClient) -> None:
    """With records only, of exactly this name, not deleted, and not the model's own."""
    for name in ('it\'s "odd" %_\\', "clip_generator"):
        assert namesake(client, name, created_ms=MADE_MS) == ""
        old = open_ledger(client, name, created_ms=MADE_MS)
        assert namesake(client, name, created_ms=MADE_MS + 1) == ""
        assert old.append(old.read().chain.next(draft("a", name)))
        assert namesake(client, name, created_ms=MADE_MS + 1) == old.run_id
        assert namesake(client, name, created_ms=MADE_MS) == ""
        assert namesake(client, name.replace("_", "x"), created_ms=MADE_MS) == ""
        client.delete_run(old.run_id)
        assert namesake(client, name, created_ms=MADE_MS + 1) == ""


def test_the_file_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's old store of files does not keep two processes from writing one record."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(RegistryError, match="needs MLflow on a database"):
        open_ledger(MlflowClient(str(tmp_path / "mlruns")), "clip", created_ms=MADE_MS)


def test_a_history_that_was_erased_says_so_and_has_a_successor(client: MlflowClient) -> None:
    """A run that `mlflow gc` took away; the one behind it tells of it, whoever begins it first."""
    erased = open_ledger(client, "clip", created_ms=MADE_MS)
    erase(client, erased.run_id)
    notes = erased.read()
    text = f"its run {erased.run_id} was erased"
    assert (notes.is_erased, [str(one) for one in notes.chain.problems]) == (True, [text])
    with ThreadPoolExecutor(4) as pool:
        made = {*pool.map(lambda _: succeed(erased, created_ms=MADE_MS), range(8))}
    assert made == {find_ledger(client, "clip", created_ms=MADE_MS)}
    assert made == {find_ledger(client, "clip")}
    notes = made.pop().read()
    assert (notes.is_erased, [str(one) for one in notes.chain.problems]) == (False, [text])
