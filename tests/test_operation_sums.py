"""Facts about `opusclip_mlops.operation_sums`: exact sums, and quantiles within 1.6 %."""

import mmap
import random
import subprocess
import sys

import pytest

from opusclip_mlops.operation_sums import Sums, bucket_of, memory_bytes, start_of


def counted(times_ns: list[int]) -> Sums:
    """The sums of uses that took so long, in which nothing else was timed."""
    sums = Sums()
    sums.add([(one, one, 0) for one in times_ns])
    return sums


def test_a_bucket_holds_what_lies_between_its_ends() -> None:
    """Also at powers of two and at the longest times; the middle is within 1/64 of each."""
    powers = (2**power + more for power in range(63) for more in (-1, 0, 1))
    for elapsed_ns in [*range(5000), *powers]:
        bucket = bucket_of(elapsed_ns)
        start, end = start_of(bucket), start_of(bucket + 1)
        assert start <= elapsed_ns < end
        assert abs((start + end - 1) / 2 - elapsed_ns) <= elapsed_ns / 64


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999])
def test_quantiles_are_those_of_all_times(count: int) -> None:
    """The smallest that half, or 95 %, do not exceed; within 1/64."""
    draw = random.Random(count)
    times_ns = [round(draw.lognormvariate(14, 2)) + 1 for _ in range(count)]
    taken = counted(times_ns).taken("c", "n", 1.0)
    ordered = sorted(times_ns)
    for found, quantile in ((taken.p50_ms, 0.50), (taken.p95_ms, 0.95)):
        exact = next(one for rank, one in enumerate(ordered, 1) if rank >= quantile * count)
        assert found == pytest.approx(exact / 1e6, rel=1 / 64)
        assert found is not None
        assert ordered[0] / 1e6 <= found <= ordered[-1] / 1e6


def test_counts_sums_and_the_longest_are_exact() -> None:
    """However many times the uses are added in."""
    sums = Sums()
    for part in ([5, 1_000_003], [], [2_000_000], [7, 7, 7]):
        sums.add([(one, one, 0) for one in part])
    taken = sums.taken("c", "n", 0.5)
    assert (taken.count, taken.total_ms, taken.max_ms) == (6, 3.000029, 2.0)
    assert taken.share == pytest.approx(3.000029e-3 / 0.5)


def test_the_time_of_what_is_inside_is_no_own_time() -> None:
    """It never falls below nothing: tasks side by side take more than what they are in."""
    sums = Sums()
    sums.add([(1_000_000, 1_000_000, 400_000), (1_000_000, 1_000_000, 3_000_000)])
    assert sums.taken("c", "n", 1.0).self_ms == 0.6


def test_what_goes_on_has_a_share_and_no_quantiles() -> None:
    """A use that has not ended is not counted, but its time is."""
    sums = Sums()
    sums.credit(500_000_000, 100_000_000)
    taken = sums.taken("c", "n", 1.0)
    assert (taken.count, taken.share, taken.self_ms) == (0, 0.5, 400.0)
    assert {"p50_ms", "p95_ms", "max_ms"}.isdisjoint(
        key.rpartition("/")[2] for key in taken.as_metrics()
    )


def test_it_is_logged_under_category_and_name() -> None:
    """As plain floats, memory only where it was measured."""
    sums = counted([2_000_000])
    sums.note_memory((10_000_000, None), (12_000_000, None))
    metrics = sums.taken("data", "decode", 1.0).as_metrics()
    assert metrics["profiling/data/decode/count"] == 1.0
    assert metrics["profiling/data/decode/rss_change_megabytes"] == 2.0
    assert "profiling/data/decode/gpu_change_megabytes" not in metrics
    assert {type(one) for one in metrics.values()} == {float}


def test_gpu_memory_is_that_which_torch_has() -> None:
    """Asked only where torch is loaded and its CUDA is in use; the difference in megabytes."""
    code = (
        "import sys, types\n"
        "from opusclip_mlops.operation_sums import Sums, memory_bytes\n"
        "assert memory_bytes()[1] is None\n"
        "state = {'on': False, 'bytes': 5_000_000}\n"
        "cuda = types.SimpleNamespace(is_initialized=lambda: state['on'],\n"
        "                             memory_allocated=lambda: state['bytes'])\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)\n"
        "assert memory_bytes()[1] is None\n"
        "state['on'] = True\n"
        "before = memory_bytes()\n"
        "state['bytes'] = 8_000_000\n"
        "sums = Sums(); sums.add([(1, 1, 0)]); sums.note_memory(before, memory_bytes())\n"
        "assert sums.taken('c', 'n', 1.0).gpu_change_megabytes == 3.0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_resident_memory_grows_with_what_is_kept() -> None:
    """In bytes, of this process."""
    before = memory_bytes()[0]
    # New pages: what others have let go of may be given out again.
    with mmap.mmap(-1, 50_000_000) as kept:
        kept.write(b"x" * len(kept))
        assert memory_bytes()[0] - before > 0.8 * len(kept)
