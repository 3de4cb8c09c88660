"""The command's verbs about alerts, over a real run that raised some."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from opusclip_mlops.delivery import deliver
from opusclip_mlops.records import Metrics
from tests.journeys import append, end, make_run, store

RULES = {"nan": {"kind": "not_finite", "keys": ["train/*"], "severity": "error"}}
FILE = "rules:\n  nan: {kind: not_finite, keys: train/*}\n  high: {kind: mirror_lag}\n"
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store with a run that raised an alert."""
    folder = make_run(tmp_path, ["mlflow", "alerts"], alerts={"rules": RULES})
    append(folder, [Metrics(1_700_000_000_123, at, {"train/loss": math.nan}) for at in range(2)])
    end(folder)
    deliver(folder, "alerts")
    deliver(folder, "mlflow")
    return store(tmp_path)


def test_what_was_raised_and_what_would_have_been_is_shown(
    uri: str, tmp_path: Path, said: Said
) -> None:
    """`list` and `test`, in lines and in JSON."""
    (tmp_path / "a.yaml").write_text(FILE)
    code, told = said("alerts", "list", "a-run", "--tracking-uri", uri)
    assert code == 0
    assert told.rstrip().endswith("error nan raised: train/loss is nan at step 0")
    code, told = said("alerts", "list", "a-run", "--tracking-uri", uri, "--json")
    (event,) = json.loads(told)
    assert (event["alert"], event["state"], event["severity"]) == ("nan", "raised", "error")
    code, told = said("alerts", "test", "a.yaml", "--run", "a-run", "--tracking-uri", uri)
    assert code == 1
    assert "1 alert over 2 points of a-run" in told
    assert "not judged, as its points cannot tell: high" in told
    code, told = said("alerts", "test", "a.yaml", "--run", "a-run", "--tracking-uri", uri, "--json")
    assert [one["alert"] for one in json.loads(told)["events"]] == ["nan"]


def test_a_file_is_checked_line_by_line(tmp_path: Path, said: Said) -> None:
    """Exit code 0 where it is understood, 1 with a line for each thing that is wrong."""
    (tmp_path / "a.yaml").write_text(FILE)
    assert said("alerts", "check", "a.yaml") == (0, "2 rules are understood: nan, high\n")
    (tmp_path / "a.yaml").write_text(
        FILE.replace("mirror_lag", "mirrors") + "  x: {kind: plateau}\n"
    )
    code, told = said("alerts", "check", "a.yaml")
    assert code == 1
    assert [line.partition(": ")[0] for line in told.splitlines()] == ["a.yaml:3", "a.yaml:4"]
    code, told = said("alerts", "check", "a.yaml", "--json")
    assert (code, len(json.loads(told)["faults"])) == (1, 2)
    code, told = said("alerts", "test", "a.yaml", "--run", "x")
    assert code == 2
    assert told.startswith("error: a.yaml:3: ")


def test_a_run_without_alerts_says_so(tmp_path: Path, said: Said) -> None:
    """And one that is not there is an error of one line."""
    folder = make_run(tmp_path)
    end(folder)
    deliver(folder, "mlflow")
    uri = store(tmp_path)
    assert said("alerts", "list", "a-run", "--tracking-uri", uri) == (0, "no alert was raised\n")
    code, told = said("alerts", "list", "nobody", "--tracking-uri", uri)
    assert (code, told.count("\n")) == (2, 1)
