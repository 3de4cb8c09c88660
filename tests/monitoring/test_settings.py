"""Settings: from the environment, and one line for what is wrong."""

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.monitoring.settings import MonitorSettings


def test_by_default_only_this_machine_can_read_the_numbers() -> None:
    """Port 9400 and those after it, half a minute, half a percent."""
    assert MonitorSettings.from_environment() == MonitorSettings(
        host="127.0.0.1", port=9400, interval_s=30.0, checks_share=0.005
    )


def test_the_environment_sets_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 is no endpoint."""
    given = {"HOST": "0.0.0.0", "PORT": "0", "INTERVAL_S": "2.5", "CHECKS_SHARE": "1"}
    for name, value in given.items():
        monkeypatch.setenv(f"OPUSCLIP_MONITOR_{name}", value)
    assert MonitorSettings.from_environment() == MonitorSettings(
        host="0.0.0.0", port=0, interval_s=2.5, checks_share=1.0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"), ("PORT", "-1"), ("PORT", "many"), ("PORT", "80.5"), ("PORT", "nan"),
        ("INTERVAL_S", "0"), ("INTERVAL_S", "inf"), ("CHECKS_SHARE", "0"), ("CHECKS_SHARE", "2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, its value and what is allowed."""
    monkeypatch.setenv(f"OPUSCLIP_MONITOR_{name}", value)
    with pytest.raises(ConfigError, match=f"OPUSCLIP_MONITOR_{name} must be .*{value}"):
        MonitorSettings.from_environment()
