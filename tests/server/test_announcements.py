"""Webhooks are told of decisions: in order, again until they take it, and by one process."""

import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import announcing, promotion
from opusclip_mlops.announcing import Delivery
from opusclip_mlops.server import announcements
from opusclip_mlops.server.announcements import Pace, Sender
from opusclip_mlops.server.webhook_settings import Webhook, read_webhooks
from tests.databases import postgres
from tests.journeys import store, wait_until
from tests.promoters import NAME, Gate, make_model
from tests.receivers import HANG, RESET, SECRET, Receiver, settings

QUICK = Pace(look_s=0.05, gaps_s=0.0, first_wait_s=0.05, longest_wait_s=0.2)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return store(tmp_path)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    client = MlflowClient(uri)
    make_model(client)
    return client


def webhook(tmp_path: Path, receiver: Receiver, *lines: str, name: str = "bot") -> Webhook:
    path = settings(tmp_path / "settings", receiver.url, *lines, name=name)
    return read_webhooks(path.read_text(), source=str(path))[0]


def begun(uri: str, told: Webhook, pace: Pace = QUICK) -> Sender:
    """A sender that knows its webhook; its thread does not run."""
    sender = Sender(uri, told, pace=pace)
    sender.look()
    return sender


@pytest.fixture
def sender(tmp_path: Path, client: MlflowClient, receiver: Receiver) -> Sender:
    """One that knows the webhook, and no decision."""
    return begun(client.tracking_uri, webhook(tmp_path, receiver))


def promote(client: MlflowClient, version: int, to: str = "Staging", name: str = NAME) -> int:
    return promotion.promote(
        name, version, to=to, judge=Gate(), reason=f"v{version}", client=client
    ).number


def progress(client: MlflowClient) -> Delivery:
    (found,) = announcing.deliveries(client=client)
    return found


