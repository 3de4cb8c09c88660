"""The verb that runs many trials, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from optuna.exceptions import StorageInternalError

from opusclip_mlops import console, operating, registry, sweeps
from opusclip_mlops.cli import main
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.open_sweeps import Mark, OpenSweep
from opusclip_mlops.sweep_cli import _own_model, _registered
from opusclip_mlops.sweeps import SweepResult
from opusclip_mlops.sweeps.outcome import TrialOutcome
from tests.journeys import store
from tests.sweeps.small_sweeps import LOGS, program
from tests.sweeps.test_telling import outcome, result

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


def test_mlflow_away_is_no_wrong_use(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and exit code 1: something is left to do."""

    def away(*_: object, **_more: object) -> SweepResult:
        raise RegistryError("cannot end run r0: connection refused")

    monkeypatch.setattr(sweeps, "sweep", away)
    code, text = said("sweep", "a.yaml")
    assert code == 1
    assert text == "error: cannot end run r0: connection refused\n"


def test_the_best_is_registered_once_its_checkpoint_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its trainer left on this machine is delivered first."""
    done: list[str] = []
    monkeypatch.setattr(operating, "recover", lambda runs, **_: done.append(f"recovered {runs[0]}"))

    def register(run_id: str, **_: object) -> object:
        done.append(f"registered {run_id}")
        return SimpleNamespace(uri="models:/clips/1")

    monkeypatch.setattr(registry, "register", register)
    best = TrialOutcome(
        number=0, state="complete", value=1.0, values={}, run_id="r1", seconds=1.0, attempts=1,
        reason="",
    )  # fmt: skip
    found = SweepResult(
        name="s", run_id="r0", metric="loss", trials=(best,), best=best, importances={},
        is_over=True, folder=Path("f"),
    )  # fmt: skip
    assert _registered(found, "clips", None) == ("models:/clips/1", "")
    assert done == ["recovered r1", "registered r1"]


def test_a_storage_that_is_away_holds_up_no_other_sweep(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, with why and what to do; the others are settled, and the exit code is 1."""
    for name in ("a", "b"):
        sweep = OpenSweep(name=name, run_id="r", tracking_uri=None, is_shared=name == "a")
        Mark(sweep).close()
    monkeypatch.setenv("OPUSCLIP_SWEEP_STORAGE", "postgresql://h/s")
    settled: list[tuple[str, object]] = []

    def settle(name: str, *, storage: str | None, **_: object) -> SweepResult:
        if storage:
            raise StorageInternalError("no connection to\nserver")
        settled.append((name, storage))
        return result()

    told: list[str] = []
    monkeypatch.setattr(sweeps, "settle", settle)
    monkeypatch.setattr(console, "tell", told.append)
    code, text = said("recover", "--all", "--json")
    assert code == 1
    assert settled == [("b", None)]
    assert told == [
        "sweep a was cut off: its run goes on, for it cannot be looked at: no connection to server;"
        " again: opusclip recover --all; go on: opusclip sweep --resume a --storage PLACE",
        "sweep b was cut off: its run is ended; go on: opusclip sweep --resume b",
    ]
    away, ended = json.loads(text)["sweeps"]
    assert away.pop("problem").startswith("its run goes on, for it cannot be looked at: no")
    resuming = "opusclip sweep --resume a --storage PLACE"
    assert away == {"name": "a", "run_id": "r", "resuming": resuming, "is_ended": False}
    assert (ended["name"], ended["is_ended"], ended["problem"]) == ("b", True, "")


def test_a_sweep_that_was_cut_off_is_named_for_scripts_too(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all is asked for: who asks for one run is told nothing of sweeps, nor that none is."""
    assert json.loads(said("status", "--json")[1])["sweeps"] == []
    sweep = OpenSweep(name="a", run_id="r0", tracking_uri=None, is_shared=False)
    Mark(sweep).close()
    cut_off = {"name": "a", "run_id": "r0", "resuming": "opusclip sweep --resume a"}
    assert json.loads(said("status", "--json")[1])["sweeps"] == [cut_off]
    with pytest.raises(SystemExit):
        main(["status"])
    told = capsys.readouterr()
    assert told.out == f"no runs in {tmp_path}/.opusclip/journal\n", "but not: nothing to do"
    assert told.err.startswith("opusclip: sweep a (run r0) was cut off")


@pytest.mark.parametrize(("words", "verb"), [(("a.yaml",), "begins"), (("--resume", "s"), "goes")])
def test_a_sweep_that_goes_on_does_not_begin(
    said: Said, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], verb: str
) -> None:
    """Its line on stderr says which it does."""

    def run(*_: object, say: Callable[[str, str], object], **__: object) -> SweepResult:
        say("s", "r0")
        raise RegistryError("MLflow refused")

    monkeypatch.setattr(sweeps, "sweep", run)
    assert said("sweep", *words)[1].startswith(f"sweep s {verb} ")


def test_the_best_so_far_is_not_registered() -> None:
    """A sweep that was stopped and goes on would register twice."""
    found = SweepResult(
        name="s", run_id="r0", metric="loss", trials=(), best=None, importances={},
        is_over=False, folder=Path("f"),
    )  # fmt: skip
    assert _registered(found, "clips", None) == (None, "the sweep is not over")


def test_a_model_of_the_users_own_is_registered_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `opusclip register`; they are read before the first trial is begun."""
    asked: list[dict[str, object]] = []

    def register(run_id: str, **given: object) -> SimpleNamespace:
        asked.append({"run_id": run_id, **given})
        return SimpleNamespace(uri="models:/m/1")

    monkeypatch.setattr(registry, "register", register)
    (tmp_path / "rows.json").write_text('[{"film": "a"}]')
    (tmp_path / "needs.txt").write_text("torch==2.13.0\n")
    own = _own_model("m", (Path("served.py"), tmp_path / "rows.json", tmp_path / "needs.txt"))
    found = result(outcome(0, "complete"))
    assert _registered(found, "m", store(tmp_path), own) == ("models:/m/1", "")
    [given] = asked
    assert (given["run_id"], given["python_model"]) == ("r1", Path("served.py"))
    assert (given["pip_requirements"], given["serves"]) == (["torch==2.13.0"], frozenset())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ((), "give FILE or --resume SWEEP"),
        (("a.yaml", "--resume", "b"), "give FILE or --resume SWEEP"),
        (("a.yaml",), "a.yaml cannot be read"),
        (("--resume", "b"), "no sweep b in .opusclip/sweeps"),
        (("a.yaml", "--workers", "0"), "--workers"),
        (("a.yaml", "--model-file", "m.py"), "--model-file is for --register-best NAME"),
        (("a.yaml", "--register-best", "m", "--model-file", "m.py"), "--requirements go together"),
    ],
)
def test_wrong_use_is_one_line(said: Said, line: tuple[str, ...], text: str) -> None:
    """With exit code 2."""
    code, told = said("sweep", *line)
    assert code == 2
    assert text in told
    assert told.count("\n") == 1
