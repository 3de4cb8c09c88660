"""Facts about `opusclip_mlops.candidates`: what MLflow knows of a version, or one error."""

import contextlib
import json
import math
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag

from opusclip_mlops import checkpoints
from opusclip_mlops.candidates import MADE_BY, judge_version, read_candidate, read_holder
from opusclip_mlops.deciding import CannotJudge
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.gates import Approval, Candidate, Measure
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.layout import text_path
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.passports import PASSPORTS_KEY, Passport, encoded
from opusclip_mlops.policy import MetricRule, PolicyError, StageRules, read_policy
from tests.journeys import store as database
from tests.servers import mlflow_server
from tests.test_registry import FIRST, Store

WEIGHTS = "artifacts/checkpoint/weights.safetensors"
METADATA = "artifacts/checkpoint/metadata.json"
NOTHING = StageRules()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A database that the tests of this file share; each has models and runs of its own."""
    folder = tmp_path_factory.mktemp("store")
    return Store(folder, database(folder))


def registered(store: Store, name: str) -> str:
    """A model with one version made of a checkpoint at step 20; returns its run."""
    run_id = store.run(FIRST)
    store.register(run_id, name=name)
    return run_id


def read(store: Store, name: str, version: int | str = 1, **rules: Any) -> Candidate:
    """A version as the gate sees it."""
    return read_candidate(name, version, rules=StageRules(**rules), tracking_uri=store.uri)


def asks_for(*keys: str) -> tuple[MetricRule, ...]:
    return tuple(MetricRule(key=key, min=0) for key in keys)


def as_measured(*keys: str) -> tuple[MetricRule, ...]:
    """Rules that ask how a value was measured."""
    return tuple(MetricRule(key=key, not_worse_than="Production", better="lower") for key in keys)


def location(store: Store, name: str) -> Path:
    """The folder that a version's files lie in."""
    return Path(store.client.get_model_version(name, "1").source.removeprefix("file://"))


def foreign(store: Store, folder: Path, name: str, run_id: str | None = None) -> None:
    """A version of a plain folder, registered by another tool."""
    store.client.create_registered_model(name)
    store.client.create_model_version(name, folder.as_uri(), run_id=run_id)


def test_a_checkpoints_own_values_count_before_those_of_its_run(store: Store) -> None:
    """Then what the run has at the checkpoint's step, or last before it, never later."""
    run_id = registered(store, "measured")
    for key, step, value in [
        ("val/psnr", 20, 1.0),
        ("at", 10, 1.0),
        ("at", 20, 2.0),
        ("at", 21, 3.0),
        ("before", 19, 5.0),
        ("before", 3, 4.0),
        ("later", 21, 6.0),
        ("past", 19, 7.0),
        ("past", 30, 8.0),
    ]:
        store.client.log_metric(run_id, key, value, step=step)
    found = read(
        store, "measured", metrics=asks_for("val/psnr", "at", "before", "later", "past", "never")
    ).metrics
    assert found["val/psnr"] == Measure(24.123456789, "checkpoint")
    assert math.isnan(found["val/loss"].value)
    assert found["at"] == Measure(2.0, "run, step 20")
    assert found["before"] == Measure(5.0, "run, step 19")
    assert found["past"] == Measure(7.0, "run, step 19")
    assert found.keys() == {"val/psnr", "val/loss", "at", "before", "past"}


def test_a_value_is_read_with_its_passport(store: Store) -> None:
    """That of the checkpoint's own metadata, and that which lies beside the run's point."""
    run_id = registered(store, "passported")
    passport = Passport(metric="fid", version="1", count=7, unit="frames")
    path = location(store, "passported") / METADATA
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "passports": {"val/psnr": passport.to_dict()}}))
    store.client.log_metric(run_id, "fid", 5.0, timestamp=1_000, step=20)
    text = encoded({"fid": passport})
    store.client.log_text(run_id, text, text_path(PASSPORTS_KEY, 20, 1_000, text))
    found = read(store, "passported", metrics=as_measured("val/psnr", "fid")).metrics
    assert found["val/psnr"].passport == passport
    assert found["fid"] == Measure(5.0, "run, step 20", passport)
    path.write_text(json.dumps({**content, "passports": {"val/psnr": {"metric": 3}}}))
    with pytest.raises(CannotJudge, match="no passport"):
        read(store, "passported", metrics=as_measured("val/psnr"))


