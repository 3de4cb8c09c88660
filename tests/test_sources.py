"""The films of a dataset: one list, whole in a file, named in a tag, short in a profile."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.layout import is_sources
from opusclip_mlops.records import MAX_TAG_CHARACTERS, check_key
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sources import (
    MOST_INLINE_BYTES,
    Sources,
    films_in,
    films_in_profile,
    in_order,
    joined,
    named_in,
)

A, B = "a" * 64, "b" * 64
KITE = SourceClip(uri="/films/kite.mp4", sha256=A, start_s=0, end_s=4, use="training")
DOG = SourceClip(uri="/films/dog 100 % 風.mp4", start_s=1.25)
LONGEST = "ä" * 500


def of(*clips: SourceClip, name: str = "films", context: str = "training") -> Sources:
    return Sources.of(name, "d1", context, clips)


def pieces(films: Sources) -> tuple[SourceClip, ...]:
    """What is read back."""
    found = films_in(films.text.encode(), sha256=films.sha256)
    return tuple(piece for film in found for piece in film.pieces())


def test_films_come_back_with_their_pieces() -> None:
    """Each film once, however many pieces; whoever has the file has all of it."""
    films = of(KITE, DOG, replace(KITE, start_s=6, end_s=8), replace(KITE, sha256=B), KITE)
    assert (films.film_count, films.clip_count) == (3, 5)
    assert films.text.count("kite") == 2
    assert pieces(films) == (
        KITE, replace(KITE, start_s=6, end_s=8), DOG, replace(KITE, sha256=B),
    )  # fmt: skip


def test_the_same_films_make_the_same_list() -> None:
    """Another dataset, use or film makes another: each has a file and a tag of its own."""
    films = of(KITE, DOG)
    assert of(KITE, DOG) == films
    others = [of(KITE), of(KITE, DOG, name="b"), of(KITE, DOG, context="test"), of(DOG, KITE)]
    every = [films, *others]
    assert (
        len({one.path for one in every}) == len({key for one in every for key in one.tags()}) == 5
    )


@pytest.mark.parametrize("name", ["films", "../../x", "a/b\\c", "100 % #1", "風", "", LONGEST])
def test_names_of_any_kind_make_plain_paths_and_short_tags(name: str) -> None:
    """MLflow takes both, and the tag says the name as it is."""
    films = of(KITE, name=name)
    assert is_sources(films.path)
    assert films.path.count("/") == 1
    [(key, value)] = films.tags().items()
    check_key(key)
    assert len(value) <= MAX_TAG_CHARACTERS
    [named] = named_in({"other": "x", key: value})
    assert (named.name, named.digest, named.context) == (name, "d1", "training")
    assert (named.path, named.sha256, named.films, named.clips) == (films.path, films.sha256, 1, 1)


@pytest.mark.parametrize(
    "value",
    [
        "", "[]", "{}", '{"name": 3}', "\ud800",
        '{"name": "n", "digest": "d", "context": "", "sha256": "/../../../x"}',
    ],
)  # fmt: skip
def test_tags_that_are_not_ours_are_passed_over(value: str) -> None:
    """Anybody may set one."""
    assert list(named_in({"opusclip.sources.x": value})) == []


def test_a_short_list_stands_in_the_profile_and_a_long_one_is_named_there() -> None:
    """Facts come first, and a list of runs stays short."""
    films = of(KITE)
    [named] = named_in(films.tags())
    profile = films.profile({"frames": 9})
    assert list(profile) == ["frames", "sources"]
    found = films_in_profile(named, json.dumps(profile))
    assert found is not None
    assert found[0].pieces() == (KITE,)
    long = of(*(replace(KITE, uri=f"/films/{index}.mp4") for index in range(200)))
    text = json.dumps(long.profile({}))
    assert len(text) < MOST_INLINE_BYTES / 10
    assert json.loads(text)["sources"] == {
        "film_count": 200, "clip_count": 200, "file": long.path, "sha256": long.sha256,
    }  # fmt: skip


@pytest.mark.parametrize("change", [("kite", "k1te"), ("4.0", "5.0"), ('"films"', '"other"')])
def test_a_profile_of_other_films_is_not_believed(change: tuple[str, str]) -> None:
    """MLflow keeps the first of a name and digest: the hash tells whether it is this run's."""
    films = of(KITE)
    [named] = named_in(films.tags())
    text = json.dumps(films.profile({}))
    assert films_in_profile(named, text)
    assert films_in_profile(named, text.replace(*change)) is None
    for other in ("", "{", "[]", '{"sources": 3}', '{"sources": {"films": [3]}}'):
        assert films_in_profile(named, other) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"films": [{"uri": 3}]}', '{"films": [{"uri": "a", "clips": [[1]]}]}']
)
def test_a_list_that_is_none_is_refused(text: str) -> None:
    """In one line, though its hash is right; with another hash as well."""
    with pytest.raises(RecordError, match="no list of films"):
        films_in(text.encode(), sha256=sha256(text.encode()).hexdigest())
    with pytest.raises(RecordError, match="hash"):
        films_in(text.encode(), sha256=A)


def test_a_list_with_times_that_are_none_is_refused_where_it_is_read() -> None:
    """It was not made by us."""
    text = '{"films": [{"uri": "a", "clips": [[5.0, 3.0, ""]]}]}'
    [film] = films_in(text.encode(), sha256=sha256(text.encode()).hexdigest())
    with pytest.raises(RecordError, match="start before the end"):
        film.pieces()


def test_what_is_no_piece_is_refused() -> None:
    """A path alone says no timecodes."""
    with pytest.raises(RecordError, match="give SourceClip alone"):
        of("/films/kite.mp4")  # type: ignore[arg-type]


def test_a_hundred_thousand_pieces_are_a_list_like_any_other() -> None:
    """They take about 50 bytes each; the profile stays as short as it was."""
    many = [
        replace(KITE, uri=f"/films/{index // 4:06d}.mp4", start_s=index % 4 * 5.0, end_s=None)
        for index in range(100_000)
    ]
    films = of(*many)
    assert (films.film_count, films.clip_count) == (25_000, 100_000)
    assert len(films.text) < 60 * 100_000
    assert len(json.dumps(films.profile({}))) < MOST_INLINE_BYTES
    assert len(pieces(films)) == 100_000


def test_a_list_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Under the name that it has in MLflow."""
    films, folder = of(KITE), tmp_path / "media"
    with pytest.raises(OSError, match="media"):
        films.keep_in(folder)
    folder.mkdir()
    name = films.keep_in(folder)
    assert films.path == f"datasets/{name}"
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == films.text


def test_pieces_are_put_in_order_and_joined_for_people() -> None:
    """Those of one film and use that overlap or touch are one; others are not."""
    times = [(6, 8), (0, 4), (2, 5), (5, 5.5), (0, 1), (6, 8)]
    clips = [replace(KITE, start_s=start_s, end_s=end_s) for start_s, end_s in times]
    held_out = replace(KITE, start_s=3, end_s=9, use="held out")
    assert [(one.start_s, one.end_s) for one in in_order(clips)] == [
        (0, 1), (0, 4), (2, 5), (5, 5.5), (6, 8),
    ]  # fmt: skip
    found = joined([*clips, held_out])
    assert [(one.start_s, one.end_s, one.use) for one in found] == [
        (3, 9, "held out"), (0, 5.5, "training"), (6, 8, "training"),
    ]  # fmt: skip
    endless = replace(KITE, start_s=1, end_s=None)
    assert [one.end_s for one in joined([*clips, endless])] == [None]
