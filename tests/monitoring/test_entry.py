"""Where watching begins, or says in one line why it does not."""

from pathlib import Path

import pytest

from opusclip_mlops.monitoring import watch

SERVED = "__pyfunc_model_path__"


def test_a_model_that_is_only_loaded_is_not_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Smoke tests and evaluations load models too: they are no server."""
    monkeypatch.setenv("OPUSCLIP_MONITOR", "1")
    monkeypatch.delenv(SERVED, raising=False)
    watch(tmp_path)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.glob("**/.opusclip")) == []


@pytest.mark.parametrize("asked", ["", "0", "no", "OFF"])
def test_no_is_no(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is written."""
    monkeypatch.setenv("OPUSCLIP_MONITOR", asked)
    monkeypatch.setenv(SERVED, str(tmp_path))
    watch(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("OPUSCLIP_MONITOR", "maybe", "OPUSCLIP_MONITOR must be 1 or 0, not 'maybe'"),
        ("OPUSCLIP_MONITOR_PORT", "x", "OPUSCLIP_MONITOR_PORT must be 0 to 65535, not 'x'"),
    ],
)
def test_a_wrong_setting_is_said_and_the_model_is_served(
    name: str,
    value: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, and nothing is raised."""
    monkeypatch.setenv("OPUSCLIP_MONITOR", "1")
    monkeypatch.setenv(SERVED, str(tmp_path))
    monkeypatch.setenv(name, value)
    watch(tmp_path)
    told = capsys.readouterr().err
    assert "served without monitoring" in told
    assert line in told
    assert told.count("\n") == 1
