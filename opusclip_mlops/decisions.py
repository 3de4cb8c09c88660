"""A decision about a registered model: one record of its history, and its exact form.

A record is JSON on one line: keys sorted, no spaces. It names the hash of the record before it, and
carries the sha256 of everything else it says. What JSON cannot hold is written as a string: a
measured value that is no finite number is "nan", "inf" or "-inf".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import msgspec

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.redaction import one_line

Kind = Literal["promotion", "demotion", "rollback", "approval", "policy", "external", "repair"]
CameBy = Literal["CLI", "API", "UI", "watch"]

STAGING, PRODUCTION, ARCHIVED, NO_STAGE = "Staging", "Production", "Archived", "None"
DELETED = "Deleted"
HELD = (STAGING, PRODUCTION)
MOVING: tuple[Kind, ...] = ("promotion", "demotion", "rollback", "external")
UNKNOWN = "unknown"

MOST_DIGITS = 18
LONGEST_RECORD = 6_000  # characters, the most that a param of MLflow holds
LONGEST_REASON = 1_000
_LONGEST_NAME = 200
_YEAR_10000_MS = 253_402_300_800_000
# What MLflow's filter language cannot quote matches any character, and is looked at afterwards.
_UNQUOTABLE = re.compile(r"[^\w .\-]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who decides, and how that is known: "os user", "MLFLOW_TRACKING_USERNAME"."""

    name: str
    known_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided about a version of a registered model, when, by whom and why.

    Attributes:
        kind: promotion, demotion and rollback are this package's; external is a change made by
            hand that was let stand, repair one that was put back; approval and policy move nothing.
        model: The registered model's name.
        version: The version it is about, None for a policy.
        from_stage: Where the version was before: None, Staging, Production, Archived.
        to_stage: Where it is from now on; "Deleted" where somebody deleted it. For an approval the
            stage it is approved for, for a repair the stage it was found in.
        previous_holder: Who held `to_stage` before, or None.
        actor: Who decided; "unknown" for what was done by hand.
        actor_known_by: How the actor's name is known.
        came_by: CLI, API, UI or watch.
        reason: Why, in the actor's words.
        forced: Whether the gate was passed over.
        verdict: The gate's verdict, None where there was none or where it is long.
        verdict_sha256: Where the verdict is long, the hash of its text, which is kept beside.
        policy_digest: The policy that was judged by, empty without one.
        problems: What was wrong with the history when somebody forced a decision onto it.
        nonce: Tells records of two processes apart that say the same.
        number: From 1, without gaps.
        timestamp_ms: Unix time in milliseconds, by the actor's clock.
        previous_hash: The record before it, for the first one the history's origin.
        hash: sha256 over all the rest.
    """

    kind: Kind
    model: str
    version: int | None
    from_stage: str = NO_STAGE
    to_stage: str = NO_STAGE
    previous_holder: int | None = None
    actor: str = UNKNOWN
    actor_known_by: str = ""
    came_by: CameBy = "API"
    reason: str = ""
    forced: bool = False
    verdict: Mapping[str, Any] | None = None
    verdict_sha256: str = ""
    policy_digest: str = ""
    problems: tuple[str, ...] = ()
    nonce: str = ""
    number: int = 0
    timestamp_ms: int = 0
    previous_hash: str = ""
    hash: str = ""

    @property
    def digest(self) -> str:
        """What `hash` has to be."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        return sha256_of(canonical({**content, "hash": ""}))

    def line(self) -> str:
        """One line for people: number, what happened to which version, by whom and why."""
        moved = f"version {self.version}: {self.from_stage} -> {self.to_stage}"
        about = "" if self.version is None else f" {moved}"
        forced = " (forced)" if self.forced else ""
        return f"{self.number} {self.kind}{forced}{about}, by {self.actor}: {self.reason or '-'}"


def sealed(draft: Decision, *, number: int, previous_hash: str) -> Decision:
    """The draft as record `number`, with its hash."""
    record = replace(draft, number=number, previous_hash=previous_hash, hash="")
    return replace(record, hash=record.digest)


def to_text(decision: Decision) -> str:
    """The record as it is stored."""
    return canonical({item.name: getattr(decision, item.name) for item in fields(decision)})


