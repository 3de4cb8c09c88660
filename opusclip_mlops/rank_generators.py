"""The random generators of every process that trained together, in one file of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.tensors import RUBBISH, plain, rng_state

GENERATORS = "generators.pt"
"""The file that holds them, by rank."""


def packed_generators() -> bytes:
    """The generators of this process as they are now."""
    import torch

    packed = BytesIO()
    torch.save(plain(rng_state(), "rng"), packed)
    return packed.getvalue()


def write_generators(path: Path, packed: Mapping[int, bytes]) -> None:
    """Write the generators of processes by their ranks, each as `packed_generators` gave it."""
    import torch

    as_bytes = {rank: bytearray(one) for rank, one in sorted(packed.items())}
    torch.save({r: torch.frombuffer(one, dtype=torch.uint8) for r, one in as_bytes.items()}, path)


def read_generators(path: Path, *, rank: int) -> Mapping[str, Any] | None:
    """The generators of one process; None where it left none. No code is executed.

    Raises:
        CheckpointError: the file holds no generators.
    """
    import torch

    try:
        packed = torch.load(path, map_location="cpu", weights_only=True).get(rank)
        if packed is None:
            return None
        found = torch.load(BytesIO(packed.numpy().tobytes()), weights_only=True)
    except RUBBISH as error:
        raise CheckpointError(f"cannot read {path}: {one_line(str(error))}") from error
    return found if isinstance(found, Mapping) else None
