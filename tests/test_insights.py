"""The calls that show figures, tables, embeddings and curves: what stands in the journal."""

import itertools
import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from opusclip_mlops import ExperimentTracker, accounting, records
from opusclip_mlops.errors import ConfigError, OpusclipError, RecordError
from tests.joined_tracker import joined_tracker, logged, media

matplotlib.use("agg")


@pytest.fixture
def tracker(tmp_path: Path) -> ExperimentTracker:
    return joined_tracker(tmp_path)


def only(tracker: ExperimentTracker) -> Any:
    [record] = logged(tracker)
    return record


def test_a_figure_is_an_image_at_the_last_step(tracker: ExperimentTracker) -> None:
    """A PNG in the run's folder, there when the call returns."""
    tracker.log_metrics({"loss": 1.0}, step=7)
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    tracker.log_figure(figure, "figures/line")
    _, image = logged(tracker)
    assert isinstance(image, records.Image)
    assert (image.key, image.step) == ("figures/line", 7)
    with Image.open(media(tracker) / image.file) as picture:
        assert (picture.format, picture.size) == ("PNG", (640, 480))
    plt.close(figure)


def test_an_array_is_an_image_at_its_step(tracker: ExperimentTracker) -> None:
    """What the caller does to it afterwards does not matter."""
    array = np.full((2, 3, 3), 200, np.uint8)
    tracker.log_figure(array, "figures/flat", step=np.int64(3))
    array[:] = 0
    image = only(tracker)
    assert image.step == 3
    with Image.open(media(tracker) / image.file) as picture:
        assert (np.asarray(picture) == 200).all()


def test_a_table_has_columns_and_rows(tracker: ExperimentTracker) -> None:
    """Of a data frame, in JSON values."""
    frame = pd.DataFrame({"clip": ["kite", "dog"], "psnr": [np.nan, 28.5]})
    tracker.log_table(frame, "tables/worst", step=2)
    table = only(tracker)
    assert isinstance(table, records.Table)
    assert (table.key, table.step, table.columns) == ("tables/worst", 2, ["clip", "psnr"])
    assert table.rows == [["kite", "nan"], ["dog", 28.5]]


def test_an_embedding_has_vectors_labels_and_a_sprite(tracker: ExperimentTracker) -> None:
    """The files are named beside it, and lie in the run's folder."""
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    images = [np.full((2, 2, 3), shade, np.uint8) for shade in (0, 100, 200)]
    tracker.log_embedding(vectors, labels=["a", "b", "c"], images=images, step=4)
    insight = only(tracker)
    assert (insight.key, insight.kind, insight.step) == ("embedding", "embedding", 4)
    assert insight.content == {
        "count": 3, "dimensions": 5, "columns": ["label"], "labels": [["a"], ["b"], ["c"]],
        "sprite": [2, 2],
    }  # fmt: skip
    assert sorted(insight.files) == ["sprite.png", "vectors.npy"]
    found = np.load(media(tracker) / insight.files["vectors.npy"], allow_pickle=False)
    assert (found == vectors.astype(np.float32)).all()
    with Image.open(media(tracker) / insight.files["sprite.png"]) as sheet:
        assert sheet.size == (4, 4)


def test_a_curve_has_counts_at_each_threshold(tracker: ExperimentTracker) -> None:
    """From lists too; the numbers are what JSON holds."""
    tracker.log_pr_curve([0, 1, 1], [0.2, 0.6, 0.9], "val/is_cut", step=1, thresholds=3)
    insight = only(tracker)
    assert (insight.key, insight.kind) == ("val/is_cut", "pr_curve")
    assert insight.content == {
        "thresholds": [0.0, 0.5, 1.0],
        "true_positives": [2, 2, 0], "false_positives": [1, 0, 0],
        "true_negatives": [0, 1, 1], "false_negatives": [0, 0, 2],
        "precision": [pytest.approx(2 / 3), 1.0, 0.0], "recall": [1.0, 1.0, 0.0],
    }  # fmt: skip
    json.dumps(insight.content, allow_nan=False)


