"""Facts about `opusclip_mlops.records`: what travels survives the journal."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from opusclip_mlops import records

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text("abc/_é日", min_size=1)
INTS = st.integers(-(2**63), 2**63 - 1)
TEXT_VALUES = st.dictionaries(NAMES, TEXTS, max_size=4)
FLOAT_VALUES = st.dictionaries(NAMES, st.floats(), max_size=4)
RECORDS = st.one_of(
    st.builds(
        records.RunStarted,
        session=TEXTS, host=TEXTS, pid=INTS, process_started_s=st.floats(), start_time_ms=INTS,
        owned=st.booleans(), tags=TEXT_VALUES,
    ),
    st.builds(records.Metrics, timestamp_ms=INTS, step=INTS, values=FLOAT_VALUES),
    st.builds(records.Params, TEXT_VALUES),
    st.builds(records.Tags, TEXT_VALUES),
    st.builds(records.Dataset, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS),
    st.builds(
        records.Video, INTS, INTS, NAMES, TEXTS, st.floats(), TEXTS, TEXT_VALUES, TEXTS, INTS
    ),
    st.builds(
        records.Samples, INTS, INTS, TEXT_VALUES, st.dictionaries(NAMES, TEXT_VALUES, max_size=3)
    ),
    st.builds(records.Text, INTS, INTS, NAMES, TEXTS),
    st.builds(records.Checkpoint, INTS, INTS, INTS, NAMES, FLOAT_VALUES, st.booleans()),
    st.builds(records.RunEnded, TEXTS, TEXTS, INTS, TEXTS, st.booleans()),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(record=RECORDS)
def test_every_record_survives_messagepack(record: records.Record) -> None:
    """Each kind comes back as the same kind with the same fields: NaN, infinities, any script."""
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=records.Record)
    assert type(read) is type(record)
    assert repr(read) == repr(record)


def test_a_batch_counts_the_records_that_carry_a_step() -> None:
    """Metrics, clips and texts are rows; params, tags, checkpoints and ends are not."""
    rows = (
        records.Metrics(1, 2, {"a": 1.0}),
        records.Video(1, 2, "v", "f.npy", 8.0),
        records.Text(1, 2, "t", "words"),
    )
    others = (
        records.Params({}),
        records.Tags({}),
        records.Checkpoint(1, 2, 3, "c"),
        records.Dataset("n", "d", "t", "s", "c"),
        records.RunEnded("s", "FINISHED", 1),
    )
    assert records.Batch(records=(*rows, *others)).row_count == 3
    assert records.Batch(records=()).row_count == 0


def test_defaults_are_not_shared_between_records() -> None:
    """A record's empty tags are its own."""
    first, second = (records.RunStarted("s", "h", 1, 1.0, 1) for _ in range(2))
    first.tags["a"] = "b"
    assert second.tags == {}


def test_a_clip_of_an_earlier_release_is_read() -> None:
    """Its journal frame has fewer fields: what it does not say is as usual."""
    earlier = msgspec.msgpack.encode(["video", 1, 2, "k", "f.npy", 8.0, "caption"])
    read = msgspec.msgpack.decode(earlier, type=records.Record)
    assert read == records.Video(1, 2, "k", "f.npy", 8.0, "caption", {}, "h264", 0)
