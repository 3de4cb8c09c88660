"""Insights as events for TensorBoard's own plugins.

The first value of each such event is a mark, under a plugin of no dashboard: it says which insight
the event is, so that it is known again whatever the plugin does with the rest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.graph import metadata as graph
from tensorboard.plugins.histogram import metadata as histogram
from tensorboard.plugins.pr_curve import metadata as pr_curve

from opusclip_mlops import events, insight_views
from opusclip_mlops.events import Event, Summary
from opusclip_mlops.records import Insight

_WIDEST = float(np.finfo(np.float32).max)
_NOT_IN_SCOPE = str.maketrans({":": "_", "^": "_", " ": "_"})


def events_of(record: Insight) -> list[Event]:
    """An insight as TensorBoard shows it; one of a kind that it has no plugin for is a mark only.

    Raises:
        KeyError, TypeError, ValueError: the content is not that of its kind.
    """
    shown = _VALUES.get(record.kind)
    values = [events.mark(record), *(shown(record) if shown else ())]
    found = [events.at_step(record, Summary(value=values))]
    if record.kind == "graph":
        run_graph = _graph_def(record.content).SerializeToString()
        wall_time_s = record.timestamp_ms / 1000
        found.append(Event(wall_time=wall_time_s, step=record.step, graph_def=run_graph))
    return found


def _histograms(record: Insight) -> Iterator[Summary.Value]:
    for name, one in insight_views.histograms_of(record).items():
        tag = f"{record.key}/{name}"
        edges = np.clip(one.edges, -_WIDEST, _WIDEST)
        buckets = np.stack([edges[:-1], edges[1:], one.counts], axis=1)
        about = histogram.create_summary_metadata(display_name=tag, description="")
        yield Summary.Value(tag=tag, metadata=about, tensor=_floats(buckets))


def _pr_curve(record: Insight) -> Iterator[Summary.Value]:
    curve = insight_views.even_curve_of(record)
    about = pr_curve.create_summary_metadata(
        display_name=record.key, description="", num_thresholds=curve.shape[1]
    )
    yield Summary.Value(tag=f"{record.key}/pr_curves", metadata=about, tensor=_floats(curve))


def _layout(record: Insight) -> Iterator[Summary.Value]:
    categories = [
        layout_pb2.Category(
            title=str(one["title"]),
            closed=bool(one["is_closed"]),
            chart=[_chart(chart) for chart in one["charts"]],
        )
        for one in record.content["categories"]
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    yield Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        metadata=custom_scalar.create_summary_metadata(),
        tensor=TensorProto(dtype=DT_STRING, string_val=[content]),
    )


def _chart(content: Mapping[str, Any]) -> layout_pb2.Chart:
    title = str(content["title"])
    if content["kind"] == "multiline":
        tags = [str(tag) for tag in content["tags"]]
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
    series = layout_pb2.MarginChartContent.Series(
        **{name: str(content[name]) for name in ("lower", "value", "upper")}
    )
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))


def _text(record: Insight) -> Iterator[Summary.Value]:
    content = "\n".join(events.markdown(insight_views.facts_of(record)))
    yield from events.text_pb(record.key, content).value


def _graph(record: Insight) -> Iterator[Summary.Value]:
    """The graph under its key: the one without a tag is the run's last of all keys."""
    about = RunMetadata()
    about.function_graphs.add().pre_optimization_graph.CopyFrom(_graph_def(record.content))
    plugin = SummaryMetadata.PluginData(
        plugin_name=graph.PLUGIN_NAME_RUN_METADATA_WITH_GRAPH, content=b"1"
    )
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(
        dtype=DT_STRING, tensor_shape=shape, string_val=[about.SerializeToString()]
    )
    yield Summary.Value(tag=record.key, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)


def _graph_def(content: Mapping[str, Any]) -> GraphDef:
    scopes = _scopes(str(node["name"]) for node in content["nodes"])
    return GraphDef(node=[_node(node, scopes) for node in content["nodes"]])


def _scopes(names: Iterable[str]) -> dict[str, str]:
    """What each node is called: another name for each, and its own where that can be.

    TensorBoard folds nodes by the slashes in their names, and reads other signs its own way.
    """
    plain = {name: name.translate(_NOT_IN_SCOPE) for name in names}
    taken = {name for name, scope in plain.items() if name == scope}
    found, again = {name: name for name in taken}, Counter[str]()
    for name, scope in plain.items():
        if name not in found:
            found[name] = scope
            while found[name] in taken:
                again[scope] += 1
                found[name] = f"{scope}_{again[scope] + 1}"
            taken.add(found[name])
    return found


def _node(node: Mapping[str, Any], scopes: Mapping[str, str]) -> NodeDef:
    shown = NodeDef(name=scopes[str(node["name"])], op=str(node["op"]))
    shown.input.extend(scopes[name] for name in map(str, node["inputs"]) if name in scopes)
    for name, value in node["attributes"].items():
        shown.attr[str(name)].s = str(value).encode()
    shapes = [_shape(sizes) for sizes in node["shapes"]]
    if shapes:
        shown.attr["_output_shapes"].CopyFrom(AttrValue(list=AttrValue.ListValue(shape=shapes)))
    return shown


def _shape(sizes: Iterable[Any]) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=int(size)) for size in sizes])


def _floats(values: npt.NDArray[np.float64]) -> TensorProto:
    content = values.astype("<f4").tobytes()
    return TensorProto(dtype=DT_FLOAT, tensor_shape=_shape(values.shape), tensor_content=content)


_VALUES: Mapping[str, Callable[[Insight], Iterator[Summary.Value]]] = {
    "histograms": _histograms,
    "pr_curve": _pr_curve,
    "layout": _layout,
    "graph": _graph,
    "hparams": _text,
    "trace": _text,
}
