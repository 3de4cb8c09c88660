"""What an insight says, in the form that both mirrors show it: checked, in numbers and short texts.

The content of an insight may come from a journal or out of MLflow: nothing in it is taken for
granted.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import OpusclipError, RecordError
from opusclip_mlops.layout import insight_path
from opusclip_mlops.line_names import key_of
from opusclip_mlops.records import Insight

VECTORS, SPRITE, TRACE = "vectors.npy", "sprite.png", "trace.json.gz"
"""The names of an insight's files."""

MOST_BUCKETS = 512
"""The most buckets of a histogram: W&B takes no more."""

CURVE = (
    "true_positives",
    "false_positives",
    "true_negatives",
    "false_negatives",
    "precision",
    "recall",
)
"""The rows of a precision-recall curve, in the order TensorBoard wants them."""

_EVEN_THRESHOLDS = 201
_NOT_ITS_KIND = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


@contextlib.contextmanager
def understood(record: Insight) -> Iterator[None]:
    """Refuse an insight whose content is not that of its kind.

    Raises:
        RecordError: something in it is missing, or is something else.
    """
    try:
        yield
    except OpusclipError:
        raise
    except _NOT_ITS_KIND as error:
        what = f"{record.kind} {record.key} at step {record.step}"
        raise RecordError(f"{what} can't be shown: {type(error).__name__} {error}") from None


def numbers(values: Iterable[Any]) -> npt.NDArray[np.float64]:
    """Numbers of a content, where "nan", "inf" and "-inf" stand for what JSON can't hold."""
    return np.array([float(value) for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Histogram:
    """How values are spread: `edges` (n + 1) rise, `counts` (n); both empty without a value."""

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]


def histograms_of(record: Insight) -> dict[str, Histogram]:
    """The histograms of an insight, by the names of what they are of."""
    found = record.content["histograms"].items()
    return {str(name): _histogram(str(name), one) for name, one in found}


def _histogram(name: str, content: Mapping[str, Any]) -> Histogram:
    edges, counts = numbers(content["edges"]), numbers(content["counts"])
    fits = len(edges) == len(counts) + 1 or not (len(edges) or len(counts))
    if not fits or len(counts) > MOST_BUCKETS or not np.isfinite(edges).all():
        raise ValueError(f"{len(counts)} counts between {len(edges)} edges in {name}")
    return Histogram(edges, counts)


def curve_of(record: Insight) -> npt.NDArray[np.float64]:
    """A precision-recall curve: the rows of `CURVE`, a column for each threshold.

    A precision that is not defined, for nothing was predicted, is 0.
    """
    rows = np.stack([numbers(record.content[name]) for name in CURVE])
    count = len(record.content["thresholds"])
    if rows.shape[1] != count or not count:
        raise ValueError(f"{rows.shape[1]} values at {count} thresholds")
    return np.nan_to_num(rows)


def even_curve_of(record: Insight) -> npt.NDArray[np.float64]:
    """The same at thresholds that are evenly spaced from 0 to 1.

    Where they are not, each of 201 even ones has the values of the next threshold above it, which
    are its own where the thresholds are the scores that were predicted.
    """
    rows, thresholds = curve_of(record), numbers(record.content["thresholds"])
    count = len(thresholds)
    if count > 1 and np.allclose(thresholds, np.linspace(0, 1, count), atol=1e-6):
        return rows
    even = np.linspace(0, 1, _EVEN_THRESHOLDS)
    return rows[:, np.minimum(np.searchsorted(thresholds, even - 1e-9), count - 1)]


@dataclass(frozen=True)
class Embedding:
    """Vectors (n, d) with the labels of each, and the pictures of all in one.

    `sprite` is None where there are no pictures; `picture_px` is the height and width of one.
    """

    vectors: npt.NDArray[np.float32]
    columns: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    sprite: Path | None
    picture_px: tuple[int, int]


def embedding_of(record: Insight, media: Path) -> Embedding:
    """An embedding, its vectors as they lie in the run folder's media/.

    Raises:
        RecordError: a file is missing or is something else.
    """
    content = record.content
    vectors = _vectors(_file(record, media, VECTORS))
    if vectors.shape != (content["count"], content["dimensions"]):
        raise ValueError(f"vectors of shape {vectors.shape}")
    labels = tuple(tuple(str(cell) for cell in row) for row in content["labels"])
    width = len(labels[0]) if labels else 0
    if labels and (len(labels) != len(vectors) or {len(row) for row in labels} != {width}):
        raise ValueError(f"{len(labels)} labels of {len(vectors)} vectors")
    named = tuple(str(name) for name in content["columns"])
    columns = named if len(named) == width else tuple(f"label {n}" for n in range(width))
    height_px, width_px = (int(side) for side in content["sprite"] or (0, 0))
    sprite = _file(record, media, SPRITE) if height_px > 0 and width_px > 0 else None
    return Embedding(vectors, columns, labels, sprite, (height_px, width_px))


def first_of(embedding: Embedding, *, numbers: int, vectors: int | None = None) -> Embedding:
    """An embedding's first vectors with their labels: so many numbers of them, but one at least."""
    count, dimensions = embedding.vectors.shape
    most = min(count if vectors is None else vectors, max(1, numbers // max(1, dimensions)))
    return dataclasses.replace(
        embedding, vectors=embedding.vectors[:most], labels=embedding.labels[:most]
    )


def _file(record: Insight, media: Path, name: str) -> Path:
    path = media / Path(record.files[name]).name
    if not path.is_file():
        raise RecordError(f"{name} of {record.kind} {record.key} at step {record.step} is gone")
    return path


def _vectors(path: Path) -> npt.NDArray[np.float32]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(f"{VECTORS} can't be read: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype != np.float32:
        raise RecordError(f"{VECTORS} holds no matrix of 32-bit floats")
    return found


def facts_of(record: Insight) -> list[list[str]]:
    """What a trace, or hyperparameters, are in words: a heading, and a row for each fact."""
    if record.kind == "hparams":
        return [["name", "value", "goal"], *_hparams_facts(record.content)]
    return [["name", "value"], *_trace_facts(record)]


def _hparams_facts(content: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in sorted(content["params"].items()):
        yield [str(name), str(value), ""]
    for name, value in sorted(content["results"].items()):
        yield [str(name), "" if value is None else str(value), str(content["goal"].get(name, ""))]


def _trace_facts(record: Insight) -> Iterator[list[str]]:
    content = record.content
    first, last = content["steps"]
    # In a mirror it may have another name; in MLflow it lies under its key.
    key = key_of(record.key)
    place = insight_path(record.kind, key, record.step, record.timestamp_ms, "…")
    yield ["steps", f"{first} to {last}"]
    for device, total_us in sorted(content["total_us"].items()):
        yield [f"{str(device).upper()} time", f"{float(total_us) / 1000:,.1f} ms"]
    yield ["made by", str(content["made_by"])]
    yield ["top operators", str(content["top_operators_key"])]
    yield ["file in MLflow", f"{place.removesuffix('.json')}/{TRACE}"]
    yield ["opens in", "https://ui.perfetto.dev"]
