"""An entry point's command as torchrun's arguments: no shell reads it, here or on a node."""

import re
import shlex
from collections.abc import Mapping, Sequence

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.settings import LaunchConfig

AGENT = "opusclip_mlops.launching.agent"
SUPERVISOR = "opusclip_mlops.launching.local"

_PYTHON = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
# Until all nodes have pulled the image, the first ones wait for the others.
_OF_PLACE = {
    "local": ("--local-addr=127.0.0.1",),
    "kubernetes": ("--rdzv-conf=join_timeout=3600,read_timeout=3600",),
}
_OPERATORS = set("();<>|&")


def program_of(
    command: str, values: Mapping[str, str], more: Mapping[str, str] | None = None
) -> list[str]:
    """What torchrun is to start: `["-m", "package.module", "--epochs", "3"]`, or a script's path.

    The command is split first, and each part filled in then: a value is one argument whatever is
    in it.

    Args:
        command: The entry point's command, with `{name}` for parameters.
        values: The parameters it names.
        more: Those it does not name: each becomes `--name value` behind it.

    Raises:
        ConfigError: the command is no single call of python, or names a parameter that is not
            declared.
    """
    parts = _parts(command)
    if not parts or not _PYTHON.fullmatch(parts[0]):
        raise _not_python(command)
    program = parts[1:]
    while program[:1] == ["-u"]:
        program = program[1:]
    if not program:
        raise _not_python(command)
    try:
        filled = [part.format(**values) for part in program]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the entry point's command names {error}, which is no parameter"
        ) from None
    if filled[0].startswith("-") and filled[0] != "-m":
        raise _not_python(command)
    return [
        *filled,
        *(word for name, value in (more or {}).items() for word in (f"--{name}", value)),
    ]


def _parts(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        parts = list(lexer)
    except ValueError as error:
        raise ConfigError(f"the entry point's command cannot be read: {error}") from None
    if any(part and set(part) <= _OPERATORS for part in parts) or set("$`") & set(command):
        raise _not_python(command)
    return parts


def _not_python(command: str) -> ConfigError:
    return ConfigError(
        f"torchrun starts `python -m MODULE …` or `python SCRIPT …` without a shell, and the entry "
        f"point's command is: {' '.join(command.split()):.120}"
    )


def torchrun_arguments(
    config: LaunchConfig, program: Sequence[str], *, meeting_id: str, endpoint: str
) -> list[str]:
    """What torchrun is called with, the program to start last.

    Args:
        config: How many nodes and processes, and how often all are started anew.
        program: What `program_of` returned.
        meeting_id: What the nodes of one launch have in common.
        endpoint: Where they meet, `host:port`; port 0 for one that is free.
    """
    own = 1 if program[0] == "-m" else 0
    return [
        f"--nnodes={config.nodes}",
        f"--nproc-per-node={config.processes_per_node}",
        f"--max-restarts={config.restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={meeting_id}",
        f"--rdzv-endpoint={endpoint}",
        *_OF_PLACE.get(config.kind, ()),
        *program[:own],
        # Else torchrun takes the program's `--log` for one of its own options, cut short.
        "--",
        *program[own:],
    ]
