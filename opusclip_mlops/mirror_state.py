"""What is remembered of a mirror between two looks at it, so that the next one costs little.

The mirror itself is the truth: what stands here is believed only while the mirror's fingerprint is
the one noted, and may be removed at any time.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from opusclip_mlops.folder import Identity, Manifest, write_whole
from opusclip_mlops.targets import Target, default_state_dir

S = TypeVar("S", bound=msgspec.Struct)
_ANEW = "anew-"


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """A mirror as it was when it was last equal to what had been read of MLflow.

    `cursor` says where reading the run's points goes on; `signature` changes with everything in
    MLflow that a listing of runs shows; `parts` tell each thing besides points from what it was.
    """

    target: Target
    identity: Identity
    fingerprint: str
    cursor: dict[str, Any]
    signature: str
    words_signature: str
    parts: dict[str, str]
    is_over: bool


class _Where(msgspec.Struct, frozen=True, kw_only=True):
    """Of all that is noted, the place."""

    target: Target


class _LiveMirrors(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tracker on this host mirrors its run."""

    host: str
    targets: list[Target]


class MirrorState:
    """Notes about mirrors in a folder of the user's own."""

    def __init__(self, state_dir: Path | None = None) -> None:
        self._dir = (state_dir or default_state_dir()) / "mirrors"
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, run_id: str, target: Target) -> Noted | None:
        """What was noted of a run's mirror, None where nothing was or it can't be read."""
        return _decoded(self._path(run_id, target), Noted)

    def write(self, noted: Noted) -> None:
        """Note how a run's mirror is."""
        path = self._path(noted.identity.run_id, noted.target)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, msgspec.json.encode(noted))

    def note_live(self, run_id: str, manifest: Manifest) -> None:
        """Note where a run's own tracker has mirrored it."""
        for target in live_targets(manifest):
            path = self._path(run_id, target, prefix="live-")
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, msgspec.json.encode(_Where(target=target)))

    def note_anew(self, run_id: str, target: Target) -> None:
        """Note that a mirror is about to be made anew: until that is done it may lack anything."""
        path = self._path(run_id, target, prefix=_ANEW)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, msgspec.json.encode(_Where(target=target)))

    def is_made_anew(self, run_id: str, target: Target) -> bool:
        """Whether that was begun, and not done since."""
        return self._path(run_id, target, prefix=_ANEW).exists()

    def forget_anew(self, run_id: str, target: Target) -> None:
        """Note that it is done, or was not begun."""
        self._path(run_id, target, prefix=_ANEW).unlink(missing_ok=True)

    def targets_of(self, run_id: str) -> list[Target]:
        """Everywhere a run was mirrored to."""
        files = sorted((self._dir / _safe(run_id)).glob("*.json"))
        found = (_decoded(path, _Where) for path in files)
        return list(dict.fromkeys(one.target for one in found if one))

    def _path(self, run_id: str, target: Target, *, prefix: str = "") -> Path:
        digest = hashlib.sha256(msgspec.json.encode(target)).hexdigest()[:16]
        return self._dir / _safe(run_id) / f"{prefix}{target.kind}-{digest}.json"


def _safe(run_id: str) -> str:
    return "".join(one for one in run_id if one.isalnum() or one in "-_") or "_"


def live_targets(manifest: Manifest) -> list[Target]:
    """The mirrors that a run's own tracker writes."""
    place = Path(manifest.cwd)
    every = [
        Target(kind="tensorboard", folder=str(place / manifest.tensorboard_dir)),
        Target(
            kind="wandb",
            folder=str(place / manifest.wandb_dir),
            entity=manifest.wandb_entity,
            project=manifest.project_name,
            mode=manifest.wandb_mode,
        ),
    ]
    mode = manifest.wandb_mode or "offline"
    return [target.resolved(mode) for target in every if target.kind in manifest.sinks]


def live_mirrors(manifest: Manifest) -> str:
    """The same as a text for a tag, with the name of this machine."""
    found = _LiveMirrors(host=socket.gethostname(), targets=live_targets(manifest))
    return msgspec.json.encode(found).decode()


def is_mirrored_live(said: str, target: Target) -> bool:
    """Whether a run's own tracker writes to this place, by what its tag says."""
    try:
        found = msgspec.json.decode(said, type=_LiveMirrors)
    except msgspec.DecodeError:
        return False
    is_here = found.host == socket.gethostname()
    return any(_is_same(one, target, is_here=is_here) for one in found.targets)


def _is_same(one: Target, other: Target, *, is_here: bool) -> bool:
    if one.kind != other.kind:
        return False
    if one.kind == "wandb" and "offline" not in (one.mode, other.mode):
        return one.project == other.project and (one.entity or other.entity) == (
            other.entity or one.entity
        )
    return is_here and (one.folder, one.project) == (other.folder, other.project)


def open_claim(target: Target, identity: Identity) -> int | None:
    """Take the right to compare and write a mirror, until the descriptor is closed.

    None while another process of this user has it.
    """
    folder = default_state_dir() / "locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = msgspec.json.encode([target, identity.experiment_name, identity.mirror_id])
    name = f"mirror-{hashlib.sha256(place).hexdigest()[:32]}.lock"
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _decoded(path: Path, kind: type[S]) -> S | None:
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    return None
