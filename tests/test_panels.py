"""A panel: what it asks for, what it is called by, and when two are the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opusclip_mlops.errors import PanelError
from opusclip_mlops.journal import Entry, Journal, read
from opusclip_mlops.panels import MOST_CELLS, Panel, by_cell, title_of
from opusclip_mlops.records import Samples, check_key

PANEL = Panel(name="kites", prompts=("a red kite", "風"), seeds=(0, 7), sampler={"steps": 20})


def test_every_prompt_has_every_seed() -> None:
    """The first prompt's seeds first; a cell is called by number, words and seed."""
    assert [(one.prompt, one.seed) for one in PANEL.cells] == [
        ("a red kite", 0), ("a red kite", 7), ("風", 0), ("風", 7),
    ]  # fmt: skip
    assert [one.name for one in PANEL.cells] == [
        "000-a-red-kite-seed-0", "001-a-red-kite-seed-7", "002-prompt-seed-0", "003-prompt-seed-7",
    ]  # fmt: skip
    origin = PANEL.origin_of(PANEL.cells[1])
    assert (origin.prompt, origin.seed, origin.sampler) == ("a red kite", 7, {"steps": 20})


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "a/b\\c:d*?", "x" * 5000, "100 %", "\n", "-", "\ud800 kite"]
)
def test_a_cell_s_key_is_legal_whatever_the_prompt(prompt: str) -> None:
    """MLflow takes it, and it leads nowhere else."""
    panel = Panel(name="p" * 64, prompts=(prompt,), seeds=(-(2**63),))
    key = panel.key_of(panel.cells[0])
    check_key(key)
    assert key.count("/") == 2
    assert key.startswith(f"panels/{panel.title}/")


def test_the_digest_is_of_what_is_asked_for() -> None:
    """Not of the name, nor of the order of settings; another prompt, seed, setting or order is."""
    assert replace(PANEL, name="dogs").digest == PANEL.digest
    mixed = {"b": 1, "a": {"d": 2, "c": 3}}
    turned = {"a": {"c": 3, "d": 2}, "b": 1}
    assert replace(PANEL, sampler=mixed).digest == replace(PANEL, sampler=turned).digest
    others = [
        replace(PANEL, prompts=PANEL.prompts[::-1]),
        replace(PANEL, prompts=PANEL.prompts[:1]),
        replace(PANEL, seeds=(0,)),
        replace(PANEL, sampler={"steps": 21}),
        replace(PANEL, sampler={}),
    ]
    assert len({one.digest for one in (PANEL, *others)}) == 6
    assert PANEL.title == title_of("kites", PANEL.digest) == f"kites-{PANEL.digest[:8]}"
    assert all(PANEL.differences(one) for one in others)
    assert PANEL.differences(replace(PANEL, name="dogs")) == ()
    assert PANEL.differences(others[3]) == ("sampler: {'steps': 20} and {'steps': 21}",)


def test_a_panel_comes_back_as_it_was() -> None:
    """Through JSON; one whose content was changed is refused."""
    content = json.loads(json.dumps(PANEL.to_dict()))
    assert Panel.from_dict(content) == PANEL
    with pytest.raises(PanelError, match="was changed"):
        Panel.from_dict({**content, "seeds": [1]})