def test_weights_count_in_a_curve(tracker: ExperimentTracker) -> None:
    """A prediction of weight 0 might not be there."""
    tracker.log_pr_curve([0, 1], [0.9, 0.9], "c", thresholds=[0.5], weights=[0.0, 2.0])
    content = only(tracker).content
    assert (content["true_positives"], content["false_positives"]) == ([2.0], [0.0])
    assert content["precision"] == [1.0]


def test_hyperparameters_are_params_and_their_results_metrics(tracker: ExperimentTracker) -> None:
    """A result that is still to come is no metric; the goal says which way is better."""
    tracker.log_metrics({"loss": 1.0}, step=5)
    params = {"lr": 1e-3, "name": "a", "ema": True}
    results = {"val/loss": 0.5, "val/psnr": None}
    tracker.log_hparams(params, results, {"val/loss": "minimize"})
    _, given, metrics, insight = logged(tracker)
    assert given == records.Params({"lr": "0.001", "name": "a", "ema": "True"})
    assert isinstance(metrics, records.Metrics)
    assert (metrics.step, metrics.values) == (5, {"val/loss": 0.5})
    assert (insight.key, insight.kind, insight.step) == ("hparams", "hparams", 5)
    assert insight.content == {
        "params": params,
        "results": results,
        "goal": {"val/loss": "minimize"},
    }


def test_hyperparameters_need_no_results(tracker: ExperimentTracker) -> None:
    """At a run's beginning there are none."""
    tracker.log_hparams({"lr": 1})
    params, insight = logged(tracker)
    assert isinstance(params, records.Params)
    assert isinstance(insight, records.Insight)
    assert insight.content == {"params": {"lr": 1}, "results": {}, "goal": {}}


def test_a_layout_is_logged(tracker: ExperimentTracker) -> None:
    """As it is said."""
    tracker.log_layout({"losses": {"both": ["train/loss", "val/loss"]}}, closed=["losses"])
    insight = only(tracker)
    assert (insight.key, insight.kind) == ("layout", "layout")
    chart = {"title": "both", "kind": "multiline", "tags": ["train/loss", "val/loss"]}
    assert insight.content == {
        "categories": [{"title": "losses", "is_closed": True, "charts": [chart]}]
    }


def test_no_record_is_earlier_than_its_part_of_the_run(tracker: ExperimentTracker) -> None:
    """Where the clock of the machine is behind."""
    tracker._since_ms = 2**52
    tracker.log_figure(np.zeros((2, 2)), "figures/zero")
    tracker.log_table({"a": [1]}, "tables/one")
    tracker.log_layout({"a": {"b": ["c"]}})
    assert {one.timestamp_ms for one in logged(tracker)} == {2**52}  # type: ignore[union-attr]


def test_half_characters_stand_as_they_do_in_every_record(tracker: ExperimentTracker) -> None:
    """A file name that is no UTF-8 holds them: in cells, labels, params, titles and texts."""
    name, written = "kite-\udc80.mp4", "kite-\\udc80.mp4"
    tracker.log_table({"clip": [name]}, "tables/clips")
    tracker.log_embedding([[1.0]], labels=[name])
    tracker.log_hparams({"clip": name})
    tracker.log_layout({name: {name: ["loss"]}})
    tracker.log_text(name, "clip")
    table, embedding, params, hparams, layout, text = logged(tracker)
    assert isinstance(table, records.Table)
    assert table.rows == [[written]]
    assert isinstance(embedding, records.Insight)
    assert embedding.content["labels"] == [[written]]
    assert params == records.Params({"clip": written})
    assert isinstance(hparams, records.Insight)
    assert hparams.content["params"] == {"clip": written}
    assert isinstance(layout, records.Insight)
    assert layout.content["categories"][0]["title"] == written
    assert isinstance(text, records.Text)
    assert text.text == written
    for call in (tracker.log_table, tracker.log_text):
        with pytest.raises(RecordError, match="key"):
            call("x", name)
    with pytest.raises(RecordError, match="key"):
        tracker.log_hparams({name: 1})


