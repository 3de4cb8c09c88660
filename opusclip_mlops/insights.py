"""The calls of a tracker that show what is inside a model: histograms, graphs, figures, tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opusclip_mlops import (
    confusion_counts,
    dashboards,
    model_graph,
    records,
    shown_files,
    table_cells,
)
from opusclip_mlops.errors import OpusclipError, RecordError, RecordTypeError
from opusclip_mlops.histograms import Summary
from opusclip_mlops.records import now_ms
from opusclip_mlops.session import Session
from opusclip_mlops.watched_model import Looking, WatchedModel, inner_of

if TYPE_CHECKING:
    from torch.nn import Module


class InsightCalls:
    """What a training loop calls to look into its model; a part of `ExperimentTracker`."""

    _append: Callable[[records.Record], object]
    _closed: bool
    _log_now: Callable[..., None]
    _session: Session
    _since_ms: int
    _watched: dict[str, WatchedModel]

    if TYPE_CHECKING:

        def _current_step(self, step: int | None) -> int: ...

        def _log_beside(self, metrics: Mapping[str, Any], step: int | None) -> None: ...

    def log_text(self, text: str, key: str, step: int | None = None) -> None:
        """Log a text at a step.

        Raises:
            RecordError: a key MLflow would refuse, or one that begins with `opusclip/`: these are
                for what the tracker itself says.
        """
        records.check_key(key)
        if key.startswith("opusclip/"):
            raise RecordError(f"key {key!r} is the tracker's own: take one without opusclip/")
        self._append(records.Text(now_ms(), self._current_step(step), key, str(text)))

    def log_figure(self, figure: Any, key: str, step: int | None = None) -> None:
        """Log a picture at a step: it is drawn, and kept as a PNG, before this returns.

        Args:
            figure: A matplotlib figure; a PIL picture; an array or tensor (H, W), (H, W, 3) or
                (H, W, 4), uint8 or floats 0..1; or a plotly figure, where kaleido is installed.
            key: Its name, such as `figures/attention`.
            step: The training step; the last one logged otherwise.

        Raises:
            RecordError: none of these, other values, more than 8192 x 8192 pixels, or a key MLflow
                would refuse. What matplotlib raises as it draws comes through.
        """
        records.check_key(key)
        self._check_open("Image")
        at = self._current_step(step)
        kept = self._kept({"picture.png": shown_files.picture_png(figure)})
        if kept:
            self._append_whole(records.Image(self._shown_ms(), at, key, kept["picture.png"]), kept)

    def log_table(
        self, data: Any, key: str, step: int | None = None, *, columns: Sequence[str] | None = None
    ) -> None:
        """Log a table at a step; `mlflow.load_table` reads it.

        Args:
            data: A pandas data frame, a mapping of columns to lists, or rows: mappings by column,
                or sequences in the order of `columns`.
            key: Its name, such as `val/worst_clips`.
            step: The training step; the last one logged otherwise.
            columns: Names and order of the columns; of a frame or mappings, those to keep.

        Raises:
            RecordError: no table; a cell that is neither number, text, time nor a list of them,
                such as a picture; more than 10,000 rows or 64 MiB; or a key MLflow would refuse.
        """
        records.check_key(key)
        names, rows = table_cells.table_of(data, columns)
        self._append(records.Table(self._shown_ms(), self._current_step(step), key, names, rows))

    def log_embedding(
        self,
        matrix: Any,
        key: str = "embedding",
        labels: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        step: int | None = None,
        *,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Log vectors to be shown as points, such as in TensorBoard's projector.

        Args:
            matrix: n vectors of d numbers, an array or tensor (n, d); kept as float32.
            key: Its name.
            labels: A text for each vector, or a tuple of texts.
            images: A picture for each vector, as `log_figure` takes arrays and PIL pictures.
            step: The training step; the last one logged otherwise.
            columns: What the texts of the tuples are called; "label" where there is one.

        Raises:
            RecordError: other shapes, NaN (the row is named), more than 100,000 vectors or 512 MiB,
                another number of labels or images, or a key MLflow would refuse.
        """
        records.check_key(key)
        self._check_open("Insight")
        at = self._current_step(step)
        embedding = shown_files.embedding_of(matrix, labels, images, columns)
        kept = self._kept(embedding.files)
        if kept:
            self._log_insight(key, "embedding", at, embedding.content, kept)

    def log_pr_curve(
        self,
        labels: Any,
        predictions: Any,
        key: str,
        step: int | None = None,
        *,
        thresholds: int | Sequence[float] = 127,
        weights: Any = None,
    ) -> None:
        """Log precision and recall of a classifier at thresholds from 0 to 1.

        At a threshold t a prediction p counts as positive where p >= t. Precision is
        TP / (TP + FP), 0 where nothing counts as positive; recall is TP / (TP + FN), 0 where no
        label is positive (Davis and Goadrich, ICML 2006).

        Args:
            labels: 0 or 1, of any shape.
            predictions: Probabilities 0..1, of the same shape.
            key: Its name, such as `val/is_cut`.
            step: The training step; the last one logged otherwise.
            thresholds: How many, evenly from 0 to 1, or the thresholds themselves, ascending.
            weights: How much each prediction counts; 1 otherwise.

        Raises:
            RecordError: values outside their range, unlike shapes, or a key MLflow would refuse.
        """
        records.check_key(key)
        at = self._current_step(step)
        curve = confusion_counts.pr_curve(
            shown_files.numbers_of(labels, "labels"),
            shown_files.numbers_of(predictions, "predictions"),
            thresholds=thresholds,
            weights=None if weights is None else shown_files.numbers_of(weights, "weights"),
        )
        self._log_insight(key, "pr_curve", at, curve)

    def log_hparams(
        self,
        params: Mapping[str, Any],
        results: Mapping[str, Any] | None = None,
        goal: Mapping[str, str] | None = None,
    ) -> None:
        """Log hyperparameters with the metrics they are judged by: rows of TensorBoard's HParams.

        They are params of the run too, and results that are numbers are metrics of the last step.

        Args:
            params: Numbers, texts and bools by name; anything else is kept as its text.
            results: Values by metric key; None for one that is still to be logged.
            goal: "minimize" or "maximize" by metric key.

        Raises:
            RecordTypeError: no mappings, or a result that is no number.
            RecordError: another goal, or a key MLflow would refuse.
        """
        results = {} if results is None else results
        content = dashboards.hparams(params, results, {} if goal is None else goal)
        self._append(records.Params(records.to_text_values(params)))
        if known := {key: value for key, value in results.items() if value is not None}:
            self._log_beside(known, None)
        self._log_insight("hparams", "hparams", self._current_step(None), content)

    def log_layout(
        self, categories: Mapping[str, Mapping[str, Any]], *, closed: Sequence[str] = ()
    ) -> None:
        """Say which curves TensorBoard's page of custom scalars draws together.

        `{"losses": {"train, val": ["train/loss", "val/loss"]}}`: charts by title, in categories by
        title. A chart is a list of regular expressions of keys, or, for a value with a margin,
        `{"lower": key, "value": key, "upper": key}`. Of several layouts the last holds.

        Args:
            categories: Charts by title, by the title of their category.
            closed: The categories that are folded at first.

        Raises:
            RecordError: no chart, a malformed one, or an unknown category in `closed`.
        """
        content = dashboards.layout(categories, closed)
        self._log_insight("layout", "layout", self._current_step(None), content)

    def _log_insight(
        self,
        key: str,
        kind: str,
        step: int,
        content: dict[str, Any],
        files: Mapping[str, str] | None = None,
    ) -> None:
        kept = dict(files or {})
        record = records.Insight(self._shown_ms(), step, key, kind, content, kept)
        self._append_whole(record, kept)

    def _append_whole(self, record: records.Record, kept: Mapping[str, str]) -> None:
        """Append a record, or leave nothing of its files behind."""
        try:
            self._append(record)
        except OpusclipError:
            for file in kept.values():
                (self._session.folder.media / file).unlink(missing_ok=True)
            raise

    def _check_open(self, what: str) -> None:
        """Refuse what has files before they are made: the run's folder may be gone."""
        if self._closed:
            raise OpusclipError(f"the tracker is closed: {what} came after close()")

    def _kept(self, contents: Mapping[str, bytes | shown_files.Pieces]) -> dict[str, str]:
        """Files kept for the shipper, by name; none where the disk could not take them."""
        try:
            return shown_files.keep(self._session.folder.media, contents)
        except OSError as error:
            self._session.count_lost(error)
            return {}

    def _shown_ms(self) -> int:
        """Now, but never before this part of the run began: the clock may be behind."""
        return max(now_ms(), self._since_ms)

    def watch(
        self,
        model: "Module",
        every: int = 500,
        *,
        gradients: bool = True,
        weights: bool = True,
        activations: bool = True,
        name: str = "",
    ) -> None:
        """Look into a model at every so many steps of its optimizer, until `unwatch` or `close`.

        A look logs histograms of gradients and weights by parameter, and as metrics their norms,
        how many elements are NaN or infinite, and the share of dead units. It belongs to the step
        that is logged next, or to the last one where the next look is sooner. A model that is
        watched already is watched anew.

        Args:
            model: A `torch.nn.Module` that an optimizer of torch trains.
            every: Optimizer steps between two looks; the first step is looked at too.
            gradients: Look at gradients, as the optimizer takes them: scaled back, clipped.
            weights: Look at weights, as they were when the gradients were made.
            activations: Find units of ReLU, GELU, SiLU and their like that gave nothing.
            name: Begins all keys, `<name>/gradients` …; of several models each needs its own.

        Raises:
            RecordTypeError: the model is no module, or the name no text.
            RecordError: `every` is no whole number from 1, or another model has the name.
        """
        self._check_open("watch")
        if not isinstance(name, str):
            raise RecordTypeError(f"name must be a text, not {name!r:.60}")
        looking = Looking(
            every=every, gradients=gradients, weights=weights, activations=activations, name=name
        )
        known = self._watched.get(name)
        if known and known.model not in (None, inner_of(model)):
            raise RecordError(f"another model is watched under the name {name!r}: pass name=")
        self.unwatch(model)
        self._watched[name] = WatchedModel(
            model, looking, self._log_look, lambda: self._current_step(None)
        )

    def unwatch(self, model: "Module | None" = None) -> None:
        """Look into a model no more, or into none at all; what was seen last is logged.

        Raises:
            RecordTypeError: the model is no module.
        """
        inner = None if model is None else inner_of(model)
        for name, watched in list(self._watched.items()):
            if inner is None or watched.model in (None, inner):
                self._watched.pop(name).stop()

    def _log_look(self, seen: dict[str, dict[str, Summary]], metrics: dict[str, float]) -> None:
        at, timestamp_ms = self._current_step(None), max(now_ms(), self._since_ms)
        for key, found in seen.items():
            content = {"histograms": found}
            self._append(records.Insight(timestamp_ms, at, key, "histograms", content))
        if metrics:
            self._log_now(metrics, at)

    def log_graph(
        self,
        model: "Module",
        example_input: Any,
        *,
        key: str = "graph",
        step: int | None = None,
        call: Callable[..., object] | None = None,
        by: str | None = None,
    ) -> None:
        """Log what a model is made of and how data flow through it; the model is left as it was.

        Args:
            model: A `torch.nn.Module`.
            example_input: A tensor, a tuple of arguments or a dict of keyword arguments.
            key: Its name; of several models each needs its own.
            step: The training step; the last one logged otherwise.
            call: What is called with the input in place of the model, such as `model.loss`.
            by: "export" shows every operation (`torch.export`, which can take minutes), "modules"
                runs the model once and shows its modules; by default the first that works.

        Raises:
            RecordTypeError: the model is no module, or `call` no function.
            RecordError: a key MLflow would refuse, or the model cannot be run on the input.
        """
        records.check_key(key)
        self._check_open("Insight")
        at = self._current_step(step)
        graph = model_graph.graph_of(inner_of(model), example_input, call=call, by=by)
        self._append(records.Insight(self._shown_ms(), at, key, "graph", graph))
