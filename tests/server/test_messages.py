"""What a webhook is sent of a decision."""

import json

import pytest

from opusclip_mlops.decisions import Decision, sealed
from opusclip_mlops.server.messages import slack_message, standard_message

MADE = sealed(
    Decision(
        kind="promotion",
        model="clip",
        version=3,
        to_stage="Production",
        actor="anna",
        reason="größer",
        timestamp_ms=1_767_225_600_123,
    ),
    number=12,
    previous_hash="ab",
)


@pytest.mark.parametrize(
    ("verdict", "passed"), [(None, None), ({"passed": True}, True), ({"passed": False}, False)]
)
def test_a_decision_is_told_as_it_is_recorded(
    verdict: dict[str, object] | None, passed: bool | None
) -> None:
    """The body names its kind and time; the same record has the same id and body each time."""
    message = standard_message(MADE, run_id="r1", verdict=verdict)
    assert message == standard_message(MADE, run_id="r1", verdict=verdict)
    assert message.id == "msg_r1_12"
    content = json.loads(message.body)
    assert content.keys() == {"type", "timestamp", "data"}
    assert content["type"] == "opusclip.promotion"
    assert content["timestamp"] == "2026-01-01T00:00:00.123Z"
    data = content["data"]
    told = (data["model"], data["version"], data["from_stage"], data["to_stage"], data["reason"])
    assert told == ("clip", 3, "None", "Production", "größer")
    assert (data["number"], data["hash"], data["history_run_id"]) == (12, MADE.hash, "r1")
    assert data["verdict_passed"] is passed


def test_chats_get_a_line() -> None:
    """The record's own line, behind the model."""
    message = slack_message(MADE, run_id="r1")
    line = f"clip: {MADE.line()}".replace(">", "&gt;")
    assert (message.id, json.loads(message.body)) == ("msg_r1_12", {"text": line})
