"""What a webhook is sent of a decision: a message that its history names, for programs or people.

webhook-id: msg_<the history's run>_<number>

{"type": "opusclip.promotion", "timestamp": "2026-01-01T00:00:00.000Z", "data": {…}}
"""

from __future__ import annotations

from collections.abc import Mapping

from opusclip_mlops.decisions import Decision
from opusclip_mlops.webhooks import Message, slack_body, standard_body

_TOLD = (
    "model", "version", "from_stage", "to_stage", "previous_holder", "kind", "actor",
    "actor_known_by", "came_by", "reason", "forced", "policy_digest", "timestamp_ms", "number",
    "previous_hash", "hash",
)  # fmt: skip


def standard_message(
    decision: Decision, *, run_id: str, verdict: Mapping[str, object] | None
) -> Message:
    """A decision for programs.

    Args:
        decision: The record.
        run_id: The run that holds its history.
        verdict: What the gate said, None where none was asked.
    """
    passed = None if verdict is None else bool(verdict.get("passed"))
    data = {name: getattr(decision, name) for name in _TOLD}
    data |= {"verdict_passed": passed, "history_run_id": run_id}
    body = standard_body(decision.kind, decision.timestamp_ms, data)
    return Message(_id(run_id, decision), body)


def slack_message(decision: Decision, *, run_id: str) -> Message:
    """A decision as a line of text, as Slack and what is like it take it."""
    return Message(_id(run_id, decision), slack_body(f"{decision.model}: {decision.line()}"))


def _id(run_id: str, decision: Decision) -> str:
    return f"msg_{run_id}_{decision.number}"
