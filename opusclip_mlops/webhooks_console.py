"""Prints how far webhooks have been told: lines for people, JSON for scripts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from opusclip_mlops.announcing import Delivery, Failure
from opusclip_mlops.redaction import one_line


def print_deliveries(found: Sequence[Delivery], *, as_json: bool) -> None:
    """Print, of each webhook and model, what was told, what waits, and what failed."""
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
        return
    if not found:
        print("no webhook has anything to tell: none is configured, or nothing was decided yet")
    for one in found:
        print(_line(one))
        for failure in one.failed:
            print(f"  {_failure(failure)}")


def tell_put_back(count: int) -> None:
    """Say on stderr how many records are sent again."""
    print(f"{count} put back: the server sends them again", file=sys.stderr)


def _line(one: Delivery) -> str:
    waiting = f", {one.waiting} waiting" if one.waiting else ""
    failed = f", {len(one.failed)} FAILED" if one.failed else ""
    told = f"told up to record {one.told}" if one.told else "told of nothing yet"
    line = f"{one.webhook} of {one.model}: {told}{waiting}{failed}"
    if not one.tried.tries:
        return one_line(line)
    about = f"{one.tried.error} ({_tries(one.tried.tries)} since {_time(one.tried.first_ms)})"
    return one_line(f"{line}: {about}, next at {_time(one.tried.next_ms)}")


def _failure(failure: Failure) -> str:
    tried = failure.tried
    if tried.again:
        return one_line(f"record {failure.number}: put back, sent again soon; was {tried.error}")
    since = f"{_tries(tried.tries)}, {_time(tried.first_ms)} to {_time(tried.last_ms)}"
    return one_line(f"record {failure.number}: {tried.error} ({since})")


def _tries(count: int) -> str:
    return f"{count} {'try' if count == 1 else 'tries'}"


def _time(timestamp_ms: int) -> str:
    """A time on this machine's clock, of a tag that anybody may have written."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"
