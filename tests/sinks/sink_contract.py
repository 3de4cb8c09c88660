"""What every sink must do: subclassed once for each, with its own reader."""

import math
from pathlib import Path

import numpy as np
import pytest

from opusclip_mlops import media
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Dataset, Metrics, Params, Record, Tags, Text, Video
from tests.journeys import append, deliver_and_die, end, make_run
from tests.reading import Point

T0_MS = 1_700_000_000_123


def metrics(count: int, *, first: int = 0) -> list[Record]:
    """Log calls of two keys each, at rising steps and times."""
    return [
        Metrics(T0_MS + 7 * i, i, {"train/loss": 1 / (i + 1), "train/lr": 0.1 * i})
        for i in range(first, first + count)
    ]


def expected(records: list[Record], *, narrow: bool) -> list[Point]:
    """The points that a reader must find; `narrow` where the place keeps 32-bit floats."""

    def text(value: float) -> str:
        return repr(float(np.float32(value))) if narrow else repr(value)

    return sorted(
        Point(key, record.step, record.timestamp_ms, text(value))
        for record in records
        if isinstance(record, Metrics)
        for key, value in record.values.items()
    )


def staged_clip(folder: RunFolder, *, step: int = 3) -> Video:
    """A clip of 8 frames in the run's folder."""
    ramp = np.arange(8 * 32 * 48 * 3, dtype=np.uint32).reshape(8, 32, 48, 3) % 251
    file = media.stage(folder, ramp.astype(np.uint8), value_range=(0, 1))
    return Video(T0_MS, step, "samples/kite", file, 8.0, "a kite")


class SinkContract:
    """The contract; `name`, `narrow` and `points` are given by each sink's class."""

    name: str
    narrow = False

    def points(self, folder: RunFolder) -> list[Point]:
        """All points the sink holds of this run."""
        raise AssertionError("each sink's test class reads its own place")

    def as_logged(self, records: list[Record]) -> list[Record]:
        """What processes log for the place to hold these points."""
        return records

    @pytest.fixture
    def folder(self, tmp_path: Path) -> RunFolder:
        return make_run(tmp_path, [self.name])

    def test_holds_what_was_logged(self, folder: RunFolder) -> None:
        """Every value stands there under its own step and time."""
        logged = metrics(2500)
        append(folder, self.as_logged(logged))
        end(folder)
        deliver(folder, self.name)
        assert self.points(folder) == expected(logged, narrow=self.narrow)
        assert folder.progress(self.name).done

    def test_keeps_awkward_steps_and_values(self, folder: RunFolder) -> None:
        """Late, repeated, negative and huge steps, and NaN, are kept as they are."""
        steps = [5, 3, 9, 9, -4, 2**40, 5]
        logged: list[Record] = [
            Metrics(T0_MS + i, step, {"a b/c.d-e:f": 0.5 + i}) for i, step in enumerate(steps)
        ]
        logged.append(Metrics(T0_MS + 99, 10, {"bad": math.nan}))
        append(folder, self.as_logged(logged))
        end(folder)
        deliver(folder, self.name)
        assert self.points(folder) == expected(logged, narrow=self.narrow)

    def test_a_crash_before_the_acknowledgement_doubles_nothing(self, folder: RunFolder) -> None:
        """A sink killed after it took a batch is given it again, and no point stands twice."""
        logged = metrics(300)
        append(folder, self.as_logged(logged))
        deliver_and_die(folder, self.name)
        append(folder, self.as_logged(late := metrics(50, first=300)))
        end(folder)
        deliver(folder, self.name)
        assert self.points(folder) == expected(logged + late, narrow=self.narrow)

    def test_goes_on_after_a_restart(self, folder: RunFolder) -> None:
        """A sink opened a second time goes on behind what it has acknowledged."""
        append(folder, self.as_logged(first := metrics(40)))
        end(folder)
        deliver(folder, self.name)
        append(folder, self.as_logged(more := metrics(40, first=40)))
        deliver(folder, self.name)
        assert self.points(folder) == expected(first + more, narrow=self.narrow)

    def test_a_broken_clip_refuses_only_itself(self, folder: RunFolder) -> None:
        """A clip that can't be read goes to rejected.jsonl, all around it is delivered."""
        clip = staged_clip(folder)
        (folder.media / clip.file).write_bytes(b"no frames here")
        append(folder, self.as_logged([*metrics(3), clip, *metrics(3, first=3)]))
        end(folder)
        deliver(folder, self.name)
        assert self.points(folder) == expected(metrics(6), narrow=self.narrow)
        assert folder.progress(self.name).rejected == 1
        assert clip.file in folder.rejected.read_text()

    def test_takes_every_kind_of_record(self, folder: RunFolder) -> None:
        """No kind of record is refused."""
        append(folder, self.as_logged([
            Params({"depth": "4", "name": "x"}), Tags({"a": "b"}), *metrics(2), staged_clip(folder),
            Text(T0_MS, 3, "notes/first", "one < two"),
            Dataset("clips", "d1", "local", '{"uri": "x"}', "training", '{"frames": 9}'),
        ]))  # fmt: skip
        end(folder)
        deliver(folder, self.name)
        assert folder.progress(self.name).rejected == 0
        assert folder.progress(self.name).faults == 0
        assert self.points(folder) == expected(metrics(2), narrow=self.narrow)
