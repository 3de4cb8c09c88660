"""Which film is meant: by its file, by the hash of its file, or by the path it was logged under."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Self

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.samples import SourceClip, sha256_of

_HASH = re.compile(r"[0-9a-fA-F]{8,64}")
_SHOWN_CHARACTERS = 200
_SHOWN_HASHES = 4


class UnknownSourceError(OpusclipError):
    """No run names such a film, or it stands for several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A film: known by its hash, and by its paths where a run logged no hash.

    Attributes:
        source: What was asked for.
        digits: The hash of its file or a beginning of it, "" where it is not known.
        uris: The paths it may have been logged under.
        is_file: Whether it is here and was hashed.
    """

    source: str
    digits: str = ""
    uris: frozenset[str] = frozenset()
    is_file: bool = False

    @classmethod
    def of(cls, source: str) -> Self:
        """The film that a file, a hash (8 digits of it or more), a path or a URI stands for.

        Raises:
            UnknownSourceError: The text is empty.
            DataError: The file cannot be read.
        """
        if not source.strip():
            raise UnknownSourceError("no film is called '': give a file, a SHA-256 or a uri")
        if os.path.isfile(source):
            path = os.path.realpath(source)
            uris = frozenset({source, os.path.abspath(source), path})
            return cls(source=source, digits=sha256_of(path), uris=uris, is_file=True)
        digits = source.lower() if _HASH.fullmatch(source) else ""
        return cls(source=source, digits=digits, uris=frozenset({SourceClip(uri=source).uri}))

    def is_meant(self, uri: str, sha256: str) -> bool:
        """Whether what was logged with this path and hash ("" for none) is this film."""
        if sha256:
            return bool(self.digits) and sha256.startswith(self.digits)
        return uri in self.uris

    def found_in(self, logged: Iterable[tuple[str, str]]) -> Self:
        """The same as runs have logged it, as paths with hashes: with its hash and all its paths.

        Raises:
            UnknownSourceError: No run did, or it stands for several films.
        """
        named = set(logged)
        of_path = {sha256 for uri, sha256 in named if sha256 and uri in self.uris}
        hashes = {sha256 for _, sha256 in named if self.digits and sha256.startswith(self.digits)}
        if not hashes and not self.is_file:
            hashes = of_path
        if len(hashes) > 1:
            raise UnknownSourceError(
                f"{self._shown} stands for {len(hashes)} films: give one of {_few(hashes)}"
            )
        uris = self.uris | {uri for uri, sha256 in named if sha256 in hashes}
        if not hashes and not any(uri in uris and not sha256 for uri, sha256 in named):
            raise UnknownSourceError(self._unknown(of_path))
        digits = next(iter(hashes), self.digits if self.is_file else "")
        return replace(self, digits=digits, uris=frozenset(uris))

    @property
    def _shown(self) -> str:
        return one_line(self.source, at_most=_SHOWN_CHARACTERS)

    def _unknown(self, of_path: Collection[str]) -> str:
        if self.is_file and of_path:
            return f"no run names a film like {self._shown}: its path stands for {_few(of_path)}"
        hashed = f" (sha256 {self.digits})" if self.is_file else ""
        return f"no run names a film {self._shown}{hashed}"


def _few(hashes: Collection[str]) -> str:
    more = f" and {len(hashes) - _SHOWN_HASHES} more" if len(hashes) > _SHOWN_HASHES else ""
    return ", ".join(sorted(hashes)[:_SHOWN_HASHES]) + more
