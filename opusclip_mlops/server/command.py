"""Becomes MLflow's server: checks, makes what is missing, and replaces this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from opusclip_mlops import object_storage
from opusclip_mlops.server import (
    opening,
    readiness,
    secret_files,
    settings,
    users,
    webhook_settings,
)
from opusclip_mlops.server.settings import Wanted


@dataclass(frozen=True)
class Command:
    """What is executed, and the variables it is executed with."""

    argv: list[str]
    env: dict[str, str]


def run(wanted: Wanted, env: Mapping[str, str], *, tell: Callable[[str], None]) -> NoReturn:
    """Become the server: this process, with its id, is MLflow's from here on.

    Args:
        wanted: The server.
        env: The variables to start from, with the secrets that stand in files.
        tell: Hears lines for whoever starts it.

    Raises:
        ConfigError: It would not start: what is wrong, and what to do.
    """
    command = prepare(wanted, env, tell=tell)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command.argv[0], command.argv, command.env)


def prepare(wanted: Wanted, env: Mapping[str, str], *, tell: Callable[[str], None]) -> Command:
    """Check all that a server needs, and make its folders, keys and tables.

    Args:
        wanted: The server.
        env: The variables to start from.
        tell: Hears lines for whoever starts it.

    Raises:
        ConfigError: It would not start: what is wrong, and what to do.
    """
    settings.check(wanted, env)
    # Its database, keys and artifacts are nobody else's.
    os.umask(0o077)
    made = settings.environment(wanted, env)
    for line in (*object_storage.feed(made), *settings.advice(wanted)):
        tell(line)
    webhook_settings.configured_webhooks(made)
    os.environ.update(made)
    readiness.check(wanted, tell=tell)
    if wanted.has_users:
        made = users.environment(wanted, made)
    opening.open_database(wanted, made)
    made = secret_files.with_keys(made, wanted.state_folder, tell=tell)
    return Command(settings.arguments(wanted), made)
