"""Insights are values of W&B's own types."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import wandb
from PIL import Image as Picture

from opusclip_mlops import insight_charts, wandb_layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Insight
from tests.insight_records import (
    LABELS,
    T0_MS,
    embedding,
    every_kind,
    graph,
    histograms,
    layout,
    pr_curve,
    trace,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "media").mkdir()
    return RunFolder(tmp_path)


def columns(record: Insight, folder: RunFolder) -> dict[str, Any]:
    """The columns of an insight's row, without the one that says what it is."""
    found = insight_charts.columns_of(record, folder.media)
    mark = found.pop(wandb_layout.INSIGHT_KEY)
    assert wandb_layout.insight_of_mark(mark) == (record.kind, record.key)
    return found


def test_histograms_are_columns_of_their_own(folder: RunFolder) -> None:
    """With their own edges; W&B can't show one without a value."""
    [(column, shown)] = columns(histograms(), folder).items()
    assert column == "weights/encoder.conv"
    assert (shown.histogram, shown.bins) == ([3, 4, 5, 1], [-1, -0.5, 0, 0.5, 1])


def test_a_column_that_wandb_keeps_for_itself_gets_a_prefix(folder: RunFolder) -> None:
    """As one of a metric does."""
    assert [*columns(graph(key="global_step"), folder)] == ["metrics/global_step"]
    assert [*columns(graph(key=wandb_layout.INSIGHT_KEY), folder)] == ["metrics/opusclip_insight"]


def test_a_graph_is_wandbs_own(folder: RunFolder) -> None:
    """Nodes with their ops and shapes, and edges between those that are there."""
    shown = columns(graph(), folder)["model"]
    assert isinstance(shown, wandb.Graph)
    told = shown._to_graph_json()
    assert [node["class_name"] for node in told["nodes"]] == ["input", "Conv2d", "ReLU"]
    assert told["nodes"][0]["output_shape"] == [[1, 4, 8, 8]]
    assert told["edges"] == [["x", "encoder/conv"], ["encoder/conv", "encoder/relu"]]


def test_a_curve_is_wandbs_chart_of_one_over_a_table(folder: RunFolder) -> None:
    """The table has what the chart asks for, and all counts besides."""
    shown = columns(pr_curve(), folder)["val/cat"]
    assert shown.spec.spec_name == "wandb/area-under-curve/v0"
    assert {*shown.spec.fields.values()} <= {*shown.table.columns}
    row = dict(zip(shown.table.columns, shown.table.data[1], strict=True))
    assert (row["class"], row["threshold"]) == ("val/cat", 0.5)
    assert (row["precision"], row["recall"], row["true_negatives"]) == (0.75, 0.75, 5)


def test_an_embedding_is_a_table_of_labels_pictures_and_dimensions(folder: RunFolder) -> None:
    """Each picture is cut out of its place; a label called as a dimension is told apart."""
    table = columns(embedding(folder), folder)["clips"]
    assert table.columns == ["kind", "label d1", "picture", "d0", "d1", "d2"]
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
    for number, (kind, other, picture, *vector) in enumerate(table.data):
        assert [kind, other] == LABELS[number]
        assert vector == vectors[number].tolist()
        assert picture.image.size == (8, 6)
        assert picture.image.getpixel((0, 0)) == (40 + 40 * number,) * 3


def test_a_large_embedding_is_cut(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """To so many rows and numbers, and to so many pictures."""
    monkeypatch.setattr(insight_charts, "MOST_PICTURES", 2)
    table = columns(embedding(folder), folder)["clips"]
    assert [row[2] is None for row in table.data] == [False, False, True, True, True]
    monkeypatch.setattr(insight_charts, "MOST_VECTORS", 4)
    assert len(columns(embedding(folder), folder)["clips"].data) == 4
    monkeypatch.setattr(insight_charts, "MOST_CELLS", 9)
    assert len(columns(embedding(folder), folder)["clips"].data) == 3


def test_a_trace_is_a_page_that_escapes_what_it_says(folder: RunFolder) -> None:
    """It says where the file lies in MLflow."""
    page = columns(trace(folder), folder)["profiling/trace"].html
    assert "torch.profiler &lt;2.13&gt;" in page
    assert "trace.json.gz" in page


def test_a_layout_and_a_kind_of_a_later_version_are_marks_only(folder: RunFolder) -> None:
    """They are not refused."""
    assert columns(layout(), folder) == {}
    assert columns(Insight(T0_MS, 1, "a", "hologram", {"x": [1]}), folder) == {}


def broken(folder: RunFolder) -> Iterator[Insight]:
    """Insights of each kind that W&B shows, with something else for their contents."""
    shown = (one for one in every_kind(folder) if one.kind not in ("layout", "hparams"))
    for record in shown:
        for content in ({}, dict.fromkeys(record.content, "x"), dict.fromkeys(record.content, 1)):
            yield msgspec.structs.replace(record, content=content)


def test_contents_that_are_something_else_are_refused(folder: RunFolder) -> None:
    """With one line that names the insight."""
    for record in broken(folder):
        with pytest.raises(RecordError, match=f"{record.kind} .*at step") as caught:
            insight_charts.columns_of(record, folder.media)
        assert "\n" not in str(caught.value)


def test_a_sprite_that_cannot_be_read_is_refused(folder: RunFolder) -> None:
    """No picture, or one that is too narrow."""
    record = embedding(folder)
    sprite = folder.media / record.files["sprite.png"]
    for narrow in (True, False):
        sprite.write_bytes(b"no picture")
        if narrow:
            Picture.new("RGB", (4, 4)).save(sprite)
        with pytest.raises(RecordError, match=r"sprite\.png"):
            insight_charts.columns_of(record, folder.media)
