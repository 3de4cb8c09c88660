"""Names in a mirror: of what is on a run's line as it now is, and of what is beside it.

What is on the line has its key. What training went back behind is `generation-<n>/<key>`, where n
is the generation that logged it. A key that looks like such a name of its own accord gets a prefix.
"""

import functools
import re

_NAMED = re.compile(r"generation-(?:0|[1-9][0-9]*)/")
_PREFIX = "metrics/"


def superseded_name(key: str, generation: int) -> str:
    """The name of what a generation logged, and training went back behind."""
    return f"generation-{generation}/{key}"


@functools.lru_cache(maxsize=65_536)
def name_of(key: str) -> str:
    """The name of what stands on the line: its key, with a prefix where that looks superseded."""
    return _PREFIX + key if _looks_superseded(key) else key


@functools.lru_cache(maxsize=65_536)
def key_of(name: str) -> str:
    """The key that has this name in a mirror, on the line or superseded."""
    if found := _NAMED.match(name):
        return name[found.end() :]
    return name.removeprefix(_PREFIX) if _looks_superseded(name) else name


def is_superseded_name(name: str) -> bool:
    """Whether a mirror holds this beside the line."""
    return _NAMED.match(name) is not None


def _looks_superseded(key: str) -> bool:
    while key.startswith(_PREFIX):
        key = key.removeprefix(_PREFIX)
    return is_superseded_name(key)
