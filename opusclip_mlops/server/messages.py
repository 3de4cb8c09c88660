"""What a webhook is sent of a decision, and how that is signed: the Standard Webhooks format.

webhook-id: msg_<the history's run>_<number>        the same each time a message is sent
webhook-timestamp: 1767225600                       when this copy of it was sent
webhook-signature: v1,<base64>                      HMAC-SHA256 of id.timestamp.body

{"type": "opusclip.promotion", "timestamp": "2026-01-01T00:00:00.000Z", "data": {…}}
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from opusclip_mlops.decisions import Decision

_TOLD = (
    "model", "version", "from_stage", "to_stage", "previous_holder", "kind", "actor",
    "actor_known_by", "came_by", "reason", "forced", "policy_digest", "timestamp_ms", "number",
    "previous_hash", "hash",
)  # fmt: skip
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent of one record: its id, and the body in UTF-8."""

    id: str
    body: bytes

    def headers(self, keys: Sequence[bytes], *, sent_s: int) -> dict[str, str]:
        """The headers that go with it, signed with each key.

        Args:
            keys: None of them where nobody checks.
            sent_s: When it is sent, in Unix seconds.
        """
        signed = " ".join(signature(self, key, sent_s=sent_s) for key in keys)
        return {
            "content-type": "application/json",
            "webhook-id": self.id,
            "webhook-timestamp": str(sent_s),
            **({"webhook-signature": signed} if signed else {}),
        }


def signature(message: Message, key: bytes, *, sent_s: int) -> str:
    """The signature of a message that is sent at a Unix time in seconds: `v1,` and base64."""
    content = b".".join((message.id.encode(), str(sent_s).encode(), message.body))
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


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
    body = {
        "type": f"opusclip.{decision.kind}",
        "timestamp": _iso(decision.timestamp_ms),
        "data": {**data, "verdict_passed": passed, "history_run_id": run_id},
    }
    return Message(_id(run_id, decision), _json(body))


def slack_message(decision: Decision, *, run_id: str) -> Message:
    """A decision as a line of text, as Slack and what is like it take it."""
    line = f"{decision.model}: {decision.line()}".translate(_SLACK)
    return Message(_id(run_id, decision), _json({"text": line}))


def _id(run_id: str, decision: Decision) -> str:
    return f"msg_{run_id}_{decision.number}"


def _iso(timestamp_ms: int) -> str:
    at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
