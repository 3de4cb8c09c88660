"""Clips and pictures inside a page: each as a data URI, as many as the page may hold."""

from __future__ import annotations

import base64
from pathlib import Path

from opusclip_mlops.amounts import size_text
from opusclip_mlops.page_text import escaped

MOST_BYTES = 64 * 2**20
"""How much of clips a page holds: browsers have all of it in memory, a third longer."""

_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_CLIPS = ("video/mp4", "video/webm")


class Embedder:
    """Puts files into one page until it is full; what comes then is named and left out.

    Args:
        most_bytes: How much of files it takes.

    Attributes:
        taken_bytes: How much it has taken.
        left_out: How many files it has left out.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.taken_bytes = 0
        self.left_out = 0

    def clip(
        self, path_or_bytes: Path | bytes, *, content_type: str, caption: str, command: str = ""
    ) -> str:
        """A `<figure>` with the clip, which plays in a loop, or the picture.

        Args:
            path_or_bytes: The file, or what is in it.
            content_type: video/mp4, video/webm, image/png, image/jpeg, image/webp or image/gif.
            caption: What stands beneath, "" for nothing.
            command: Shows it where it is left out, "" for none.

        Raises:
            ValueError: Another type of content.
            OSError: The file cannot be read.
        """
        if content_type not in (*_PICTURES, *_CLIPS):
            raise ValueError(f"a page shows no {content_type}")
        if not self.has_room(size_bytes := _size_of(path_or_bytes)):
            return self.left(size_bytes, caption=caption, command=command)
        content = path_or_bytes if isinstance(path_or_bytes, bytes) else path_or_bytes.read_bytes()
        self.taken_bytes += len(content)
        shown = _element(base64.b64encode(content).decode(), content_type, escaped(caption))
        return f'<figure class="media">{shown}{_caption(caption)}</figure>\n'

    def has_room(self, size_bytes: int) -> bool:
        """Whether a file of this length would be taken."""
        return self.taken_bytes + size_bytes <= self.most_bytes

    def left(self, size_bytes: int, *, caption: str, command: str = "") -> str:
        """What stands in the place of a file that is left out; of unknown size where that is 0."""
        self.left_out += 1
        size = f", {size_text(size_bytes)}" if size_bytes else ""
        why = f"left out{size}: the page holds {size_text(self.most_bytes)} of clips"
        shown_by = f" <code>{escaped(command)}</code> shows it" if command else ""
        return (
            f'<figure class="media"><div class="hole">{why}.{shown_by}</div>'
            f"{_caption(caption)}</figure>\n"
        )

    def note(self, *, since: int = 0) -> str:
        """That something is left out, in words; "" where nothing is.

        Args:
            since: How many were left out before that are not told here.
        """
        if not (count := self.left_out - since):
            return ""
        clips = "one clip is" if count == 1 else f"{count:,} clips are"
        return f"{clips} left out: the page holds {size_text(self.most_bytes)} of clips at most"


def hole(why: str) -> str:
    """An empty place, and why it is empty."""
    return f'<figure class="media"><div class="hole">{escaped(why)}</div></figure>\n'


def _size_of(path_or_bytes: Path | bytes) -> int:
    if isinstance(path_or_bytes, bytes):
        return len(path_or_bytes)
    return path_or_bytes.stat().st_size


def _element(encoded: str, content_type: str, caption: str) -> str:
    source = f'src="data:{content_type};base64,{encoded}"'
    if content_type in _PICTURES:
        return f'<img alt="{caption}" loading="lazy" {source}>'
    # The page's script loads those that can be seen: browsers hold no thousand players.
    how = 'controls loop muted playsinline preload="none"'
    return f'<video {how} title="{caption}" {source}></video>'


def _caption(caption: str) -> str:
    return f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
