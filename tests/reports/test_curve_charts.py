"""Facts about `opusclip_mlops.reports.curve_charts`: which curves are drawn, and how."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from opusclip_mlops.contrasts import Facts
from opusclip_mlops.curves import Curve
from opusclip_mlops.reports import curve_charts
from opusclip_mlops.reports.curve_charts import curves_html
from opusclip_mlops.reports.run_read import RunRead
from tests.reports.reported_runs import curve


def read(**curves: Curve) -> RunRead:
    """A run with these curves; `__` stands for a slash."""
    facts = Facts(run_id="r", run_name="kite", status="FINISHED", start_ms=0)
    named = {name.replace("__", "/"): one for name, one in curves.items()}
    run = cast("Any", SimpleNamespace(info=None, data=None))
    return RunRead(run=run, called="kite", facts=facts, curves=named)


def test_curves_stand_in_groups_and_those_of_machines_are_folded() -> None:
    """By the first word of their keys; a key without a slash is among the others."""
    found = curves_html(
        read(
            val__psnr=curve(1, 2), system__cpu=curve(1, 2), loss=curve(1, 2), val__ssim=curve(1, 2)
        )
    )
    assert re.findall(r"<details( open)?><summary>(.*?)</summary>", found) == [
        (" open", "val (2)"),
        (" open", "other (1)"),
        ("", "system (1)"),
    ]
    assert "seconds since the start" in found.partition("system (1)")[2]


def test_what_a_curve_cannot_show_is_said() -> None:
    """How many points are no numbers, and whether the last is among them."""
    found = curves_html(read(loss=curve(1.0, 2.0, not_finite=2, ends_finite=False)))
    assert "2 NaN or infinite left out, the last point among them" in found


def test_metrics_of_one_point_are_a_table() -> None:
    """And those of which all that was logged is NaN: an axis would be made up."""
    found = curves_html(read(val__best=curve(0.5), loss=curve(not_finite=3, ends_finite=False)))
    found = re.sub("<td[^>]*>", "<td>", found)
    assert "<figure" not in found
    assert "<td>val/best</td><td>0.5</td><td>0</td>" in found
    missing = "3 NaN or infinite left out, the last point among them"
    assert f"<td>loss</td><td>NaN or infinite only</td><td>-</td><td>{missing}</td>" in found


def test_what_validates_and_trains_stands_first() -> None:
    """As in the summary."""
    every = {f"{name}__x": curve(1, 2) for name in ("gen", "aaa", "train", "val", "system")}
    found = curves_html(read(**every))
    titles = re.findall(r"<summary>(.*?)</summary>", found)
    assert [one.partition(" ")[0] for one in titles] == ["val", "train", "aaa", "gen", "system"]


def test_more_metrics_than_a_page_holds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups that come first are drawn; how many are not is said, with what picks."""
    monkeypatch.setattr(curve_charts, "MOST_CHARTS", 9)
    every = {f"val__m{number}": curve(1.0, 2.0) for number in range(8)}
    found = curves_html(
        read(**every, zoo__a=curve(1.0, 2.0), zoo__b=curve(1.0, 2.0), system__c=curve(1.0, 2.0))
    )
    assert found.count("<figure") == 9
    assert "2 metrics are not drawn: --metric PATTERN picks" in found
    assert "zoo (1)" in found


def test_a_report_of_many_runs_has_fewer_charts_of_each() -> None:
    """But always some."""
    every = {f"val__m{number}": curve(1.0, 2.0) for number in range(20)}
    assert curves_html(read(**every), runs=50).count("<figure") == 8
    assert curves_html(read(**every), runs=1).count("<figure") == 20


def test_a_run_without_metrics_has_no_curves() -> None:
    """Not even a heading."""
    assert curves_html(read()) == ""


def test_many_branches_of_one_metric_share_the_room_of_one() -> None:
    """A run that went back thirty-five times has a page as short as another."""
    long = curve(*(float(at % 7) for at in range(3000)))
    alone = curves_html(read(loss=long))
    found = curves_html(replace(read(loss=long), branches={"loss": (long,) * 35}))
    assert found.count(' faded"') == 30
    assert "5 older branches that training left are not drawn" in found
    assert len(found) < 3 * len(alone)


def test_a_pattern_chooses_what_is_drawn() -> None:
    """Nothing at all where it is the name of no metric of this run."""
    found = read(val__psnr=curve(1, 2), loss=curve(1, 2))
    drawn = curves_html(found, wanted=lambda key: key == "loss")
    assert re.findall('data-key="(.*?)"', drawn) == ["loss"]
    assert curves_html(found, wanted=lambda _: False) == ""
