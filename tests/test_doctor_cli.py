"""`opusclip doctor`, run as the command runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.servers import free_port

Said = Callable[..., tuple[int, str]]


def test_a_machine_that_is_well(said: Said, tmp_path: Path) -> None:
    """Exit code 0, a line for each check and how many of each kind."""
    code, text = said("doctor", "--only", "journal", "--journal-dir", f"{tmp_path}/journal")
    assert code == 0
    assert text.startswith(f"ok  journal.folder     {tmp_path}/journal, not there yet")
    assert "journal.leftovers" in text


def test_a_failure_is_exit_code_1(said: Said) -> None:
    """In JSON too."""
    dead = f"http://127.0.0.1:{free_port()}"
    code, text = said("doctor", "--only", "server", "--tracking-uri", dead, "--json")
    assert code == 1
    found = json.loads(text)
    assert found["is_well"] is False
    assert {one["check"]: one["state"] for one in found["findings"]} == {
        "server.reach": "failed",
        **{f"server.{name}": "skipped" for name in (
            "access", "version", "clock", "guard", "latency",
        )},
    }  # fmt: skip


def test_a_wrong_question_is_exit_code_2(said: Said) -> None:
    """In one line."""
    code, text = said("doctor", "--only", "lungs")
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("error: no check is called 'lungs'")


def test_a_look_at_this_machine_loads_no_backend() -> None:
    """Neither MLflow nor torch, W&B, TensorBoard, SQLAlchemy or boto3."""
    code = (
        "import sys\nfrom opusclip_mlops import doctor\n"
        "doctor.diagnose(only=['machine', 'journal', 'server', 'wandb.client'])\n"
        "print(*{'mlflow', 'torch', 'wandb', 'tensorboard', 'sqlalchemy', 'boto3'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
