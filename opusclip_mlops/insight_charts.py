"""Insights as values of W&B's own types: the columns of one row.

The row says which insight it is in a column of its own: histograms and charts have other columns
than the insight's key, and a layout has none.
"""

import html
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb

from opusclip_mlops import insight_views, wandb_layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.insight_views import CURVE, Embedding
from opusclip_mlops.records import Insight

MOST_VECTORS, MOST_PICTURES = 10_000, 1_000
"""How many rows of an embedding W&B is given, and how many of them with their picture."""

MOST_CELLS = 1_000_000
"""How many numbers of an embedding W&B is given: its client takes some microseconds for each."""

_CURVE_CHART = "wandb/area-under-curve/v0"


def columns_of(record: Insight, media: Path) -> dict[str, Any]:
    """The row that shows an insight, by columns; its files lie in `media`.

    Raises:
        RecordError: its content is not that of its kind, or a file can't be read.
    """
    shown = _SHOWN.get(record.kind)
    with insight_views.understood(record):
        values = shown(record, media) if shown else {}
    mark = wandb_layout.insight_mark(record.kind, record.key)
    named = {wandb_layout.column(key): value for key, value in values.items()}
    return {wandb_layout.INSIGHT_KEY: mark, **named}


def _histograms(record: Insight, _media: Path) -> dict[str, Any]:
    """A column for each; W&B has no histogram without a value."""
    return {
        f"{record.key}/{name}": wandb.Histogram(np_histogram=(one.counts, one.edges))
        for name, one in insight_views.histograms_of(record).items()
        if len(one.counts)
    }


def _graph(record: Insight, _media: Path) -> dict[str, Any]:
    graph = wandb.Graph(format="torch")
    for node in record.content["nodes"]:
        graph.add_node(
            id=str(node["name"]),
            name=str(node["name"]),
            class_name=str(node["op"]),
            output_shape=[[int(size) for size in sizes] for sizes in node["shapes"]],
            parameters=[[str(name), str(value)] for name, value in node["attributes"].items()],
        )
    for node in record.content["nodes"]:
        there = graph.nodes_by_id[str(node["name"])]
        for name in map(str, node["inputs"]):
            if name in graph.nodes_by_id:
                graph.add_edge(graph.nodes_by_id[name], there)
    return {record.key: graph}


def _pr_curve(record: Insight, _media: Path) -> dict[str, Any]:
    """W&B's own chart of such a curve, over a table of all that is known of each threshold."""
    curve = insight_views.curve_of(record)
    thresholds = insight_views.numbers(record.content["thresholds"])
    table = wandb.Table(
        columns=["class", "threshold", *CURVE],
        data=[
            [record.key, threshold, *values]
            for threshold, values in zip(thresholds.tolist(), curve.T.tolist(), strict=True)
        ],
    )
    fields = {"x": "recall", "y": "precision", "class": "class"}
    titles = {"title": record.key, "x-axis-title": "Recall", "y-axis-title": "Precision"}
    return {record.key: wandb.plot_table(_CURVE_CHART, table, fields, titles)}


def _embedding(record: Insight, media: Path) -> dict[str, Any]:
    """A table that W&B's projection takes: a column for each dimension, labels and pictures."""
    embedding = insight_views.embedding_of(record, media)
    embedding = insight_views.first_of(embedding, numbers=MOST_CELLS, vectors=MOST_VECTORS)
    vectors = embedding.vectors.tolist()
    labels = embedding.labels or ((),) * len(vectors)
    pictures: list[Any] = list(_pictures(embedding)) if embedding.sprite else []
    table = wandb.Table(columns=_embedding_columns(embedding), allow_mixed_types=True)
    for number, (label, vector) in enumerate(zip(labels, vectors, strict=True)):
        picture = pictures[number : number + 1] or [None]
        table.add_data(*label, *(picture if embedding.sprite else ()), *vector)
    return {record.key: table}


def _embedding_columns(embedding: Embedding) -> list[str | int]:
    dimensions = [f"d{number}" for number in range(embedding.vectors.shape[1])]
    own = {*dimensions, "picture"}
    labels: list[str] = []
    for name in embedding.columns[: len(embedding.labels[0]) if embedding.labels else 0]:
        while name in own:
            name = f"label {name}"
        own.add(name)
        labels.append(name)
    return [*labels, *(["picture"] if embedding.sprite else []), *dimensions]


def _pictures(embedding: Embedding) -> Iterator[wandb.Image]:
    """The pictures of the first vectors, cut out of the one that holds all, row by row."""
    from PIL import Image as Picture

    height, width = embedding.picture_px
    assert embedding.sprite is not None
    try:
        with Picture.open(embedding.sprite) as sprite:
            across = sprite.width // width
            for number in range(min(len(embedding.vectors), MOST_PICTURES)):
                top, left = number // across * height, number % across * width
                yield wandb.Image(sprite.crop((left, top, left + width, top + height)))
    except (OSError, SyntaxError, ZeroDivisionError, Picture.DecompressionBombError) as error:
        raise RecordError(f"{insight_views.SPRITE} can't be read: {error}") from None


def _facts(record: Insight, _media: Path) -> dict[str, Any]:
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in insight_views.facts_of(record)
    )
    return {record.key: wandb.Html(f"<table>{rows}</table>", inject=False)}


_SHOWN: Mapping[str, Callable[[Insight, Path], dict[str, Any]]] = {
    "histograms": _histograms,
    "graph": _graph,
    "pr_curve": _pr_curve,
    "embedding": _embedding,
    "trace": _facts,
}
