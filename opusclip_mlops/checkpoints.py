"""A checkpoint: a folder with weights, training state and where they come from.

    weights.safetensors   the model's tensors; loading them cannot execute code
    state.pt              optimizer, scheduler, random number generators, step, epoch
    metadata.json         CheckpointMetadata

Writing neither hashes nor waits for the disk, so training does not pay for it: what a killed
process has written stands. `seal` brings the files to the disk and adds their hashes later, in any
process; it refuses what a power cut has torn, by what was noted of the files as they were written.
`verify` and the loaders accept only a sealed checkpoint.

torch and safetensors are imported by the functions that need them: a process that only seals and
ships checkpoints stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from opusclip_mlops import tensors
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.metadata import FINGERPRINT, fingerprint
from opusclip_mlops.metadata import WEIGHTS as WEIGHTS
from opusclip_mlops.metadata import CheckpointMetadata as CheckpointMetadata
from opusclip_mlops.metadata import StoredFile as StoredFile
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sharded_state import put_weights, weights_for
from opusclip_mlops.shards import Slices
from opusclip_mlops.tensors import restore_rng as restore_rng
from opusclip_mlops.unfinished import as_checkpoint, unfinished

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

STATE = "state.pt"
METADATA = "metadata.json"

MOST_METADATA_BYTES = 16 * 2**20
"""More than any metadata.json has: a larger one is not read."""

_WRITTEN = "written"
"""The key of metadata.json that says of each file what it is when whole, until it is sealed."""

_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"epoch_(\d+)-step_(\d+)(?:-(\d+))?")


def checkpoint_name(epoch: int, step: int) -> str:
    """Name a checkpoint so that names sort in the order of training: epoch_0003-step_000120."""
    if epoch < 0 or step < 0:
        raise CheckpointError(f"epoch and step must be 0 or more, not {epoch} and {step}")
    return f"epoch_{epoch:04d}-step_{step:06d}"


def place_of(name: str) -> tuple[int, int, int] | None:
    """Step, epoch and number of a checkpoint by its name, None for a name of another kind."""
    found = _NAME.fullmatch(name)
    return (int(found[2]), int(found[1]), int(found[3] or 1)) if found else None


def write_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    *,
    metadata: CheckpointMetadata,
) -> Path:
    """Write a checkpoint so that `folder` is either whole or not there; return `folder`.

    The folder's mode is 0700. It waits for no disk: the system writes the files out, or `seal`. A
    process that is killed here leaves a hidden folder beside `folder`, which nothing reads and the
    next one that writes there removes. Wrappers (DistributedDataParallel, torch.compile) are taken
    off.

    Raises:
        CheckpointError: `folder` exists, a value cannot be stored without pickling code, or the
            disk is full.
    """
    from safetensors import SafetensorError

    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} exists already: choose another name")
    content = replace(metadata, files={}).to_dict()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished(folder) as temporary:
            tensors.write_weights(temporary / WEIGHTS, model)
            at = {"step": metadata.step, "epoch": metadata.epoch}
            tensors.write_state(temporary / STATE, optimizer, scheduler, **at)
            content[_WRITTEN] = {one.name: _extent(one) for one in temporary.iterdir()}
            (temporary / METADATA).write_text(_json_text(content))
            as_checkpoint(temporary, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint {folder} cannot be written: {reason}") from error
    return folder


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read a checkpoint's metadata, sealed or not, and check nothing else.

    Raises:
        CheckpointError: No metadata.json, no JSON in it, or fields that are not understood.
    """
    path = folder / METADATA
    try:
        return CheckpointMetadata.from_dict(_content(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def seal(folder: Path, *, run_id: str | None = None) -> CheckpointMetadata:
    """Bring every file to the disk, hash it and complete metadata.json.

    One that is sealed or dropped is left as it is. Two processes may seal the same checkpoint at
    the same time. `run_id` is filled in where it was not known yet when the checkpoint was written.

    Raises:
        CheckpointError: Not a checkpoint, a file is missing, is not as it was written, or is a
            symbolic link.
    """
    metadata = read_metadata(folder)
    if is_dropped(folder) or (metadata.sealed and (metadata.run_id or not run_id)):
        return metadata
    try:
        files = metadata.files or _flushed(folder)
    except (OSError, CheckpointError):
        # Dropped in this moment.
        if is_dropped(folder):
            return metadata
        raise
    sealed = replace(metadata, files=files, run_id=metadata.run_id or run_id)
    _replace_text(folder / METADATA, _sealed_text(sealed))
    return sealed


def flushed(path: Path) -> StoredFile:
    """Bring a file to the disk and hash it, for `finish`."""
    _fsync(path)
    return _hashed(path)


def finish(temporary: Path, folder: Path, metadata: CheckpointMetadata) -> None:
    """Make what lies in a hidden folder, flushed and hashed, a sealed checkpoint, in one step.

    Raises:
        CheckpointError: there is one of that name, or metadata that JSON cannot hold.
        OSError: the disk takes no change.
    """
    (temporary / METADATA).write_text(_sealed_text(metadata))
    _fsync(temporary / METADATA)
    _fsync(temporary)
    as_checkpoint(temporary, folder)
    _fsync(folder.parent)


def drop(folder: Path) -> None:
    """Remove a checkpoint but for its metadata; what is not there is only marked as dropped.

    It may be dropped again, by two processes at once, and after one was killed midway.

    Raises:
        OSError: the disk takes no change.
    """
    _mark(folder).touch(mode=0o600)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == METADATA:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_dropped(folder: Path) -> bool:
    """Whether a checkpoint was dropped."""
    return _mark(folder).exists()


def _mark(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.dropped")


def verify(
    folder: Path, *, only: Collection[str] | None = None, share: tuple[int, int] | None = None
) -> CheckpointMetadata:
    """Check a checkpoint against its own metadata and return that.

    Args:
        folder: The checkpoint.
        only: Names of the files to check, where just these were copied; None for all of them.
        share: Where several processes check it together, the number of this one from 0 and how
            many there are: each hashes its share of the files.

    Raises:
        CheckpointError: Not sealed, unknown schema, a file that is missing, has another length or
            another hash, or lies outside the folder. The message says which file.
    """
    metadata = read_metadata(folder)
    if is_dropped(folder):
        raise CheckpointError(f"checkpoint {folder} was dropped: only its metadata is left")
    if not metadata.sealed:
        raise CheckpointError(f"checkpoint {folder} is not sealed: call seal() on it first")
    weights = metadata.shards("weights") if metadata.is_sharded else [WEIGHTS]
    needed = [*weights, *metadata.shards("optimizer"), STATE] if only is None else only
    if absent := sorted(set(needed) - set(metadata.files)):
        raise CheckpointError(f"{folder / METADATA} lists no {', '.join(absent)}")
    names = sorted(metadata.files if only is None else only)
    for name in names:
        _verify_size(folder, name, metadata.files[name])
    for name in names[share[0] :: share[1]] if share else names:
        _verify_hash(folder / name, metadata.files[name])
    _verify_metadata(folder / METADATA)
    return metadata


def load_weights(
    folder: Path, model: torch.nn.Module, *, only: Collection[str] | None = None
) -> CheckpointMetadata:
    """Verify the checkpoint, then put its weights into `model`, name by name.

    Args:
        folder: A sealed checkpoint.
        model: Changed in place, on the device it is on; tensors take the model's own dtype.
        only: What to verify, as in `verify`.

    Raises:
        CheckpointError: Not whole, or names or shapes differ; the message lists them.
    """
    metadata = verify(folder, only=only)
    if metadata.is_sharded:
        shares = Slices(folder / name for name in metadata.shards("weights"))
        put_weights(model, weights_for(shares, model))
        return metadata
    stored = tensors.fitting(folder / WEIGHTS, model)
    tensors.unwrapped(model).load_state_dict(stored, strict=True)
    return metadata


def load_state(folder: Path) -> dict[str, Any]:
    """Return the training state: optimizer, scheduler (or None), rng, step and epoch.

    The file is verified first, and read with `weights_only=True`, so it cannot execute code;
    tensors are on the CPU. Hand "rng" to `restore_rng`.

    Raises:
        CheckpointError: Not sealed, not whole, or it holds more than tensors and plain values.
    """
    verify(folder, only=(STATE,))
    return tensors.read_state(folder / STATE)


def _content(path: Path) -> dict[str, Any]:
    try:
        if (size_bytes := path.stat().st_size) > MOST_METADATA_BYTES:
            raise CheckpointError(f"it has {size_bytes} bytes: no metadata has so many")
        if not path.is_file():
            raise CheckpointError("it is no file")
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read it: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise CheckpointError("it holds no JSON object")
    return content


def _names(folder: Path) -> Iterable[str]:
    """Yield every file of the checkpoint but metadata.json, sorted."""
    for name in (WEIGHTS, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {folder} has no {name}")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link: a checkpoint holds files only")
        if path.is_file() and path != folder / METADATA:
            yield path.relative_to(folder).as_posix()


def _flushed(folder: Path) -> dict[str, StoredFile]:
    """Hash what is safe on the disk by then, and is all that was written."""
    names = list(_names(folder))
    # Absent in what an earlier release wrote.
    written = _content(folder / METADATA).get(_WRITTEN)
    for name, expected in written.items() if isinstance(written, dict) else ():
        if name not in names or _extent(folder / name) != expected:
            raise CheckpointError(f"checkpoint {folder} is torn: {name} is not as it was written")
    for path in (*(folder / name for name in names), folder, folder.parent):
        _fsync(path)
    return {name: _hashed(folder / name) for name in names}


def _extent(path: Path) -> dict[str, int]:
    """What tells a file that a power cut has torn from a whole one."""
    extent = {"size_bytes": path.stat().st_size}
    if path.name == WEIGHTS:
        # safetensors gives it its length before its content, which then may be zeros.
        extent["crc32"] = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                extent["crc32"] = zlib.crc32(chunk, extent["crc32"])
    return extent


def _hashed(path: Path) -> StoredFile:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return StoredFile(sha256=digest.hexdigest(), size_bytes=size_bytes)


def _verify_size(folder: Path, name: str, expected: StoredFile) -> None:
    path = folder / name
    if not _is_inside(folder, name):
        said = f"names a file outside the checkpoint: {name!r:.80}"
        raise CheckpointError(f"{folder / METADATA} {said}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if (size_bytes := path.stat().st_size) != expected.size_bytes:
        raise CheckpointError(f"{path} has {size_bytes} bytes, sealed were {expected.size_bytes}")


def _verify_hash(path: Path, expected: StoredFile) -> None:
    try:
        found = _hashed(path).sha256
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected.sha256:
        raise CheckpointError(f"{path} was changed: its sha256 is not the sealed one")


def _verify_metadata(path: Path) -> None:
    content = _content(path)
    # Absent in what an earlier release sealed.
    if content.get(FINGERPRINT, found := fingerprint(content)) != found:
        raise CheckpointError(f"{path} was changed: its sha256 is not the sealed one")


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name leads to a file of the folder itself, through no link."""
    relative = PurePosixPath(name)
    if not name.isprintable() or relative.is_absolute() or ".." in relative.parts:
        return False
    try:
        (folder / name).is_file()
        return (folder / name).resolve() == folder.resolve() / relative
    except (OSError, RuntimeError):
        # A name too long for the disk, or links that lead to each other.
        return False


def _sealed_text(metadata: CheckpointMetadata) -> str:
    content = metadata.to_dict()
    return _json_text({**content, FINGERPRINT: fingerprint(content)})


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_text(path: Path, text: str) -> None:
    """Replace a file in one step; the temporary name is beside the folder, where no one hashes."""
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.parent.name}-", dir=path.parent.parent, text=True
    )
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)