def test_a_damaged_passport_is_in_the_way_of_rules_that_ask_for_it_only(store: Store) -> None:
    """A bound, another metric, or a comparison of unlike values has no need of it."""
    run_id = registered(store, "damaged")
    path = location(store, "damaged") / METADATA
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "passports": {"val/psnr": {"metric": 3}}}))
    store.client.log_metric(run_id, "fid", 5.0, timestamp=1_000, step=20)
    store.client.log_text(run_id, "rubbish", text_path(PASSPORTS_KEY, 20, 1_000, "rubbish"))
    [free] = as_measured("fid")
    rules = (
        *asks_for("val/psnr", "fid"),
        *as_measured("val/loss"),
        replace(free, allow_unlike=True),
    )
    found = read(store, "damaged", metrics=rules).metrics
    assert (found["val/psnr"].value, found["fid"].value) == (24.123456789, 5.0)
    for key in ("val/psnr", "fid"):
        with pytest.raises(CannotJudge, match=key):
            read(store, "damaged", metrics=as_measured(key))
        with pytest.raises(CannotJudge, match=key):
            read(store, "damaged", metrics=(MetricRule(key=key, min=0, passport="0" * 12),))


def test_a_value_that_was_logged_twice_at_a_step_is_the_later_one(store: Store) -> None:
    """As where a training went on from a checkpoint and came by the same step again."""
    run_id = registered(store, "twice")
    store.client.log_metric(run_id, "k", 9.0, timestamp=1_000, step=20)
    store.client.log_metric(run_id, "k", 1.0, timestamp=2_000, step=20)
    store.client.log_metric(run_id, "k", 5.0, timestamp=3_000, step=21)
    found = read(store, "twice", metrics=asks_for("k"))
    assert found.metrics["k"] == Measure(1.0, "run, step 20")


def test_what_training_gave_up_does_not_count_for_what_came_after(store: Store) -> None:
    """A checkpoint has the values of its own generation, not those of the same steps elsewhere."""
    run_id = registered(store, "again")
    loaded = json.loads((location(store, "again") / METADATA).read_text())
    made_ms = loaded["created_ms"]

    def begin(start_ms: int, step: int, checkpoint_ms: int) -> None:
        about = CheckpointMetadata(name="c", step=step, epoch=0, created_ms=checkpoint_ms)
        for tag in generation_tag("s", start_ms=start_ms, begun_from=about).items():
            store.client.set_tag(run_id, *tag)

    # Made in the second of three generations; the third goes on from the first one's step 7.
    begin(made_ms - 100, 5, made_ms - 1000)
    begin(made_ms + 100, 7, made_ms - 900)
    for key, at_ms, step, value in [
        ("own", made_ms - 500, 20, 1.0),
        ("own", made_ms - 50, 20, 2.0),
        ("own", made_ms + 150, 20, 3.0),
        ("before", made_ms - 500, 4, 4.0),
        ("before", made_ms - 500, 6, 5.0),
        ("before", made_ms + 150, 12, 6.0),
        ("given up", made_ms - 500, 6, 7.0),
        ("later", made_ms + 150, 8, 8.0),
    ]:
        store.client.log_metric(run_id, key, value, timestamp=at_ms, step=step)
    found = read(store, "again", metrics=asks_for("own", "before", "given up", "later")).metrics
    assert found["own"] == Measure(2.0, "run, step 20")
    assert found["before"] == Measure(4.0, "run, step 4")
    assert not {"given up", "later"} & found.keys()


def test_without_a_checkpoint_the_run_as_it_is_now_counts(store: Store, tmp_path: Path) -> None:
    """The last value of what was not given up, however high the steps that were."""
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    run_id = store.run()
    about = CheckpointMetadata(name="c", step=5, epoch=0, created_ms=1_000)
    for tag in generation_tag("s", start_ms=2_000, begun_from=about).items():
        store.client.set_tag(run_id, *tag)
    for at_ms, step, value in [(1_500, 5, 1.0), (1_600, 90, 2.0), (2_000, 6, 3.0)]:
        store.client.log_metric(run_id, "k", value, timestamp=at_ms, step=step)
    foreign(store, tmp_path, "gone back", run_id)
    found = read(store, "gone back", metrics=asks_for("k"))
    assert found.metrics == {"k": Measure(3.0, "run, step 6")}


