"""Where a sample comes from: what is kept, what is refused, and what is left out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opusclip_mlops.errors import DataError, RecordError
from opusclip_mlops.samples import (
    MOST_BYTES,
    Origin,
    SourceClip,
    check_account,
    plain_account,
    sha256_of,
)

A = "a" * 64
PIECE = SourceClip(uri="/films/kite.mp4", sha256=A, start_s=1.5, end_s=2, use="training")


def test_a_piece_of_a_film_comes_back_as_it_was() -> None:
    """Through JSON, whole or with nothing said but its path."""
    for piece in (PIECE, SourceClip(uri="風 %.mp4"), replace(PIECE, end_s=None)):
        assert SourceClip.from_dict(json.loads(json.dumps(piece.to_dict()))) == piece
    assert SourceClip(uri="a").to_dict() == {"uri": "a", "start_s": 0.0}


def test_numbers_of_any_kind_are_seconds() -> None:
    """NumPy's too, which JSON would refuse; and a hash may be in capitals."""
    piece = SourceClip(uri="a", sha256="A" * 64, start_s=np.float32(1.5), end_s=np.int64(3))
    assert json.loads(json.dumps(piece.to_dict()))["start_s"] == 1.5
    assert (type(piece.start_s), type(piece.end_s), piece.sha256) == (float, float, A)


@pytest.mark.parametrize(
    "given",
    [
        {"uri": " "},
        {"sha256": "abc"},
        {"sha256": "g" * 64},
        {"start_s": -0.1},
        {"start_s": 2},
        {"start_s": float("nan")},
        {"start_s": float("inf"), "end_s": None},
        {"end_s": float("inf")},
        {"end_s": float("nan")},
    ],
)
def test_a_piece_that_is_none_is_refused(given: dict[str, object]) -> None:
    """No film, no hash, or times of which no piece can be cut; in one line."""
    with pytest.raises(RecordError) as caught:
        replace(PIECE, **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [None, [], {"uri": 3}, {"start_s": 1}, {"uri": "a", "end_s": "x"}]
)
def test_what_is_no_piece_is_refused(given: object) -> None:
    """Whatever stands in a file that somebody else wrote."""
    with pytest.raises(RecordError):
        SourceClip.from_dict(given)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter22@films.example/a.mp4",
        "s3://films/a.mp4?X-Amz-Signature=hunter22",
        "postgresql://u:hunter22@h/films",
    ],
)
def test_credentials_of_a_film_s_uri_are_not_kept(uri: str) -> None:
    """They are no part of where it lies."""
    assert "hunter22" not in json.dumps(SourceClip(uri=uri).to_dict())


def test_a_file_is_hashed(tmp_path: Path) -> None:
    """By its content, whatever it is called; its path is whole."""
    path = tmp_path / "a film.mp4"
    path.write_bytes(b"")
    (tmp_path / "link.mp4").symlink_to(path)
    piece = SourceClip.of_file(tmp_path / "link.mp4", end_s=2, use="training")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert piece == SourceClip(uri=str(path), sha256=empty, end_s=2, use="training")
    for gone in (tmp_path, tmp_path / "gone.mp4"):
        with pytest.raises(DataError, match=f"cannot read {gone}"):
            sha256_of(gone)


def test_an_origin_says_what_is_known_and_nothing_else() -> None:
    """A seed of 0 is a seed."""
    assert Origin().to_dict() == {}
    assert Origin(seed=0).to_dict() == {"seed": 0}
    origin = Origin(
        prompt="a kite", seed=3, sampler={"steps": 20}, checkpoint="c", weights_sha256=A,
        sources=(PIECE,),
    )  # fmt: skip
    assert origin.to_dict() == {
        "prompt": "a kite", "seed": 3, "sampler": {"steps": 20}, "checkpoint": "c",
        "weights_sha256": A, "sources": [PIECE.to_dict()],
    }  # fmt: skip


def test_an_origin_that_no_file_can_hold_is_refused() -> None:
    """Values that are no JSON, nested without end, too long, or a hash that is none."""
    endless: dict[str, object] = {}
    endless["again"] = endless
    for sampler in ({"a": object()}, {"a": float("nan")}, endless, {"a": "x" * MOST_BYTES}):
        with pytest.raises(RecordError, match="where a sample comes from"):
            Origin(sampler=sampler).to_dict()
    with pytest.raises(RecordError, match="weights_sha256"):
        Origin(weights_sha256="abc")
    check_account({"a": "x" * (MOST_BYTES - 9)})


def test_an_account_is_kept_as_plain_values() -> None:
    """NumPy's floats and tuples are what JSON makes of them."""
    given = {"sampler": {"guidance": np.float64(6.5), "size": (16, 16)}}
    kept = plain_account(given)
    assert kept == {"sampler": {"guidance": 6.5, "size": [16, 16]}}
    assert type(kept["sampler"]["guidance"]) is float


@pytest.mark.parametrize("given", [{"seed": 2**64}, {"prompt": "\udc80"}])
def test_an_account_that_no_record_can_hold_is_refused(given: dict[str, object]) -> None:
    """JSON could hold it."""
    with pytest.raises(RecordError, match="where a sample comes from cannot be kept"):
        plain_account(given)


def test_an_account_leaves_room_for_the_hash_of_its_weights() -> None:
    """Found out on the way, it must not make the account too long for the clip's file."""
    hashed = {"weights_sha256": "a" * 64}
    room = MOST_BYTES - len(json.dumps({"a": "", **hashed}))
    check_account({**plain_account({"a": "x" * room}), **hashed})
    with pytest.raises(RecordError, match="at most"):
        plain_account({"a": "x" * (room + 1)})
