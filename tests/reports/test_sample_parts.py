"""Facts about `opusclip_mlops.reports.sample_parts`: clips, pictures and tables on a page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image as Picture

from opusclip_mlops import video
from opusclip_mlops.contrasts import Facts
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.records import Image, Table
from opusclip_mlops.reports.run_read import Fetched, RunRead
from opusclip_mlops.reports.sample_parts import content_type_of, media_html, tables_html
from tests.panelled import numbered


def read(*media: Fetched, **more: list[str]) -> RunRead:
    """A run from which these were fetched."""
    facts = Facts(run_id="r", run_name="kite", status="FINISHED", start_ms=0)
    run = cast("Any", SimpleNamespace(info=SimpleNamespace(run_id="r")))
    return RunRead(run=run, called="kite", facts=facts, media=media, more=cast("Any", more))


def picture(path: Path) -> Fetched:
    """A picture that was fetched."""
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return Fetched(record=Image(1, 3, "grids/<b>", path.name), path=path)


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "video/mp4"), ("a.webp", "image/webp")])
def test_what_a_file_is_is_read_in_it(tmp_path: Path, name: str, kind: str) -> None:
    """Its name may say something else."""
    made, path = tmp_path / name, tmp_path / "clip.bin"
    if name == "a.mp4":
        video.write_mp4(numbered(), made, fps=8)
    else:
        Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(made)
    made.rename(path)
    assert content_type_of(path) == kind


def test_a_file_that_no_page_shows_leaves_a_hole(tmp_path: Path) -> None:
    """With the name of what should be there."""
    path = tmp_path / "a.png"
    path.write_bytes(b"<html>not a picture")
    found = media_html(read(Fetched(record=Image(1, 3, "grids", "a.png"), path=path)), Embedder())
    assert "grids, step 3: no clip or picture that a page shows" in found
    assert "not a picture" not in found


def test_what_does_not_fit_is_left_out_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    """And what there is more of is counted."""
    page = Embedder(most_bytes=10)
    shown = read(picture(tmp_path / "a.png"), media=["3 more keys of kind image, in MLflow"])
    found = media_html(shown, page)
    assert page.left_out == 1
    assert "mlflow artifacts download --run-id r" in found
    assert "3 more keys of kind image" in found
    assert "grids/&lt;b&gt;" in found


def test_the_first_rows_of_a_table_are_shown() -> None:
    """How many there are is said; a cell that is markup is text."""
    rows = [[number, "<i>x", 0.123456789] for number in range(30)]
    table = Table(1, 4, "worst", ["n", "what", "loss"], rows)
    found = tables_html(read(Fetched(record=table)))
    assert found.count("<tr>") == 21
    assert "the first 20 of 30 rows" in found
    assert "<td>&lt;i&gt;x</td><td>0.12346</td>" in found


def test_a_wide_table_is_cut() -> None:
    """The first columns are shown."""
    names = [f"c{number}" for number in range(40)]
    found = tables_html(read(Fetched(record=Table(1, 4, "wide", names, [list(range(40))]))))
    assert "the first 12 of 40 columns" in found
    assert "c12" not in found


def test_the_table_of_bottlenecks_stands_elsewhere() -> None:
    """It has a section of its own."""
    table = Table(1, 4, "profiling/bottlenecks", ["a"], [[1]])
    assert tables_html(read(Fetched(record=table))) == ""
