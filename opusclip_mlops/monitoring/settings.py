"""How a served version is watched, from the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from opusclip_mlops.errors import ConfigError

PORTS = 16
"""So many ports are tried, from the first one on: each process that serves takes one."""

_PREFIX = "OPUSCLIP_MONITOR_"
_HOST, _PORT, _INTERVAL_S, _SHARE = "127.0.0.1", 9400, 30.0, 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """How a served version is watched.

    Attributes:
        host: Where Prometheus finds the numbers; anyone who reaches it may read them.
        port: The first port that is tried, 1..65535; 0 for no endpoint.
        interval_s: Seconds between two points of the monitoring run, 0.1 or more.
        checks_share: How much of the time is spent on looking at answered clips, above 0, up to 1.
    """

    host: str = _HOST
    port: int = _PORT
    interval_s: float = _INTERVAL_S
    checks_share: float = _SHARE

    @classmethod
    def from_environment(cls) -> MonitorSettings:
        """OPUSCLIP_MONITOR_HOST, _PORT, _INTERVAL_S and _CHECKS_SHARE, or the defaults.

        Raises:
            ConfigError: One of them is no such number.
        """
        return cls(
            host=os.environ.get(f"{_PREFIX}HOST") or _HOST,
            port=int(_number("PORT", _PORT, lambda one: one in range(65536), "0 to 65535")),
            interval_s=_number("INTERVAL_S", _INTERVAL_S, lambda one: one >= 0.1, "0.1 s or more"),
            checks_share=_number("CHECKS_SHARE", _SHARE, lambda one: 0 < one <= 1, "above 0 to 1"),
        )


def _number(name: str, otherwise: float, is_legal: Callable[[float], bool], rule: str) -> float:
    text = os.environ.get(_PREFIX + name)
    if not text:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not is_legal(value):
        raise ConfigError(f"{_PREFIX}{name} must be {rule}, not {text!r:.40}")
    return value
