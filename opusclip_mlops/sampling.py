"""The calls of a tracker that log samples: clips, and the panels they belong to."""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops import media, provenance, records
from opusclip_mlops.errors import RecordError
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.panels import Cell, Panel, by_cell
from opusclip_mlops.passports import Score, differences, passports_of
from opusclip_mlops.records import now_ms
from opusclip_mlops.samples import Origin, plain_account
from opusclip_mlops.session import Session
from opusclip_mlops.sources import Sources

_FPS_LIMITS = (0.01, 1000)


class SampleCalls:
    """What a training loop calls about samples; a part of `ExperimentTracker`."""

    _append: Callable[[records.Record], object]
    _session: Session
    _saved: tuple[int, str] | None
    _since_ms: int

    if TYPE_CHECKING:

        def _current_step(self, step: int | None) -> int: ...

        def _log_beside(self, metrics: Mapping[str, Any], step: int | None) -> None: ...

    def log_video(
        self,
        video: Any,
        key: str,
        step: int | None = None,
        *,
        fps: float = 8.0,
        caption: str | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        origin: Origin | None = None,
        codec: str = "h264",
        max_bytes: int | None = None,
    ) -> None:
        """Log a clip at a step.

        Args:
            video: Array, tensor or list of frames, (T, H, W, C) or (T, C, H, W), uint8 or floats in
                `value_range`; a batch (B, T, …) is laid side by side; an iterator of frames; or the
                path of a video file.
            key: Its name, such as `samples/kite`.
            step: The training step; the last one logged otherwise.
            fps: Frames per second; a file keeps its own.
            caption: Shown where it can be.
            value_range: What floats mean black and white.
            origin: What made it: prompt, seed, checkpoint, sources. The commit and the step are
                added, and the checkpoint that was saved at this very step where none is named.
            codec: h264, an mp4, or vp9, a webm; every browser plays both. A file that is so already
                is kept as it is; what is encoded anew says why in its description.
            max_bytes: How large the file may become, 32 MiB otherwise: its quality is lowered, then
                its size, then its frame rate.

        Raises:
            VideoError: not a clip, values outside the range, or no such file.
            RecordError: a key MLflow would refuse, an origin of more than 64 KiB, an unknown codec,
                or no bytes at all.
        """
        records.check_key(key)
        at = self._current_step(step)
        _check_fps(fps, key)
        most_bytes = _checked_file(codec, max_bytes, key)
        said = (_plain_text(caption or ""), self._account(origin, at), codec, most_bytes)
        file = self._staged(video, value_range)
        if file:
            self._append(records.Video(self._sampled_ms(), at, key, file, float(fps), *said))

    def log_panel(
        self,
        panel: Panel,
        videos: Sequence[Any] | Mapping[Any, Any],
        step: int | None = None,
        *,
        fps: float = 8.0,
        value_range: tuple[float, float] = (0.0, 1.0),
        scores: Sequence[Any] | Mapping[Any, Any] | None = None,
        checkpoint: str | LoadedCheckpoint | CheckpointMetadata | None = None,
        codec: str = "h264",
        max_bytes: int | None = None,
    ) -> None:
        """Log the samples of a panel at a step: a clip for each of its cells.

        Nothing is logged where one of the clips is not usable.

        Args:
            panel: What was sampled.
            videos: Clips as `log_video` takes them: one for each cell in the order of
                `panel.cells`, or a mapping by cell, cell name or (prompt, seed). None for none.
            step: The training step; the last one logged otherwise.
            fps: Frames per second.
            value_range: What floats mean black and white.
            scores: For each cell, in the same forms, values by metric. Shown beside the clip; their
                means are logged as `panels/<title>/<metric>`, of what all cells have and was
                measured alike.
            checkpoint: The model that made them: a name that `save_checkpoint` returned, what
                `load_checkpoint` returned, or its metadata. Otherwise that which was saved at this
                very step.
            codec: Of each clip, h264 or vp9.
            max_bytes: How large each clip's file may become, 32 MiB otherwise.

        Raises:
            PanelError: another number of clips or scores than cells, or an unknown cell.
            VideoError: a clip that is none, or values outside the range.
            TypeError, RecordError: a score that is no number, a key MLflow would refuse, or an
                account of a cell of more than 64 KiB.
        """
        at = self._current_step(step)
        _check_fps(fps, panel.name)
        most_bytes = _checked_file(codec, max_bytes, panel.name)
        clips = by_cell(panel, videos, what="videos")
        measured = _checked_scores(panel, scores)
        accounts = self._accounts(panel, checkpoint, at)
        files = self._all_staged(clips, value_range)
        timestamp_ms, cells = self._sampled_ms(), {}
        for cell in panel.cells:
            file, account = files.get(cell.name), accounts[cell.name]
            if file:
                caption = _plain_text(f"{cell.prompt} (seed {cell.seed})")
                clip = (panel.key_of(cell), file, float(fps), caption, account, codec, most_bytes)
                self._append(records.Video(timestamp_ms, at, *clip))
            scored = measured.get(cell.name, {})
            described = _described(panel, cell, file, account, scored)
            cells[cell.name] = {**described, "codec": codec}
        self._append(records.Samples(timestamp_ms, at, panel.to_dict(), cells))
        self._log_means(panel, measured, at)

    def _log_means(self, panel: Panel, measured: Mapping[str, Mapping[str, Any]], at: int) -> None:
        """Log the mean of each metric that every cell has, where they were measured alike."""
        every = [set(one) for one in measured.values()]
        if len(every) < len(panel.cells):
            return
        for metric in sorted(set.intersection(*every)):
            mean = _mean([one[metric] for one in measured.values()])
            if mean is not None:
                self._log_beside({f"panels/{panel.title}/{metric}": mean}, at)

    def _all_staged(
        self, clips: Mapping[str, Any], value_range: tuple[float, float]
    ) -> dict[str, str | None]:
        """Clips staged by cell; none of them where one is not usable."""
        files: dict[str, str | None] = {}
        with ExitStack() as undo:
            for name, clip in clips.items():
                file = files[name] = self._staged(clip, value_range)
                if file:
                    undo.callback(self._unstage, file)
            undo.pop_all()
        return files

    def _unstage(self, file: str) -> None:
        with suppress(OSError):
            (self._session.folder.media / file).unlink()

    def _staged(self, video: Any, value_range: tuple[float, float]) -> str | None:
        try:
            return media.stage(self._session.folder, video, value_range=value_range)
        except OSError as error:
            self._session.count_lost(error)
            return None

    def _listed(self, films: Sources) -> str:
        """Keep the list of a dataset's films, and tell of it; its file, "" where there is none."""
        if not films.clip_count:
            return ""
        try:
            file = films.keep_in(self._session.folder.media)
        except OSError as error:
            self._session.count_lost(error)
            return ""
        self._append(records.Tags(films.tags()))
        return file

    def _sampled_ms(self) -> int:
        """Now, but never before this part of the run began: the clock may be behind."""
        return max(now_ms(), self._since_ms)

    def _accounts(
        self, panel: Panel, checkpoint: str | LoadedCheckpoint | CheckpointMetadata | None, at: int
    ) -> dict[str, dict[str, Any]]:
        """Where the samples of a panel come from, by cell name."""
        about = {"name": panel.name, "digest": panel.digest}
        return {
            one.name: self._account(
                _made_by(panel.origin_of(one), checkpoint), at, panel={**about, "cell": one.name}
            )
            for one in panel.cells
        }

    def _account(self, origin: Origin | None, step: int, **more: Any) -> dict[str, Any]:
        """Where a sample comes from, as it is kept with its clip."""
        said = origin or Origin()
        if not said.checkpoint and self._saved is not None and self._saved[0] == step:
            said = replace(said, checkpoint=self._saved[1])
        commit = {"git_commit": self._commit} if self._commit else {}
        return plain_account({**said.to_dict(), "step": step, **commit, **more})

    @cached_property
    def _commit(self) -> str | None:
        # Training may have removed the folder it stands in.
        with suppress(OSError):
            return provenance.git_commit(Path.cwd())
        return None


