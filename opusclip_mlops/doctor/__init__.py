"""Looks at all that tracking needs, and says of each part what was seen and what to do.

findings.py   the values: a subject, a check, a finding
examining.py  makes the checks at once, none of them for longer than it may take
machine.py folders.py serving.py database.py bucket.py served.py mirrors.py
              the checks, each file with a table of its own
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.doctor import bucket, database, folders, machine, mirrors, served, serving
from opusclip_mlops.doctor.examining import Show, examine
from opusclip_mlops.doctor.findings import Check as Check
from opusclip_mlops.doctor.findings import Finding as Finding
from opusclip_mlops.doctor.findings import Subject
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.run_status import configured_journal_dir
from opusclip_mlops.wandb_layout import wandb_mode

CHECKS: tuple[Check, ...] = (
    *machine.CHECKS,
    *folders.CHECKS,
    *serving.CHECKS,
    *database.CHECKS,
    *bucket.CHECKS,
    *served.CHECKS,
    *mirrors.CHECKS,
)
"""All there is to look at, in the order it is told in."""

_BUCKET = re.compile(r"s3://[^/?#]+(/|$)")
_DEFAULT_URI = "sqlite:///mlflow.db"


def diagnose(
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    artifacts: str | None = None,
    backend: str | None = None,
    journal_dir: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    show: Show = lambda *_: None,
) -> list[Finding]:
    """Look at everything, within half a minute whatever does not answer.

    Args:
        tracking_uri: MLflow server or store; as configured otherwise.
        registry_uri: The registry, where it is another server.
        artifacts: `s3://bucket/prefix`; where the server's new runs keep their files otherwise.
        backend: A database to look at; the tracking URI where that is one otherwise.
        journal_dir: Where the runs' folders lie; as configured otherwise.
        only: Names of checks, or of groups of them, such as `server`; what they build on is made
            too, and told where it failed.
        show: Called with the check that has ended, how many have, and how many there are.

    Raises:
        ConfigError: a setting is malformed, or no check is called so.
    """
    asked = _asked(only)
    subject = _subject(tracking_uri, registry_uri, artifacts or "", backend or "", journal_dir)
    found = examine(_with_grounds(asked), subject, show=show)
    return [one for one in found if one.check in asked or one.state == "failed"]


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(one.state != "failed" for one in findings)


def _subject(
    tracking_uri: str | None,
    registry_uri: str | None,
    artifacts: str,
    backend: str,
    journal_dir: str | os.PathLike[str] | None,
) -> Subject:
    config = TrackingConfig()
    if artifacts and not _BUCKET.match(artifacts):
        raise ConfigError(f"--artifacts {artifacts!r:.80} is not s3://BUCKET or s3://BUCKET/PREFIX")
    main = tracking_uri or config.tracking_uri or _DEFAULT_URI
    registry = registry_uri or config.registry_uri or ""
    return Subject(
        tracking_uri=main,
        registry_uri="" if registry == main else registry,
        artifacts=artifacts,
        backend=backend,
        journal_dir=configured_journal_dir(journal_dir),
        tensorboard_dir=config.tensorboard_dir if config.use_tensorboard else "",
        wandb_mode=wandb_mode(config.wandb_mode) if config.use_wandb else "disabled",
        wandb_dir=config.wandb_dir,
        folder=Path.cwd(),
    )


def _asked(only: Sequence[str]) -> set[str]:
    """The names of the checks that are meant.

    Raises:
        ConfigError: no check, and no group, is called so.
    """
    names = [check.name for check in CHECKS]
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    for one in only:
        if one not in names and one not in groups:
            raise ConfigError(f"no check is called {one!r:.80}: choose from {', '.join(groups)}")
    return {name for name in names if not only or {name, name.partition(".")[0]} & set(only)}


def _with_grounds(asked: set[str]) -> list[Check]:
    """The checks with these names, and those that they come after."""
    after = {check.name: check.after for check in CHECKS}
    wanted = set(asked)
    for name in asked:
        while name := after[name]:
            wanted.add(name)
    return [check for check in CHECKS if check.name in wanted]
