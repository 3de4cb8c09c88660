"""Facts about `opusclip_mlops.reports.wording`: how values and names are written."""

import pytest

from opusclip_mlops.reports.wording import NOTHING, figures, length, main_keys, moment, plain
from tests.reports.reported_runs import curve


@pytest.mark.parametrize(
    ("timestamp_ms", "said"),
    [
        (1_700_000_000_000, "2023-11-14 22:13:20 UTC"),
        (0, NOTHING),
        (None, NOTHING),
        (10**18, f"{10**18} ms"),
    ],
)
def test_a_moment(timestamp_ms: int | None, said: str) -> None:
    """In UTC; what no calendar holds is said as it is."""
    assert moment(timestamp_ms) == said


def test_what_is_not_known_is_a_dash() -> None:
    """A length, or a value."""
    assert (length(None), figures(None)) == (NOTHING, NOTHING)
    assert (length(7200.0), figures(1 / 3)) == ("2.0 h", "0.33333")


def test_a_long_text_is_cut_and_shows_it() -> None:
    """On one line, without credentials."""
    assert plain("a\nb  c") == "a b c"
    assert plain("x" * 20, at_most=5) == "xxxx…"
    assert plain("token=hunter2") == "token=***"


def test_metrics_of_validation_come_first_and_those_of_machines_do_not_come() -> None:
    """Then those whose name says which way is better."""
    keys = ("train/loss", "odd", "val/psnr", "system/cpu", "profiling/loop/x", "train/acc")
    found = main_keys({key: curve(1.0) for key in keys})
    assert found[0] == "val/psnr"
    assert found.index("train/loss") < found.index("odd")
    assert not any(key.startswith(("system/", "profiling/")) for key in found)
