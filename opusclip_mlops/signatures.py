"""Short texts that change with what they are about, to tell what is new since the last look."""

import hashlib
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops.contents import Part
from opusclip_mlops.holdings import medium_of
from opusclip_mlops.records import Record, now_ms
from opusclip_mlops.words import words_of

if TYPE_CHECKING:
    from mlflow.entities import Run

_LATE_MS = 24 * 3_600_000
_SILENT_MS = 10 * 60_000


def signature_of(run: "Run") -> str:
    """A short text that changes with anything that a listing of runs shows of this one."""
    latest = sorted((m.key, m.step, m.timestamp, repr(m.value)) for m in run.data._metric_objs)
    return _short([words_signature(run), latest])


def is_long_over(run: "Run") -> bool:
    """Whether a run ended so long ago that nothing late is to be expected."""
    return bool(now_ms() - (run.info.end_time or 0) > _LATE_MS)


def is_heard_of(run: "Run") -> bool:
    """Whether a run has begun, logged or ended of late."""
    now = now_ms()
    heard_ms = [run.info.start_time or 0, run.info.end_time or 0]
    heard_ms += [metric.timestamp for metric in run.data._metric_objs]
    return bool(now - max(one for one in (0, *heard_ms) if one <= now) < _SILENT_MS)


def words_signature(run: "Run") -> str:
    """The same without its points."""
    info = run.info
    about = [info.run_name, info.status, info.end_time, info.lifecycle_stage]
    inputs = [one.dataset.digest for one in run.inputs.dataset_inputs] if run.inputs else []
    outputs = [one.model_id for one in run.outputs.model_outputs] if run.outputs else []
    return _short([about, run.data.params, run.data.tags, inputs, outputs])


def name_of(part: Part) -> str:
    """What tells a part of a run from its others."""
    medium = medium_of(part.record)
    if medium is not None:
        return f"{medium.kind} {medium.step} {medium.timestamp_ms} {medium.key}"
    return " ".join(words_of(part.record))


def called(record: Record) -> str:
    """A record's name for people."""
    medium = medium_of(record)
    return f"{medium.kind} {medium.key} at step {medium.step}" if medium else type(record).__name__


def digest_of(part: Part) -> str:
    """Changes with what a part says."""
    return hashlib.sha256(msgspec.msgpack.encode(part.record)).hexdigest()[:16]


def _short(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
