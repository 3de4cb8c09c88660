"""Facts about `opusclip_mlops.passports`: only what was measured alike is compared."""

import json
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opusclip_mlops.errors import PassportError
from opusclip_mlops.passports import (
    Interval,
    Passport,
    Score,
    check_alike,
    decoded,
    encoded,
    passports_of,
    with_interval,
)

INTERVAL = Interval(low=39.5, high=41.0, level=0.95, method="bootstrap", resamples=200, seed=0)
FID = Passport(
    metric="fid",
    version="1",
    count=1000,
    unit="frames",
    extractor="inception-2015-12-05",
    weights_sha256="a" * 64,
    resize="299x299",
    settings={"features": 2048},
    interval=INTERVAL,
)


def test_a_score_is_a_float_that_keeps_its_passport() -> None:
    """In JSON, in other processes and in comparisons it is the number; sums are plain floats."""
    score = Score(40.25, FID)
    assert score == 40.25
    assert json.dumps({"fid": score}) == '{"fid": 40.25}'
    assert f"{score:.1f} {score}" == "40.2 40.25"
    assert pickle.loads(pickle.dumps(score)).passport == FID
    assert type(score + 0) is float
    assert passports_of({"a": score, "b": 1.0}) == {"a": FID}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 500}, "count: 1000 and 500"),
        ({"extractor": "i3d"}, "extractor: inception-2015-12-05 and i3d"),
        ({"weights_sha256": ""}, f"weights_sha256: {'a' * 64} and nothing"),
        ({"sampling": "every 2nd frame"}, "sampling: every frame and every 2nd frame"),
        ({"colour_range": "Y 16..235"}, "colour_range: RGB 0..255 and Y 16..235"),
        ({"settings": {"features": 64}}, "setting features: 2048 and 64"),
        ({"settings": {}}, "setting features: 2048 and nothing"),
        ({"version": "2"}, "version: 1 and 2"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], said: str) -> None:
    """Each field of the protocol makes another passport, with another digest."""
    other = replace(FID, **change)
    assert FID.differences(other) == (said,)
    assert other.digest != FID.digest
    with pytest.raises(PassportError, match=f"fid of run a and run b .*{said[:20]}"):
        check_alike({"run a": FID, "run b": other}, of="fid")
    check_alike({"run a": FID, "run b": other}, of="fid", allow_unlike=True)


def test_the_interval_belongs_to_the_value() -> None:
    """Two values with other intervals were measured alike."""
    other = with_interval(Score(1.0, FID), None)
    assert other.passport.interval is None
    assert FID.differences(other.passport) == ()
    assert other.passport.digest == FID.digest
    check_alike({"a": FID, "b": other.passport}, of="fid")


def test_notes_belong_to_the_value() -> None:
    """They are kept beside it, each on one line, and make no other way of measuring."""
    noted = replace(FID, notes=["12 frames are far too few", "a\nb"])  # type: ignore[arg-type]
    assert FID.differences(noted) == ()
    assert noted.digest == FID.digest
    assert "notes" not in FID.to_dict()
    again = decoded(encoded({"fid": noted}))["fid"]
    assert again == noted
    assert again.notes[0] == "12 frames are far too few"
    assert "\n" not in again.notes[1]
    for odd in ("a text", 5, [5]):
        with pytest.raises(PassportError, match="notes of a passport cannot be"):
            replace(FID, notes=odd)  # type: ignore[arg-type]


def test_a_value_without_a_passport_is_not_like_one_that_has_one() -> None:
    """Two that have none are not known to differ."""
    with pytest.raises(PassportError, match="one has none"):
        check_alike({"a": None, "b": FID}, of="fid")
    check_alike({"a": None, "b": None}, of="loss")
    check_alike({}, of="loss")


