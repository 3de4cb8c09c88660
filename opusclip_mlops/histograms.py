"""How the elements of a tensor are distributed: a histogram, a norm, what is not finite.

A tensor is measured where it lies, in two parts: `measured` asks nothing of the device that it
waits for, `summaries` fetches what many tensors came to at once. torch is imported by the functions
that need it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 65_536
"""How many elements of a tensor a histogram counts, at most."""

BINS = 64
"""How many bins a histogram has; one, where all elements are the same."""

Summary = dict[str, Any]
"""`edges`, `counts`, `count`, `sampled`, `min`, `max`, `mean`, `std`, `norm`, `nans`, `infs`,
`zeros_share`: JSON values."""

_CHUNK = 2**22
_SMALLEST = 1e-300


@dataclass(frozen=True)
class Measured:
    """A tensor's elements, a sample of them, and numbers that are still on its device.

    The numbers are the lowest, the highest, the norm, and of the sample the mean, the standard
    deviation and the share of zeros.
    """

    elements: Tensor
    sample: Tensor
    numbers: Tensor


def measured(tensor: Tensor, *, seed: int = 0) -> Measured | None:
    """Measure a tensor; None for one that holds no numbers to see.

    That is an empty one, one on the meta device or not made yet, whole numbers and quantised ones.
    A sparse tensor is seen by the elements that it holds, a complex one by its real and imaginary
    parts, one that is spread over processes by what lies in this one.

    Args:
        tensor: Of any floating type, on any device; it is not changed.
        seed: Chooses the first element of the sample.
    """
    import torch

    with torch.no_grad():
        elements = _elements(tensor)
        if elements is None or not elements.numel():
            return None
        sample = _sample(elements, seed)
        low, high = elements.aminmax()
        norm = torch.linalg.vector_norm(elements, dtype=_wide(elements.dtype))
        numbers = torch.stack([one.to(sample) for one in (low, high, norm, *_inner(sample))])
    return Measured(elements, sample, numbers)


def summaries(tensors: Mapping[str, Measured], *, factor: float = 1.0) -> dict[str, Summary]:
    """What tensors came to, by name.

    `min`, `max`, `norm`, `nans` and `infs` are of all elements, the rest of at most `SAMPLED`: of a
    larger tensor every nth is taken. All but `nans` and `infs` leave out what is not finite.

    Args:
        tensors: What `measured` gave.
        factor: Above 0: every element counts as so many times itself.
    """
    numbers = _fetched([one.numbers for one in tensors.values()])
    known = [_Known.of(one, found) for one, found in zip(tensors.values(), numbers, strict=True)]
    counts = _fetched([one.counts() for one in known])
    return {
        name: one.summary(found, factor)
        for name, one, found in zip(tensors, known, counts, strict=True)
    }


def norm_of(summary: Summary) -> float:
    """The norm of all elements: NaN or infinite, where one of them is."""
    if summary["nans"]:
        return math.nan
    return math.inf if summary["infs"] else float(summary["norm"])


def whole_norm(norms: Iterable[float]) -> float:
    """The norm of several tensors, as if they were one; NaN where one of theirs is."""
    known = list(norms)
    return math.nan if any(map(math.isnan, known)) else math.hypot(*known)


@dataclass(frozen=True)
class _Known:
    """A sample without what is not finite, and the numbers of all elements, fetched."""

    sample: Tensor
    count: int
    numbers: Sequence[float]
    nans: int = 0
    infs: int = 0

    @classmethod
    def of(cls, measured: Measured, numbers: Sequence[float]) -> _Known:
        count = measured.elements.numel()
        # A norm is finite where every element is; it may also be too large for its type.
        if math.isfinite(numbers[2]):
            return cls(measured.sample, count, numbers)
        sample = measured.sample[measured.sample.isfinite()]
        nans, infs, low, high, norm = _counted(measured.elements)
        numbers = (low, high, norm, *(one.item() for one in _inner(sample)))
        return cls(sample, count, numbers, nans, infs)

    def counts(self) -> Tensor:
        """How many of the sample are in each bin."""
        edges = self.edges()
        if not edges:
            return self.sample
        if len(edges) == 2:
            return self.sample.new_tensor([self.sample.numel()])
        if self.sample.is_cuda:
            # Counting by bins has no deterministic form there, which a training may have asked for.
            return counted_by_order(self.sample, edges)
        places = (self.sample - edges[0]) * (BINS / (edges[-1] - edges[0]))
        return places.int().clamp_(max=BINS - 1).bincount(minlength=BINS)

    def edges(self) -> list[float]:
        low, high = self.numbers[:2]
        if not self.sample.numel():
            return []
        width = (high - low) / BINS
        if _SMALLEST < width < math.inf and low + width > low and high - width < high:
            return [*(low + width * place for place in range(BINS)), high]
        around = 0.0 if high > low else 0.5 * abs(low) or 0.5
        return [max(low - around, -sys.float_info.max), min(high + around, sys.float_info.max)]

    def summary(self, counts: Sequence[float], factor: float) -> Summary:
        names = ("min", "max", "norm", "mean", "std")
        numbers = {
            name: _plain(factor * one) for name, one in zip(names, self.numbers, strict=False)
        }
        return {
            "edges": [factor * one for one in self.edges()],
            "counts": [round(one) for one in counts],
            "count": self.count,
            "sampled": self.sample.numel(),
            **numbers,
            "nans": self.nans,
            "infs": self.infs,
            "zeros_share": self.numbers[5] if counts else 0.0,
        }


def counted_by_order(sample: Tensor, edges: Sequence[float]) -> Tensor:
    """How many elements lie between each two edges, the last one included."""
    import torch

    inner = sample.new_tensor(edges[1:-1])
    below = torch.searchsorted(sample.sort().values, inner)
    ends = below.new_tensor([0]), below, below.new_tensor([sample.numel()])
    return torch.cat(ends).diff().to(sample.dtype)


def _elements(tensor: Tensor) -> Tensor | None:
    """The elements in a row, without a copy where they lie so."""
    import torch
    from torch.nn.parameter import is_lazy

    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if is_lazy(tensor) or tensor.is_meta or tensor.is_quantized:
        return None
    found = tensor.detach()
    if found.layout is torch.sparse_coo:
        found = found.coalesce().values()
    elif found.layout is not torch.strided:
        found = found.values()
    if found.is_complex():
        found = torch.view_as_real(found)
    return found.reshape(-1) if found.is_floating_point() else None


def _sample(elements: Tensor, seed: int) -> Tensor:
    """Every nth element, in a type that holds their sums; n divides nothing the tensor is made of.

    So a sample meets every column of a matrix, and not some of them again and again.
    """
    count = elements.numel()
    stride = -(-count // SAMPLED)
    while math.gcd(stride, count) > 1:
        stride += 1
    first = (seed * 2654435761) % stride
    # Apple's GPUs have no 64-bit floats.
    place = "cpu" if elements.device.type == "mps" else elements.device
    return elements[first::stride].to(place).double()


def _inner(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and share of zeros."""
    mean, count = sample.mean(), sample.numel()
    zeros = (count - sample.count_nonzero()) / count if count else mean
    return mean, (sample - mean).square_().mean().sqrt(), zeros


