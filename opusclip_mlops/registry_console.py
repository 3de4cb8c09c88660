"""Prints what was decided about registered models: lines for people, JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime

from opusclip_mlops.chain import Problem
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.gated import Sighting
from opusclip_mlops.gates import Verdict
from opusclip_mlops.promotion import GateRefused
from opusclip_mlops.registry import RegisteredVersion


def time_ms(text: str) -> int:
    """Unix time in milliseconds of a time like 2026-11-01T12:00, on this machine's clock.

    Raises:
        ConfigError: It is no such time.
    """
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{text!r} is no time: give one like 2026-11-01T12:00") from None


def print_decision(decision: Decision, *, as_json: bool) -> None:
    """Print what was decided."""
    print(_json(_plain(decision)) if as_json else _line(decision))


def print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Print every condition with its numbers."""
    print(_json(verdict.to_dict()) if as_json else "\n".join(verdict.lines()))


def print_refusal(refused: GateRefused, *, as_json: bool) -> None:
    """Print the verdict by which a gate has let nothing through."""
    verdict = refused.verdict
    print(_json(dict(verdict.to_dict())) if as_json else "\n".join(verdict.lines()))


def print_version(made: RegisteredVersion, *, as_json: bool) -> None:
    """Print which version was made of which checkpoint."""
    about = {name: getattr(made, name) for name in made.__dataclass_fields__}
    text = f"{made.name} version {made.version}: {made.checkpoint} of run {made.run_id}"
    print(_json(about) if as_json else text)


def print_history(
    records: Sequence[Decision], holders: Mapping[str, int | None], *, as_json: bool
) -> None:
    """Print all decisions, oldest first, and who held each stage after them."""
    if as_json:
        print(_json({"history": [_plain(one) for one in records], "holders": dict(holders)}))
        return
    for one in records:
        print(_line(one))
    for stage, version in holders.items():
        print(f"{stage}: {f'version {version}' if version else 'nobody'}")


def print_problems(problems: Sequence[Problem], count: int, *, as_json: bool) -> None:
    """Print whether a history is whole."""
    if as_json:
        found = [{"number": one.number, "problem": one.what} for one in problems]
        print(_json({"records": count, "problems": found}))
        return
    for one in problems:
        print(one)
    print(f"{count} records: {'NOT WHOLE' if problems else 'whole'}")


def warn_of_problems(name: str, problems: Sequence[Problem]) -> None:
    """Say on stderr, in one line, that a history is not whole, when it is not."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        text = f"the history of {name!r} is not whole, {count}: --verify lists what is wrong"
        print(text, file=sys.stderr)


def print_sighting(sighting: Sighting, *, as_json: bool) -> None:
    """Print a record that was made, a problem, or its end, as it happens."""
    if as_json:
        made = _plain(sighting.decision) if sighting.decision else None
        content = {"model": sighting.model, "decision": made, "problem": sighting.problem}
        print(json.dumps(content, ensure_ascii=False), flush=True)
        return
    about = _line(sighting.decision) if sighting.decision else sighting.problem or "answers again"
    print(f"{sighting.model or 'the registry'}: {about}", flush=True)


def _line(one: Decision) -> str:
    at = datetime.fromtimestamp(one.timestamp_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    return f"{at}  {one.line()} ({one.came_by})"


def _plain(one: Decision) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=dict)
