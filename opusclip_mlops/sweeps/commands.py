"""The words that start a trial: W&B's macros filled in, one word each, and never by a shell."""

import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opusclip_mlops.errors import ConfigError

_VARIABLE = re.compile(r"\$\{envvar:([A-Za-z0-9_]*)\}")
_MACRO = re.compile(r"\$\{([^}]*)\}")
_MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens",
    "args_no_boolean_flags", "args_json", "args_json_file", "args_append_hydra",
    "args_override_hydra",
)  # fmt: skip
FILE_MACRO = "args_json_file"


def check_command(command: Sequence[str], program: str) -> None:
    """Refuse a command that could not be filled in.

    Raises:
        ConfigError: an unknown macro, or `${program}` where there is none.
    """
    for word in command:
        for name in _MACRO.findall(word):
            if name.startswith("envvar:"):
                continue
            if name not in _MACROS or word != f"${{{name}}}":
                known = ", ".join(f"${{{one}}}" for one in _MACROS)
                raise ConfigError(
                    f"command has {word!r:.60}: a macro is a word of its own, of {known}; "
                    "${envvar:NAME} may stand anywhere"
                )
    if "${program}" in command and not program:
        raise ConfigError("program is missing: command has ${program}")


def check_program(command: Sequence[str], program: str) -> None:
    """Refuse a program that is not on this machine, of which each trial would fail.

    Raises:
        ConfigError: there is no such file, or no such program to begin with.
    """
    is_module = re.search(r"(?:^|\n)-m\n\$\{program\}", "\n".join(command))
    if "${program}" in command and not is_module:
        _check_file(program)
    words = [one for one in command if not one.startswith("${args")]
    words = filled(words, program=program, values={}, json_file=Path())
    if words[:1] == ["/usr/bin/env"]:
        del words[0]
        # What it is told beside a program's name is not read here.
        if words and ("=" in words[0] or words[0].startswith("-")):
            return
    if words and shutil.which(words[0]) is None:
        what = "that can be run" if "/" in words[0] else "on PATH"
        raise ConfigError(f"command: {words[0]!s:.80} is no program {what}")


def _check_file(program: str) -> None:
    path = Path(program)
    if path.exists() or shutil.which(program):
        return
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    near = "".join(f": {one}?" for one in difflib.get_close_matches(path.name, beside, 1))
    raise ConfigError(f"program: there is no {path.name!s:.80} in {path.parent.absolute()}{near}")


def filled(
    command: Sequence[str], *, program: str, values: Mapping[str, Any], json_file: Path
) -> list[str]:
    """The command with its macros filled in.

    Args:
        command: As the sweep's file has it.
        program: What `${program}` stands for.
        values: The trial's, nested ones as mappings.
        json_file: What `${args_json_file}` names; it is written by whoever starts the command.
    """
    words: list[str] = []
    for word in command:
        name = word[2:-1] if _MACRO.fullmatch(word) else ""
        if name in _MACROS:
            words += _expanded(name, program, values, json_file)
        else:
            words.append(_VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word))
    return words


def _expanded(name: str, program: str, values: Mapping[str, Any], json_file: Path) -> list[str]:
    match name:
        case "env":
            return ["/usr/bin/env"]
        case "interpreter":
            return [sys.executable]
        case "program":
            return [program]
        case "args_json":
            return [json.dumps(values)]
        case "args_json_file":
            return [str(json_file)]
        case "args_no_equals":
            return [word for key, value in values.items() for word in (f"--{key}", str(value))]
        case "args_no_boolean_flags":
            return [
                f"--{key}" if value is True else f"--{key}={value}"
                for key, value in values.items()
                if value is not False
            ]
    before = {"args": "--", "args_no_hyphens": "", "args_append_hydra": "+"}.get(name, "++")
    return [f"{before}{key}={value}" for key, value in values.items()]