def _plain(value: float) -> float | str:
    """A number, or "nan" where there is none."""
    return value if math.isfinite(value) else "nan"


def _wide(dtype: Any) -> Any:
    """The type that a sum of squares is made in."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def _counted(elements: Tensor) -> tuple[int, int, float, float, float]:
    """How many NaN and infinite elements there are, and lowest, highest and norm of the others."""
    nans = infs = 0
    low, high, norm = math.inf, -math.inf, 0.0
    for start in range(0, elements.numel(), _CHUNK):
        part = elements[start : start + _CHUNK]
        finite = part[part.isfinite()]
        nans += int(part.isnan().sum())
        infs += int(part.isinf().sum())
        if finite.numel():
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            norm = math.hypot(norm, *_norms(finite))
    return nans, infs, low, high, norm


def _norms(finite: Tensor) -> tuple[float]:
    largest = finite.abs().max().to("cpu").double()
    if not largest:
        return (0.0,)
    scaled = finite.to("cpu").double() / largest
    return (float(scaled.square().sum().sqrt() * largest),)


def _fetched(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The elements of many short tensors, with one wait for each device and length."""
    import torch

    found: list[list[float]] = [[] for _ in tensors]
    alike: dict[tuple[object, int], list[int]] = {}
    for place, one in enumerate(tensors):
        alike.setdefault((one.device, one.numel()), []).append(place)
    for places in alike.values():
        fetched = torch.stack([tensors[place] for place in places]).tolist()
        for place, values in zip(places, fetched, strict=True):
            found[place] = values
    return found