def from_text(text: str) -> Decision:
    """Read what `to_text` wrote, character by character that and nothing else.

    Raises:
        RegistryError: Not a record, or not in the one form that a record has.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.keys() != _FIELDS:
            raise RegistryError("is no record of a decision")
        decision = msgspec.convert(content, Decision)
        is_exact = to_text(decision) == text
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise RegistryError(f"is no record: {one_line(str(error), at_most=100)}") from error
    if not is_exact:
        raise RegistryError("is not in the form that a record has")
    if not _is_possible(decision):
        raise RegistryError("is no record: a number in it cannot be")
    return decision


def canonical(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, numbers that are none as strings.

    Raises:
        RegistryError: The value holds what JSON cannot.
    """
    try:
        text = _json(value)
        text.encode()
    except (TypeError, ValueError):
        return _json(_plain(value))
    return text


def sha256_of(text: str) -> str:
    """The sha256 of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def number_in(text: str) -> int | None:
    """The number that a text of at most 18 digits says, None for any other text."""
    is_number = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
    return int(text) if is_number else None


def like(name: str) -> str:
    """The end of a filter of MLflow that finds a name, and perhaps others: "= 'clip'"."""
    pattern = _UNQUOTABLE.sub("_", name)
    return f"{'=' if pattern == name else 'LIKE'} '{pattern}'"


def model_named(name: str) -> str:
    """The name of a registered model, where it can be one at all.

    Raises:
        RegistryError: It is no text, empty, or not of whole characters.
    """
    if not isinstance(name, str) or not name.strip() or _speakable(name) != name:
        raise RegistryError(f"bad model name {_shown(name)}")
    return name


def stage_named(text: str) -> str:
    """Staging, Production, Archived or None, however it is capitalised.

    Raises:
        RegistryError: There is no such stage.
    """
    stages = {stage.lower(): stage for stage in (*HELD, ARCHIVED, NO_STAGE)}
    if not isinstance(text, str) or text.strip().lower() not in stages:
        known = ", ".join(stages.values())
        raise RegistryError(f"no stage is called {_shown(text)}: there are {known}")
    return stages[text.strip().lower()]


def stage_held(text: str) -> str:
    """Staging or Production, the stages that a version holds, however it is capitalised.

    Raises:
        RegistryError: There is no such stage, or it is not one that a version holds.
    """
    stage = stage_named(text)
    if stage not in HELD:
        raise RegistryError(f"nobody holds {stage}: name {' or '.join(HELD)}")
    return stage


def version_named(version: object) -> int:
    """The number of a version, given as a number or in digits.

    Raises:
        RegistryError: It is neither, or not above 0.
    """
    text = "" if isinstance(version, bool) else str(version)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise RegistryError(f"bad version {_shown(version)}: it must be a number from 1 on")
    return int(text)


def reason_given(reason: str, *, needed_for: str = "") -> str:
    """The reason on one line and without credentials.

    Raises:
        RegistryError: Longer than 1,000 characters, or empty where `needed_for` says what for.
    """
    text = one_line(_speakable(reason), at_most=LONGEST_REASON + 1)
    if len(text) > LONGEST_REASON:
        raise RegistryError(f"the reason is longer than {LONGEST_REASON:,} characters: shorten it")
    if needed_for and not text:
        raise RegistryError(f"{needed_for} needs a reason: give one")
    return text


def present_actor() -> Actor:
    """Who runs this process: MLflow's user name where one is set, else the user of the machine."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip():
        return Actor(one_line(_speakable(name), at_most=_LONGEST_NAME), "MLFLOW_TRACKING_USERNAME")
    try:
        return Actor(pwd.getpwuid(os.geteuid()).pw_name, "os user")
    except KeyError:
        return Actor(f"uid {os.geteuid()}", "os user")


def _is_possible(decision: Decision) -> bool:
    numbers = (decision.number, decision.version or 0, decision.previous_holder or 0)
    is_time = 0 <= decision.timestamp_ms < _YEAR_10000_MS
    return is_time and all(0 <= one < 10**MOST_DIGITS for one in numbers)


def _json(value: object) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {_speakable(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, str):
        return _speakable(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise RegistryError(f"a record cannot hold a {type(value).__name__}: numbers and texts only")


def _speakable(text: str) -> str:
    """The text without halves of characters, which no database takes."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: object) -> str:
    return ascii(str(value)[:40])


_FIELDS = {item.name for item in fields(Decision)}
