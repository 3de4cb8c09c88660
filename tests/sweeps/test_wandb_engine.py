"""The sweep that W&B is given, and what comes back."""

from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.wandb_engine import Spec, begin_at_wandb, keep_outcome, kept_outcomes


def test_what_trials_are_told_is_private(tmp_path: Path) -> None:
    """The file and its folder are the user's alone."""
    path = Spec("s", "r", {}, str(tmp_path / "s")).write()
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert oct((tmp_path / "s" / "trials").stat().st_mode & 0o777) == "0o700"


def test_outcomes_are_numbered_as_they_came(tmp_path: Path) -> None:
    """W&B gives trials names and no numbers."""
    (tmp_path / "trials").mkdir()
    for name in ("zz", "aa"):
        outcome = TrialOutcome(
            number=0, state="complete", value=1.0, values={"name": name}, run_id="", seconds=1.0,
            attempts=1, reason="",
        )  # fmt: skip
        keep_outcome(tmp_path, name, outcome)
    found = kept_outcomes(tmp_path)
    assert [(one.number, one.values["name"]) for one in found] == [(0, "zz"), (1, "aa")]


def test_without_a_key_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before any run is made."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    parameters = {"x": {"value": 1}}
    with pytest.raises(ConfigError, match="W&B made no sweep"):
        begin_at_wandb({"method": "grid", "parameters": parameters})
