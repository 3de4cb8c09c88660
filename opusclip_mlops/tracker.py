"""`ExperimentTracker`: everything a training loop calls.

Each call appends one record to the run's journal and returns; a shipper process of its own delivers
it to MLflow, TensorBoard and W&B. No backend is imported here, and none can stop or slow training.
"""

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from opusclip_mlops import object_storage, provenance, records
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.efficiency import FLUSH, RUN_ID
from opusclip_mlops.errors import DeliveryError, OpusclipError
from opusclip_mlops.exits import ExitWatch, end_declared, end_of, traceback_of
from opusclip_mlops.faults import attempted
from opusclip_mlops.keeping import CheckpointKeeper
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.naming import checked_config
from opusclip_mlops.passports import PASSPORTS_KEY, Passport, encoded, passports_of
from opusclip_mlops.performance import PerformanceMeter
from opusclip_mlops.profiling import ProfilingCalls, prefixed
from opusclip_mlops.rank_share import RankShare
from opusclip_mlops.ranks import Place
from opusclip_mlops.reductions import STATS
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sampling import SampleCalls
from opusclip_mlops.saving import CheckpointCalls, config_of
from opusclip_mlops.session import JoinedSession, Session
from opusclip_mlops.sources import Sources
from opusclip_mlops.trial_values import values_for_a_worker

_RESUME_WAIT_S = 15.0


_here: "dict[tuple[Path, int], ExperimentTracker]" = {}


