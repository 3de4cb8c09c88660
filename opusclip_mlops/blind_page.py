"""The page on which somebody votes: pairs of clips, and nothing that says which run made which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opusclip_mlops.blind_votes import Choice
from opusclip_mlops.wall_page import MOST_BYTES, Film, page_bytes, write_html

_POLICY = "connect-src 'self'; "


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOfClips:
    """What stands side by side.

    Attributes:
        prompt: The text that both were asked for with.
        left: A clip without any text in its file.
        right: The other's.
    """

    prompt: str
    left: Film
    right: Film


def fits(pairs: Sequence[PairOfClips]) -> bool:
    """Whether a page with these pairs is no longer than browsers bear."""
    films = (film for one in pairs for film in (one.left, one.right))
    return page_bytes(sum(film.path.stat().st_size for film in films)) <= MOST_BYTES


def write_voting_page(
    path: Path,
    pairs: Sequence[PairOfClips],
    *,
    panel: str,
    sheet: str,
    given: Mapping[int, Choice],
) -> None:
    """Write the page as one HTML file.

    Served by `opusclip ab` it sends each vote there; opened as a file it saves them as a file.

    Args:
        path: Where to write.
        pairs: In the order in which they are shown.
        panel: What the panel is called.
        sheet: The sheet's id, which each vote names.
        given: Votes that there are, by the number of the pair, in the order they were cast in.

    Raises:
        OSError: It cannot be written.
    """
    films = [film.path for one in pairs for film in (one.left, one.right)]
    content: dict[str, Any] = {
        "panel": panel,
        "sheet": sheet,
        "pairs": [
            {"prompt": one.prompt, "sides": [_size(film) for film in (one.left, one.right)]}
            for one in pairs
        ],
        "given": list(given.items()),
    }
    title = f"{panel}: which is better?"
    write_html(path, "ab", title=title, content=content, films=films, may=_POLICY)


def _size(film: Film) -> list[int]:
    return [film.width, film.height]
