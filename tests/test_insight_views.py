"""Contents of insights are read as what they say, and refused where they are something else."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from opusclip_mlops import insight_views
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.insight_views import understood
from opusclip_mlops.records import Insight
from tests.insight_records import (
    LABELS,
    T0_MS,
    embedding,
    histogram,
    histograms,
    hparams,
    pr_curve,
    trace,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "media").mkdir()
    return RunFolder(tmp_path)


def changed(record: Insight, **content: Any) -> Insight:
    """The same insight with other contents."""
    return msgspec.structs.replace(record, content={**record.content, **content})


def test_histograms_are_edges_and_counts() -> None:
    """One without a value has neither."""
    found = insight_views.histograms_of(histograms(5))
    assert list(found) == ["encoder.conv", "dead"]
    assert found["encoder.conv"].edges.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert found["encoder.conv"].counts.tolist() == [3, 4, 5, 1]
    assert found["dead"].edges.tolist() == found["dead"].counts.tolist() == []


@pytest.mark.parametrize(
    "one",
    [
        {"edges": [0, 1], "counts": [1, 2]},
        {"edges": [0, "inf"], "counts": [1]},
        {"edges": list(range(514)), "counts": [1] * 513},
        {"edges": ["x"], "counts": []},
        {"counts": []},
        None,
    ],
)
def test_a_histogram_that_is_none_is_refused_with_its_place(one: Any) -> None:
    """Whatever it is instead."""
    record = changed(histograms(), histograms={"a": histogram(1), "b": one})
    with (
        pytest.raises(RecordError, match="histograms weights at step 5") as caught,
        understood(record),
    ):
        insight_views.histograms_of(record)
    assert "\n" not in str(caught.value)


def test_a_precision_that_is_not_defined_is_zero() -> None:
    """All six rows are numbers."""
    curve = insight_views.curve_of(pr_curve())
    assert curve.shape == (6, 3)
    assert curve[4].tolist() == [0.4, 0.75, 0.0]


def test_even_thresholds_stay_as_they_are() -> None:
    """And not one is added."""
    assert np.array_equal(
        insight_views.even_curve_of(pr_curve()), insight_views.curve_of(pr_curve())
    )


def test_scores_as_thresholds_are_brought_to_even_ones_exactly() -> None:
    """Counts at an even threshold are those of all scores that are not below it."""
    rng = np.random.default_rng(3)
    scores, labels = np.sort(rng.random(40)), rng.random(40) < 0.5
    counts: dict[str, list[int]] = {
        "true_positives": [int(labels[at:].sum()) for at in range(40)],
        "false_positives": [int((~labels[at:]).sum()) for at in range(40)],
        "true_negatives": [int((~labels[:at]).sum()) for at in range(40)],
        "false_negatives": [int(labels[:at].sum()) for at in range(40)],
    }
    record = changed(
        pr_curve(), thresholds=scores.tolist(), precision=[0.5] * 40, recall=[0.5] * 40, **counts
    )
    found = insight_views.even_curve_of(record)
    below_last = np.linspace(0, 1, 201) <= scores[-1]
    wanted = [int(labels[scores >= at].sum()) for at in np.linspace(0, 1, 201)[below_last]]
    assert found[0][below_last].tolist() == wanted


def test_a_curve_whose_rows_do_not_fit_is_refused() -> None:
    """Also one without a threshold."""
    empty: dict[str, list[float]] = {name: [] for name in ("thresholds", *insight_views.CURVE)}
    for record in (changed(pr_curve(), recall=[1.0]), changed(pr_curve(), **empty)):
        with pytest.raises(RecordError), understood(record):
            insight_views.curve_of(record)


def test_an_embedding_is_its_vectors_labels_and_sprite(folder: RunFolder) -> None:
    """As they were logged."""
    found = insight_views.embedding_of(embedding(folder), folder.media)
    assert np.array_equal(found.vectors, np.arange(15, dtype=np.float32).reshape(5, 3) / 7)
    assert (found.columns, found.picture_px) == (("kind", "d1"), (6, 8))
    assert [list(row) for row in found.labels] == LABELS
    assert found.sprite == folder.media / "sprite-3-0.png"


def test_an_embedding_without_labels_and_pictures_is_vectors_only(folder: RunFolder) -> None:
    """Neither has to be there."""
    record = changed(embedding(folder), labels=[], columns=[], sprite=None)
    found = insight_views.embedding_of(record, folder.media)
    assert dataclasses.astuple(found)[1:] == ((), (), None, (0, 0))


@pytest.mark.parametrize(
    "content",
    [{"count": 6}, {"labels": LABELS[:4]}, {"labels": [*LABELS[:4], ["x"]]}, {"sprite": [6]}],
)
def test_an_embedding_that_does_not_fit_its_files_is_refused(
    folder: RunFolder, content: dict[str, Any]
) -> None:
    """More vectors, other labels, half a size."""
    record = changed(embedding(folder), **content)
    with pytest.raises(RecordError, match="embedding clips at step 3"), understood(record):
        insight_views.embedding_of(record, folder.media)


def test_vectors_that_are_gone_or_something_else_are_refused(folder: RunFolder) -> None:
    """A pickle is not even opened."""
    record = embedding(folder)
    path = folder.media / record.files["vectors.npy"]
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in (path.read_bytes(), b"", b"x" * 99, None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(RecordError, match=r"vectors\.npy"), understood(record):
            insight_views.embedding_of(record, folder.media)


def test_a_file_outside_the_runs_folder_is_not_read(folder: RunFolder, tmp_path: Path) -> None:
    """Only the last part of a name counts."""
    record = embedding(folder)
    np.save(tmp_path / "secret.npy", np.zeros((5, 3), np.float32))
    files = {**record.files, "vectors.npy": "../secret.npy"}
    with pytest.raises(RecordError, match="is gone"):
        insight_views.embedding_of(msgspec.structs.replace(record, files=files), folder.media)


def test_the_facts_of_a_trace_say_where_it_lies_in_mlflow(folder: RunFolder) -> None:
    """And what opens it."""
    facts = dict(insight_views.facts_of(trace(folder)))
    assert facts["steps"] == "10 to 12"
    assert facts["CPU time"] == "1,234.5 ms"
    place = f"insights/trace/profiling/trace/step_00000012-{T0_MS + 12}-…/trace.json.gz"
    assert facts["file in MLflow"] == place
    assert "perfetto" in facts["opens in"]


def test_the_facts_of_hyperparameters_have_their_goal() -> None:
    """A result that was never logged is empty."""
    assert insight_views.facts_of(hparams()) == [
        ["name", "value", "goal"], ["lr", "0.1", ""], ["optimizer", "adamw", ""],
        ["use_ema", "True", ""], ["never", "", ""], ["val/loss", "0.25", "minimize"],
    ]  # fmt: skip
