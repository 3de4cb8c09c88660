"""Facts about `opusclip_mlops.insight_documents`: insights and tables as files, there and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from opusclip_mlops import layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.insight_documents import (
    KINDS,
    canonical,
    digest_of_table,
    insight_document,
    read_insight,
    table_document,
)
from opusclip_mlops.layout import Named
from opusclip_mlops.records import Insight, Table
from tests.insight_records import T0_MS, every_kind
from tests.insight_records import layout as charts
from tests.journeys import make_run

HASHES = {"vectors.npy": "0" * 64, "trace.json.gz": "1" * 64}


def record(**changes: Any) -> Insight:
    one = charts(3, key="a/key")
    return Insight(T0_MS, 3, one.key, one.kind, {**one.content, **changes})


def named(one: Insight, digest: str) -> Named:
    found = layout.insight_of(
        layout.insight_path(one.kind, one.key, one.step, one.timestamp_ms, digest)
    )
    assert found is not None
    return found


def test_each_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    """Content, files, key, step and time; and it has the same text each time."""
    logged = every_kind(make_run(tmp_path))
    assert {one.kind for one in logged} == KINDS
    for one in logged:
        text, digest = insight_document(one, HASHES)
        assert insight_document(one, HASHES) == (text, digest)
        back = structs.replace(one, files={})
        assert read_insight(text.encode(), named(one, digest)) == (back, HASHES)
        assert json.loads(text)["format"] == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_json_has_one_text_and_one_digest(content: dict[str, Any]) -> None:
    """Written and read it has the same text: no digest fails for the form of a number."""
    text = canonical(content)
    assert canonical(json.loads(text)) == text


def test_what_is_no_number_of_json_becomes_a_word() -> None:
    """NaN and infinities, however deep; a tuple is a list, a key is text."""
    found = canonical({"a": [math.nan, (math.inf, -math.inf)], 3: {"b": 1.5}})
    assert json.loads(found) == {"a": ["nan", ["inf", "-inf"]], "3": {"b": 1.5}}


@pytest.mark.parametrize("change", ["key", "kind", "content", "files"])
def test_the_digest_is_of_all_that_an_insight_says(change: str) -> None:
    """Another key, kind, content or file has another name."""
    one, hashes = record(), dict(HASHES)
    other = {
        "key": Insight(T0_MS, 3, "other", one.kind, one.content),
        "kind": Insight(T0_MS, 3, one.key, "graph", one.content),
        "content": Insight(T0_MS, 3, one.key, one.kind, {"categories": []}),
        "files": one,
    }[change]
    changed = {**hashes, "vectors.npy": "2" * 64} if change == "files" else hashes
    assert insight_document(one, hashes)[1] != insight_document(other, changed)[1]


BROKEN: dict[str, tuple[Any, str]] = {
    "cut": (lambda text: text[: len(text) // 2], "can't be read as JSON"),
    "no JSON": (lambda _: "\0\1", "can't be read as JSON"),
    "a list": (lambda _: "[]", "no insight"),
    "nested without end": (lambda _: "[" * 200_000, "can't be read as JSON"),
    "NaN": (lambda text: text.replace('"is_closed":false', '"is_closed":NaN'), "no number"),
    "another format": (lambda text: text.replace('"format":1', '"format":2'), "has format 2"),
    "another step": (lambda text: text.replace('"step":3', '"step":4'), "than its name"),
    "another kind": (lambda text: text.replace('"layout"', '"graph"'), "than its name"),
    "another content": (lambda text: text.replace("losses", "gains"), "its digest"),
    "another file": (lambda text: text.replace("0" * 64, "4" * 64), "its digest"),
    "no hash": (lambda text: text.replace("0" * 64, "4" * 3), "what its files are"),
    "files in a list": (lambda text: text.replace('"files":{', '"files":[],"x":{'), "files are"),
    "no content": (lambda text: text.replace('"content"', '"c"'), "no content"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_with_a_reason(name: str) -> None:
    """Cut, foreign, of a later format, or changed: one line says which."""
    break_it, reason = BROKEN[name]
    text, digest = insight_document(record(), HASHES)
    assert break_it(text) != text
    with pytest.raises(RecordError, match=reason):
        read_insight(break_it(text).encode(), named(record(), digest))


@pytest.mark.parametrize(
    "name", ["../up.npy", "a/b.npy", "", ".hidden", "..", "a\0b", "é.npy", "x" * 101, "step_1.json"]
)
def test_a_file_has_a_plain_name(name: str) -> None:
    """No name leads out of the insight's folder, when it is written and when it is read."""
    with pytest.raises(RecordError, match="no plain name"):
        insight_document(record(), {name: "0" * 64})
    one = {"files": {name: "0" * 64}, "content": {}, "format": 1}
    about = {**one, "kind": "layout", "key": "a/key", "step": 3, "timestamp_ms": T0_MS}
    with pytest.raises(RecordError, match="no plain name"):
        read_insight(json.dumps(about).encode(), named(record(), "0" * 12))


@pytest.mark.parametrize("kind", ["", "../up", "a/b", "é", "Graph", "k" * 51])
def test_a_kind_is_a_plain_word(kind: str) -> None:
    """It is a folder's name in MLflow."""
    with pytest.raises(RecordError, match="no plain word"):
        insight_document(Insight(T0_MS, 3, "k", kind, {}), {})


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_what_json_has_no_form_for_is_refused() -> None:
    """Bytes in a content or a cell are said, and nothing is written."""
    for odd in (b"x", _nested(100_000)):
        with pytest.raises(RecordError, match="can't be kept as JSON"):
            insight_document(record(categories=odd), {})
    with pytest.raises(RecordError, match="can't be kept as JSON"):
        table_document(Table(T0_MS, 3, "k", ["a"], [[b"x"]]))


def test_a_table_is_in_pandas_split_orientation() -> None:
    """Columns and rows; numbers that JSON lacks are words; its digest is of key and text."""
    one = Table(T0_MS, 3, "k", ["a", "b"], [[1, math.nan], ["é", None]])
    text, digest = table_document(one)
    assert json.loads(text) == {"columns": ["a", "b"], "data": [[1, "nan"], ["é", None]]}
    assert digest == digest_of_table("k", text.encode()) != digest_of_table("l", text.encode())
