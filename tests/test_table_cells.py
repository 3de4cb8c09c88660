"""Facts about `opusclip_mlops.table_cells`: tables of any kind become rows of JSON values."""

import datetime
import itertools
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from opusclip_mlops.errors import RecordError
from opusclip_mlops.table_cells import plain, table_of

TABLE = (["clip", "psnr"], [["kite", 31.5], ["dog", 28.0]])
PICTURE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        ([["kite", 31.5], ["dog", 28.0]], ["clip", "psnr"]),
        ((row for row in (("kite", np.float32(31.5)), ("dog", 28.0))), ("clip", "psnr")),
        ([{"clip": "kite", "psnr": 31.5}, {"clip": "dog", "psnr": 28.0}], None),
        ([{"psnr": 31.5, "x": 1, "clip": "kite"}, {"psnr": 28, "clip": "dog"}], ["clip", "psnr"]),
        ({"clip": ["kite", "dog"], "psnr": np.array([31.5, 28.0])}, None),
        ({"clip": ["kite", "dog"], "psnr": torch.tensor([31.5, 28.0])}, None),
        (pd.DataFrame({"clip": ["kite", "dog"], "psnr": [31.5, 28.0]}), None),
        (pd.DataFrame({"n": [1, 2], "psnr": [31.5, 28], "clip": ["kite", "dog"]}), TABLE[0]),
    ],
)
def test_each_kind_of_table_gives_the_same_rows(data: Any, columns: Any) -> None:
    """Rows, mappings by column, columns and data frames; the columns asked for, in their order."""
    assert table_of(data, columns) == TABLE


def test_an_array_is_rows() -> None:
    """Its numbers become Python's own."""
    names, rows = table_of(np.arange(4).reshape(2, 2), ["a", "b"])
    assert (names, rows) == (["a", "b"], [[0, 1], [2, 3]])
    assert all(type(cell) is int for row in rows for cell in row)


def test_a_mapping_that_lacks_a_column_has_none_there() -> None:
    """Columns stand in the order in which they first came."""
    assert table_of([{"b": 1}, {"a": 2}]) == (["b", "a"], [[1, None], [None, 2]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (np.float32("-inf"), "-inf"),
        (torch.tensor(math.inf), "inf"),
        (np.bool_(True), True),
        (np.longdouble(0.5), 0.5),
        (torch.tensor(2), 2),
        (np.array(3), 3),
        (Decimal("1.5"), 1.5),
        (np.str_("x"), "x"),
        (pd.NA, None),
        (pd.NaT, None),
        (pd.Timestamp(2026, 1, 2), "2026-01-02T00:00:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (np.datetime64("2026-01-02T00:00:00.000000001"), "2026-01-02T00:00:00.000000001"),
        ({1: (np.int8(1), [math.nan])}, {"1": [1, ["nan"]]}),
        (-(2**63), -(2**63)),
    ],
)
def test_a_cell_becomes_what_json_holds(value: Any, expected: Any) -> None:
    """Numbers of NumPy and torch are numbers, times are ISO 8601, NaN and infinities texts."""
    found = plain(value)
    assert (found, type(found)) == (expected, type(expected))
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


class Nested(list[Any]):
    """A list that holds itself."""

    def __init__(self) -> None:
        super().__init__([self])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (PICTURE, "row 1 of column 'b' is Image, no JSON value: log pictures with log_figure"),
        (np.zeros((2, 2)), r"row 1 of column 'b' is ndarray.*tolist\(\)"),
        (b"x", "is bytes"),
        (object(), "is object, no JSON value: pass a text or a number"),
        (1j, "is complex"),
        (2**63, "beyond 64 bits"),
        (Nested(), "lists in lists"),
    ],
)
def test_a_cell_that_json_cannot_hold_is_named(cell: Any, message: str) -> None:
    """The message names row and column, and what to do."""
    with pytest.raises(RecordError, match=message):
        table_of([[1, 2], [3, cell]], ["a", "b"])


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        ("words", None, "cannot be made from str"),
        (3, None, "cannot be made from int"),
        ([[1]], None, "pass columns="),
        ([], None, "pass columns="),
        ([[1, 2], [3]], ["a", "b"], "row 1 has 1 cells for 2 columns"),
        (["ab"], ["a", "b"], "row 0 is str"),
        ([1, 2], ["a"], "row 0 is int"),
        ({"a": [1], "b": [1, 2]}, None, "differ in length"),
        ({"a": "words"}, None, "column 'a' must be a list"),
        ({"a": 3}, None, "column 'a' must be a list"),
        ({}, None, "one or more columns"),
        ([[1, 2]], ["a", "a"], "each once"),
        ([{1: 0, "1": 0}], None, "each once"),
        ({"a": [1]}, ["b"], "no column 'b'"),
        ([[1]], "a", "columns must be a list"),
    ],
)
def test_what_is_no_table_is_refused(data: Any, columns: Any, message: str) -> None:
    """In one line that says what is wrong."""
    with pytest.raises(RecordError, match=message) as caught:
        table_of(data, columns)
    assert "\n" not in str(caught.value)


def test_a_table_that_no_mirror_takes_is_refused() -> None:
    """More than 10,000 rows or 64 MiB; the message says how many there are."""
    assert len(table_of({"a": range(10_000)})[1]) == 10_000
    with pytest.raises(RecordError, match="10,001 rows: at most 10,000"):
        table_of({"a": range(10_001)})
    with pytest.raises(RecordError, match="bytes: at most 67,108,864"):
        table_of({"a": ["x" * 2**20] * 65})
    # In a file of ASCII alone each of these takes twelve bytes.
    with pytest.raises(RecordError, match="bytes: at most 67,108,864"):
        table_of({"a": ["\N{GRINNING FACE}" * 2**16] * 88})


class Unread(list[Any]):
    """A list of many rows that nobody may go through."""

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Any:
        raise AssertionError("it was read")


class UnreadFrame(pd.DataFrame):
    """A data frame that nobody may go through."""

    def itertuples(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it was read")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Unread(), "1,000,000,000 rows"),
        ({"a": Unread()}, "1,000,000,000 rows"),
        (UnreadFrame({"a": range(10_001)}), "10,001 rows"),
        (([number] for number in itertools.count()), "more than 10,000 rows"),
        ({"a": itertools.count()}, "more than 10,000 rows"),
    ],
)
def test_a_table_is_counted_before_it_is_read(data: Any, message: str) -> None:
    """A long one is refused at once, one without an end too."""
    with pytest.raises(RecordError, match=f"the table has {message}: at most 10,000 are kept"):
        table_of(data, ["a"])


def test_half_characters_are_written_out() -> None:
    """A file name that is no UTF-8 holds them: they stand as they do in every record."""
    name = "kite-\udc80.mp4"
    expected = (["a\\udc80"], [["kite-\\udc80.mp4"]])
    assert table_of({"a\udc80": [name]}) == expected
    assert table_of([[name]], ["a\udc80"]) == expected
    assert table_of([{"a\udc80": np.str_(name)}], ["a\udc80"]) == expected
    assert plain({name: [name]}) == {"kite-\\udc80.mp4": ["kite-\\udc80.mp4"]}


def test_an_empty_table_has_its_columns() -> None:
    """No row is no mistake."""
    assert table_of([], ["a"]) == (["a"], [])
    assert table_of({"a": []}) == (["a"], [])
    assert table_of(pd.DataFrame({"a": []})) == (["a"], [])