def test_a_version_is_read_with_its_files_tags_signature_dataset_and_author(store: Store) -> None:
    """Nothing is hashed and nothing started that the rules do not ask for."""
    run_id = registered(store, "whole")
    store.client.set_tag(run_id, "mlflow.user", "anna")
    store.client.set_model_version_tag("whole", "1", "reviewed", "yes")
    found = read(store, "whole", "1", signature=True)
    assert (found.name, found.version, found.author) == ("whole", 1, "anna")
    assert found.tags["reviewed"] == "yes"
    assert found.files[WEIGHTS] == location(store, "whole").joinpath(WEIGHTS).stat().st_size
    assert found.has_signature
    assert found.dataset_digest == "d1g35t"
    assert (found.checkpoint_problem, found.smoke) == (None, None)


def test_weights_are_checked_against_what_was_registered(store: Store) -> None:
    """Changed weights are found, also where another checkpoint's metadata came along."""
    run_id = registered(store, "hashed")
    assert read(store, "hashed", checkpoint_hash=True).checkpoint_problem == ""
    weights = location(store, "hashed") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    problem = read(store, "hashed", checkpoint_hash=True).checkpoint_problem
    assert problem == "weights.safetensors was changed: its sha256 is not the sealed one"
    other = store.checkpoint(run_id, "other", 9.0)
    checkpoints.seal(other)
    shutil.copyfile(other / "weights.safetensors", weights)
    shutil.copyfile(other / "metadata.json", location(store, "hashed") / METADATA)
    problem = read(store, "hashed", checkpoint_hash=True).checkpoint_problem
    assert problem is not None
    assert problem.startswith("metadata.json is not the one that was registered")
    store.client.delete_model_version_tag("hashed", "1", "opusclip.weights_sha256")
    problem = read(store, "hashed", checkpoint_hash=True).checkpoint_problem
    assert problem == "not known: it was registered without the tag opusclip.weights_sha256"


def test_a_version_of_another_tool_is_read_as_far_as_it_goes(store: Store, tmp_path: Path) -> None:
    """Without a run, without tags, without a checkpoint; each is told where it is asked for."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"12345")
    foreign(store, tmp_path / "model", "foreign")
    found = read(store, "foreign", metrics=asks_for("k"), checkpoint_hash=True, signature=True)
    assert found.files == {"weights.bin": 5}
    assert (found.metrics, found.author, found.dataset_digest) == ({}, "", "")
    assert not found.has_signature
    assert found.checkpoint_problem == "it holds no weights.safetensors beside a metadata.json"


def test_a_versions_author_is_who_registered_it_and_its_runs_user(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name by which an approver would be known, and that of the machine it was trained on."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    run_id = registered(store, "owned")
    store.client.set_tag(run_id, "mlflow.user", "annak")
    store.client.set_tag(run_id, MADE_BY, "ak")
    found = read(store, "owned")
    assert (found.author, found.registered_by, found.made_by) == ("annak", "anna", "ak")


def test_of_another_tools_run_the_last_value_counts(store: Store, tmp_path: Path) -> None:
    """And the datasets are those that its run has, by what they were used for."""
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    run_id = store.run()
    for step, value in enumerate([1.0, 3.0, 2.0]):
        store.client.log_metric(run_id, "k", value, step=step)
    for digest, tags in [
        ("d1", []),
        ("d2", [InputTag("mlflow.data.context", "Validation")]),
        ("d3", [InputTag("mlflow.data.context", "calibration")]),
    ]:
        entity = Dataset("clips", digest, "http", "{}")
        store.client.log_inputs(run_id, [DatasetInput(entity, tags)])
    foreign(store, tmp_path, "others", run_id)
    found = read(store, "others", metrics=asks_for("k"), signature=True)
    assert found.metrics == {"k": Measure(2.0, "run, step 2")}
    assert (found.dataset_digest, found.evaluation_digest) == ("d1", "d2")
    assert not found.has_signature


RUBBISH = {
    "no yaml": b"\t{[",
    "list": b"- signature",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "objects": b"signature: !!python/object/apply:os.system ['true']",
    "empty": b"",
}


@pytest.mark.parametrize("case", RUBBISH)
def test_a_model_file_that_is_rubbish_has_no_signature(
    store: Store, tmp_path: Path, case: str
) -> None:
    """Whatever stands in it, nothing of it is run, and no error comes of it."""
    (tmp_path / "MLmodel").write_bytes(RUBBISH[case])
    foreign(store, tmp_path, f"rubbish {case}")
    assert not read(store, f"rubbish {case}", signature=True).has_signature


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 9}', "[" * 100_000, "\0"])
def test_a_foreign_file_called_metadata_is_none_of_ours(
    store: Store, tmp_path: Path, text: str
) -> None:
    """The version is read all the same; its hash can't be checked."""
    (tmp_path / "weights.safetensors").write_bytes(b"w")
    (tmp_path / "metadata.json").write_text(text)
    name = f"metadata {abs(hash(text))}"
    foreign(store, tmp_path, name)
    problem = read(store, name, checkpoint_hash=True).checkpoint_problem
    assert problem
    assert problem.startswith("metadata.json: ")


