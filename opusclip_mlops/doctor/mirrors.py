"""The mirrors: TensorBoard's event files, W&B's client and login."""

from __future__ import annotations

import importlib.metadata
import netrc
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import requests

from opusclip_mlops.doctor.findings import (
    LOADING,
    Check,
    Finding,
    Subject,
    Told,
    failed,
    note,
    ok,
    skipped,
)
from opusclip_mlops.doctor.folders import existing
from opusclip_mlops.doctor.web import CONNECT_S, READ_S, unreached

_WANDB = "https://api.wandb.ai"
_VIEWER = "query Viewer { viewer { id entity username } }"
_OFFLINE = "online: wandb login, or set WANDB_API_KEY"


def tensorboard(subject: Subject) -> Finding:
    """Whether an event can be written to the folder of event files, and read back."""
    if not subject.tensorboard_dir:
        return skipped("TensorBoard is switched off")
    folder = Path(subject.tensorboard_dir).absolute()
    with LOADING:
        from opusclip_mlops import event_files, events
    try:
        # What TensorBoard does not take for a run: it goes at once, and begins with a dot.
        with tempfile.TemporaryDirectory(
            dir=existing(folder), prefix=".opusclip-doctor-"
        ) as scratch:
            file = Path(scratch) / "event"
            event = events.first_event(int(time.time() * 1000))
            file.write_bytes(event_files.frame(event.SerializeToString()))
            is_back = [one for one, _ in events.read_events(file)] == [event]
    except OSError as error:
        todo = "make it writable for you, or name another one in OPUSCLIP_TENSORBOARD_DIR"
        return failed(f"{folder} cannot be written: {error.strerror}", todo)
    if not is_back:
        return failed(f"an event written in {folder} does not come back", "look at that disk")
    return ok(f"an event written in {folder} comes back")


def wandb_client(subject: Subject) -> Finding:
    """Whether the W&B client is there, how it is used, and whether it can write."""
    if subject.wandb_mode == "disabled":
        return skipped("W&B is switched off")
    if find_spec("wandb") is None:
        todo = "pip install wandb, or switch it off: OPUSCLIP_USE_WANDB=false"
        return failed("wandb is not installed", todo)
    folder = existing(Path(subject.wandb_dir).absolute())
    if not os.access(folder, os.W_OK | os.X_OK):
        return failed(f"{folder} cannot be written", "name another one in WANDB_DIR")
    seen = f"wandb {importlib.metadata.version('wandb')}, {subject.wandb_mode}"
    if subject.wandb_mode == "offline":
        logs = f"{Path(subject.wandb_dir).absolute()}/wandb/offline-run-*"
        return note(f"{seen}: no key here is used; logs go to {logs}", _OFFLINE)
    return ok(seen)


def wandb_login(subject: Subject) -> Finding:
    """Whether W&B's server knows the key."""
    if subject.wandb_mode != "online":
        return skipped(f"W&B is {subject.wandb_mode}")
    uri = os.environ.get("WANDB_BASE_URL", _WANDB).rstrip("/")
    key, source = _key(uri)
    if not key:
        return failed(f"no key for {_host(uri)}", "wandb login, or set WANDB_API_KEY")
    try:
        said = requests.post(
            f"{uri}/graphql",
            json={"query": _VIEWER, "operationName": "Viewer"},
            auth=("api", key),
            timeout=(CONNECT_S, READ_S),
        )
    except requests.RequestException as error:
        return unreached(error, uri)
    return _logged_in(said, uri, source)


def _key(uri: str) -> tuple[str, str]:
    """The key for a W&B server, and where it was found; it is never shown."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key, "WANDB_API_KEY"
    try:
        found = netrc.netrc().authenticators(_host(uri))
    except OSError:
        return "", ""
    except netrc.NetrcParseError as error:
        # What it says may hold a password.
        seen = "~/.netrc cannot be used: it is malformed, or others may read it"
        raise Told(failed(seen, "chmod 600 ~/.netrc, or wandb login --relogin")) from error
    return (found[2] or "", "~/.netrc") if found else ("", "")


def _host(uri: str) -> str:
    return urlsplit(uri).hostname or uri


def _logged_in(said: requests.Response, uri: str, source: str) -> Finding:
    try:
        viewer = (said.json().get("data") or {}).get("viewer") if said.ok else None
    except (ValueError, AttributeError):
        return failed(f"{_host(uri)} is not a W&B server", "compare WANDB_BASE_URL")
    if said.status_code in (401, 403) or (said.ok and not viewer):
        todo = f"make a new key at {uri}/authorize, then wandb login --relogin"
        return failed(f"{_host(uri)} does not know the key in {source}", todo)
    if not viewer:
        return failed(f"{_host(uri)} answers {said.status_code}", "try again later")
    return ok(f"{_host(uri)} knows {viewer.get('username') or viewer.get('id')}, by {source}")


CHECKS = (
    Check(name="tensorboard.writing", look=tensorboard),
    Check(name="wandb.client", look=wandb_client),
    Check(name="wandb.login", look=wandb_login, after="wandb.client"),
)
"""In the order they are told in."""
