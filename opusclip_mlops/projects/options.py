"""What a command line gives, checked: an error names the parameter, its value and what is allowed.

Values arrive as text, and are read inside the run: so a run that cannot start is found in MLflow
too, with the reason.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import torch

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.redaction import one_line

MAX_SEED = 2**63 - 1

_BAD_INPUT, _INTERRUPTED = 2, 130


def whole(name: str, text: str, least: int, most: int) -> int:
    """Read a whole number from `least` to `most`."""
    try:
        value = int(text)
    except ValueError:
        _refuse(name, text, f"a whole number from {least} to {most}")
    return value if least <= value <= most else _refuse(name, text, f"from {least} to {most}")


def number(name: str, text: str, *, above: float, most: float) -> float:
    """Read a number larger than `above`, `most` at the largest."""
    allowed = f"a number above {above:g}, at most {most:g}"
    try:
        value = float(text)
    except ValueError:
        _refuse(name, text, allowed)
    return value if above < value <= most else _refuse(name, text, allowed)


def choice(name: str, text: str, allowed: Sequence[str]) -> str:
    """Read one of a few words."""
    return text if text in allowed else _refuse(name, text, f"one of {', '.join(allowed)}")


def device(text: str) -> torch.device:
    """Read a device that this machine has: cpu, cuda, cuda:1, mps."""
    kind, _, index = text.partition(":")
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": _count_mps()}
    here = [name for name, count in found.items() if count]
    if kind not in here:
        _refuse("device", text, f"one that is here: {', '.join(here)}")
    if ":" in text:
        whole("device", index, 0, found[kind] - 1)
    return torch.device(text)


def model_name(name: str, text: str) -> str | None:
    """Read a registered model's name; empty and `none` mean no model."""
    if text.strip().lower() in ("", "none"):
        return None
    if any(character in text for character in "/:") or text in (".", ".."):
        _refuse(name, text, "a name without / and :, or none")
    return text


def start(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input is one line on stderr and exit code 2."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # MLflow's own seven retries would keep an error back for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        command.main(arguments, standalone_mode=False)
    except click.Abort:
        _fail("interrupted", _INTERRUPTED)
    except click.ClickException as error:
        _fail(error.format_message(), _BAD_INPUT)
    except OpusclipError as error:
        _fail(str(error), _BAD_INPUT)


def _count_mps() -> int:
    return int(torch.backends.mps.is_available())


def _refuse(name: str, text: str, allowed: str) -> NoReturn:
    raise ConfigError(f"{name} is {text!r}: it must be {allowed}")


def _fail(reason: str, exit_code: int) -> NoReturn:
    click.echo(f"error: {one_line(reason)}", err=True)
    sys.exit(exit_code)