def test_a_decision_is_told_signed(
    sender: Sender, client: MlflowClient, receiver: Receiver
) -> None:
    """The receiver can check who sent it, and reads who, what, why, and what the gate said."""
    promote(client, 2)
    sender.look()
    (got,) = receiver.got
    assert got.is_signed()
    assert not got.is_signed("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60
    record = promotion.chain.read_chain
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    params = client.get_run(run_id).data.params
    (made,) = record(params, model=NAME, run_id=run_id).records
    assert got.id == f"msg_{run_id}_1"
    data = got.content["data"]
    assert got.content["type"] == "opusclip.promotion"
    assert (data["model"], data["version"], data["to_stage"]) == (NAME, 2, "Staging")
    assert (data["reason"], data["actor"], data["hash"]) == ("v2", made.actor, made.hash)
    assert data["verdict_passed"] is True
    found = progress(client)
    assert (found.webhook, found.model, found.told, found.waiting) == ("bot", NAME, 1, 0)
    sender.look()
    assert len(receiver.got) == 1


def test_what_was_decided_before_is_not_told(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """A new webhook begins with what is decided from then on, in new histories from the first."""
    promote(client, 1)
    promote(client, 2)
    sender = begun(uri, webhook(tmp_path, receiver))
    promote(client, 3)
    make_model(client, "other")
    promote(client, 1, name="other")
    sender.look()
    said = sorted((one.content["data"]["model"], one.number) for one in receiver.got)
    assert said == [(NAME, 3), ("other", 1)]


def test_the_first_decision_of_all_is_told(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """Though no history was there when the webhook became known, and the process was another."""
    begun(uri, webhook(tmp_path, receiver))
    promote(client, 1)
    Sender(uri, webhook(tmp_path, receiver), pace=QUICK).look()
    assert receiver.numbers == [1]


@pytest.mark.parametrize("code", [500, 503, 429, 408, 425, RESET])
def test_what_is_not_taken_is_sent_again(
    sender: Sender, client: MlflowClient, receiver: Receiver, code: int
) -> None:
    """Under the same id, later ones behind it, and it is known meanwhile what is wrong."""
    receiver.codes += [code, code]
    promote(client, 1)
    promote(client, 2)
    sender.look()
    found = progress(client)
    assert (found.told, found.waiting, found.tried.tries) == (0, 2, 1)
    assert ("broke off" if code == RESET else f"answered {code}") in found.tried.error
    wait_until(lambda: sender.look() or len(receiver.got) == 4)
    assert receiver.numbers == [1, 1, 1, 2]
    assert len({one.id for one in receiver.got[:3]}) == 1
    assert all(one.is_signed() for one in receiver.got)
    found = progress(client)
    assert (found.told, found.waiting, found.tried.tries, found.failed) == (2, 0, 0, ())


def test_a_receiver_is_left_alone_as_long_as_it_asks(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """Retry-After holds for every history, and for the process that comes after."""
    told = webhook(tmp_path, receiver)
    sender = begun(uri, told)
    receiver.codes, receiver.headers = [429], {"retry-after": "3000"}
    make_model(client, "other")
    promote(client, 1)
    sender.look()
    promote(client, 1, name="other")
    for one in (sender, Sender(uri, told, pace=QUICK)):
        one.look()
    assert len(receiver.got) == 1
    next_ms = max(one.tried.next_ms for one in announcing.deliveries(client=client))
    assert next_ms / 1000 - time.time() > 2_900


@pytest.mark.parametrize("code", [400, 401, 404, 410, 302])
def test_a_refusal_is_for_good(
    sender: Sender,
    client: MlflowClient,
    receiver: Receiver,
    code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is on the list of what failed, and the next one is told; redirects are not followed."""
    receiver.codes, receiver.headers = [code], {"location": receiver.url}
    promote(client, 1)
    promote(client, 2)
    sender.look()
    assert receiver.numbers == [1, 2]
    (failure,) = progress(client).failed
    assert (failure.number, failure.tried.tries) == (1, 1)
    assert f"answered {code}" in failure.tried.error
    assert f"record 1 of history {progress(client).run_id} was given up" in caplog.text


def test_what_failed_can_be_put_back(
    sender: Sender, client: MlflowClient, receiver: Receiver
) -> None:
    """It is sent again under its id, also where it fails for some time, and leaves the list."""
    receiver.codes += [410]
    promote(client, 1)
    promote(client, 2)
    sender.look()
    assert announcing.put_back(announcing.deliveries(client=client), client=client) == 1
    receiver.codes += [500, 410]
    wait_until(lambda: sender.look() or len(receiver.got) == 4)
    (failure,) = progress(client).failed
    assert (failure.tried.tries, failure.tried.again) == (2, False)
    announcing.put_back(announcing.deliveries(client=client), client=client)
    sender.look()
    assert receiver.numbers == [1, 2, 1, 1, 1]
    assert len(receiver.counts) == 2
    assert (progress(client).failed, progress(client).told) == ((), 2)


def test_it_is_given_up_after_a_time(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """Then the next one has its turn."""
    sender = begun(uri, webhook(tmp_path, receiver, "give_up_after_s: 1"))
    receiver.codes += [500] * 1_000
    promote(client, 1)
    wait_until(lambda: sender.look() or progress(client).failed)
    receiver.codes.clear()
    promote(client, 2)
    sender.look()
    found = progress(client)
    assert found.failed[0].tried.tries == len(receiver.got) - 1
    assert (found.told, receiver.numbers[-1]) == (2, 2)


def test_only_what_is_wanted_is_told(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """Kinds and models; the others count as told."""
    sender = begun(uri, webhook(tmp_path, receiver, "kinds: [approval]", f"models: [{NAME}]"))
    make_model(client, "other")
    promotion.approve("other", 1, to="Staging", client=client)
    promote(client, 1)
    promotion.approve(NAME, 2, to="Staging", client=client)
    promote(client, 3)
    wait_until(
        lambda: sender.look() or all(not d.waiting for d in announcing.deliveries(client=client))
    )
    assert [one.content["type"] for one in receiver.got] == ["opusclip.approval"]


def test_chats_are_told_a_line(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """In the form that Slack takes; what a reason holds calls nobody."""
    sender = begun(uri, webhook(tmp_path, receiver, "format: slack"))
    promotion.promote(NAME, 1, to="Staging", judge=None, reason="<!channel> & co", client=client)
    sender.look()
    (got,) = receiver.got
    assert got.content.keys() == {"text"}
    assert "version 1: None -&gt; Staging" in got.content["text"]
    assert "&lt;!channel&gt; &amp; co" in got.content["text"]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_of_many_senders_one_sends(tmp_path: Path, receiver: Receiver, database: str) -> None:
    """Every record is told once, in its order, while all of them look all the time."""
    with postgres() if database == "postgresql" else nullcontext(store(tmp_path)) as uri:
        client = MlflowClient(uri)
        make_model(client)
        told = webhook(tmp_path, receiver)
        senders = [Sender(uri, told, pace=QUICK) for _ in range(3)]
        for one in senders:
            one.start()
        last = [promote(client, 1 + number % 3) for number in range(8)][-1]
        wait_until(lambda: progress(client).told == last)
        for one in senders:
            one.end(wait_s=30)
        assert receiver.numbers == [*range(1, last + 1)]


def test_who_hangs_loses_its_turn(
    tmp_path: Path, uri: str, client: MlflowClient, receiver: Receiver
) -> None:
    """Another process sends the message again, under the same id, and goes on."""
    told = webhook(tmp_path, receiver)
    first = begun(uri, told)
    promote(client, 1)
    promote(client, 2)
    receiver.codes.append(HANG)
    thread = threading.Thread(target=first.look, daemon=True)
    thread.start()
    wait_until(lambda: len(receiver.got) == 1)
    second = Sender(uri, told, pace=replace(QUICK, turn_s=0.3))
    second.look()
    assert receiver.numbers == [1]
    wait_until(lambda: second.look() or progress(client).told == 2)
    assert receiver.numbers == [1, 1, 2]
    receiver.release.set()
    thread.join(60)
    assert (progress(client).told, receiver.numbers) == (2, [1, 1, 2])


def test_a_record_that_was_changed_is_told_to_nobody(
    sender: Sender, client: MlflowClient, receiver: Receiver
) -> None:
    """It is on the list of what failed; what comes behind it, and behind a gap, is told."""
    promote(client, 1)
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    text = client.get_run(run_id).data.params["000001"]
    client.log_param(run_id, "000002", text.replace('"number":1', '"number":2'))
    client.log_param(run_id, "000003", "rubbish")
    client.log_param(run_id, "000009", "rubbish")
    wait_until(lambda: sender.look() or len(progress(client).failed) == 3)
    assert receiver.numbers == [1]
    errors = {one.number: one.tried.error for one in progress(client).failed}
    assert "was changed" in errors[2]
    assert errors.keys() == {2, 3, 9}
    assert progress(client).waiting == 0


def test_rubbish_in_the_tags_loses_nothing(
    sender: Sender, client: MlflowClient, receiver: Receiver
) -> None:
    """What is not understood counts as nothing told, and as nobody's turn."""
    promote(client, 1)
    sender.look()
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    experiment = client.get_experiment_by_name("opusclip registry")
    for one in (run_id, experiment.tags["opusclip.root"]):
        client.set_tag(one, "opusclip.webhook.bot", '{"told": "much", "holder": 7}')
    sender.look()
    assert receiver.numbers == [1, 1]
    assert progress(client).told == 1


def test_a_run_beside_the_histories_is_told_to_nobody(
    sender: Sender, client: MlflowClient, receiver: Receiver
) -> None:
    """Records count in a run that the root run names only."""
    promote(client, 1)
    sender.look()
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    forged = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    client.log_param(forged, "000001", client.get_run(run_id).data.params["000001"])
    sender.look()
    assert receiver.numbers == [1]
    assert len(announcing.deliveries(client=client)) == 1


def test_secrets_are_said_nowhere(
    tmp_path: Path,
    uri: str,
    client: MlflowClient,
    caplog: pytest.LogCaptureFixture,
    receiver: Receiver,
) -> None:
    """Not in tags, in logs or in what an object calls itself; nor is the address."""
    caplog.set_level(logging.DEBUG)
    told = webhook(tmp_path, receiver)
    sender = begun(uri, told)
    receiver.codes += [500, 410]
    promote(client, 1)
    wait_until(lambda: sender.look() or len(receiver.got) == 2)
    (tmp_path / "settings" / "secret").write_text("short")
    promote(client, 2)
    sender.look()
    run_id = client.get_registered_model(NAME).tags["opusclip.history"]
    tags = str(client.get_run(run_id).data.tags)
    ours = "".join(one.getMessage() for one in caplog.records if one.name.startswith("opusclip"))
    assert "is shorter than 16" in tags
    for text in (tags, ours, repr(told), repr(receiver.got[0].headers)):
        assert SECRET not in text
        assert SECRET.removeprefix("whsec_") not in text
        assert "a-secret-path" not in text


def test_nothing_is_started_outside_a_server(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that opens the same database sends nothing, whatever the setting says."""
    monkeypatch.setenv("OPUSCLIP_WEBHOOKS", str(tmp_path / "nowhere.yaml"))
    announcements.start(uri)
    announcements.poke(uri)


def test_a_server_starts_once_and_is_poked(
    tmp_path: Path,
    uri: str,
    client: MlflowClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long before it would look by itself; a URI for our stores means the same database."""
    path = settings(tmp_path / "settings", receiver.url)
    monkeypatch.setenv("OPUSCLIP_WEBHOOKS", str(path))
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    before = threading.active_count()
    try:
        for _ in range(2):
            announcements.start(f"opusclip+{uri}", pace=Pace(look_s=3_600))
        assert threading.active_count() == before + 1
        promote(client, 1)
        announcements.poke(uri)
        wait_until(lambda: receiver.numbers == [1])
        wait_until(lambda: progress(client).told == 1)
    finally:
        announcements.end(uri)


def test_settings_that_become_wrong_harm_no_server_that_runs(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is started anew answers requests, and logs why it tells nobody."""
    monkeypatch.setenv("OPUSCLIP_WEBHOOKS", str(tmp_path / "nowhere.yaml"))
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    try:
        announcements.start(uri)
        assert "this process tells no webhooks: OPUSCLIP_WEBHOOKS: " in caplog.text
    finally:
        announcements.end(uri)