def test_files_that_mlflow_cannot_look_at_are_no_files(store: Store) -> None:
    """A source of an unknown kind, or a folder that is gone."""
    for name, source in (("unknown", "kite://x/y"), ("gone", "file:///nowhere/at/all")):
        store.client.create_registered_model(name)
        store.client.create_model_version(name, source)
        found = read(store, name, checkpoint_hash=True)
        assert found.files == {}
        assert found.checkpoint_problem


def test_what_is_not_there_is_told_in_one_line(store: Store) -> None:
    """No model, no version, a deleted one, rubbish for a number, a deleted run."""
    run_id = registered(store, "told")
    store.register(run_id, name="told")
    store.client.delete_model_version("told", "2")
    for name, version, message in [
        ("nobody", 1, "no version 1 of nobody: .*not found"),
        ("told", 7, "no version 7 of told: .*not found"),
        ("told", 2, "no version 2 of told: .*not found"),
        ("told", 0, "0 is no version of told: give a number from 1"),
        ("told", "newest", "'newest' is no version of told"),
        ("", 1, "cannot read version 1 of"),
    ]:
        with pytest.raises(RegistryError, match=message) as refused:
            read(store, name, version)
        assert "\n" not in str(refused.value)
    store.client.delete_run(run_id)
    with pytest.raises(RegistryError, match=f"run {run_id} of version 1 of told is deleted"):
        read(store, "told")


def test_a_holder_whose_run_is_deleted_is_still_compared_with(store: Store) -> None:
    """What its checkpoint knows counts; else nobody could follow it."""
    store.client.delete_run(registered(store, "held"))
    found = read_holder("held", 1, rules=NOTHING, tracking_uri=store.uri)
    assert found.metrics["val/psnr"].value == 24.123456789
    assert found.dataset_digest == "d1g35t"


def test_a_version_that_lost_its_checkpoint_is_an_error(store: Store) -> None:
    """It was made of one, so nothing of it can be believed any more."""
    registered(store, "lost")
    (location(store, "lost") / METADATA).write_text("{")
    with pytest.raises(
        RegistryError, match=r"version 1 of lost has lost its checkpoint: .*no JSON"
    ):
        read(store, "lost")
    (location(store, "lost") / WEIGHTS).unlink()
    with pytest.raises(RegistryError, match="lost its checkpoint: it holds no weights"):
        read(store, "lost")


def test_a_version_whose_registration_failed_cannot_be_judged(store: Store) -> None:
    """It will never be ready; one whose registration goes on may be."""
    registered(store, "failed")
    path = store.uri.removeprefix("sqlite:///")
    for status, kind in (
        ("PENDING_REGISTRATION", RegistryError),
        ("FAILED_REGISTRATION", CannotJudge),
    ):
        with contextlib.closing(sqlite3.connect(path)) as rows, rows:
            rows.execute("UPDATE model_versions SET status = ? WHERE name = 'failed'", (status,))
        with pytest.raises(RegistryError, match=f"version 1 of failed is {status}") as refused:
            read(store, "failed")
        assert type(refused.value) is kind