def _made_by(
    origin: Origin, checkpoint: str | LoadedCheckpoint | CheckpointMetadata | None
) -> Origin:
    if checkpoint is None or isinstance(checkpoint, str):
        return replace(origin, checkpoint=checkpoint or "")
    about = checkpoint.metadata if isinstance(checkpoint, LoadedCheckpoint) else checkpoint
    return replace(origin, checkpoint=about.name, weights_sha256=about.weights_sha256)


def _mean(values: Sequence[Any]) -> float | None:
    """The mean of a panel's values, with their passport; None where they were measured unlike."""
    known = [one.passport if isinstance(one, Score) else None for one in values]
    mean = sum(map(float, values)) / len(values)
    first = known[0]
    if any(differences(first, other) for other in known):
        return None
    if first is None:
        return mean
    return Score(mean, replace(first, count=len(values), unit="cells of a panel", interval=None))


def _check_fps(fps: float, key: str) -> None:
    low, high = _FPS_LIMITS
    if not low <= fps <= high:
        raise RecordError(f"fps of {key!r} must be {low} to {high}, not {fps!r}")


def _checked_file(codec: str, max_bytes: int | None, key: str) -> int:
    if codec not in media.CLIP_KINDS:
        known = " or ".join(media.CLIP_KINDS)
        raise RecordError(f"codec of {key!r} must be {known}, not {codec!r:.40}")
    if max_bytes is None:
        return 0
    if not hasattr(max_bytes, "__index__") or operator.index(max_bytes) < 1:
        raise RecordError(
            f"max_bytes of {key!r} must be a whole number from 1, not {max_bytes!r:.40}"
        )
    return min(operator.index(max_bytes), sys.maxsize)


def _plain_text(text: str) -> str:
    """A caption as a clip's file can hold it: without NUL and half characters."""
    return str(text).replace("\0", "").encode(errors="backslashreplace").decode()


def _checked_scores(panel: Panel, scores: Any) -> dict[str, dict[str, Any]]:
    """Scores by cell name; those with a passport keep it."""
    given = {} if scores is None else by_cell(panel, scores, what="scores")
    for name, one in given.items():
        for metric in records.to_values(one):
            records.check_key(f"panels/{panel.title}/{name}/{metric}")
    return {name: dict(one) for name, one in given.items()}


def _described(
    panel: Panel,
    cell: Cell,
    file: str | None,
    account: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """A cell as it stands in the account of the panel's samples."""
    passports = {key: one.to_dict() for key, one in passports_of(scores).items()}
    return {
        "key": panel.key_of(cell),
        "file": file or "",
        "origin": dict(account),
        "scores": {key: float(one) for key, one in scores.items()},
        "passports": passports,
    }
