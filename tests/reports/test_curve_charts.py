"""Facts about `opusclip_mlops.reports.curve_charts`: which curves are drawn, and how."""

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from opusclip_mlops.contrasts import Facts
from opusclip_mlops.curves import Curve
from opusclip_mlops.reports import curve_charts
from opusclip_mlops.reports.curve_charts import curves_html
from opusclip_mlops.reports.reading import RunRead
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
        read(val__psnr=curve(1), system__cpu=curve(1), loss=curve(1), val__ssim=curve(1))
    )
    assert re.findall(r"<details( open)?><summary>(.*?)</summary>", found) == [
        (" open", "val (2)"),
        (" open", "other (1)"),
        ("", "system (1)"),
    ]
    assert "seconds since the start" in found.partition("system (1)")[2]


def test_what_a_curve_cannot_show_is_said() -> None:
    """How many points are no numbers, and whether the last is among them."""
    found = curves_html(read(loss=curve(1.0, not_finite=2, ends_finite=False)))
    assert "2 NaN or infinite left out, the last point among them" in found


def test_a_curve_without_a_number_is_named_too() -> None:
    """All that was logged may have been NaN."""
    found = curves_html(read(loss=curve(not_finite=3)))
    assert 'data-key="loss"' in found
    assert "3 NaN or infinite left out" in found


def test_more_metrics_than_a_page_holds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups that come first are drawn; how many are not is said, with what picks."""
    monkeypatch.setattr(curve_charts, "MOST_CHARTS", 9)
    every = {f"val__m{number}": curve(1.0) for number in range(8)}
    found = curves_html(read(**every, zoo__a=curve(1.0), zoo__b=curve(1.0), system__c=curve(1.0)))
    assert found.count("<figure") == 9
    assert "2 metrics are not drawn: --metric PATTERN picks" in found
    assert "zoo (1)" in found


def test_a_report_of_many_runs_has_fewer_charts_of_each() -> None:
    """But always some."""
    every = {f"val__m{number}": curve(1.0) for number in range(20)}
    assert curves_html(read(**every), runs=50).count("<figure") == 8
    assert curves_html(read(**every), runs=1).count("<figure") == 20


def test_a_run_without_metrics_has_no_curves() -> None:
    """Not even a heading."""
    assert curves_html(read()) == ""
