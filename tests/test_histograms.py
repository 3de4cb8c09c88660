"""Histograms of tensors: what is counted, of which elements, and in which numbers."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opusclip_mlops import histograms
from opusclip_mlops.histograms import SAMPLED, Summary, counted_by_order, norm_of, summaries


def summary(tensor: Tensor, *, seed: int = 0, factor: float = 1.0) -> Summary:
    measured = histograms.measured(tensor, seed=seed)
    assert measured is not None
    return summaries({"it": measured}, factor=factor)["it"]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_small_tensor_is_counted_as_numpy_counts_it() -> None:
    """Edges, counts and all numbers are NumPy's, to the digits that 32 bits hold."""
    tensor = normal(50, 40)
    found, expected = summary(tensor), tensor.double().numpy()
    counts, edges = np.histogram(expected, bins=64, range=(expected.min(), expected.max()))
    np.testing.assert_allclose(found["edges"], edges)
    assert found["counts"] == counts.tolist()
    assert (found["count"], found["sampled"]) == (2000, 2000)
    for name in ("min", "max", "mean", "std"):
        assert found[name] == pytest.approx(getattr(expected, name)(), rel=1e-6)
    assert found["norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    assert (found["nans"], found["infs"], found["zeros_share"]) == (0, 0, 0.0)


def test_a_large_tensor_is_sampled_and_its_extremes_are_exact() -> None:
    """At most 65,536 elements are counted; lowest, highest and norm are those of all elements."""
    tensor = normal(512, 700)
    tensor[3, 5], tensor[400, 1] = 40.0, -50.0
    found = summary(tensor)
    assert SAMPLED / 3 < found["sampled"] == sum(found["counts"]) <= SAMPLED
    assert (found["count"], found["min"], found["max"]) == (358_400, -50.0, 40.0)
    assert found["norm"] == pytest.approx(float(tensor.norm()), rel=1e-6)
    assert found["std"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shape", [(512, 512), (1024, 300), (2**20,), (7, 90_000)])
def test_a_sample_meets_every_column(shape: tuple[int, ...]) -> None:
    """Each column of a matrix has about its share of the sample: the stride divides no side."""
    tensor = torch.arange(shape[-1]).float().expand(shape).contiguous()
    found = histograms.measured(tensor)
    assert found is not None
    met = torch.bincount((found.sample % 64).long(), minlength=64)
    assert met.min() > 0.8 * met.float().mean()


def test_the_seed_chooses_the_sample() -> None:
    """The same seed counts the same elements, another one others."""
    tensor = normal(500, 1000)
    assert summary(tensor, seed=3) == summary(tensor, seed=3)
    assert summary(tensor, seed=3)["mean"] != summary(tensor, seed=4)["mean"]


def test_what_is_not_finite_is_counted_exactly_and_left_out_of_the_rest() -> None:
    """NaN and infinities among many elements are counted one by one, also beyond the sample."""
    tensor = normal(300, 1000)
    tensor[7, :11], tensor[8, :5], tensor[9, :2] = math.nan, math.inf, -math.inf
    found, finite = summary(tensor), tensor[tensor.isfinite()]
    assert (found["nans"], found["infs"]) == (11, 7)
    assert (found["min"], found["max"]) == (finite.min(), finite.max())
    assert found["norm"] == pytest.approx(float(finite.double().norm()), rel=1e-6)
    assert math.isnan(norm_of(found))
    assert norm_of(summary(torch.tensor([1.0, math.inf]))) == math.inf


def test_a_tensor_without_a_finite_element_has_no_bins() -> None:
    """Edges and counts are empty, and every value is one that JSON has."""
    found = summary(torch.tensor([math.nan, -math.inf]))
    assert (found["edges"], found["counts"], found["sampled"]) == ([], [], 0)
    assert (found["min"], found["mean"], found["norm"]) == ("nan", "nan", 0.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("value", [0.0, 2.5, -1e30, 1e-40])
def test_equal_elements_are_in_one_bin_round_them(value: float) -> None:
    """A tensor of one value has one bin, of some width, with all elements in it."""
    found = summary(torch.full((5, 3), value, dtype=torch.float64))
    low, high = found["edges"]
    assert -math.inf < low < value < high
    assert found["counts"] == [15]
    assert found["std"] <= 1e-15 * abs(value)


def test_a_norm_beyond_32_bits_is_told() -> None:
    """Finite elements whose squares are too large for their type are no infinities."""
    found = summary(torch.tensor([3e38, -2e38, 0.0]))
    assert (found["nans"], found["infs"]) == (0, 0)
    assert found["norm"] == pytest.approx(math.hypot(3e38, 2e38), rel=1e-6)
    assert sum(found["counts"]) == 3


def test_the_bin_round_the_largest_number_ends_with_it() -> None:
    """No edge is infinite: a mirror could not show it."""
    found = summary(torch.tensor([1.7e308], dtype=torch.float64))
    assert all(map(math.isfinite, found["edges"]))
    assert found["counts"] == [1]


@pytest.mark.parametrize("ends", [(-1.7e308, 1.7e308), (0.0, 1e-320), (1.0, 1 + 2**-52)])
def test_a_range_that_has_no_64_bins_has_one(ends: tuple[float, float]) -> None:
    """Where the width of a bin is no number that 64 bits hold, all elements are in one."""
    found = summary(torch.tensor(ends, dtype=torch.float64))
    assert (found["edges"], found["counts"]) == (list(ends), [2])


SEEN: dict[str, Callable[[], Tensor]] = {
    "half": lambda: normal(20, 30).half(),
    "bfloat16": lambda: normal(20, 30).bfloat16(),
    "double": lambda: normal(20, 30).double(),
    "transposed": lambda: normal(20, 30).t(),
    "sliced": lambda: normal(40, 60)[::2, ::2],
    "scalar": lambda: torch.tensor(3.0),
    "that wants gradients": lambda: normal(20, 30).requires_grad_(),
    "complex": lambda: torch.complex(normal(20, 30), normal(20, 30)),
    "sparse": lambda: normal(20, 30).relu().to_sparse(),
    "sparse by rows": lambda: normal(20, 30).relu().to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", SEEN)
def test_every_floating_tensor_is_seen(kind: str) -> None:
    """Whatever its type and layout, its elements are counted, and it is left as it was."""
    tensor = SEEN[kind]()
    elements = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    expected = elements.detach().to_dense().double().reshape(-1)
    found = summary(tensor)
    assert found["count"] == sum(found["counts"])
    assert found["norm"] == pytest.approx(float(expected.norm()), rel=1e-3)
    assert found["max"] == expected.max()
    assert tensor.requires_grad == (kind == "that wants gradients")


UNSEEN: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.zeros(0, 4),
    "on the meta device": lambda: torch.zeros(3, device="meta"),
    "whole": lambda: torch.arange(4),
    "of yes and no": lambda: torch.ones(3, dtype=torch.bool),
    "not made yet": lambda: torch.nn.LazyLinear(3).weight,
    "quantised": lambda: torch.quantize_per_tensor(normal(4), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", UNSEEN)
def test_what_holds_no_numbers_is_not_measured(kind: str) -> None:
    """It gives nothing, and raises nothing."""
    assert histograms.measured(UNSEEN[kind]()) is None


def test_a_factor_scales_what_is_told_and_not_the_counts() -> None:
    """As if each element had been multiplied: so scaled gradients are told unscaled."""
    tensor = normal(100)
    plain, scaled = summary(tensor), summary(tensor * 1024, factor=1 / 1024)
    assert scaled["counts"] == plain["counts"]
    for name in ("min", "max", "mean", "std", "norm"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-6)
    assert scaled["edges"] == pytest.approx(plain["edges"])


def test_counting_by_order_is_counting_by_bins() -> None:
    """The way for devices whose own histogram is not deterministic gives the same counts."""
    tensor = normal(3000).double()
    found = summary(tensor)
    by_order = counted_by_order(tensor, found["edges"])
    expected, _ = np.histogram(tensor.numpy(), bins=found["edges"])
    assert by_order.tolist() == expected.tolist()
    assert by_order.sum() == 3000


def test_many_tensors_are_told_each_under_its_name() -> None:
    """Of one call, no summary is another's, whatever kinds come together."""
    tensors = {"a": normal(9), "b": torch.zeros(3), "c": torch.tensor([math.nan]), "d": normal(70)}
    measured = {name: histograms.measured(one) for name, one in tensors.items()}
    found = summaries({name: one for name, one in measured.items() if one})
    assert {name: one["count"] for name, one in found.items()} == {"a": 9, "b": 3, "c": 1, "d": 70}
    assert found["d"] == summary(tensors["d"])
    assert found["b"]["zeros_share"] == 1.0


def test_nothing_is_nothing() -> None:
    """No tensors, no summaries."""
    assert summaries({}) == {}
