"""A decision's record: one exact text, one hash, and what may be in it."""

import json
import math
import os
import pwd
from dataclasses import replace

import pytest

from opusclip_mlops.decisions import (
    Decision,
    canonical,
    from_text,
    like,
    number_in,
    present_actor,
    reason_given,
    sealed,
    stage_held,
    stage_named,
    to_text,
    version_named,
)
from opusclip_mlops.errors import RegistryError

DRAFT = Decision(
    kind="promotion",
    model="clip 'ü' \"x\"",
    version=7,
    to_stage="Production",
    previous_holder=3,
    actor="anna",
    reason="sharper\u0000 😀",
    verdict={"conditions": [{"measured": math.nan, "wanted": 24.0}, {"measured": math.inf}]},
    problems=("record 3 is missing",),
    timestamp_ms=1_700_000_000_000,
)
RECORD = sealed(DRAFT, number=2, previous_hash="0" * 64)


def test_a_record_comes_back_as_it_was_written() -> None:
    """Text, hash and NaN are the same after reading; a NaN is written as a text."""
    read = from_text(to_text(RECORD))
    assert to_text(read) == to_text(RECORD)
    assert read.hash == read.digest == RECORD.hash
    assert read.verdict is not None
    assert [math.isnan(float(read.verdict["conditions"][0]["measured"]))] == [True]
    assert json.loads(to_text(RECORD))["verdict"]["conditions"][1]["measured"] == "inf"


def test_every_field_is_in_the_hash() -> None:
    """Whatever is changed in a record, its hash does not fit any more."""
    for change in (
        {"version": 8}, {"reason": ""}, {"actor": "boris"}, {"forced": True}, {"verdict": None},
        {"timestamp_ms": 1}, {"previous_holder": None}, {"number": 3}, {"kind": "rollback"},
        {"previous_hash": "1" * 64}, {"model": "other"}, {"to_stage": "Staging"}, {"problems": ()},
        {"came_by": "CLI"}, {"policy_digest": "p"}, {"nonce": "n"}, {"verdict_sha256": "s"},
        {"actor_known_by": "k"}, {"from_stage": "Staging"},
    ):  # fmt: skip
        assert replace(RECORD, **change).digest != RECORD.hash, change  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "7", "{}", "{", "[" * 100_000, '{"number":1}', "\u0000",
        to_text(RECORD).replace(":7", ":7.0"),
        to_text(RECORD).replace('"version":7', '"version":true'),
        to_text(RECORD).replace('"version":7', '"version":NaN'),
        to_text(RECORD).replace('"promotion"', '"theft"'),
        to_text(RECORD).replace(",", ", "),
        to_text(RECORD)[:-1] + ',"more":1}',
        to_text(RECORD).replace('"version":7', '"version":9,"version":7'),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str) -> None:
    """Rubbish, another form of the same content, a second value for a key: one line, no record."""
    with pytest.raises(RegistryError) as error:
        from_text(text)
    assert len(str(error.value).splitlines()) == 1


def test_what_json_cannot_hold_is_refused() -> None:
    """An object in a verdict is an error that names its type."""
    with pytest.raises(RegistryError, match="cannot hold a set"):
        canonical({"verdict": {1, 2}})


def test_half_a_character_does_not_break_a_record() -> None:
    """A lone surrogate, which no database takes, becomes a question mark."""
    record = sealed(replace(DRAFT, reason="a\ud800b"), number=1, previous_hash="")
    assert from_text(to_text(record)).reason == "a?b"


def test_stages_are_named_in_any_case() -> None:
    """Production, production and PRODUCTION are one; another word is an error that lists them."""
    assert [stage_named(text) for text in ("production", " STAGING", "none", "Archived")] == [
        "Production", "Staging", "None", "Archived",
    ]  # fmt: skip
    with pytest.raises(RegistryError, match="there are Staging, Production, Archived, None"):
        stage_named("prod")
    with pytest.raises(RegistryError, match="nobody holds Archived"):
        stage_held("archived")


@pytest.mark.parametrize("version", [0, -1, "", "latest", "1.0", True, None, "٣", 1.5, "9" * 30])
def test_a_bad_version_is_refused(version: object) -> None:
    """A version is a number from 1 on."""
    with pytest.raises(RegistryError, match="bad version"):
        version_named(version)


def test_a_version_may_be_given_in_digits() -> None:
    """The text "7" is version 7."""
    assert version_named("7") == version_named(7) == 7


def test_reasons_are_short_and_carry_no_credentials() -> None:
    """One line, passwords taken out; too long, or missing where it is needed, is an error."""
    text = reason_given("see\nhttps://anna:secret@host/x")
    assert text == "see https://anna:***@host/x"
    assert reason_given("x" * 1_000) == "x" * 1_000
    with pytest.raises(RegistryError, match="longer than 1,000 characters"):
        reason_given("x" * 1_001)
    with pytest.raises(RegistryError, match="a rollback needs a reason"):
        reason_given(" \n ", needed_for="a rollback")


def test_the_actor_is_whom_mlflow_knows_else_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user name of MLflow goes before the machine's; the environment's USER says nothing."""
    monkeypatch.setenv("USER", "somebody")
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert (present_actor().name, present_actor().known_by) == (user, "os user")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    assert present_actor().name == "anna"
    assert present_actor().known_by == "MLFLOW_TRACKING_USERNAME"


def test_a_number_is_what_a_number_can_be() -> None:
    """Plain digits, not thousands of them; whoever reads foreign text never fails at it."""
    assert [number_in(text) for text in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]
    for text in ("", "-1", "1.0", " 1", "\u0661", "\u00b2", "9" * 19, "9" * 4_400):
        assert number_in(text) is None


def test_a_filter_never_holds_what_ends_it() -> None:
    """A name that cannot be quoted is looked for by what it is like."""
    assert like("clip generator-1.0") == "= 'clip generator-1.0'"
    assert like("it's\n%") == "LIKE 'it_s__'"


def test_a_line_for_people_says_who_did_what() -> None:
    """A record is read without knowing its fields."""
    assert RECORD.line().startswith("2 promotion version 7: None -> Production, by anna: sharper")
