"""A page that is one HTML file: its style and script are in it, and it can ask nobody for more."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.page_text import escaped, in_ascii, part_of_page, source_of
from opusclip_mlops.redaction import one_line


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        id: Its name in links: letters, digits and `-`.
        title: Its heading, and its line in the table of contents.
        html: What stands in it. Nothing escapes it here.
    """

    id: str
    title: str
    html: str


def document(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The whole file, of the `parts_of` it in one piece.

    Args:
        title: Its heading, and the window's.
        sections: From top to bottom.
        subtitle: A line beneath the heading.
    """
    return "".join(parts_of(title, sections, subtitle=subtitle))


def parts_of(title: str, sections: Sequence[Section], *, subtitle: str = "") -> Iterator[str]:
    """The file piece by piece: light or dark as the reader likes it, with a table of contents.

    Its policy forbids every network: it runs its own script and no other, and shows what it holds.

    Args:
        title: Its heading, and the window's.
        sections: From top to bottom.
        subtitle: A line beneath the heading.
    """
    style, script = part_of_page("report.css"), part_of_page("report.js")
    name = escaped(title)
    links = "".join(
        f'<li><a href="#{escaped(one.id)}">{escaped(one.title)}</a></li>' for one in sections
    )
    under = f"<p>{escaped(subtitle)}</p>" if subtitle else ""
    yield _head(name, style, script)
    yield f'<header><h1>{name}</h1>{under}<div id="tools" hidden></div></header>\n'
    yield f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n'
    for one in sections:
        yield f'<section id="{escaped(one.id)}">\n<h2>{escaped(one.title)}</h2>\n'
        yield in_ascii(one.html)
        yield "</section>\n"
    yield f"</main>\n<script>{script}</script>\n</body>\n</html>\n"


def _head(title: str, style: str, script: str) -> str:
    head = part_of_page("head.html")
    for what, said in (("policy", _policy(style, script)), ("title", title), ("style", style)):
        head = head.replace(f"<!-- {what} -->", said)
    return head


def check_place(path: Path) -> None:
    """Look whether a page can be written there, before long work is done for it.

    Raises:
        ConfigError: It is there and is no file, or its folder is not there or lets nobody write.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(_refused(path, "it is there and is no file"))
        with tempfile.TemporaryFile(dir=_real(path).parent):
            pass
    except OSError as error:
        raise ConfigError(_refused(path, _reason(error))) from error


def write_document(path: Path, text: str | Iterable[str]) -> int:
    """Write a page whole or not at all, for this user's eyes, and say how many bytes it has.

    Args:
        path: Where to write; what is there is replaced.
        text: The `document`, or the `parts_of` it, which take half the memory.

    Raises:
        ConfigError: It cannot be written.
    """
    check_place(path)
    file = _real(path)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".opusclip-page-")
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as page:
            page.writelines([text] if isinstance(text, str) else text)
            page.flush()
            os.fsync(page.fileno())
            size_bytes = os.fstat(page.fileno()).st_size
        os.replace(temporary, file)
    except OSError as error:
        raise ConfigError(_refused(path, _reason(error))) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return size_bytes


def _real(path: Path) -> Path:
    """Where a link leads; of links that go round, one of them."""
    return Path(os.path.realpath(path))


def _refused(path: Path, why: str) -> str:
    return one_line(f"{path} cannot be written: {why}")


def _reason(error: OSError) -> str:
    is_away = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return "its folder is not there" if is_away else error.strerror or type(error).__name__


def _policy(style: str, script: str) -> str:
    """What the page may do."""
    return (
        f"default-src 'none'; script-src {source_of(script)}; style-src {source_of(style)}; "
        "media-src data:; img-src data:; base-uri 'none'; form-action 'none'"
    )
