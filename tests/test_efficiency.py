"""Facts about `opusclip_mlops.efficiency`: what a loop gets done, and what its parts take."""

import copy
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from opusclip_mlops.efficiency import Efficiency, samples_in, timed_as
from opusclip_mlops.errors import RecordError
from opusclip_mlops.loop_parts import part_of
from opusclip_mlops.operation_sums import Taken
from opusclip_mlops.operations import Interval, Operations


class Loop:
    """Operations and what is made of each interval."""

    def __init__(self, **about: Any) -> None:
        self.values: dict[str, float] = {}
        self.taken: tuple[Taken, ...] = ()
        self.step = -1
        self._operations = Operations(self._end, interval_s=1e6)
        self.efficiency = Efficiency(self._operations, **about)

    def _end(self, interval: Interval) -> None:
        self.values = self.efficiency.values(interval, self.step)
        self.taken = interval.taken

    def ended(self) -> dict[str, float]:
        """What the interval that ends now came to."""
        self._operations.flush()
        return self.values

    @timed_as("checkpoint")
    def save(self, name: str, *, pause_s: float) -> str:
        """Stand for a tracker's method."""
        time.sleep(pause_s)
        return name


def slow(count: int) -> Iterator[list[torch.Tensor]]:
    """Batches of 4 clips that take their time."""
    for _ in range(count):
        time.sleep(0.01)
        yield [torch.zeros(4, 16, 3, 2, 2), torch.zeros(4)]


def test_the_wait_for_batches_is_timed() -> None:
    """Not what the loop does with them; samples and frames a second are by the clock."""
    began_s, loop = time.perf_counter(), Loop()
    for batch in loop.efficiency.batches(slow(5), samples=None, frames=16):
        assert len(batch) == 2
        time.sleep(0.02)
    values, elapsed_s = loop.ended(), time.perf_counter() - began_s
    assert values["performance/samples_per_s"] >= 20 / elapsed_s
    assert values["performance/frames_per_s"] == 16 * values["performance/samples_per_s"]
    [data] = loop.taken
    assert 50 <= data.total_ms <= 1e3 * elapsed_s - 100
    assert values["performance/data_share"] == pytest.approx(data.share)
    assert loop.ended()["performance/samples_per_s"] == 0


def test_batches_are_those_of_the_loader() -> None:
    """As many, each time anew; a loader that raises does so in the loop."""
    loop = Loop()
    batches = loop.efficiency.batches([1, 2, 3], samples=2, frames=None)
    assert (len(batches), list(batches), list(batches)) == (3, [1, 2, 3], [1, 2, 3])

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(loop.efficiency.batches(broken(), samples=None, frames=None))
    with pytest.raises(TypeError):
        len(loop.efficiency.batches(broken(), samples=None, frames=None))
    assert loop.efficiency.batches([], samples=None, frames=None) is not None


@pytest.mark.parametrize("count", ["x", -1, 0, 1.5, True])
def test_a_count_that_is_none_is_refused_in_the_callers_line(count: Any) -> None:
    """Not at the first batch, in the loop."""
    loop = Loop()
    with pytest.raises(RecordError, match="frames must be a whole number, 1 or more"):
        loop.efficiency.batches([], samples=None, frames=count)
    with pytest.raises(RecordError, match="samples must be"):
        loop.efficiency.batches([], samples=count, frames=None)
    assert list(loop.efficiency.batches([[1]], samples=np.int64(2), frames=3)) == [[1]]


def test_a_batch_is_let_go_before_the_next_is_read() -> None:
    """Two at once would be twice the memory."""
    read: list[weakref.ref[torch.Tensor]] = []

    def clips() -> Iterator[torch.Tensor]:
        for _ in range(3):
            assert all(one() is None for one in read)
            clip = torch.zeros(4, 2)
            read.append(weakref.ref(clip))
            yield clip
            del clip

    for batch in Loop().efficiency.batches(clips(), samples=None, frames=None):
        assert batch.shape == (4, 2)
        del batch
    assert len(read) == 3


