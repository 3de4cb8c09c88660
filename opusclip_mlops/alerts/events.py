"""What is said of an alert: a record that travels like any other, and the line people read.

A text `opusclip/alerts` is the line and, below it, the same as JSON; a tag `opusclip.alert.<rule>`
says how the rule stands.
"""

from typing import Literal

import msgspec

from opusclip_mlops.alerts.rules import Severity
from opusclip_mlops.records import Tags, Text
from opusclip_mlops.redaction import one_line

KEY = "opusclip/alerts"
"""The key of the texts."""

TAG = "opusclip.alert."
"""Begins the tags, the rule's name behind it."""

_TAG_CHARACTERS = 400


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alert was raised, has recovered, or did not get through.

    Args:
        alert: The rule's name.
        state: What became of it.
        number: Which of the rule's alerts it is, from 1.
        message: What is wrong, or well again, on one line.
        timestamp_ms: When, in Unix milliseconds.
        severity: As the rule has it.
        key: The metric, or what else it is about.
        step: The training's step.
        value: The value, as a text: it may be NaN.
        actions: What is done.
        suppressed: How many of the rule's alerts were held back so far.
        to: The webhook that it did not get through to.
    """

    alert: str
    state: Literal["raised", "recovered", "undelivered"]
    number: int
    message: str
    timestamp_ms: int
    severity: Severity = "warning"
    key: str = ""
    step: int = 0
    value: str = ""
    actions: tuple[str, ...] = ()
    suppressed: int = 0
    to: str = ""

    @property
    def id(self) -> str:
        """What tells it from every other of its run; the same each time it is made."""
        return "-".join(filter(None, (self.alert, str(self.number), self.state, self.to)))

    @property
    def line(self) -> str:
        """The event for people."""
        return f"{self.severity} {self.alert} {self.state}: {self.message}"

    def records(self) -> list[Text | Tags]:
        """What is logged of it, the text first: it is what counts."""
        text = f"{self.line}\n{msgspec.json.encode(self).decode()}"
        said = Text(self.timestamp_ms, self.step, KEY, text)
        if self.state == "undelivered":
            return [said]
        held = f", {self.suppressed} held back" if self.suppressed else ""
        stands = one_line(self.message, at_most=_TAG_CHARACTERS)
        return [
            said,
            Tags({f"{TAG}{self.alert}": f"{self.state}: {stands} (no. {self.number}{held})"}),
        ]


def event_of(text: str) -> Event | None:
    """What such a text says; None where it is no such text."""
    try:
        return msgspec.json.decode(text.rpartition("\n")[2], type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