def test_a_store_that_the_client_of_s3_cannot_reach_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its faults are none of MLflow's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    # It keeps the keys of its first client for as long as the process lives.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    store.client.create_registered_model("far")
    store.client.create_model_version("far", "s3://bucket/model")
    with pytest.raises(RegistryError, match=r"^cannot read version 1 of far: .*credentials"):
        read(store, "far")


POLICY = """
model: {model}
order: [Staging, Production]
roles: {{lead: [boris]}}
stages:
  Production:
    metrics:
      val/psnr: {{min: 24, max: 60, not_worse_than: Production}}
    tags: {{opusclip.checkpoint: any}}
    files: [checkpoint/weights.safetensors]
    checkpoint_hash: verified
    signature: present
    smoke_test: {{timeout_s: 200}}
    same_dataset_as: Production
    approvals: {{roles: [lead]}}
"""


def test_a_version_is_judged_with_all_that_its_policy_asks_for(store: Store) -> None:
    """A model with an odd name passes the smoke test too, which is made last."""
    name = 'kite\'s "ü" 100% @1.x'
    run_id = registered(store, name)
    store.client.set_tag(run_id, "mlflow.user", "anna")
    store.register(run_id, name=name)
    verdict = judge_version(
        read_policy(POLICY.format(model=json.dumps(name))),
        name,
        2,
        to="production",
        holders={"Production": 1},
        approvals=[Approval("boris", 1)],
        been_in=["Staging"],
        tracking_uri=store.uri,
    )
    assert verdict.passed, verdict.lines()
    assert len(verdict.conditions) == 11


def test_a_version_that_fails_anyway_never_runs_its_code(store: Store, tmp_path: Path) -> None:
    """The smoke test is made last, where no other condition failed; it keeps its place."""
    ran = tmp_path / "ran"
    script = tmp_path / "model.py"
    script.write_text(f"open({str(ran)!r}, 'w').close()\n{store.scaler.read_text()}")
    store.register(store.run(FIRST), name="unfit", python_model=script)
    ran.unlink()
    text = "{{metrics: {{val/psnr: {{min: {}}}}}, smoke_test: {{timeout_s: 200}}}}"
    for least, passed, said in [
        (99, False, "not tested: another condition failed"),
        (1, True, "it answered (list)"),
    ]:
        policy = read_policy(f"stages: {{Staging: {text.format(least)}}}")
        verdict = judge_version(policy, "unfit", 1, to="Staging", tracking_uri=store.uri)
        assert ran.exists() is passed
        assert (verdict.passed, verdict.conditions[1].measured) == (passed, said)


def test_a_place_that_mlflow_does_not_know_is_one_line() -> None:
    """As one that is misspelt."""
    with pytest.raises(RegistryError, match=r"^cannot reach MLflow: .*bogus"):
        read_candidate("kite", 1, rules=NOTHING, tracking_uri="bogus://x")


def test_a_policy_of_another_model_reads_nothing(store: Store) -> None:
    """Nor does one for a stage that there is not."""
    policy = read_policy(POLICY.format(model="kite"))
    with pytest.raises(PolicyError, match="is for model kite, not for crow"):
        judge_version(policy, "crow", 1, to="Production", tracking_uri=store.uri)
    with pytest.raises(PolicyError, match="unknown stage 'Canary'"):
        judge_version(policy, "kite", 1, to="Canary", tracking_uri=store.uri)


def test_a_server_answers_as_a_database_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, with artifacts that the server hands out; a server that is away is one error."""
    with mlflow_server(tmp_path) as url:
        store = Store(tmp_path, url)
        run_id = registered(store, "served")
        store.client.log_metric(run_id, "k", 2.0, step=7)
        found = read(store, "served", metrics=asks_for("k"), checkpoint_hash=True, signature=True)
        assert found.checkpoint_problem == ""
        assert found.has_signature
        assert found.metrics["k"] == Measure(2.0, "run, step 7")
        assert found.files[WEIGHTS] > 0
        with pytest.raises(RegistryError, match=r"no version 2 of served: .*not found"):
            read(store, "served", 2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"^cannot read version 1 of served: ") as refused:
        read(store, "served")
    assert "\n" not in str(refused.value)
