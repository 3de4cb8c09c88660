"""Facts about `opusclip_mlops.smoke`: a version answers in its time, or one line says why not."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.smoke import SmokeResult, smoke_test
from tests.journeys import store, wait_until

MODEL = """
import os, signal, subprocess, sys, time
from pathlib import Path
import mlflow.models
import mlflow.pyfunc

class Answers(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        {load}

    def predict(self, context, model_input, params=None):
        {predict}

mlflow.models.set_model(Answers())
"""
DOUBLED = "return (model_input['x'] * 2).tolist()"
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("double", "x")]), outputs=Schema([ColSpec("double")])
)
LONG_S = 100.0

Register = Callable[..., str]
Ask = Callable[..., SmokeResult]


@pytest.fixture
def register(tmp_path: Path) -> Register:
    """Registers a model whose file loads and predicts as told; returns the version's URI."""
    client = MlflowClient(store(tmp_path))

    def made(predict: str = DOUBLED, *, load: str = "pass", example: bool = True) -> str:
        script = tmp_path / "model.py"
        script.write_text(MODEL.format(load=load, predict=predict))
        saved = tmp_path / "saved"
        mlflow.pyfunc.save_model(
            path=str(saved),
            python_model=str(script),
            input_example=pd.DataFrame({"x": [1.0, 2.0]}) if example else None,
            signature=SIGNATURE,
            pip_requirements=["mlflow"],
        )
        client.create_registered_model("kite")
        client.create_model_version("kite", saved.as_uri())
        return "models:/kite/1"

    return made


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Tests a version of this test's registry."""

    def asked(uri: str, *, timeout_s: float = LONG_S) -> SmokeResult:
        return smoke_test(uri, timeout_s=timeout_s, tracking_uri=store(tmp_path))

    return asked


@pytest.fixture(autouse=True)
def leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test leaves a folder behind, nor a process that works in this test's folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert [path.name for path in folder.iterdir() if "smoke" in path.name] == []
    assert processes_below(tmp_path) == []


def processes_below(folder: Path) -> list[int]:
    """The processes whose temporary files go below a folder, but for this one."""
    found = []
    for process in psutil.process_iter(["pid", "environ"]):
        environment = process.info["environ"] or {}
        if process.pid != os.getpid() and environment.get("TMPDIR", "").startswith(str(folder)):
            found.append(process.pid)
    return found


def test_a_version_that_answers_its_input_example_passes(register: Register, ask: Ask) -> None:
    """Its answer is not empty; the reason says what it was."""
    result = ask(register())
    assert (result.passed, result.reason) == (True, "it answered (list)")
    assert 0 < result.duration_s < LONG_S


def test_a_relative_database_is_found_from_where_it_is_asked(register: Register) -> None:
    """The model works in a private folder that goes, and finds out which version it is."""
    told = "Path('../model/registered_model_meta').read_text()"
    uri = register(f"Path('mine').write_text(''); return [{told}]")
    result = smoke_test(uri, timeout_s=LONG_S, tracking_uri="sqlite:///mlflow.db")
    assert result.passed, result.reason
    assert not Path("mine").exists()


def test_the_model_is_given_no_secret_of_who_asks(
    register: Register, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its environment nor in that which its process began with; all else is there."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-secret")
    monkeypatch.setenv("KITE", "red")
    told = "[*os.environ.values(), Path('/proc/self/environ').read_text()]"
    result = ask(
        register(
            f"found = {told}; assert 'red' in found, 'empty';"
            " assert not any('hunter2' in one for one in found), 'it knows'; return [1]"
        )
    )
    assert result.passed, result.reason


FAILURES = {
    "raises": (
        {"predict": "raise ValueError('no\\nkite')"},
        "ValueError while it was answering: no kite",
    ),
    "answers nothing": ({"predict": "return []"}, "its answer (list) is empty"),
    "no example": ({"example": False}, "it has no input example: register it with one"),
    "kills itself": (
        {"predict": "print('my end', flush=True); os.kill(os.getpid(), signal.SIGKILL)"},
        "its process was ended by SIGKILL, while it was answering: my end",
    ),
    "exits": (
        {"load": "sys.exit(3)"},
        "its process ended with exit code 3, while it was loading",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_does_not_answer_is_told_in_one_line(register: Register, ask: Ask, case: str) -> None:
    """Whatever a model does instead of answering, the reason says what and when."""
    options, reason = FAILURES[case]
    result = ask(register(**options))
    assert not result.passed
    assert result.reason.startswith(reason)


def test_a_version_that_is_not_there_fails(register: Register, ask: Ask) -> None:
    """MLflow's own words say what is missing."""
    register()
    result = ask("models:/kite/9")
    assert not result.passed
    assert "while its files were fetched" in result.reason
    assert "kite" in result.reason


HANGING = {
    "floods": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "        while True: os.write(1, b'x' * 65536)",
    "children": "subprocess.Popen(['setsid', 'sh', '-c', 'sleep 1000 & sleep 1000'],"
    " start_new_session=True); os.fork(); os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("case", HANGING)
def test_what_hangs_is_ended_with_all_that_it_started(
    register: Register, ask: Ask, case: str, tmp_path: Path
) -> None:
    """A limit that it reaches while it loads leaves no process, in whatever session."""
    begun = tmp_path / "begun"
    uri = register(load=f"Path({str(begun)!r}).write_text(''); {HANGING[case]}")
    # On a busy machine MLflow itself takes longer than that to load.
    for timeout_s in (8, 30, 100):
        result = ask(uri, timeout_s=timeout_s)
        if begun.exists():
            break
    assert begun.exists(), result.reason
    assert not result.passed
    assert result.reason == f"no answer within {timeout_s} s, while it was loading"
    assert result.duration_s >= timeout_s


def test_what_a_model_that_answered_left_running_is_ended(register: Register, ask: Ask) -> None:
    """A child that hangs, a thread that was forgotten, children that always have a child."""
    load = (
        "subprocess.Popen(['sleep', '1000'], start_new_session=True);"
        "import threading; threading.Thread(target=time.sleep, args=(1000,)).start();"
        "\n        if os.fork() == 0:"
        "\n            while os.fork() == 0: pass"
        "\n            os._exit(0)"
    )
    result = ask(register(load=load))
    assert result.passed, result.reason


def test_a_test_whose_asker_was_killed_ends(register: Register, tmp_path: Path) -> None:
    """Neither the model's process nor the private folder outlives who asked."""
    begun = tmp_path / "begun"
    uri = register(load=f"Path({str(begun)!r}).write_text(''); time.sleep(1000)")
    code = (
        "import sys; from opusclip_mlops.smoke import smoke_test\n"
        "smoke_test(sys.argv[1], timeout_s=1000, tracking_uri=sys.argv[2])"
    )
    asker = subprocess.Popen([sys.executable, "-c", code, uri, store(tmp_path)])
    wait_until(begun.exists)
    asker.kill()
    asker.wait()
    wait_until(lambda: not processes_below(tmp_path))


def test_a_model_that_kills_its_watcher_does_not_pass(register: Register, ask: Ask) -> None:
    """The model's process goes with it."""
    result = ask(register("os.kill(os.getppid(), signal.SIGKILL); time.sleep(1000)"))
    assert not result.passed
    assert result.reason == "the process that watches the test was ended"


def test_a_test_that_cannot_begin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, no test: that says nothing about the model."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(RegistryError, match=r"no smoke test of models:/kite/1: .*/nowhere"):
        smoke_test("models:/kite/1", timeout_s=1)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(timeout_s: float) -> None:
    """Before any process is started."""
    with pytest.raises(RegistryError, match="must be above 0 s"):
        smoke_test("models:/kite/1", timeout_s=timeout_s)
