"""Secrets of the server: read from files that variables name, or made once and kept."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from opusclip_mlops.errors import ConfigError

NAMES = (
    "OPUSCLIP_BACKEND",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
    "PGPASSWORD",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""Variables whose value may stand in a file: NAME_FILE names it."""

_LONGEST_BYTES = 64 * 1024


def read(env: Mapping[str, str]) -> dict[str, str]:
    """The variables, with those added whose values stand in files.

    Raises:
        ConfigError: A file that is not there, is empty or no text, or a value that is given twice.
    """
    found = dict(env)
    for name in NAMES:
        if file := env.get(f"{name}_FILE"):
            if env.get(name):
                raise ConfigError(f"{name} and {name}_FILE are both set: unset one")
            found[name] = content(Path(file), said_by=f"{name}_FILE")
    return found


def content(file: Path, *, said_by: str) -> str:
    """The secret in a file, without the end of its line; `said_by` is for the error.

    Raises:
        ConfigError: The file cannot be read, or holds nothing that could be a secret.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST_BYTES + 1).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{said_by}: {file} cannot be read: {why}") from None
    if not text or len(text) > _LONGEST_BYTES or not text.isprintable():
        raise ConfigError(f"{said_by}: {file} must hold one line")
    return text


def with_keys(
    env: Mapping[str, str], folder: Path, *, tell: Callable[[str], None]
) -> dict[str, str]:
    """The variables, with the keys that all workers of a server must share.

    What `env` does not hold is made once in `folder`; `tell` hears of a key that was made.

    Raises:
        ConfigError: The folder cannot be written.
    """
    missing = {name: make for name, make in _MADE.items() if not env.get(name)}
    try:
        kept = {name: _kept(folder, name, make) for name, make in missing.items()}
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}; name another by --state"
        ) from None
    if made := [name for name, (_, is_new) in kept.items() if is_new]:
        names = " and ".join(f"{name}_FILE" for name in made)
        tell(f"made keys in {folder}; a second server on this database needs the same, by {names}")
    return {**env, **{name: value for name, (value, _) in kept.items()}}


_MADE: dict[str, Callable[[], str]] = {
    "MLFLOW_FLASK_SERVER_SECRET_KEY": lambda: secrets.token_urlsafe(32),
    # The form of a Fernet key.
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": (
        lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    ),
}


def _kept(folder: Path, name: str, make: Callable[[], str]) -> tuple[str, bool]:
    """The key of this name, and whether it was made just now."""
    file = folder / name.lower().replace("_", "-")
    is_new = not file.exists() and write_first(file, make())
    return content(file, said_by=name), is_new


def write_first(file: Path, text: str) -> bool:
    """Write a private file unless it is there; whether it was written. Never seen in part."""
    private_folder(file.parent)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        _write_private(temporary, text)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a private file, in place of an older one. Never seen in part."""
    private_folder(file.parent)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        _write_private(temporary, text)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner enters; one that is there is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as opened:
        opened.write(text)
