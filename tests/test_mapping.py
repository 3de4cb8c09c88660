"""Keeps docs/mapping.md true: it names all that can be in a run, and says what the code says."""

import re
from pathlib import Path
from typing import get_args

import pytest
from mlflow.entities import RunData, RunInfo, RunInputs, RunOutputs

from opusclip_mlops.events import MOST_TABLE_ROWS
from opusclip_mlops.insight_documents import KINDS
from opusclip_mlops.records import Record
from opusclip_mlops.tables import MOST_ROWS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "mapping.md").read_text()


@pytest.mark.parametrize("record", get_args(Record), ids=lambda record: record.__name__)
def test_every_record_is_named(record: type) -> None:
    """What travels is somewhere in the tables."""
    assert f"`{record.__name__}`" in TEXT


@pytest.mark.parametrize("entity", [RunData, RunInfo, RunInputs, RunOutputs])
def test_everything_that_mlflow_says_of_a_run_is_named(entity: type) -> None:
    """A field that a later MLflow adds to a run has to be mapped, or left out with a reason."""
    fields = [name for name in dir(entity) if isinstance(getattr(entity, name), property)]
    assert fields
    named = set(re.findall(r"`(?:\w+\.)?(\w+)`", TEXT))
    assert [name for name in fields if name not in named] == []


def test_what_is_said_is_what_the_code_says() -> None:
    """Each reason in the table of what is left out stands in a module, word for word."""
    table = TEXT.partition("## What is left out")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    said = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    code = "".join(path.read_text() for path in (ROOT / "opusclip_mlops").rglob("*.py"))
    assert len(said) > 15
    assert [text for text in said if text not in code] == []


def test_limits_are_those_of_the_code() -> None:
    """How large a table may be, and how much of it TensorBoard is given."""
    assert f"more than {MOST_ROWS:,} rows" in TEXT
    assert f"the first {MOST_TABLE_ROWS:,} rows" in TEXT


def test_every_kind_of_insight_is_named() -> None:
    """What an insight holds, and what beside it, is said of each."""
    table = TEXT.partition("## What a model looks like")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == KINDS
