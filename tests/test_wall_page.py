"""The page by itself: what is in the file, whatever is put on it. Browsers are asked elsewhere."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops.panels import Panel
from opusclip_mlops.wall_page import (
    MOST_BYTES,
    Column,
    Film,
    Sample,
    ShownScore,
    Wall,
    page_bytes,
    write_page,
)
from tests.panelled import NASTY

ROOT = Path(__file__).resolve().parents[1]
PANEL = Panel(name="kites", prompts=(NASTY, "b"), sampler={"<steps>": NASTY})


def film(tmp_path: Path, content: bytes, **fields: Any) -> Film:
    """A file that is called a clip."""
    path = tmp_path / f"{hashlib.sha256(content).hexdigest()[:8]}.mp4"
    path.write_bytes(content)
    return Film(path=path, **{"frames": 16, "fps": 8.0, "width": 64, "height": 48, **fields})


def wall(*films: Film | None, **fields: Any) -> Wall:
    """A wall with a column for each of these, in its first row."""
    columns = [
        Column(
            run=NASTY,
            step=step,
            marks=(NASTY,),
            about=(NASTY,),
            samples={
                PANEL.cells[0].name: Sample(
                    film=one,
                    missing="" if one else NASTY,
                    scores=(ShownScore(name=NASTY, value=float("nan"), measured=(NASTY,)),),
                    about={NASTY: NASTY, "none": ""},
                )
            },
        )
        for step, one in enumerate(films)
    ]
    return Wall(panel=PANEL, columns=columns, **fields)


class _Elements(HTMLParser):
    """Every element with its attributes and the text right behind its start."""

    def __init__(self) -> None:
        super().__init__()
        self._is_inside = False
        self.found: list[tuple[str, dict[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs), ""))
        self._is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = False

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)


def elements(page: str) -> list[tuple[str, dict[str, str | None], str]]:
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.found


def written(made: Wall, tmp_path: Path) -> str:
    path = tmp_path / "wall.html"
    write_page(made, path)
    return path.read_text()


def content(page: str) -> dict[str, Any]:
    [text] = [text for tag, about, text in elements(page) if about.get("id") == "content"]
    found: dict[str, Any] = json.loads(text)
    return found


def test_clips_are_in_the_page_whole_and_once(tmp_path: Path) -> None:
    """Long ones and short ones, of any number of bytes; one that stands twice is there once."""
    first, second = film(tmp_path, b"\0\xff" * 500_001), film(tmp_path, b"x")
    page = written(wall(first, second, first), tmp_path)
    held = {
        str(about["id"]): base64.b64decode(text)
        for tag, about, text in elements(page)
        if tag == "script" and about.get("type") == "text/plain"
    }
    assert held == {"film-0": first.path.read_bytes(), "film-1": b"x"}
    cells = [column["cells"][0] for column in content(page)["columns"]]
    assert [one["film"] for one in cells] == [0, 1, 0]


def test_whatever_is_said_stays_text(tmp_path: Path) -> None:
    """Prompts, runs, metrics, passports, notes: no element is made of any, and nothing is lost."""
    page = written(wall(film(tmp_path, b"x"), None, notes=[NASTY]), tmp_path)
    plain = written(Wall(panel=Panel(name="kites", prompts=("a",)), columns=[]), tmp_path)
    mine, theirs = ([tag for tag, _, _ in elements(one)] for one in (page, plain))
    assert mine == [*theirs[: mine.index("noscript") + 1], "script", *theirs[-2:]]
    said = content(page)
    assert said["rows"][0]["prompt"] == NASTY
    assert said["notes"][0] == NASTY
    column = said["columns"][0]
    assert (column["run"], column["marks"], column["about"]) == (NASTY, [NASTY], [NASTY])
    assert column["cells"][0]["scores"] == [[NASTY, "nan", [NASTY], True]]
    assert column["cells"][0]["about"] == [[NASTY, NASTY]]
    assert said["columns"][1]["cells"][0]["missing"] == NASTY


def test_a_page_may_run_its_own_script_only_and_ask_for_nothing(tmp_path: Path) -> None:
    """Its policy names the hashes of its script and its style; there is no address in it."""
    page = written(wall(film(tmp_path, b"x")), tmp_path)
    found = elements(page)
    [policy] = [about["content"] for tag, about, _ in found if "http-equiv" in about]
    assert policy
    assert policy.startswith("default-src 'none'; ")
    texts = {tag: text for tag, about, text in found if tag in ("style", "script") and not about}
    for text in texts.values():
        mark = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{mark}'" in policy
    assert len(texts) == 2
    assert "unsafe" not in policy
    assert not re.search(r"https?://|\bfetch\(|XMLHttp|import\(", page)
    assert not [about for _, about, _ in found if {"src", "href"} & about.keys()]


def test_places_without_a_sample_are_holes(tmp_path: Path) -> None:
    """A cell that a step has not says so."""
    cells = content(written(wall(film(tmp_path, b"x")), tmp_path))["columns"][0]["cells"]
    assert cells[1] == {"scores": [], "about": [], "missing": "no clip was logged"}


def test_clips_of_unlike_length_are_told(tmp_path: Path) -> None:
    """Frames that differ are said, rates that differ too; alike ones are not worth a word."""
    first = film(tmp_path, b"a")
    assert content(written(wall(first, first), tmp_path))["notes"] == []
    notes = content(written(wall(first, film(tmp_path, b"b", frames=9)), tmp_path))["notes"]
    assert [one.partition(".")[0] for one in notes] == [
        "The clips are of unlike length: from 9 to 16 frames"
    ]
    [note] = content(written(wall(first, film(tmp_path, b"c", fps=24.0)), tmp_path))["notes"]
    assert "from 8 to 24 frames per second" in note


def test_the_estimate_is_no_less_than_the_page(tmp_path: Path) -> None:
    """A page is never longer than it was said to become."""
    one = film(tmp_path, bytes(3_000_001))
    page = written(wall(one), tmp_path)
    assert len(page) <= page_bytes(3_000_001) <= len(page) + 5 * 2**20
    assert page_bytes(0) < MOST_BYTES


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A clip that is gone, or a folder that is not there."""
    one = film(tmp_path, b"x")
    with pytest.raises(FileNotFoundError):
        write_page(wall(one), tmp_path / "none" / "wall.html")
    one.path.unlink()
    with pytest.raises(FileNotFoundError):
        write_page(wall(one), tmp_path / "wall.html")


def test_a_built_wheel_holds_the_page(tmp_path: Path) -> None:
    """Whoever installs the package has the page's parts."""
    code = (
        "import sys; from setuptools import build_meta; "
        "print(build_meta.build_wheel(sys.argv[1], {'--build-option': ['--quiet']}))"
    )
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    package = ROOT / "opusclip_mlops"
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / "opusclip_mlops" / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=copy, check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("*.whl")
    parts = {f"opusclip_mlops/pages/wall.{kind}" for kind in ("html", "css", "js")}
    assert parts <= set(zipfile.ZipFile(wheel).namelist())