@pytest.mark.parametrize("given", [None, [], {}, {"name": 3}, {"name": "a", "prompts": "abc"}])
def test_what_is_no_panel_is_refused(given: object) -> None:
    """In one line of ours."""
    with pytest.raises(PanelError) as caught:
        Panel.from_dict(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "../a"},
        {"name": "a" * 65},
        {"name": ".hidden"},
        {"prompts": ()},
        {"prompts": "abc"},
        {"prompts": ("a", "a")},
        {"prompts": (b"a",)},
        {"prompts": {"a": 1}},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (True,)},
        {"seeds": (1.0,)},
        {"seeds": 3},
        {"seeds": tuple(range(MOST_CELLS))},
        {"sampler": {"a": object()}},
        {"sampler": {"a": float("inf")}},
        {"prompts": ("x" * 70_000,)},
    ],
)
def test_a_panel_that_cannot_be_sampled_or_kept_is_refused(given: dict[str, object]) -> None:
    """In one line that says what is wrong."""
    with pytest.raises(PanelError) as caught:
        replace(PANEL, **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_panel_may_be_full() -> None:
    """As many cells as there may be, each of its own name."""
    panel = replace(PANEL, prompts=("a",), seeds=tuple(range(MOST_CELLS)))
    assert len({one.name for one in panel.cells}) == MOST_CELLS


def test_clips_are_given_in_order_or_by_cell() -> None:
    """By cell, name, or prompt and seed; None for a cell that has none."""
    names = [one.name for one in PANEL.cells]
    assert by_cell(PANEL, [1, None, 3, 4], what="videos") == dict(
        zip([names[0], *names[2:]], [1, 3, 4], strict=True)
    )
    given = {PANEL.cells[0]: 1, names[1]: 2, ("風", 0): 3, ("風", 7): None}
    assert by_cell(PANEL, given, what="videos") == dict(zip(names[:3], [1, 2, 3], strict=True))
    batch = np.zeros((4, 2, 8, 8, 3), np.uint8)
    assert list(by_cell(PANEL, batch, what="videos")) == names
    assert list(by_cell(PANEL, iter(batch), what="videos")) == names


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([1, 2, 3], "has 4 cells, and 3 videos were given"),
        ({"nobody": 1}, "has no cell nobody"),
        ({("a red kite", 1): 1}, "has no cell"),
    ],
)
def test_clips_of_another_panel_are_refused(given: object, problem: str) -> None:
    """Too few, or of a cell that there is not."""
    with pytest.raises(PanelError, match=problem):
        by_cell(PANEL, given, what="videos")


@pytest.mark.parametrize("given", [3, None, "kite.mp4"])
def test_what_is_no_collection_is_refused(given: object) -> None:
    """A number, nothing, and a path: one clip is none for each cell."""
    with pytest.raises(PanelError, match="videos"):
        by_cell(PANEL, given, what="videos")


def test_a_panel_keeps_what_it_was_made_with() -> None:
    """As JSON holds it, in plain numbers and texts: what is changed later changes no digest."""
    sampler = {"sizes": (64, 64), 1: "a", "b": np.float64(0.5)}
    panel = replace(PANEL, sampler=sampler, seeds=list(np.arange(2)))
    assert panel.sampler == {"sizes": [64, 64], "1": "a", "b": 0.5}
    assert type(panel.sampler["b"]) is float
    assert panel.seeds == (0, 1)
    assert {type(one) for one in panel.seeds} == {int}
    mine = {"steps": 20}
    kept = replace(PANEL, sampler=mine)
    mine["steps"] = 9
    assert kept.digest == PANEL.digest


@pytest.mark.parametrize(
    "given",
    [{"seeds": (2**64,)}, {"seeds": (-(2**63) - 1,)}, {"sampler": {"a": 2**64}}, {"name": 3}],
)
def test_what_no_record_can_hold_is_no_panel(given: dict[str, object]) -> None:
    """It is refused where it is made, not when half of its clips are logged."""
    with pytest.raises(PanelError) as caught:
        replace(PANEL, **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert replace(PANEL, seeds=(2**64 - 1,)).seeds == (2**64 - 1,)


def test_a_prompt_with_half_a_character_is_kept_as_a_record_keeps_it(tmp_path: Path) -> None:
    """Its panel is read back, with the digest it had."""
    panel = replace(PANEL, prompts=("\ud800 kite",), sampler={"\udc80": "\udc80"})
    journal = Journal(tmp_path, "a")
    journal.append(Samples(1, 2, panel.to_dict(), {}))
    [entry] = read(next(tmp_path.glob("*.journal")))
    assert isinstance(entry, Entry)
    assert isinstance(entry.record, Samples)
    assert Panel.from_dict(entry.record.panel) == panel


def test_a_cell_is_given_once() -> None:
    """Under two of its names only one clip would be logged."""
    cell = PANEL.cells[0]
    with pytest.raises(PanelError, match="twice"):
        by_cell(PANEL, {cell: 1, cell.name: 2}, what="videos")


def test_what_differs_is_named_where_digests_differ() -> None:
    """Also numbers that are equal and written otherwise."""
    whole, float_ = (replace(PANEL, sampler={"guidance": one}) for one in (7, 7.0))
    assert whole.digest != float_.digest
    assert whole.differences(float_) == ("sampler: {'guidance': 7} and {'guidance': 7.0}",)
