"""Facts about `opusclip_mlops.tables`: what `mlflow.log_table` wrote is read row by row."""

import io
import json
from typing import Any

import pandas as pd
import pytest

from opusclip_mlops.records import Table
from opusclip_mlops.tables import MOST_ROWS, TABLES_TAG, TableRead, read_table, table_paths


def read(content: Any, path: str = "t.json") -> TableRead:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_table(path, len(encoded), lambda: encoded)


def test_a_table_is_its_columns_and_rows() -> None:
    """Its step is its length: a table that grew is another than before."""
    found = read({"columns": ["a", 1], "data": [[0.1, None], ["x", {"y": [1]}]]}, "eval/t.json")
    rows = [[0.1, None], ["x", {"y": [1]}]]
    assert found.record("eval/t.json", timestamp_ms=9) == Table(9, 2, "eval/t", ["a", "1"], rows)
    assert found.left_out == ()


def test_parquet_is_read_as_json_is() -> None:
    """The same rows, times as text."""
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "at": pd.to_datetime(["2024-01-02"] * 2)})
    file = io.BytesIO()
    frame.to_parquet(file)
    found = read(file.getvalue(), "t.parquet")
    assert found.columns == ["a", "b", "at"]
    assert found.rows is not None
    assert [row[:2] for row in found.rows] == [[1, "x"], [2, None]]
    assert found.rows[0][2].startswith("2024-01-02T00:00:00")
    assert found.record("t.parquet", timestamp_ms=0).key == "t.parquet"


def test_pictures_in_cells_are_given_as_their_paths() -> None:
    """And it is said, once a column."""
    cell = {"type": "image", "filepath": "table_images/t/1.png", "compressed_filepath": "…"}
    found = read({"columns": ["p", "o"], "data": [["a", cell], ["b", cell]]})
    assert found.rows == [["a", "table_images/t/1.png"], ["b", "table_images/t/1.png"]]
    assert found.left_out == ("the pictures in column 'o' are given as paths",)


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", [], {}, {"columns": ["a"]}, {"columns": 1, "data": []},
     {"columns": ["a"], "data": [[1, 2]]}, {"columns": ["a"], "data": [3]},
     {"columns": ["a"], "data": [[0]] * (MOST_ROWS + 1)}],
    ids=str,
)  # fmt: skip
def test_what_is_no_table_or_too_large_is_left_out_with_a_reason(content: Any) -> None:
    """Nothing is raised, and no half of a table is carried."""
    found = read(content)
    assert found.columns is None
    assert len(found.left_out) == 1


def test_a_broken_parquet_file_is_left_out() -> None:
    """As a broken JSON file is."""
    assert len(read(b"PAR1", "t.parquet").left_out) == 1


def test_a_huge_table_is_not_even_fetched() -> None:
    """Its size is known from the listing."""

    def never() -> bytes:
        raise AssertionError("fetched")

    assert "bytes" in read_table("t.json", 2**40, never).left_out[0]


def test_mlflow_notes_which_files_are_tables() -> None:
    """A note that is not MLflow's is said, and no table is made up."""
    noted = '[{"path": "b", "type": "table"}, {"path": "a", "type": "table"}, {"type": "x"}]'
    assert table_paths({TABLES_TAG: noted}) == (["a", "b"], None)
    assert table_paths({}) == ([], None)
    for broken in ("{", "3", "[3]", '[{"type": "table"}]'):
        paths, problem = table_paths({TABLES_TAG: broken})
        assert paths == []
        assert problem is not None
