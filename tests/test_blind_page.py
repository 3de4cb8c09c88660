"""Facts about the voting page as a file: what is in it, and above all what is not."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from opusclip_mlops.blind_page import PairOfClips, fits, write_voting_page
from opusclip_mlops.wall_page import MOST_BYTES, Film
from tests.panelled import NASTY


def film(path: Path, content: bytes = b"clip") -> Film:
    """A file that is called a clip."""
    path.write_bytes(content)
    return Film(path=path, frames=16, fps=8.0, width=64, height=48)


def written(tmp_path: Path, **fields: Any) -> str:
    """The page of two pairs."""
    pairs = [
        PairOfClips(
            prompt=NASTY,
            left=film(tmp_path / f"run-secret-{i}-l", b"left %d" % i),
            right=film(tmp_path / f"run-secret-{i}-r", b"right %d" % i),
        )
        for i in range(2)
    ]
    given: dict[str, Any] = {"panel": NASTY, "sheet": "s1", "given": {1: "tie"}, **fields}
    write_voting_page(tmp_path / "page.html", pairs, **given)
    return (tmp_path / "page.html").read_text()


def content(page: str) -> Any:
    """What its script is given."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_holds_pairs_and_nothing_of_runs(tmp_path: Path) -> None:
    """Prompt and sizes, left and right; clips by their place on the page."""
    page = written(tmp_path)
    assert content(page) == {
        "panel": NASTY,
        "sheet": "s1",
        "pairs": [{"prompt": NASTY, "sides": [[64, 48], [64, 48]]}] * 2,
        "given": [[1, "tie"]],
    }
    clips = re.findall(r'<script type="text/plain" id="film-(\d)">(.*?)</script>', page)
    assert [(number, base64.b64decode(one)) for number, one in clips] == [
        ("0", b"left 0"), ("1", b"right 0"), ("2", b"left 1"), ("3", b"right 1")
    ]  # fmt: skip
    assert "secret" not in page
    assert str(tmp_path) not in page


def test_prompts_are_text_whatever_they_say(tmp_path: Path) -> None:
    """No markup of theirs is in the file."""
    page = written(tmp_path)
    assert "<img src=x" not in page
    assert page.count("</script>") == 6


def test_the_policy_lets_it_ask_nobody_but_who_serves_it(tmp_path: Path) -> None:
    """Its own script, its own clips, its own server."""
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', written(tmp_path))
    assert found
    parts = dict(one.strip().split(" ", 1) for one in found[1].split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["connect-src"] == "'self'"
    assert parts["media-src"] == "blob:"
    assert parts["script-src"].startswith("'sha256-")


def test_too_many_clips_do_not_fit(tmp_path: Path) -> None:
    """As many as a browser bears in one page."""
    long = film(tmp_path / "long")
    with long.path.open("wb") as file:
        file.truncate(MOST_BYTES // 4)
    pair = PairOfClips(prompt="", left=long, right=long)
    assert fits([pair])
    assert not fits([pair, pair])
