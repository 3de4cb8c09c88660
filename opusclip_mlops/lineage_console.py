"""Prints what a film has touched: lines for people, JSON for scripts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

import msgspec

from opusclip_mlops.redaction import one_line
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sources import joined
from opusclip_mlops.touches import CheckpointTouch, Lineage, SampleTouch, VersionTouch

_MOST_LINES = 40
_MOST_NAMED = 6
_RUN_DIGITS = 8
_LONGEST_NAME = 120
_KINDS = ("dataset", "checkpoint", "version", "evaluation", "sample")


def print_lineage(found: Lineage, *, as_json: bool) -> None:
    """Print all of it, or to people as much as they can read."""
    if as_json:
        content = {one.name: getattr(found, one.name) for one in fields(found)}
        print(json.dumps(msgspec.to_builtins(content), indent=2))
        return
    for line in lines_of(found):
        print(line)


def lines_of(found: Lineage) -> Iterator[str]:
    """What people are told, line by line."""
    yield f"{_plain(found.source)}: {_counts(found)}"
    yield from _few([f"  sha256 {found.sha256}"] if found.sha256 else ["  no run logged its hash"])
    others = [uri for uri in found.uris if uri != found.source]
    yield from _few([f"  logged as {_plain(uri)}" for uri in others])
    sections = {
        "datasets": list(_datasets(found)),
        "checkpoints": list(_checkpoints(found)),
        "registered versions": [_version(found, one) for one in found.versions],
        "evaluations": list(_evaluations(found)),
        "samples": list(_samples(found)),
    }
    for title, lines in sections.items():
        if lines:
            yield title
            yield from _few([f"  {line}" for line in lines])
    yield from _looked_at(found)


def _counts(found: Lineage) -> str:
    counts = (len(getattr(found, f"{kind}s")) for kind in _KINDS)
    said = [
        f"{count} {kind}{'s' * (count != 1)}" for kind, count in zip(_KINDS, counts, strict=True)
    ]
    return ", ".join(said)


def _datasets(found: Lineage) -> Iterator[str]:
    for one in found.datasets:
        use = one.context or "no context"
        note = "" if one.trains else ", not trained on it"
        runs = _listed([_run(found, run_id) for run_id in one.run_ids])
        yield f"{_plain(one.name)} {_plain(one.digest)} ({_plain(use)}{note}) of {runs}"
        yield from (f"  {line}" for line in _pieces(one.clips))


def _pieces(clips: Sequence[SourceClip]) -> Iterator[str]:
    """Timecodes, by path and use; those that overlap or touch are said as one."""
    by_use: dict[tuple[str, str], list[str]] = {}
    for clip in joined(clips):
        end = "the end" if clip.end_s is None else f"{_seconds(clip.end_s)} s"
        times = by_use.setdefault((clip.uri, clip.use), [])
        times.append(f"{_seconds(clip.start_s)} s to {end}")
    for (uri, use), times in by_use.items():
        yield f"{_plain(use) or 'used'}: {_listed(times)} of {_plain(uri)}"


def _checkpoints(found: Lineage) -> Iterator[str]:
    groups: dict[tuple[str, str], list[CheckpointTouch]] = {}
    for one in found.checkpoints:
        groups.setdefault((one.run_id, one.by), []).append(one)
    for (run_id, by), every in groups.items():
        names = _listed([_plain(one.name) for one in every])
        yield f"{_run(found, run_id)}: {names} ({_BY_CHECKPOINT[by]})"


def _version(found: Lineage, one: VersionTouch) -> str:
    aliases = "".join(f" @{_plain(alias)}" for alias in one.aliases)
    made = f" of {_plain(one.checkpoint)}" if one.checkpoint else ""
    where = f"{made}, {_run(found, one.run_id)}" if one.run_id else made
    return f"{_plain(one.model)} {one.version} {one.stage}{aliases}{where} (by {one.by})"


def _evaluations(found: Lineage) -> Iterator[str]:
    for one in found.evaluations:
        of_run = f" of {_run(found, one.evaluated_run_id)}" if one.evaluated_run_id else ""
        yield f"{_run(found, one.run_id)} evaluated {_plain(one.checkpoint)}{of_run}"


def _samples(found: Lineage) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[SampleTouch]] = {}
    for one in found.samples:
        groups.setdefault((one.run_id, one.key, one.by), []).append(one)
    for (run_id, key, by), every in groups.items():
        steps = _listed([str(one.step) for one in every])
        yield f"{_run(found, run_id)}: {_plain(key)}, step {steps} (by {by})"
        yield from (f"  {line}" for line in _pieces([clip for one in every for clip in one.clips]))


def _looked_at(found: Lineage) -> Iterator[str]:
    runs = f"{found.runs_read} run{'s' * (found.runs_read != 1)} looked at"
    deleted = f", {found.deleted_runs} deleted passed over" if found.deleted_runs else ""
    yield f"{runs}{deleted}"
    if found.unread:
        yield f"not read, what it tells is missing above ({len(found.unread)}):"
        lines = [f"  {one.run_id} {_plain(one.path)}: {_plain(one.reason)}" for one in found.unread]
        yield from _few(lines)


_BY_CHECKPOINT = {
    "dataset": "names the dataset",
    "parent": "went on from one that names it",
    "run": "by its run: none of its checkpoints names the dataset",
}


def _run(found: Lineage, run_id: str) -> str:
    name = _plain(found.run_names.get(run_id, ""))
    return f"run {name} {run_id[:_RUN_DIGITS]}" if name else f"run {_plain(run_id)}"


def _listed(names: Iterable[str]) -> str:
    given = list(dict.fromkeys(names))
    more = f" and {len(given) - _MOST_NAMED} more" if len(given) > _MOST_NAMED else ""
    return ", ".join(given[:_MOST_NAMED]) + more


def _few(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"  … {len(lines) - _MOST_LINES} more lines: --json has all"


def _seconds(length_s: float) -> str:
    return f"{length_s:.3f}".rstrip("0").rstrip(".")


def _plain(text: str) -> str:
    return one_line(text, at_most=_LONGEST_NAME)
