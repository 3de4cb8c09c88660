"""The verb that starts a server, as the command runs it; the server itself is another file's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops import cli, server_cli
from tests.servers import BIN, free_port

SECRET = "s3same-open"


def said(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code, and what was printed on stderr."""
    done = subprocess.run(
        [BIN / "opusclip", "server", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_help_names_what_is_added_to_mlflows_flags() -> None:
    """The verb is one of the command's, and every variable that may stand in a file is shown."""
    from click.testing import CliRunner

    from opusclip_mlops.server import secret_files

    shown = CliRunner().invoke(cli.opusclip, ["server", "--help"]).output
    words = shown.replace(",", " ").replace(".", " ").split()
    assert [name for name in secret_files.NAMES if name not in words] == []
    assert "--allowed-hosts" in shown
    assert (server_cli.server,) == server_cli.VERBS


def test_errors_are_one_line_and_nothing_is_started_or_made(tmp_path: Path) -> None:
    """A database that does not answer: named, without its password, and no key is left behind."""
    (tmp_path / "uri").write_text(f"postgresql://u:{SECRET}@127.0.0.1:1/runs\n")
    code, text = said(
        "--backend-file", str(tmp_path / "uri"), "--port", str(free_port()), "--workers", "1"
    )
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("error: the database runs on 127.0.0.1:1: Connection refused")
    assert SECRET not in text
    assert not (tmp_path / ".opusclip").exists()


def test_a_database_is_said_in_one_place(tmp_path: Path) -> None:
    """On the command line or by a file."""
    (tmp_path / "uri").write_text("sqlite:///a.db")
    code, text = said("--backend", "sqlite:///b.db", "--backend-file", str(tmp_path / "uri"))
    assert code == 2
    assert "exclude each other" in text


@pytest.mark.parametrize(
    ("arguments", "env", "part"),
    [
        (["--frobnicate"], {}, "no such option: --frobnicate"),
        (["--registry-store-uri", "x"], {}, "one transaction"),
        ([], {"OPUSCLIP_BACKEND": f"mysql://u:{SECRET}@h/d"}, "--backend mysql"),
        ([], {"MLFLOW_BACKEND_STORE_URI": f"mssql://u:{SECRET}@h/d"}, "--backend mssql"),
        ([], {"PGPASSWORD_FILE": "/nowhere"}, "PGPASSWORD_FILE: /nowhere cannot be read"),
        (["--webhooks", "hooks.yaml"], {}, "hooks.yaml"),
        (["--port", "70000"], {}, "70000"),
        (["--backend", ""], {}, "--backend is empty"),
        (["--app-name", "basic_auth"], {}, "'basic_auth' is not 'basic-auth'"),
    ],
)
def test_settings_are_checked_first(arguments: list[str], env: dict[str, str], part: str) -> None:
    """In one line with exit code 2."""
    code, text = said(*arguments, env=env)
    assert (code, text.count("\n")) == (2, 1)
    assert part in text
    assert SECRET not in text


def test_the_verb_loads_nothing_before_it_is_called() -> None:
    """`opusclip --help` stays quick."""
    code = "import sys, opusclip_mlops.server_cli; print('opusclip_mlops.server' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
