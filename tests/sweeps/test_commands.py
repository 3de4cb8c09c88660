"""The words that start a trial."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.commands import check_command, check_program, filled

VALUES: dict[str, Any] = {"lr": 0.1, "amp": True, "old": False, "opt": {"name": "a b; rm -rf /"}}


def fill(*command: str) -> list[str]:
    return filled(command, program="t.py", values=VALUES, json_file=Path("/x/v.json"))


@pytest.mark.parametrize(
    ("macro", "words"),
    [
        ("${env}", ["/usr/bin/env"]),
        ("${interpreter}", [sys.executable]),
        ("${program}", ["t.py"]),
        ("${args_json}", [json.dumps(VALUES)]),
        ("${args_json_file}", ["/x/v.json"]),
    ],
)
def test_each_macro_is_what_wandb_says(macro: str, words: list[str]) -> None:
    """One word each, whatever is in it."""
    assert fill(macro) == words


@pytest.mark.parametrize(
    "macro",
    [
        "args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals",
        "args_append_hydra", "args_override_hydra",
    ],
)  # fmt: skip
def test_flags_are_those_of_wandbs_agent(macro: str) -> None:
    """Word by word as the real client makes them, nested values and truth values too."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    theirs = create_sweep_command_args({"args": {key: {"value": v} for key, v in VALUES.items()}})
    assert fill(f"${{{macro}}}") == theirs[macro]


def test_a_value_is_a_word_and_never_a_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and semicolons stay in their word; variables are put in where they stand."""
    monkeypatch.setenv("HOST_NAME", "a b")
    assert fill("x", "--at=${envvar:HOST_NAME}/y", "${args}")[1:3] == ["--at=a b/y", "--lr=0.1"]
    assert fill("${args}")[-1] == "--opt={'name': 'a b; rm -rf /'}"
    assert fill("${envvar:NOT_THERE}") == ["NOT_THERE"]


@pytest.mark.parametrize("word", ["${argz}", "--x=${args}", "${}"])
def test_a_macro_that_is_none_is_refused(word: str) -> None:
    """It would reach the program as it is."""
    with pytest.raises(ConfigError, match=r"command has .* a macro is a word of its own"):
        check_command(["python", word], "t.py")


def test_a_program_is_named_where_it_is_needed() -> None:
    """A command may do without."""
    with pytest.raises(ConfigError, match="program is missing"):
        check_command(["${program}"], "")
    check_command(["python", "t.py", "${args}"], "")


DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")


@pytest.mark.parametrize(
    ("command", "program", "said"),
    [
        (DEFAULT, "trian.py", r"program: there is no trian\.py in .*: train\.py\?"),
        (("${program}", "${args}"), "trian.py", r"no trian\.py"),
        (("pyhton", "-m", "films.train"), "", "command: pyhton is no program on PATH"),
        (("${env}", "pyhton", "${program}"), "train.py", "command: pyhton is no program"),
        (("./train.py",), "", r"command: \./train\.py is no program that can be run"),
        (("${program}",), "train.py", r"command: train\.py is no program on PATH"),
    ],
)
def test_a_program_that_is_not_there_is_refused(
    command: tuple[str, ...], program: str, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before anything starts: else each trial would fail of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    with pytest.raises(ConfigError, match=said):
        check_program(command, program)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (DEFAULT, "train.py"),
        (DEFAULT, "films"),
        (("${interpreter}", "-m", "${program}"), "films.train"),
        (("${env}", "A=b", "anything", "${args}"), ""),
        (("bash", "-c", "true"), ""),
        (("${envvar:MV_SHELL}", "train.py"), ""),
        (("${env}", "bash", "${program}"), "train.py"),
        ((), "train.py"),
    ],
)
def test_a_program_that_is_there_is_not(
    command: tuple[str, ...], program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder, a module; what a word of `env` hides is not looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MV_SHELL", "bash")
    (tmp_path / "train.py").touch()
    (tmp_path / "films").mkdir()
    check_program(command, program)
