"""The `opusclip` command."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from opusclip_mlops.cli import main, opusclip
from tests.journeys import LOCAL_ID, append, end, make_run
from tests.sinks.sink_contract import metrics


def ended(*words: str | Path) -> int:
    """Run a verb in this process: its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`opusclip --version` tells the version of the installed distribution."""
    assert ended("--version") == 0
    assert version("opusclip-mlops") in capsys.readouterr().out


def test_an_error_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused request is one line on stderr, nothing on stdout, no traceback."""
    assert ended("link-env", tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no python_env.yaml in")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["promoted"], ("No such command 'promoted'", "see opusclip --help")),
        (["mirror", "--fast"], ("No such option '--fast'", "see opusclip mirror --help")),
        (["gates", "set", "m", "lost.yaml"], ("'lost.yaml': No such file", "gates set --help")),
        (["promote", "m"], ("Missing argument 'VERSION'; see opusclip promote --help",)),
    ],
)
def test_a_command_that_is_none_is_one_line_and_exit_code_2(
    words: list[str], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was mistyped, and where to read how it is written."""
    assert ended(*words) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert [one for one in said if one not in printed.err] == []


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Who types only `opusclip` wants to know what there is."""
    assert ended() == 2
    assert "mirror" in capsys.readouterr().out


def test_every_verb_tells_what_it_does() -> None:
    """Each verb's first line of help says something, and so does each of its options."""
    for name, verb in opusclip.commands.items():
        assert verb.get_short_help_str(), name
        for option in verb.params:
            assert option.param_type_name == "argument" or getattr(option, "help", ""), option.name


def test_the_command_is_installed() -> None:
    """The `opusclip` script lies beside the interpreter and answers."""
    script = Path(sys.executable).parent / "opusclip"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    for verb in ("link-env", "recover", "status"):
        assert verb in done.stdout


def test_status_shows_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs of the folder, or those that are named."""
    make_run(tmp_path)
    make_run(tmp_path, name="f" * 32)
    assert ended("status", "--journal-dir", tmp_path / "journal") == 0
    said = capsys.readouterr().out
    assert LOCAL_ID in said
    assert "f" * 32 in said
    assert ended("status", "0123", "--journal-dir", tmp_path / "journal") == 0
    assert "f" * 32 not in capsys.readouterr().out


def test_status_without_a_journal_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says where was looked; exit code 0."""
    assert ended("status") == 0
    said = capsys.readouterr().out
    assert said == f"no runs in {tmp_path}/.opusclip/journal: nothing is on its way\n"


def test_status_tells_scripts_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts, by name."""
    make_run(tmp_path)
    assert ended("status", "--json", "--journal-dir", tmp_path / "journal") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["journal_dir"] == str(tmp_path / "journal")
    assert [one["state"] for one in answer["runs"]] == ["training"]


@pytest.mark.parametrize("verb", ["status", "recover"])
def test_a_run_that_is_not_here_is_an_error(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """One line and exit code 2."""
    assert ended(verb, "zebra") == 2
    assert capsys.readouterr().err.startswith("error: no run here is called 'zebra'")


def test_recover_wants_a_name_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is begun unasked."""
    assert ended("recover") == 2
    assert "name the runs to recover, or all of them with --all" in capsys.readouterr().err
    assert ended("recover", "--all") == 0
    assert "nothing to recover" in capsys.readouterr().out


def test_recover_delivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for the run, and exit code 0."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, metrics(3))
    end(folder)
    assert ended("recover", "--all", "--journal-dir", tmp_path / "journal") == 0
    assert f"{LOCAL_ID}  a-run  delivered: " in capsys.readouterr().out
    assert not folder.path.exists()


def test_recover_says_when_something_remains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 at the deadline, for scripts with every figure."""
    folder = make_run(tmp_path, cwd=str(tmp_path / "away"))
    end(folder)
    where = ("--journal-dir", tmp_path / "journal")
    assert ended("recover", "a-run", "--timeout", "0", "--json", *where) == 1
    [one] = json.loads(capsys.readouterr().out)["runs"]
    assert (one["outcome"], one["sinks"][0]["remaining_records"]) == ("remains", 2)


@pytest.mark.parametrize("timeout", ["-1", "soon"])
def test_a_wrong_timeout_is_refused(capsys: pytest.CaptureFixture[str], timeout: str) -> None:
    """A number of seconds, 0 or more."""
    assert ended("recover", "--all", "--timeout", timeout) == 2
    assert "--timeout" in capsys.readouterr().err
