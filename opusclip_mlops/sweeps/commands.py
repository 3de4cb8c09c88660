"""The words that start a trial: W&B's macros filled in, one word each, and never by a shell."""

import json
import os
import re
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