CALLS = {
    "log_figure": lambda tracker, key: tracker.log_figure(np.zeros((2, 2)), key),
    "log_table": lambda tracker, key: tracker.log_table({"a": [1]}, key),
    "log_embedding": lambda tracker, key: tracker.log_embedding([[1.0]], key),
    "log_pr_curve": lambda tracker, key: tracker.log_pr_curve([1], [0.5], key),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_illegal_key_is_refused_before_anything_is_kept(
    tracker: ExperimentTracker, name: str
) -> None:
    """No file is left of it."""
    with pytest.raises(RecordError, match="key"):
        CALLS[name](tracker, "../outside")
    assert logged(tracker) == []
    assert list(media(tracker).iterdir()) == []


@pytest.mark.parametrize("name", ["log_figure", "log_embedding"])
def test_a_file_that_the_disk_cannot_take_is_counted(tracker: ExperimentTracker, name: str) -> None:
    """Training goes on: nothing is raised, and no record refers to what is not there."""
    shutil.rmtree(media(tracker))
    CALLS[name](tracker, "lost")
    assert logged(tracker) == []
    assert accounting.totals(tracker._session.folder.path).lost == 1


def test_nothing_is_kept_of_a_call_that_is_refused(tracker: ExperimentTracker) -> None:
    """A sprite that is none leaves no vectors behind, a goal that is none no params."""
    with pytest.raises(RecordError, match="image 0"):
        tracker.log_embedding([[1.0]], images=["path"])
    with pytest.raises(RecordError, match="goal"):
        tracker.log_hparams({"lr": 1}, {"a": 1.0}, {"a": "best"})
    with pytest.raises(RecordError, match="Insight has"):
        tracker.log_embedding(np.zeros((70, 1)), labels=["x" * 2**20] * 70)
    assert logged(tracker) == []
    assert list(media(tracker).iterdir()) == []


class Strange:
    """What nobody expects."""


def endless() -> Iterator[int]:
    """Numbers without an end."""
    return itertools.count()


WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("log_text", ("said", None), {}),
    ("log_text", ("said", "a", "1"), {}),
    ("log_figure", (None, "a"), {}),
    ("log_figure", (np.zeros((2, 2)), 5), {}),
    ("log_figure", (endless(), "a"), {}),
    ("log_table", (None, "a"), {}),
    ("log_table", (pd.DataFrame, "a"), {}),
    ("log_table", (endless(), "a"), {"columns": ["n"]}),
    ("log_table", ([endless()], "a"), {"columns": ["n"]}),
    ("log_table", ([[1]], "a"), {"columns": 5}),
    ("log_table", ([[1]], "a"), {"columns": endless()}),
    ("log_table", ({"n": [Fraction(10**400)]}, "a"), {}),
    ("log_table", ({"n": [torch.zeros((), device="meta")]}, "a"), {}),
    ("log_table", ({"n": [Strange()]}, "a"), {}),
    ("log_table", ({"n": [1]}, None), {}),
    ("log_embedding", (None,), {}),
    ("log_embedding", (endless(),), {}),
    ("log_embedding", ([[1.0]],), {"labels": 5}),
    ("log_embedding", ([[1.0]],), {"labels": endless()}),
    ("log_embedding", ([[1.0]],), {"images": 5}),
    ("log_embedding", ([[1.0]],), {"labels": ["a"], "columns": 5}),
    ("log_embedding", ([[10**400]],), {}),
    ("log_pr_curve", (None, None, "a"), {}),
    ("log_pr_curve", ([0], [0.5], None), {}),
    ("log_pr_curve", ([0], [0.5], "a"), {"thresholds": None}),
    ("log_pr_curve", ([0], [0.5], "a"), {"thresholds": "x"}),
    ("log_pr_curve", ([0], [0.5], "a"), {"thresholds": endless()}),
    ("log_pr_curve", ([0, 0], [0.5, 0.5], "a"), {"weights": [1.7e308, 1.7e308]}),
    ("log_pr_curve", ([0], [0.5], "a"), {"weights": "x"}),
    ("log_hparams", ([1], {}), {}),
    ("log_hparams", (None,), {}),
    ("log_hparams", ({1: 2},), {}),
    ("log_hparams", ({"lr": 1}, [1]), {}),
    ("log_hparams", ({"lr": 1}, {"a": "b"}), {}),
    ("log_hparams", ({"lr": 1}, {}, "minimize"), {}),
    ("log_hparams", ({"lr": 1}, {}, {"a": np.zeros(2)}), {}),
    ("log_layout", (None,), {}),
    ("log_layout", ({"a": {"b": {"lower": "x", 1: "y"}}},), {}),
    ("log_layout", ({"a": {"b": ["c"]}},), {"closed": None}),
    ("log_layout", ({"a": {"b": ["c"]}},), {"closed": [["a"]]}),
    ("log_profiling_data", (None,), {}),
    ("log_profiling_data", ({"a": 1.0, "b": None},), {}),
    ("log_profiling_data", ({"a": 1.0, "b": endless()},), {}),
    ("profile_operation", (None,), {}),
    ("profile_operation", ([1],), {}),
    ("profile_operation", (lambda: None,), {}),
    ("profile_operation", ("a", {}), {}),
    ("batches", (None,), {}),
    ("batches", ([],), {"samples": "x"}),
    ("time_model", (None,), {}),
    ("time_model", (torch.nn.Linear,), {}),
    ("watch", (None,), {}),
    ("watch", (torch.nn.Linear,), {}),
    ("watch", (torch.nn.Linear(1, 1), "5"), {}),
    ("watch", (torch.nn.Linear(1, 1),), {"name": None}),
    ("watch", (torch.nn.Linear(1, 1),), {"name": ["a"]}),
    ("unwatch", (5,), {}),
    ("log_graph", (None, None), {}),
    ("log_graph", (torch.nn.Linear(1, 1), torch.zeros(1, 1)), {"call": 5}),
    ("log_graph", (torch.nn.Linear(1, 1), torch.zeros(1, 1)), {"key": None}),
    ("profiled", (None,), {}),
    ("profiled", ((2, 1),), {}),
]


