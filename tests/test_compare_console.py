"""Facts about `opusclip_mlops.compare_console`: what is printed of runs beside each other."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from opusclip_mlops.compare_console import lines_of, print_comparison, print_page
from opusclip_mlops.comparing import Comparison, PanelBeside
from opusclip_mlops.contrasts import Facts, contrasts
from opusclip_mlops.curves import At, difference
from opusclip_mlops.metric_rows import Measured, MetricRow

A = Facts(
    run_id="a" * 32, run_name="kite", status="FINISHED", start_ms=0, duration_s=90.0,
    params={"lr": "0.1", "db": "sql://u:geheim@h/d"}, code={"commit": "abc"},
)  # fmt: skip
B = Facts(
    run_id="b" * 32, run_name="[red]kite\x1b[2J", status="FAILED", start_ms=0,
    end_reason="KeyError\nat once", params={"lr": "0.2"}, code={"commit": "abc"},
)  # fmt: skip


def at(value: float, step: int = 5) -> At:
    return At(value=value, step=step, timestamp_ms=0)


def measured(label: str, value: float, to: float | None = None) -> Measured:
    names = ("last", "lowest", "highest", "best", "mean")
    return Measured(
        label=label, points=1000, not_finite=0, superseded=0, ends_finite=True, last=at(value),
        lowest=at(value), highest=at(value), best=at(value), mean=value,
        differences=None if to is None else dict.fromkeys(names, difference(value, to)),
    )  # fmt: skip


LOSS = MetricRow(
    key="val/loss", better="lower", runs=(measured("A", 2.0), measured("B", 1.5, 2.0)),
    span=(0.0, 5.0),
)  # fmt: skip
FOUND = Comparison(
    runs={"A": A, "B": B},
    differences=contrasts([A, B]),
    by="step",
    metrics=(LOSS,),
    panels=(
        PanelBeside(
            title="kites-01", steps={"A": (0, 5), "B": (5,)}, common=(5,), command="opusclip wall x"
        ),
    ),
    notes=("samples\nare old",),
)


def text(found: Comparison) -> list[str]:
    return [line for line, _ in lines_of(found)]


def test_runs_stand_first_with_how_they_ended() -> None:
    """A line each, and nothing in it moves the terminal's cursor."""
    assert text(FOUND)[:2] == [
        "A  kite          aaaaaaaa  FINISHED  90.0 s",
        "B  [red]kite[2J  bbbbbbbb  FAILED            ended because: KeyError at once",
    ]


def test_what_differs_is_a_table_and_what_is_alike_a_line() -> None:
    """What a run lacks is a dash; passwords are not shown; what is known of no run is not told."""
    lines = text(FOUND)
    begin = lines.index("params that differ")
    assert [line.split() for line in lines[begin + 1 : begin + 4]] == [
        ["A", "B"], ["db", "sql://u:***@h/d", "-"], ["lr", "0.1", "0.2"]
    ]  # fmt: skip
    assert "alike: code" in lines


def test_a_metric_says_whether_it_got_better() -> None:
    """By the direction that its name gives."""
    [line] = [line for line in text(FOUND) if line.split()[:1] == ["B"] and "better" in line]
    change = "-0.5 (-25 %) better"
    assert " ".join(line.split()) == f"B 1,000 1.5 5 {change} 1.5 5 {change} 1.5 {change}"
    higher = text(replace(FOUND, metrics=(replace(LOSS, better="higher"),)))
    assert any("-0.5 (-25 %) worse" in line for line in higher)


def test_a_metric_of_unknown_direction_has_lowest_and_highest() -> None:
    """And is called neither better nor worse."""
    lines = text(replace(FOUND, metrics=(replace(LOSS, key="norm", better=""),)))
    assert sum("lowest 1.5" in line for line in lines) == 1
    assert sum("highest 1.5" in line for line in lines) == 1
    assert not any("better" in line or "worse" in line for line in lines)


def test_what_was_left_out_is_said() -> None:
    """For the run it was left out of."""
    one = replace(LOSS.runs[1], not_finite=3, ends_finite=False, superseded=7)
    rows = (replace(LOSS, runs=(LOSS.runs[0], one)), replace(LOSS, apart=("count: 1 and 2",)))
    lines = text(replace(FOUND, metrics=rows))
    assert (
        "  val/loss of B: 3 NaN or infinite left out, the last among them; "
        "7 left out that training went back behind"
    ) in lines
    assert "  val/loss of A, B was measured otherwise: count: 1 and 2" in lines


def test_metrics_of_one_run_are_named_in_a_line() -> None:
    """Those that no other has are no table, and none at all are told as such."""
    alone = tuple(replace(LOSS, key=f"k{at}", runs=LOSS.runs[:1]) for at in range(14))
    lines = text(replace(FOUND, metrics=alone))
    assert f"only A has: {', '.join(f'k{at}' for at in range(12))} and 2 more" in lines
    assert not any(line.startswith("metrics (") for line in lines)
    assert "no metrics to compare" in text(replace(FOUND, metrics=()))


def test_a_metric_that_is_never_a_number_is_dashes() -> None:
    """Beside the one that is."""
    none = Measured(label="B", points=0, not_finite=2, superseded=0, ends_finite=False)
    lines = text(replace(FOUND, metrics=(replace(LOSS, runs=(LOSS.runs[0], none)),)))
    assert ["B", "0", "-", "-", "-"] in [line.split() for line in lines]


def test_long_tables_are_cut() -> None:
    """At 40 rows, with what is left told."""
    rows = tuple(replace(LOSS, key=f"k{at:03}") for at in range(45))
    params = {f"p{at:03}": "x" for at in range(60)}
    some = replace(FOUND, metrics=rows, differences=contrasts([replace(A, params=params), B]))
    lines = text(some)
    assert "  … 5 more rows: --metric chooses, --json has all" in lines
    assert "  … 21 more: --json has all" in lines


def test_samples_have_the_command_that_shows_them() -> None:
    """And which steps the runs have in common."""
    lines = text(FOUND)
    begin = lines.index("samples of kites-01: step 5 in common (steps: A 2, B 1)")
    assert lines[begin + 1] == "  opusclip wall x"
    assert lines[-1] == "note: samples are old"


def test_in_a_pipe_lines_are_whole_and_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is what the lines are."""
    print_comparison(FOUND, as_json=False)
    assert capsys.readouterr().out.splitlines() == text(FOUND)


def test_where_a_page_is_can_be_told_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of one that is no UTF-8; nothing in it moves the terminal's cursor."""
    print_page(Path(os.fsdecode(b"pa\x80ge\x1b[2J.html")), 2048)
    assert capsys.readouterr().out == "page: page[2J.html, 2.0 KiB\n"


def test_json_has_all_of_it_but_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    """Every run, difference, metric, panel and note."""
    print_comparison(FOUND, as_json=True)
    printed = capsys.readouterr().out
    content = json.loads(printed)
    assert "geheim" not in printed
    assert content["runs"]["A"]["params"]["lr"] == "0.1"
    assert content["differences"]["params"][1] == {"name": "lr", "values": ["0.1", "0.2"]}
    assert content["metrics"][0]["runs"][1]["differences"]["last"] == {
        "absolute": -0.5, "relative": -0.25
    }  # fmt: skip
    assert content["panels"][0]["common"] == [5]
    assert (content["by"], content["notes"]) == ("step", ["samples\nare old"])
