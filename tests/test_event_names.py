"""TensorBoard's events under the names of a line."""

from pathlib import Path

from opusclip_mlops import events, insight_events
from opusclip_mlops.event_names import rename, tag_again
from opusclip_mlops.events import Event
from opusclip_mlops.mirror_names import Names, names_of
from opusclip_mlops.records import Metrics, Table, Text
from tests import insight_records
from tests.journeys import make_run
from tests.sinks.sink_contract import T0_MS
from tests.test_mirror_names import begun

# Nothing above step 0 of what was logged by then is on the line.
NAMES = names_of(begun(T0_MS + 1000, 0, T0_MS - 10))


def there_and_back(event: Event, names: Names) -> Event:
    """The event renamed; renamed again as the first line it is what it was."""
    before = event.SerializeToString()
    rename(event, names)
    back = Event.FromString(event.SerializeToString())
    rename(back, names_of({}))
    assert back.SerializeToString() == before
    return event


def test_texts_and_tables_are_renamed() -> None:
    """Words about the run, and points of another writer, are not."""
    text, table = Text(T0_MS, 3, "notes/a", "t"), Table(T0_MS, 3, "errors", ["a"], [[1]])
    for event in (events.text(text), events.table(table)):
        tag = event.summary.value[0].tag
        assert there_and_back(event, NAMES).summary.value[0].tag == f"generation-0/{tag}"
    words = events.words("notes/a", "w", timestamp_ms=T0_MS)
    point = events.scalars(Metrics(T0_MS, 3, {"loss": 1.0}))
    for event in (words, point):
        before = event.SerializeToString()
        rename(event, NAMES)
        assert event.SerializeToString() == before


def test_an_insight_is_renamed_as_it_would_be_written(tmp_path: Path) -> None:
    """Its mark, every value that shows it, and what they are called on the page."""
    every = insight_records.every_kind(make_run(tmp_path))
    for record in (one for one in every if one.step and one.kind != "embedding"):
        [event, *_] = insight_events.events_of(record)
        named = NAMES.record(record)
        assert named.key == f"generation-0/{record.key}"
        [wanted, *_] = insight_events.events_of(named)
        assert there_and_back(event, NAMES) == wanted


def test_a_mark_keeps_the_kind_of_its_insight() -> None:
    """Whatever its key is."""
    [event, *_] = insight_events.events_of(insight_records.histograms(key="a/b/histograms"))
    tag = event.summary.value[0].tag
    again = tag_again(tag, NAMES, kind="insight", step=5, timestamp_ms=T0_MS)
    assert events.insight_of(again) == ("histograms", "generation-0/a/b/histograms")
