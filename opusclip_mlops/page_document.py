"""A page that is one HTML file: its style and script are in it, and it can ask nobody for more."""

from __future__ import annotations

import base64
import errno
import hashlib
import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from opusclip_mlops.errors import ConfigError
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
    """The whole file: light or dark as the reader likes it, with a table of contents.

    Its policy forbids every network: it runs its own script and no other, and shows what it holds.

    Args:
        title: Its heading, and the window's.
        sections: From top to bottom.
        subtitle: A line beneath the heading.
    """
    style, script = _part("report.css"), _part("report.js")
    name = html.escape(title)
    links = "".join(
        f'<li><a href="#{html.escape(one.id)}">{html.escape(one.title)}</a></li>'
        for one in sections
    )
    under = f"<p>{html.escape(subtitle)}</p>" if subtitle else ""
    return (
        f"{_head(name, style, script)}"
        f'<header><h1>{name}</h1>{under}<div id="tools" hidden></div></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f"<main>\n{''.join(map(_shown, sections))}</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _head(title: str, style: str, script: str) -> str:
    head = _part("head.html")
    for what, said in (("policy", _policy(style, script)), ("title", title), ("style", style)):
        head = head.replace(f"<!-- {what} -->", said)
    return head


def _shown(one: Section) -> str:
    title = html.escape(one.title)
    return f'<section id="{html.escape(one.id)}">\n<h2>{title}</h2>\n{one.html}</section>\n'


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


def write_document(path: Path, text: str) -> None:
    """Write a page whole or not at all, for this user's eyes.

    Raises:
        ConfigError: It cannot be written.
    """
    check_place(path)
    file = _real(path)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".opusclip-page-")
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as page:
            page.write(text)
        os.replace(temporary, file)
    except OSError as error:
        raise ConfigError(_refused(path, _reason(error))) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _real(path: Path) -> Path:
    """Where a link leads; of links that go round, one of them."""
    return Path(os.path.realpath(path))


def _refused(path: Path, why: str) -> str:
    return one_line(f"{path} cannot be written: {why}")


def _reason(error: OSError) -> str:
    is_away = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return "its folder is not there" if is_away else error.strerror or type(error).__name__


def _part(name: str) -> str:
    return files("opusclip_mlops").joinpath("pages", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "media-src data:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
