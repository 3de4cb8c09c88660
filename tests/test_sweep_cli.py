"""The verb that runs many trials, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from opusclip_mlops.sweep_cli import _registered
from opusclip_mlops.sweeps import SweepResult
from tests.journeys import store
from tests.sweeps.small_sweeps import LOGS, program

Said = Callable[..., tuple[int, str]]


def test_a_sweep_is_run_and_told_for_scripts(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trial with its run and values, JSON alone on stdout; what cannot be registered is told.

    The result is there all the same, with exit code 1.
    """
    told: list[str] = []
    echo = click.echo
    monkeypatch.setattr(
        click, "echo", lambda text, err=False: told.append(text) if err else echo(text)
    )
    program(tmp_path, LOGS)
    document = {
        "method": "random", "metric": {"name": "loss"}, "program": "train.py",
        "command": ["${interpreter}", "-I", "-S", "${program}", "${args}"],
        "parameters": {"x": {"min": 1.0, "max": 2.0}},
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    line = ("sweep", "sweep.json", "--count", "2", "--json", "--tracking-uri", store(tmp_path))
    code, text = said(*line, "--register-best", "clips")
    content = json.loads(text)
    assert code == 1
    [fault] = told
    assert fault.startswith("clips is not registered: ")
    assert fault.endswith(f"opusclip register {content['best']['run_id']} --as clips")
    assert [one["state"] for one in content["trials"]] == ["complete", "complete"]
    assert content["best"]["value"] == min(one["value"] for one in content["trials"])
    assert content["is_over"] is True
    assert content["registered"] is None


def test_the_best_so_far_is_not_registered() -> None:
    """A sweep that was stopped and goes on would register twice."""
    found = SweepResult(
        name="s", run_id="r0", metric="loss", trials=(), best=None, importances={},
        is_over=False, folder=Path("f"),
    )  # fmt: skip
    assert _registered(found, "clips", None) == (None, "the sweep is not over")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ((), "give FILE or --resume SWEEP"),
        (("a.yaml", "--resume", "b"), "give FILE or --resume SWEEP"),
        (("a.yaml",), "a.yaml cannot be read"),
        (("--resume", "b"), "no sweep b in .opusclip/sweeps"),
        (("a.yaml", "--workers", "0"), "--workers"),
    ],
)
def test_wrong_use_is_one_line(said: Said, line: tuple[str, ...], text: str) -> None:
    """With exit code 2."""
    code, told = said("sweep", *line)
    assert code == 2
    assert text in told
    assert told.count("\n") == 1
