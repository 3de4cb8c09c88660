"""Tensors that several processes have written, each its slices: one file for each process.

    weights-00001-of-00002.safetensors     the slices of the weights that the second of two had

The header of a file says of each slice how large the whole tensor is and where in it the slice
stands, so that a reader of any number of processes finds the parts of its own. Nothing in a file
can execute code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    import torch

_SLICES = "slices"
_ALIASES = "aliases"


@dataclass(frozen=True, eq=False)
class Slice:
    """A part of a tensor of this `shape`: `tensor` begins in it at `offsets`."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: torch.Tensor


def write_slices(path: Path, slices: Mapping[str, Slice]) -> None:
    """Write slices by the names of their tensors; none of them may share memory with another."""
    from safetensors.torch import save_file

    places = {name: {"shape": one.shape, "offsets": one.offsets} for name, one in slices.items()}
    parts = {name: one.tensor for name, one in slices.items()}
    save_file(parts, path, metadata={_SLICES: json.dumps(places, sort_keys=True)})


class _Place(msgspec.Struct, frozen=True):
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Part:
    """A slice in a file."""

    file: Any
    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Slices:
    """The tensors that lie in some files, as slices or whole ones.

    Args:
        paths: Files that `write_slices` wrote, or a whole checkpoint's weights; one at least.

    Raises:
        CheckpointError: one of them cannot be read, or not every part of a tensor is there.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._parts: dict[str, list[_Part]] = {}
        files = list(paths)
        self._where = str(files[0] if len(files) == 1 else files[0].parent)
        for path in files:
            for name, part in _read(path):
                self._parts.setdefault(name, []).append(part)
        for name, parts in self._parts.items():
            _check_whole(f"{name} of {self._where}", parts)

    @property
    def where(self) -> str:
        """The file, or the folder of several."""
        return self._where

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each whole tensor."""
        return {name: parts[0].shape for name, parts in self._parts.items()}

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor, on the CPU."""
        shape = self._parts[name][0].shape
        return self.read(name, (0,) * len(shape), shape)

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A part of a tensor, on the CPU: what begins at `offsets` and has these `sizes`."""
        import torch

        found: torch.Tensor | None = None
        for part in self._parts[name]:
            begin = [max(pair) for pair in zip(offsets, part.offsets, strict=True)]
            end = [min(o + s, p + q) for o, s, p, q in zip(
                offsets, sizes, part.offsets, part.sizes, strict=True)]  # fmt: skip
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            piece = _piece(part, begin, end)
            if found is None:
                found = torch.empty(tuple(sizes), dtype=piece.dtype)
            found[_box(begin, end, offsets)] = piece
        return self._empty(name, sizes) if found is None else found

    def _empty(self, name: str, sizes: Sequence[int]) -> torch.Tensor:
        part = self._parts[name][0]
        stored: torch.Tensor = part.file.get_tensor(part.name)
        return stored.new_empty(tuple(sizes))


def _read(path: Path) -> list[tuple[str, _Part]]:
    from safetensors import SafetensorError, safe_open

    try:
        # Its memory is that of the file: it goes with the last tensor that was read of it.
        file = safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
        about = file.metadata() or {}
        places = msgspec.json.decode(about.get(_SLICES, "{}"), type=dict[str, _Place])
        aliases = msgspec.json.decode(about.get(_ALIASES, "{}"), type=dict[str, str])
        parts = {name: _part(file, name, places.get(name)) for name in file.keys()}  # noqa: SIM118
        return [*parts.items(), *((alias, parts[kept]) for alias, kept in aliases.items())]
    except (SafetensorError, msgspec.DecodeError, OSError, LookupError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {one_line(str(error))}") from error


def _part(file: Any, name: str, place: _Place | None) -> _Part:
    sizes = tuple(file.get_slice(name).get_shape())
    found = place or _Place(sizes, (0,) * len(sizes))
    for size, offset, whole in zip(sizes, found.offsets, found.shape, strict=True):
        if not 0 <= offset <= offset + size <= whole:
            raise ValueError(f"{name} is no part of its tensor")
    return _Part(file, name, found.shape, found.offsets, sizes)


def _check_whole(what: str, parts: Sequence[_Part]) -> None:
    """Check that every value is there, and none twice: then as many values are all of them."""
    shapes = {part.shape for part in parts}
    there = sum(math.prod(part.sizes) for part in parts)
    if len(shapes) > 1 or there != math.prod(parts[0].shape):
        raise CheckpointError(f"{what} is not whole: {there} of {math.prod(parts[0].shape)} values")
    if _overlap([part for part in parts if math.prod(part.sizes)]):
        raise CheckpointError(f"{what} is not whole: parts of it are there twice")


def _overlap(parts: Sequence[_Part]) -> bool:
    """Whether two parts, none of them empty, have a value in common."""
    if len(parts) < 2:
        return False
    dimensions = range(len(parts[0].shape))
    # The one that tells most parts apart: those that are behind it by it need no comparison.
    along = max(dimensions, key=lambda one: len({part.offsets[one] for part in parts}))
    near: list[_Part] = []
    for part in sorted(parts, key=lambda one: one.offsets[along]):
        near = [one for one in near if _end(one, along) > part.offsets[along]]
        if any(_meet(one, part) for one in near):
            return True
        near.append(part)
    return False


def _end(part: _Part, along: int) -> int:
    return part.offsets[along] + part.sizes[along]


def _meet(one: _Part, other: _Part) -> bool:
    return all(
        one.offsets[along] < _end(other, along) and other.offsets[along] < _end(one, along)
        for along in range(len(one.shape))
    )


def _piece(part: _Part, begin: Sequence[int], end: Sequence[int]) -> torch.Tensor:
    if tuple(begin) == part.offsets and part.sizes == tuple(_lengths(begin, end)):
        whole: torch.Tensor = part.file.get_tensor(part.name)
        return whole
    cut: torch.Tensor = part.file.get_slice(part.name)[_box(begin, end, part.offsets)]
    return cut


def _lengths(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    return [e - b for b, e in zip(begin, end, strict=True)]


def _box(begin: Sequence[int], end: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    """The same part as indexes of a tensor that begins at `origin`."""
    return tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, origin, strict=True))
