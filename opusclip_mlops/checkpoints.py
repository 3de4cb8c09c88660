"""A checkpoint: a folder with weights, training state and where they come from.

    weights.safetensors   the model's tensors; loading them cannot execute code
    state.pt              optimizer, scheduler, random number generators, step, epoch
    metadata.json         CheckpointMetadata

Writing hashes nothing, so training does not pay for it. `seal` adds the hashes later, in any
process; `verify` and the loaders accept only a sealed checkpoint.

torch and safetensors are imported by the functions that need them: a process that only seals and
ships checkpoints stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.metadata import CheckpointMetadata as CheckpointMetadata
from opusclip_mlops.metadata import StoredFile as StoredFile

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

WEIGHTS = "weights.safetensors"
STATE = "state.pt"
METADATA = "metadata.json"

_CHUNK_BYTES = 1 << 20
_LISTED = 12
_ALIASES = "aliases"


def checkpoint_name(epoch: int, step: int) -> str:
    """Name a checkpoint so that names sort in the order of training: epoch_0003-step_000120."""
    if epoch < 0 or step < 0:
        raise CheckpointError(f"epoch and step must be 0 or more, not {epoch} and {step}")
    return f"epoch_{epoch:04d}-step_{step:06d}"


def write_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    *,
    metadata: CheckpointMetadata,
) -> Path:
    """Write a checkpoint so that `folder` is either whole or not there; return `folder`.

    The folder's mode is 0700. A process that is killed here may leave a hidden folder beside
    `folder`, which nothing reads. Wrappers (DistributedDataParallel, torch.compile) are taken off.

    Raises:
        CheckpointError: `folder` exists, a value cannot be stored without pickling code, or the
            disk is full.
    """
    from safetensors import SafetensorError

    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} exists already: choose another name")
    content = replace(metadata, files={}).to_dict()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_weights(temporary / WEIGHTS, model)
        _write_state(temporary / STATE, optimizer, scheduler, metadata)
        (temporary / METADATA).write_text(_json_text(content))
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        _rename(temporary, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint {folder} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read a checkpoint's metadata, sealed or not, and check nothing else.

    Raises:
        CheckpointError: No metadata.json, no JSON in it, or fields that are not understood.
    """
    path = folder / METADATA
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    try:
        return CheckpointMetadata.from_dict(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def seal(folder: Path, *, run_id: str | None = None) -> CheckpointMetadata:
    """Hash every file and complete metadata.json; a sealed checkpoint is left as it is.

    Two processes may seal the same checkpoint at the same time. `run_id` is filled in where it was
    not known yet when the checkpoint was written.

    Raises:
        CheckpointError: Not a checkpoint, a file is missing, or one is a symbolic link.
    """
    metadata = read_metadata(folder)
    if metadata.sealed and (metadata.run_id or not run_id):
        return metadata
    files = metadata.files or {name: _hashed(folder / name) for name in _names(folder)}
    sealed = replace(metadata, files=files, run_id=metadata.run_id or run_id)
    _replace_text(folder / METADATA, _json_text(sealed.to_dict()))
    return sealed


def verify(folder: Path, *, only: Collection[str] | None = None) -> CheckpointMetadata:
    """Check a checkpoint against its own metadata and return that.

    Args:
        folder: The checkpoint.
        only: Names of the files to check, where just these were copied; None for all of them.

    Raises:
        CheckpointError: Not sealed, unknown schema, a file that is missing, has another length or
            another hash, or lies outside the folder. The message says which file.
    """
    metadata = read_metadata(folder)
    if not metadata.sealed:
        raise CheckpointError(f"checkpoint {folder} is not sealed: call seal() on it first")
    needed = (WEIGHTS, STATE) if only is None else only
    if absent := sorted(set(needed) - set(metadata.files)):
        raise CheckpointError(f"{folder / METADATA} lists no {', '.join(absent)}")
    for name in metadata.files if only is None else only:
        _verify_file(folder, name, metadata.files[name])
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
    from safetensors import safe_open
    from safetensors.torch import load_file

    metadata = verify(folder, only=only)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
    stored = load_file(folder / WEIGHTS)
    stored |= {alias: stored[kept] for alias, kept in aliases.items()}
    target = _unwrapped(model)
    if differences := _differences(stored, target.state_dict()):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit the model: {_listed(differences)}")
    target.load_state_dict(stored, strict=True)
    return metadata


def load_state(folder: Path) -> dict[str, Any]:
    """Return the training state: optimizer, scheduler (or None), rng, step and epoch.

    The file is verified first, and read with `weights_only=True`, so it cannot execute code;
    tensors are on the CPU. Hand "rng" to `restore_rng`.

    Raises:
        CheckpointError: Not sealed, not whole, or it holds more than tensors and plain values.
    """
    import pickle

    import torch

    verify(folder, only=(STATE,))
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot read {folder / STATE}: {reason}") from error
    return state


def restore_rng(rng: Mapping[str, Any]) -> None:
    """Set the generators of torch, Python and NumPy to where the checkpoint left them.

    CUDA generators are set where the number of devices is the same, else left alone.
    """
    import numpy as np
    import torch

    torch.set_rng_state(rng["torch"])
    version, internal, gauss_next = rng["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, *rest = rng["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if rng["cuda"] and len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])