def test_passports_are_read_back_as_they_were_written() -> None:
    """Also with infinite ends of an interval, and with nothing but what has to be there."""
    plain = Passport(metric="psnr", version="1", count=1, unit="frames", settings={"b": math.inf})
    endless = replace(FID, interval=replace(INTERVAL, high=math.inf))
    read = decoded(encoded({"video/psnr": plain, "val/fid": endless}))
    assert read["val/fid"] == endless
    assert read["video/psnr"].differences(plain) == ()
    assert json.loads(encoded({"val/fid": endless}))["val/fid"]["interval"]["high"] == "inf"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"a": {"metric": "x"}}', "[" * 100_000, '{"a": null}']
)
def test_rubbish_is_no_passport(text: str) -> None:
    """One error says so."""
    with pytest.raises(PassportError, match="no passport"):
        decoded(text)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (np.int64(3), 3), (np.float32(0.5), 0.5), (-0.0, 0), (2.0, 2)]
)
def test_numbers_that_are_equal_are_the_same_setting(one: Any, other: Any) -> None:
    """However they are written: what says nothing differs has one digest."""
    mine, theirs = (replace(FID, settings={"a": value}) for value in (one, other))
    assert mine.differences(theirs) == ()
    assert mine.digest == theirs.digest
    switch = replace(FID, settings={"a": True})
    assert switch.digest != replace(FID, settings={"a": 1}).digest
    assert switch.differences(replace(FID, settings={"a": 1})) == ("setting a: True and 1",)


def test_numpy_s_numbers_and_texts_become_plain_ones() -> None:
    """A passport that is there can be written, and is read as it was."""
    interval = Interval(
        low=np.float64(1.5), high=np.float32(2), level=np.float64(0.95), method=np.str_("b"),
        resamples=np.int64(9), seed=np.uint8(0),
    )  # fmt: skip
    passport = Passport(
        metric=np.str_("fid"), version="1", count=np.int64(7), unit="frames",
        weights_sha256="A" * 64, settings={"a": np.bool_(True), "b": np.int32(3)},
        interval=interval,
    )  # fmt: skip
    assert decoded(encoded({"fid": passport})) == {"fid": passport}
    assert passport.weights_sha256 == "a" * 64
    odd = replace(FID, interval=replace(INTERVAL, level=math.nan, low=-math.inf))
    assert decoded(encoded({"fid": odd}))["fid"].digest == FID.digest


@pytest.mark.parametrize(
    "change",
    [
        {"metric": 3}, {"metric": None}, {"count": "7"}, {"count": 7.5}, {"count": -1},
        {"settings": {"a": [1]}}, {"settings": {"a": None}}, {"settings": {1: 2}},
        {"settings": 3}, {"settings": {"a": np.ones(2)}}, {"interval": 3},
    ],
)  # fmt: skip
def test_what_could_not_be_kept_is_refused_where_it_is_made(change: dict[str, Any]) -> None:
    """Not later, where a value is logged; the message says which."""
    with pytest.raises(PassportError, match=next(iter(change))):
        replace(FID, **change)
    with pytest.raises(PassportError, match="low"):
        replace(INTERVAL, low="few")
    with pytest.raises(TypeError, match="Passport"):
        Score(1.0, "fid")  # type: ignore[arg-type]


def test_settings_that_are_changed_later_change_no_passport() -> None:
    """It keeps what it was made with."""
    settings = {"features": 2048}
    passport = replace(FID, settings=settings)
    settings["features"] = 64
    assert passport.digest == FID.digest


@pytest.mark.parametrize(
    "change",
    [
        {"interval": {**FID.to_dict()["interval"], "low": 10**400}},
        {"interval": {**FID.to_dict()["interval"], "level": 10**400}},
        {"viewed": "from afar"},
        {"interval": {**FID.to_dict()["interval"], "kind": "other"}},
    ],
)
def test_what_this_release_cannot_read_is_no_passport(change: dict[str, Any]) -> None:
    """A number too large, or a field it does not know: it may be what two values differ in."""
    with pytest.raises(PassportError, match="no passport"):
        Passport.from_dict({**FID.to_dict(), **change})


def test_a_field_left_as_it_is_made_is_no_part_of_the_digest() -> None:
    """So that a release with a field more names the same ways of measuring the same."""
    plain = Passport(metric="psnr", version="1", count=1, unit="frames")
    assert plain.digest == "3bd7a18f3dfd"


def test_differences_are_short_lines_whatever_the_passports_hold() -> None:
    """They were written elsewhere: nothing in them moves a cursor or fills a screen."""
    [said] = FID.differences(replace(FID, sampling="\x1b[2J\n" + "x" * 10_000))
    assert len(said) < 300
    assert said.isprintable()
    many = replace(FID, settings={f"setting {number}": "x" * 90 for number in range(50)})
    with pytest.raises(PassportError, match=r"allow unlike passports$"):
        check_alike({"a": FID, "b": many}, of="fid")