class ExperimentTracker(CheckpointCalls, SampleCalls, ProfilingCalls):
    """Tracks one run: metrics, params, clips, datasets and checkpoints.

    A context manager: leaving it closes the run FINISHED, an exception FAILED with the reason.

    Args:
        config: What the run is called and where it goes; the defaults otherwise.
        resume: The checkpoint that training goes on from: its run goes on, with its steps and what
            was the best in it. What was logged behind the checkpoint stays and is superseded.

    Raises:
        ConfigError: a setting is wrong, or names another run than the checkpoint's.
    """

    def __init__(
        self, config: TrackingConfig | None = None, *, resume: LoadedCheckpoint | None = None
    ) -> None:
        self.config = checked_config(config)
        for line in object_storage.feed(os.environ):
            print(f"opusclip: {line}", file=sys.stderr, flush=True)
        if resume is not None:
            self.config = config_of(resume, self.config)
        tags = {**provenance.run_tags(Path.cwd()), **self.config.tag_values}
        begun_from = None if resume is None else resume.metadata
        values = records.to_text_values(tags, what="tag")
        self._use(Session(self.config, tags=values, begun_from=begun_from))
        self._pid = os.getpid()
        if begun_from is not None:
            self._step = begun_from.step
            self._keeper.go_on_from(begun_from, since_ms=self._since_ms)
        if self.config.given_params:
            self.log_params(self.config.given_params)
        self._profile_on_schedule(self.config.profile_steps, step=self._step + 1)
        self._exit_watch = ExitWatch()
        atexit.register(self._close_at_exit)

    def _use(self, session: Session) -> None:
        self._session = session
        _here[session.folder.path, os.getpid()] = self
        interval_s = self.config.profile_interval_s
        self._share = RankShare(session, session.folder, session.selection, interval_s=interval_s)
        self._append = self._share.append
        self._selection = session.selection
        self._trial_values = values_for_a_worker()
        self._begin_profiling()
        self._watched = {}
        self._since_ms = session.since_ms
        self._keeper = CheckpointKeeper(
            session.folder, session=session.name, goes_on=session.has_earlier_parts
        )
        self._meter = PerformanceMeter()
        self._pid = 0
        self._closed = False
        self._dataset_digest: str | None = None
        self._evaluation_digest: str | None = None
        self._saved: tuple[int, str] | None = None
        self._step = -1

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, such as a data loader's worker, it logs to the same run there.

        The run's end stays with the process that began it: `close()` does nothing in the other.
        """
        session = self._session
        return _joined, (self.config, session.folder.path, self._since_ms, session.place)

    @property
    def local_id(self) -> str:
        """The run's id on this machine, known at once."""
        return self._session.local_id

    @property
    def run_id(self) -> str:
        """The MLflow run id; waits for MLflow's answer.

        Raises:
            DeliveryError: no answer within `drain_timeout_s`.
        """
        if (known := self._session.known_run_id()) is not None:
            return known
        with self._operations.named(*RUN_ID):
            return self._session.identity(wait_s=self.config.drain_timeout_s).run_id

    @property
    def owns_run(self) -> bool:
        """Whether this process's points make the run: one that is alone, or the rank that owns it.

        That is rank 0, or `metric_rank`.
        """
        return self._session.is_owner

    @property
    def step(self) -> int:
        """The last step that was logged, -1 before the first."""
        return self._step

    @property
    def should_stop(self) -> bool:
        """Whether an alert asks that training stops: a loop that looks ends by its own lines."""
        return bool(self._session.stop_reason)

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int | None = None, *, reduce: str | None = None
    ) -> None:
        """Log values by key at a step; without a step, the one after the last.

        Values are numbers, NumPy scalars or 0-d tensors; NaN and infinities are kept. The passport
        of a `Score` is kept beside its value, but not beside one that is merged.

        Args:
            metrics: Values by key.
            step: The training step.
            reduce: Where many ranks train on one run, what becomes of their values of a step: their
                `mean`, `min`, `max` or `sum`; `stats` logs `<key>/min`, `p50`, `p95`, `max` and
                `slowest_rank`, `each` logs `rank-<n>/<key>`. None: only the owner's are logged.

        Raises:
            RecordTypeError: a value is no number, or the step is not whole.
            RecordError: a key MLflow would refuse, a step beyond 64 bits, or an unknown `reduce`.
        """
        values = records.to_values(metrics)
        at = self._next_step() if step is None else records.to_step(step)
        if reduce is None:
            self._log_now(values, at, None if values is metrics else passports_of(metrics))
        else:
            self._share.check(reduce, values)
            self._log_now(values, at, None, reduce)
        self._step = at
        if self._profiler is not None:
            self._profile_from(at + 1)

    def log_training_metrics(
        self, epoch: int, step: int, metrics: Mapping[str, Any], *, reduce: str | None = None
    ) -> None:
        """Log values as `training/<key>`, with the epoch; `reduce` as `log_metrics` takes it."""
        values, at = prefixed("training", metrics), {"training/epoch": epoch}
        if reduce is None:
            self.log_metrics(values | at, step)
        else:
            self.log_metrics(values, step, reduce=reduce)
            self.log_metrics(at, step, reduce="max")

    def log_video_metrics(self, *, step: int | None = None, **metrics: Any) -> None:
        """Log video quality as `video/<name>`: `log_video_metrics(psnr=31.2, ssim=0.93)`."""
        self._log_beside(prefixed("video", metrics), step)

    def log_performance_metrics(
        self, metrics: Mapping[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Log as `performance/<key>` what is given, else CPU, memory and GPU use measured now.

        Of many ranks the values are merged, as by `log_metrics(…, reduce="stats")`.
        """
        measured = self._meter.measure(step=self._step) if metrics is None else metrics
        reduce = STATS if self._share.is_one_of_many else None
        self._log_beside(prefixed("performance", measured), step, reduce)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; a parameter keeps its first value.

        Raises:
            RecordError: a key MLflow would refuse, or a value of more than 6000 characters.
        """
        self._append(records.Params(records.to_text_values(params)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value holds."""
        self._append(records.Tags(records.to_text_values(tags, what="tag")))

    def log_dataset(
        self,
        *,
        name: str,
        digest: str,
        source: str,
        source_type: str = "local",
        context: str = "training",
        profile: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        sources: Iterable[SourceClip] | None = None,
    ) -> None:
        """Log a dataset as an input of the run.

        Args:
            name: What it is called.
            digest: Names its exact content; at most 36 characters.
            source: Where it came from, a path or URI.
            source_type: The kind of source, as MLflow names it.
            context: What it was used for. Checkpoints name the last one of "training", and the last
                one of "evaluation", "validation" or "test".
            profile: Facts about it, such as frame counts; JSON values.
            schema: Its fields; JSON values.
            sources: The films it is made of, by timecodes: `opusclip lineage` finds what they
                touched. All of them are kept as a file of the run, a few in the profile too.

        Raises:
            RecordError: the digest is empty or too long, or sources that are none.
        """
        records.check_dataset(name, digest)
        films = Sources.of(name, digest, context, sources or ())
        listed = self._listed(films)
        facts = films.profile(profile or {}) if listed else profile
        about = [json.dumps(one, default=str) if one else "" for one in (facts, schema)]
        location = json.dumps({"uri": source})
        what = (name, digest, source_type, location, context)
        self._append(records.Dataset(*what, about[0], about[1], listed))
        self._used_dataset(digest, context)

    def flush(self, *, timeout_s: float | None = None, sink: str | None = None) -> bool:
        """Wait until what was logged so far has arrived everywhere, or at one sink.

        Returns False when it has not within `timeout_s` (`drain_timeout_s` otherwise).
        """
        self._loop_clock.flush()
        wait_s = self.config.drain_timeout_s if timeout_s is None else timeout_s
        sinks = [sink] if sink else self._session.sinks
        deadline_s = time.monotonic() + wait_s
        with self._operations.named(*FLUSH):
            is_saved = self._settle_saves(wait_s=wait_s)
            left_s = max(0.0, deadline_s - time.monotonic())
            return self._session.wait_until_arrived(sinks, wait_s=left_s) and is_saved

    def close(self, status: str | None = None, reason: str = "") -> None:
        """End the run and wait for delivery, at most `drain_timeout_s`.

        A checkpoint that is still being written is waited for first, half an hour if need be, but
        not for ranks that are gone. What has not arrived by then is said on stderr; the shipper
        goes on with it. Closing twice does nothing.

        Args:
            status: FINISHED, FAILED or KILLED; by default FINISHED, but as the exception says in
                whose `finally` or `except` this is called.
            reason: Why, kept as the tag `opusclip.end_reason`.

        Raises:
            RecordError: an unknown status.
        """
        status, why, lines = end_declared(status)
        self._end(status, reason or why, traceback=lines)

    def _end(self, status: str, reason: str, *, traceback: str = "", at_exit: bool = False) -> None:
        if self._closed or os.getpid() != self._pid:
            self._operations.flush()
            return
        if fault := attempted(self.unwatch):
            self._not_profiled(fault)
        self._closed = True
        _here.pop((self._session.folder.path, self._pid), None)
        atexit.unregister(self._close_at_exit)
        # Whatever becomes of it, the end is declared.
        if fault := attempted(self._end_profiling):
            self._not_profiled(fault)
        try:
            self._end_saves(status)
        except KeyboardInterrupt:
            print("opusclip: the last checkpoint was not waited for", file=sys.stderr, flush=True)
        self._session.end(status, reason, traceback=traceback, at_exit=at_exit)
        self._append = _refuse_after_close
        try:
            self._session.wait_until_ended(wait_s=self.config.drain_timeout_s)
        except KeyboardInterrupt:
            print("opusclip: not waited for; the shipper goes on", file=sys.stderr, flush=True)
        # Known for good before the shipper removes the folder.
        self._session.known_run_id()
        for line in self._session.missing():
            print(f"opusclip: {line}", file=sys.stderr, flush=True)
        self._session.release(is_last_word=not at_exit)
        self._exit_watch.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(*end_of(error), traceback=traceback_of(error))

    def _close_at_exit(self) -> None:
        error = self._exit_watch.error
        self._end(*end_of(error), traceback=traceback_of(error), at_exit=True)

    def _next_step(self) -> int:
        """The step after the last; in a run that is gone on with, after the last in MLflow."""
        if self._step < 0 and self._session.is_resumed:
            self._step = max(self._session.last_step_before(), self._last_step_in_mlflow())
        return self._step + 1

    def _last_step_in_mlflow(self) -> int:
        """The last step in MLflow of a run that is gone on with, if it answers in time."""
        with contextlib.suppress(DeliveryError):
            return self._session.identity(wait_s=_RESUME_WAIT_S).last_step
        return -1

    def _current_step(self, step: int | None) -> int:
        return max(self._step, 0) if step is None else records.to_step(step)

    def _log_beside(
        self, metrics: Mapping[str, Any], step: int | None, reduce: str | None = None
    ) -> None:
        """Log at the step the training has reached, without counting a step."""
        at, values = self._current_step(step), records.to_values(metrics)
        self._share.check(reduce, values)
        self._log_now(values, at, None if reduce else passports_of(metrics), reduce)

    def _log_now(
        self,
        values: dict[str, float],
        step: int | None = None,
        passports: Mapping[str, Passport] | None = None,
        reduce: str | None = None,
    ) -> None:
        """Log values as of now; how they were measured before them, at the same step and time."""
        if step is None:
            step = self._step if self._step > 0 else 0
        if self._trial_values is not None:
            self._trial_values.note(values, step)
        timestamp_ms = time.time_ns() // 1_000_000
        if timestamp_ms < self._since_ms:
            timestamp_ms = self._since_ms
        selection = self._selection
        if not selection.free_from_ms <= timestamp_ms < selection.free_until_ms:
            self._loop_clock.look(step, timestamp_ms)
            values = selection.kept(values, step=step, timestamp_ms=timestamp_ms)
        if passports and (kept := {key: passports[key] for key in passports.keys() & values}):
            self._append(records.Text(timestamp_ms, step, PASSPORTS_KEY, encoded(kept)))
        if values:
            if reduce is None:
                self._append(records.Metrics(timestamp_ms, step, values))
            else:
                self._append(self._share.record(values, timestamp_ms, step, reduce))


def _joined(
    config: TrackingConfig, folder: Path, since_ms: int = 0, place: Place | None = None
) -> ExperimentTracker:
    # One in each process, however often it is sent there; a copy is the tracker itself.
    tracker = _here.get((folder, os.getpid()))
    if tracker is None:
        tracker = ExperimentTracker.__new__(ExperimentTracker)
        tracker.config = config
        tracker._use(JoinedSession(config, folder, place=place))
        tracker._since_ms = since_ms
    return tracker


def _refuse_after_close(record: records.Record) -> NoReturn:
    raise OpusclipError(f"the tracker is closed: {type(record).__name__} came after close()")


AdvancedExperimentTracker = ExperimentTracker  # its earlier name
