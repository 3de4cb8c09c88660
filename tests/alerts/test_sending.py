"""What is still to be done: in its order, again after waits, given up in the end, and said."""

import json
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.rules import Alerts, Webhook
from opusclip_mlops.alerts.sending import MOST_PENDING, Outgoing, Run, message_of
from opusclip_mlops.posting import Outcome
from opusclip_mlops.webhooks import Message, Receiver
from tests.receivers import SECRET

ALERTS = Alerts(
    rules={},
    webhooks={
        "team": Webhook(url="https://a.example/x", secret_env="TEAM_SECRET", give_up_after_s=100),
        "chat": Webhook(url_env="CHAT_URL", format="slack"),
    },
)
EVENT = Event(
    alert="nan", state="raised", number=1, message="loss is nan", timestamp_ms=5, actions=("team",)
)
RUN = Run(local_id="l1", name="a-run", run_id="r1", experiment="films")
TOLD, LATER = Outcome("told"), Outcome("later", "no connection")


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_SECRET", SECRET)
    monkeypatch.setenv("CHAT_URL", "https://chat.example/T0")


class Posts:
    """Answers as it is told, and keeps what came."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.got: list[tuple[str, str]] = []

    def __call__(self, receiver: Receiver, message: Message) -> Outcome:
        self.got.append((receiver.name, message.id))
        return self.outcomes.pop(0) if self.outcomes else TOLD


def send(outgoing: Outgoing, posts: Callable[..., Outcome], at_s: float) -> list[Event]:
    return outgoing.send_one(RUN, posts, now_ms=round(at_s * 1000))[1]


def numbered(number: int, *actions: str) -> Event:
    return msgspec.structs.replace(EVENT, number=number, actions=actions or ("team",))


def test_messages_go_in_their_order_and_one_that_waits_holds_up_its_own_webhook_only() -> None:
    """The other one is told meanwhile."""
    outgoing, posts = Outgoing(ALERTS, []), Posts(LATER)
    outgoing.add(numbered(1, "team"), now_ms=0)
    outgoing.add(numbered(2, "team", "chat"), now_ms=0)
    for at_s in (0, 0.1, 0.2, 1.1, 1.2):
        send(outgoing, posts, at_s)
    assert posts.got == [
        ("team", "msg_l1_nan-1-raised_5"),
        ("chat", "msg_l1_nan-2-raised_5"),
        ("team", "msg_l1_nan-1-raised_5"),
        ("team", "msg_l1_nan-2-raised_5"),
    ]
    assert outgoing.entries == []
    assert outgoing.fault == ""


def test_waits_grow_and_what_a_receiver_asks_for_is_waited() -> None:
    """1 s, 2 s, and then the 50 s it asks for; all of it lies in plain JSON."""
    asks = replace(LATER, wait_s=50.0)
    outgoing, posts = Outgoing(ALERTS, []), Posts(LATER, LATER, asks)
    outgoing.add(EVENT, now_ms=0)
    tried = []
    for second in range(60):
        again = Outgoing(ALERTS, json.loads(json.dumps(outgoing.entries)))
        before = len(posts.got)
        send(again, posts, second)
        outgoing = again
        tried += [second] if len(posts.got) > before else []
    assert tried == [0, 1, 3, 53]


def test_a_message_is_given_up_when_its_time_is_over_and_that_is_said() -> None:
    """Or at once, where the receiver refuses it for good."""
    outgoing = Outgoing(ALERTS, [])
    outgoing.add(EVENT, now_ms=0)
    outgoing.add(numbered(2), now_ms=0)
    said = [send(outgoing, Posts(LATER), at_s) for at_s in (0, 50, 99, 220, 221, 222)]
    assert said[:3] == [[], [], []]
    # Those behind it are as old: a receiver that is gone holds up a run's end once.
    assert said[5][0].id == "nan-2-undelivered-team"
    assert said[3][0].id == "nan-1-undelivered-team"
    assert said[3][0].message == "team was not told that nan was raised: no connection"
    assert said[3][0].actions == ()
    outgoing.add(EVENT, now_ms=0)
    assert send(outgoing, Posts(Outcome("refused", "answered 410")), 1)[0].state == "undelivered"
    assert outgoing.entries == []


def test_a_clock_that_was_wrong_holds_nothing_up() -> None:
    """A wait of days is none that was meant."""
    outgoing, posts = Outgoing(ALERTS, []), Posts(LATER)
    outgoing.add(EVENT, now_ms=0)
    send(outgoing, posts, 1_000_000)
    send(outgoing, posts, 0)
    assert len(posts.got) == 2


def test_a_variable_that_is_gone_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `opusclip recover` in another shell has it; the fault names it."""
    monkeypatch.delenv("CHAT_URL")
    outgoing, posts = Outgoing(ALERTS, []), Posts()
    outgoing.add(numbered(1, "chat"), now_ms=0)
    send(outgoing, posts, 0)
    assert outgoing.fault == "webhook chat: the variable CHAT_URL is not set"
    monkeypatch.setenv("CHAT_URL", "https://chat.example/T0")
    send(outgoing, posts, 2)
    assert posts.got == [("chat", "msg_l1_nan-1-raised_5")]


def test_the_fault_is_that_of_a_webhook_that_still_waits() -> None:
    """Another one that is told meanwhile does not hide it."""
    outgoing, posts = Outgoing(ALERTS, []), Posts(LATER)
    outgoing.add(numbered(1, "team", "chat"), now_ms=0)
    send(outgoing, posts, 0)
    send(outgoing, posts, 0.1)
    assert [name for name, _ in posts.got] == ["team", "chat"]
    assert outgoing.fault == "webhook team: no connection"
    send(outgoing, posts, 2)
    assert (outgoing.fault, outgoing.entries) == ("", [])


def test_of_too_many_that_wait_the_oldest_goes_and_that_is_said() -> None:
    """The list is never longer."""
    outgoing = Outgoing(ALERTS, [])
    said = [outgoing.add(numbered(at), now_ms=0) for at in range(MOST_PENDING + 1)]
    assert [one.number for events in said for one in events] == [0]
    assert len(outgoing.entries) == MOST_PENDING


def test_a_run_is_stopped_when_an_alert_is_raised_and_not_when_it_recovers() -> None:
    """And once."""
    stopped: list[Event] = []
    outgoing = Outgoing(ALERTS, [])
    outgoing.add(numbered(1, "stop"), now_ms=0)
    outgoing.add(msgspec.structs.replace(numbered(1, "stop"), state="recovered"), now_ms=0)
    assert outgoing.stop_now(stopped.append)
    assert not outgoing.stop_now(stopped.append)
    assert [one.id for one in stopped] == ["nan-1-raised"]


def test_a_message_says_which_run_it_is_about() -> None:
    """For programs and for people, under one id."""
    made = message_of(EVENT, RUN, style="standard")
    body = json.loads(made.body)
    assert made.id == "msg_l1_nan-1-raised_5"
    assert (body["type"], body["timestamp"]) == (
        "opusclip.alert.raised",
        "1970-01-01T00:00:00.005Z",
    )
    assert body["data"]["run_id"] == "r1"
    assert body["data"]["message"] == "loss is nan"
    text = json.loads(message_of(EVENT, RUN, style="slack").body)
    assert text == {"text": "warning nan raised: loss is nan [run a-run (r1)]"}