def _write_weights(path: Path, model: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, value in _unwrapped(model).state_dict().items():
        kept = names.setdefault(_identity(name, value), name)
        if kept == name:
            # An own copy, because safetensors refuses tensors that share memory.
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        else:
            aliases[name] = kept
    save_file(tensors, path, metadata={_ALIASES: json.dumps(aliases, sort_keys=True)})


def _identity(name: str, value: object) -> object:
    """Return a key that only tied tensors share: the same memory seen in the same way."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
        raise CheckpointError(f"{name} of the model is no dense tensor: it cannot be stored")
    if value.numel() == 0:
        return name
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def _write_state(
    path: Path,
    optimizer: Optimizer | None,
    scheduler: LRScheduler | None,
    metadata: CheckpointMetadata,
) -> None:
    import torch

    state = {
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "rng": _rng_state(),
        "step": metadata.step,
        "epoch": metadata.epoch,
    }
    torch.save({key: _plain(value, key) for key, value in state.items()}, path)


def _rng_state() -> dict[str, Any]:
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def _plain(value: Any, where: str) -> Any:
    """Return `value` built of what `torch.load(weights_only=True)` takes."""
    import numpy as np
    import torch

    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{where}[]") for item in value)
    allowed = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
    if type(value) in allowed or isinstance(value, torch.Tensor):
        return value
    raise CheckpointError(f"{where} is a {type(value).__name__}: only tensors and plain values")


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    from torch.nn import DataParallel
    from torch.nn.parallel import DistributedDataParallel

    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, DataParallel | DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _differences(
    stored: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in stored]
    unknown = [f"{name} is not in the model" for name in stored if name not in expected]
    shapes = [
        f"{name} is {tuple(stored[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    return missing + unknown + shapes


def _listed(items: list[str]) -> str:
    more = len(items) - _LISTED
    return "; ".join(items[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


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


def _hashed(path: Path) -> StoredFile:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return StoredFile(sha256=digest.hexdigest(), size_bytes=size_bytes)


def _verify_file(folder: Path, name: str, expected: StoredFile) -> None:
    path = folder / name
    relative = PurePosixPath(name)
    inside = path.resolve().is_relative_to(folder.resolve())
    if relative.is_absolute() or ".." in relative.parts or not inside:
        raise CheckpointError(f"{folder / METADATA} names a file outside the checkpoint: {name}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if (size_bytes := path.stat().st_size) != expected.size_bytes:
        raise CheckpointError(f"{path} has {size_bytes} bytes, sealed were {expected.size_bytes}")
    if _hashed(path).sha256 != expected.sha256:
        raise CheckpointError(f"{path} was changed: its sha256 is not the sealed one")


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(f"cannot create checkpoint {folder}: {error.strerror}") from error
    _fsync(folder.parent)


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
