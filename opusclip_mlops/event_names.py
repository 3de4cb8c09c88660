"""TensorBoard's events under the names that what they say has as the run now is.

Nothing is taken away where training went back: what stands at a step is renamed in place.
"""

from opusclip_mlops import events
from opusclip_mlops.events import Event, Kind, Summary
from opusclip_mlops.mirror_names import Names

AT_A_STEP: frozenset[Kind] = frozenset({"video", "image", "text", "table", "insight"})
"""The kinds of events without points that stand at a step, and have a name by their line."""

_LAYOUT = "layout"


def tag_again(tag: str, names: Names, *, kind: Kind, step: int, timestamp_ms: int) -> str:
    """The tag that an event of this kind has now; of an insight, its mark's."""
    if kind not in AT_A_STEP:
        return tag
    name = events.insight_of(tag)[1] if kind == "insight" else tag
    return tag[: len(tag) - len(name)] + names.again(name, step=step, timestamp_ms=timestamp_ms)


def is_layout(tag: str) -> bool:
    """Whether the mark of an insight is that of a layout: TensorBoard shows a run's last one."""
    return events.insight_of(tag)[0] == _LAYOUT


def rename(event: Event, names: Names) -> None:
    """Give what an event without points says at its step the names of now."""
    at = {"step": event.step, "timestamp_ms": round(event.wall_time * 1000)}
    kinds = [events.kind_of(value) for value in event.summary.value]
    if "insight" not in kinds:
        for value, kind in zip(event.summary.value, kinds, strict=True):
            value.tag = tag_again(value.tag, names, kind=kind, **at)
        return
    marks = (v.tag for v, kind in zip(event.summary.value, kinds, strict=True) if kind == "insight")
    name = events.insight_of(next(marks))[1]
    for value, kind in zip(event.summary.value, kinds, strict=True):
        if kind == "insight":
            value.tag = tag_again(value.tag, names, kind=kind, **at)
        else:
            _rename_shown(value, name, names.again(name, **at))


def _rename_shown(value: Summary.Value, old: str, new: str) -> None:
    """A value that shows an insight: its tag, and what it is called on the page, begin alike."""
    value.tag = _moved(value.tag, old, new)
    if value.metadata.display_name:
        value.metadata.display_name = _moved(value.metadata.display_name, old, new)


def _moved(tag: str, old: str, new: str) -> str:
    return new + tag[len(old) :] if tag == old or tag.startswith(f"{old}/") else tag