@pytest.mark.parametrize(("call", "args", "options"), WRONG)
def test_wrong_use_is_one_line_in_the_caller_s_own(
    tracker: ExperimentTracker, call: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """An error of ours on one line, and nothing of the call is logged or kept."""
    with pytest.raises(OpusclipError) as caught:
        getattr(tracker, call)(*args, **options)
    assert isinstance(caught.value, RecordError | ConfigError)
    assert "\n" not in str(caught.value)
    assert logged(tracker) == []
    assert list(media(tracker).iterdir()) == []


def test_a_type_that_is_none_is_a_type_error_too(tracker: ExperimentTracker) -> None:
    """For those who expect Python's own."""
    for call in (tracker.watch, tracker.time_model, tracker.log_params, tracker.log_metrics):
        with pytest.raises(TypeError) as caught:
            call(None)  # type: ignore[operator]
        assert isinstance(caught.value, RecordError)


def test_after_close_no_model_is_watched(tracker: ExperimentTracker) -> None:
    """It would be looked into, and nothing of that could be logged."""
    tracker._closed = True
    for use in (tracker.watch, lambda one: tracker.log_graph(one, torch.zeros(1, 1))):
        with pytest.raises(OpusclipError, match="the tracker is closed"):
            use(torch.nn.Linear(1, 1))