def test_the_loader_answers_for_its_batches() -> None:
    """What a loop asks of its loader is there, and what that lacks is not; a copy is whole."""
    loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=2, shuffle=True)
    batches = Loop().efficiency.batches(loader, samples=None, frames=None)
    assert batches.dataset is loader.dataset
    assert batches.sampler is loader.sampler
    assert (batches.batch_size, len(batches)) == (2, 3)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        batches.nothing_of_this_name  # noqa: B018
    assert copy.copy(batches).batch_size == 2
    assert not hasattr(batches, "_nothing")


@pytest.mark.parametrize("loader", [None, 5, len])
def test_what_gives_no_batches_is_refused(loader: Any) -> None:
    """In the caller's line, and not where the first batch is asked for."""
    with pytest.raises(RecordError, match="loader must give batches one by one, not "):
        Loop().efficiency.batches(loader, samples=None, frames=None)


def test_speed_is_from_the_first_step_told() -> None:
    """A run that begins at step 1000 has not done them; going back begins anew."""
    loop = Loop(batch_size=8)
    assert loop.ended() == {}
    began_s, loop.step = time.perf_counter(), 1000
    loop.efficiency.note_step(1000)
    time.sleep(0.05)
    loop.step = 1020
    values = loop.ended()
    assert values["profiling/interval/steps"] == 20
    assert values["performance/steps_per_s"] <= 20 / 0.05
    assert values["performance/steps_per_s"] >= 20 / (time.perf_counter() - began_s)
    assert values["performance/samples_per_s"] == 8 * values["performance/steps_per_s"]
    assert values["performance/step_ms"] == pytest.approx(1e3 / values["performance/steps_per_s"])
    loop.efficiency.note_step(5)
    loop.step = 15
    assert loop.ended()["profiling/interval/steps"] == 10
    assert loop.ended() == {}


def test_a_part_that_is_inside_another_counts_once() -> None:
    """The shares of all parts are together no more than the whole."""
    loop = Loop()
    named = loop._operations.named
    with named("evaluation", "all"):
        time.sleep(0.01)
        with named("data", "decode"), named("loop", "copy"):
            time.sleep(0.01)
    with named("operation", "other"):
        time.sleep(0.01)
    values = loop.ended()
    assert values.keys() == {f"performance/{one}_share" for one in ("evaluation", "data", "copy")}
    assert min(values.values()) > 0
    assert sum(values.values()) <= 1.0


def test_a_method_is_timed_as_a_part() -> None:
    """It takes and returns what it did."""
    loop = Loop()
    assert loop.save("a", pause_s=0.01) == "a"
    assert loop.save.__name__ == "save"
    loop.ended()
    [taken] = loop.taken
    assert (taken.category, taken.name, taken.count) == ("loop", "checkpoint", 1)
    assert taken.total_ms >= 10


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(4, 3), 4),
        (np.zeros((5, 1)), 5),
        ({"said": "x", "clips": torch.zeros(6, 2)}, 6),
        ((torch.zeros(7), ["a"] * 7), 7),
        ([torch.zeros(2, 3), torch.zeros(2)], 2),
        (["a", "b", "c"], 3),
        (({"x": [torch.zeros(9)]},), 9),
        (torch.tensor(1.0), None),
        ("text", None),
        (3, None),
        ((), None),
        ([], 0),
    ],
)
def test_samples_are_those_of_the_first_array(batch: object, samples: int | None) -> None:
    """By its first dimension, in whatever holds it; a list without arrays is one of samples."""
    assert samples_in(batch) == samples


def test_parts_are_known_by_category() -> None:
    """`loop/<part>` says it itself; what is no part of the loop is none."""
    assert part_of("loop", "forward") == "forward"
    assert part_of("validation", "fid") == "evaluation"
    assert part_of("loop", "other") is None
    assert part_of("operation", "data") is None
    assert part_of("workers/data", "decode") is None
