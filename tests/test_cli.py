"""The `opusclip` command."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from opusclip_mlops.cli import main


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`opusclip --version` tells the version of the installed distribution."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert version("opusclip-mlops") in capsys.readouterr().out


def test_an_error_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused request is one line on stderr, nothing on stdout, no traceback."""
    with pytest.raises(SystemExit) as ended:
        main(["link-env", str(tmp_path)])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: no python_env.yaml in")
    assert printed.err.count("\n") == 1


def test_every_verb_tells_what_it_does() -> None:
    """Each verb's first line of help says something."""
    from opusclip_mlops.cli import opusclip

    for name, verb in opusclip.commands.items():
        assert verb.get_short_help_str(), name


def test_the_command_is_installed() -> None:
    """The `opusclip` script lies beside the interpreter and answers."""
    script = Path(sys.executable).parent / "opusclip"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "link-env" in done.stdout
