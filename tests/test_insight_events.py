"""Insights are what TensorBoard's own plugins read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.pr_curve import metadata as pr_curve_metadata
from tensorboard.util import tensor_util

from opusclip_mlops import events, insight_events
from opusclip_mlops.events import Event, Summary
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Insight
from tests.insight_records import (
    T0_MS,
    embedding,
    graph,
    histogram,
    histograms,
    hparams,
    layout,
    pr_curve,
    trace,
)


def sent(record: Insight) -> list[Event]:
    """The events of an insight, as they are read back."""
    made = insight_events.events_of(record)
    return [Event.FromString(event.SerializeToString()) for event in made]


def shown(record: Insight) -> dict[str, Summary.Value]:
    """The values of an insight's summary by their tags, without the mark."""
    mark, *values = sent(record)[0].summary.value
    assert events.insight_of(mark.tag) == (record.kind, record.key)
    return {value.tag: value for value in values}


def plugin(value: Summary.Value) -> str:
    """The plugin that a value is for."""
    return str(value.metadata.plugin_data.plugin_name)


def test_an_insight_stands_at_its_step_and_time(tmp_path: Path) -> None:
    """Every event of every kind, an embedding's too, which only marks that its files are there."""
    (tmp_path / "media").mkdir()
    folder = RunFolder(tmp_path)
    for record in (histograms(7), graph(7), embedding(folder, 7), trace(folder, 7)):
        for event in sent(record):
            assert (event.step, round(event.wall_time * 1000)) == (7, T0_MS + 7)
    assert shown(embedding(folder)) == {}


def test_the_mark_is_of_no_plugin_that_tensorboard_knows() -> None:
    """It is known again, whatever is in the key."""
    record = histograms(key="a/b:c/ü")
    [mark, *_] = sent(record)[0].summary.value
    assert events.kind_of(mark) == "insight"
    assert events.insight_of(mark.tag) == ("histograms", "a/b:c/ü")


def test_histograms_are_buckets_under_a_tag_for_each() -> None:
    """Left edge, right edge and count; one without a value has no bucket."""
    values = shown(histograms(5))
    assert {plugin(value) for value in values.values()} == {"histograms"}
    buckets = tensor_util.make_ndarray(values["weights/encoder.conv"].tensor)
    assert buckets.tolist() == [[-1, -0.5, 3], [-0.5, 0, 4], [0, 0.5, 5], [0.5, 1, 1]]
    assert tensor_util.make_ndarray(values["weights/dead"].tensor).shape == (0, 3)


def test_edges_beyond_32_bits_stay_finite() -> None:
    """TensorBoard draws nothing of a histogram with an infinite edge."""
    one = {**histogram(1), "edges": [-1e300, 1e300]}
    record = Insight(T0_MS, 1, "weights", "histograms", {"histograms": {"a": one}})
    buckets = tensor_util.make_ndarray(shown(record)["weights/a"].tensor)
    assert np.isfinite(buckets).all()


def test_a_curve_is_six_rows_of_32_bit_floats() -> None:
    """With the number of its thresholds, under the tag that TensorBoard's own writer gives."""
    [(tag, value)] = shown(pr_curve()).items()
    assert (tag, value.metadata.display_name) == ("val/cat/pr_curves", "val/cat")
    about = pr_curve_metadata.parse_plugin_metadata(value.metadata.plugin_data.content)
    assert about.num_thresholds == 3
    found = tensor_util.make_ndarray(value.tensor)
    assert (found.shape, found.dtype) == ((6, 3), np.float32)
    assert found[4].tolist() == [np.float32(0.4), 0.75, 0]


def test_a_layout_is_categories_of_charts() -> None:
    """Lines by patterns of their tags, and a value between two others."""
    [(tag, value)] = shown(layout()).items()
    assert tag == "custom_scalars__config__"
    content = tensor_util.make_ndarray(value.tensor).item()
    [category] = layout_pb2.Layout.FromString(content).category
    lines, margin = category.chart
    assert (category.title, category.closed) == ("Losses of ours", False)
    assert list(lines.multiline.tag) == ["loss/.*", "val/loss"]
    [series] = margin.margin.series
    assert (series.lower, series.value, series.upper) == ("low", "mid", "high")


def test_a_graph_is_the_runs_graph_and_stands_under_its_key() -> None:
    """With the ops, the shapes and the attributes of its nodes, folded by modules."""
    summary, run_graph = sent(graph())
    assert summary.HasField("summary")
    found = GraphDef.FromString(run_graph.graph_def)
    x, conv, relu = found.node
    assert [node.name for node in found.node] == ["x", "encoder/conv", "encoder/relu"]
    assert (conv.op, list(conv.input), list(relu.input)) == ("Conv2d", ["x"], ["encoder/conv"])
    assert conv.attr["kernel_size"].s == b"3"
    [shape] = x.attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [1, 4, 8, 8]
    value = shown(graph())["model"]
    [content] = value.tensor.string_val
    [function] = RunMetadata.FromString(content).function_graphs
    assert function.pre_optimization_graph == found


def test_nodes_that_differ_in_their_signs_alone_stay_apart() -> None:
    """TensorBoard reads no colon; each node and each input still has a name of its own."""
    record = graph()
    known = [("a:b", []), ("a_b", ["a:b"]), ("a b", ["a_b"]), ("a_b_2", ["a b", "a:b"])]
    empty: dict[str, object] = {"op": "relu", "shapes": [], "attributes": {}}
    nodes = [{"name": name, "inputs": inputs, **empty} for name, inputs in known]
    found = GraphDef.FromString(sent(replace(record, content={"nodes": nodes}))[1].graph_def).node
    names = {name: node.name for (name, _), node in zip(known, found, strict=True)}
    assert len(set(names.values())) == 4
    assert (names["a_b"], names["a_b_2"]) == ("a_b", "a_b_2")
    for (_, inputs), node in zip(known, found, strict=True):
        assert list(node.input) == [names[name] for name in inputs]


def test_traces_and_hyperparameters_are_texts(tmp_path: Path) -> None:
    """Tables of what is said of them."""
    (tmp_path / "media").mkdir()
    text = events.text_of(shown(trace(RunFolder(tmp_path)))["profiling/trace"])
    assert "| made by | torch.profiler <2.13> |" in text
    assert "trace.json.gz" in text
    assert "| val/loss | 0.25 | minimize |" in events.text_of(shown(hparams())["hparams"])


def test_a_kind_of_a_later_version_is_a_mark_only() -> None:
    """It is not refused."""
    assert shown(Insight(T0_MS, 1, "a", "hologram", {"x": [1]})) == {}


def test_importing_it_leaves_s3_alone() -> None:
    """TensorBoard would load boto3 for files that are not here."""
    names = "opusclip_mlops.insight_events, opusclip_mlops.projector"
    code = f"import sys, {names}; print({{'boto3', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
