"""What a merger was told, kept in a file: what kills its process takes nothing that waits.

The file begins with what the merger knew when it was begun; each piece of news follows, as `u32
length, MessagePack`. It is begun anew when it has grown to many times what it has to hold.
"""

import os
import struct
from pathlib import Path

import msgspec

from opusclip_mlops.rank_merging import News, RankMerger, Snapshot

_LENGTH = struct.Struct("<I")
_LEAST_BYTES = 1024 * 1024
_GROWTH = 4


class Kept(msgspec.Struct, frozen=True):
    """Which file holds a merger, and how many bytes of it count."""

    number: int = 0
    size_bytes: int = 0


class MergingLog:
    """The file of one merger; `kept` says what is to be remembered of it.

    Args:
        place: Its path but for the number.
        kept: What was remembered last; what was written since is forgotten.

    Raises:
        OSError: the disk cannot take it.
    """

    def __init__(self, place: Path, kept: Kept) -> None:
        self._place, self.kept = place, kept
        self._first_bytes = 0
        self._is_old_there = False
        self._file = os.open(self._path(kept.number), os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, min(kept.size_bytes, os.fstat(self._file).st_size))
        self._drop_others()

    def merger(self) -> RankMerger:
        """A merger that knows all that is kept; in its gaps it counts what can't be read.

        Raises:
            OSError: the disk cannot take it.
        """
        merger, read_bytes = RankMerger(), 0
        for piece in _pieces(os.pread(self._file, self.kept.size_bytes, 0)):
            try:
                merger = self._told(merger, piece) if read_bytes else self._begun(piece)
            except msgspec.DecodeError:
                break
            read_bytes += _LENGTH.size + len(piece)
        if read_bytes < self.kept.size_bytes:
            merger.gaps.forgotten += 1
            self._begin_anew(merger)
        return merger

    def _begun(self, piece: bytes) -> RankMerger:
        self._first_bytes = len(piece)
        return RankMerger(msgspec.msgpack.decode(piece, type=Snapshot))

    def _told(self, merger: RankMerger, piece: bytes) -> RankMerger:
        for _ in merger.advance(msgspec.msgpack.decode(piece, type=News)):
            pass
        return merger

    def append(self, merger: RankMerger, *told: News) -> None:
        """Keep what the merger was told since: once each time that `kept` is remembered.

        Raises:
            OSError: the disk cannot take it.
        """
        if self._is_old_there:
            self._is_old_there = False
            self._drop_others()
        size_bytes = self.kept.size_bytes
        if not size_bytes or size_bytes > max(_LEAST_BYTES, _GROWTH * self._first_bytes):
            self._begin_anew(merger)
        else:
            for news in told:
                size_bytes += _write(self._file, msgspec.msgpack.encode(news), size_bytes)
            self.kept = Kept(self.kept.number, size_bytes)

    def _begin_anew(self, merger: RankMerger) -> None:
        """Write all that the merger knows into a new file; the old one stays until that is kept."""
        number = self.kept.number + 1
        file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._first_bytes = _write(file, msgspec.msgpack.encode(merger.snapshot()), 0)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self.kept = file, Kept(number, self._first_bytes)
        self._is_old_there = True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _path(self, number: int) -> Path:
        return self._place.with_name(f"{self._place.name}-{number}")

    def _drop_others(self) -> None:
        own = self._path(self.kept.number)
        for path in own.parent.glob(f"{self._place.name}-*"):
            if path != own:
                path.unlink(missing_ok=True)


def _write(file: int, payload: bytes, at_bytes: int) -> int:
    """Write one piece; how many bytes it takes."""
    piece = memoryview(_LENGTH.pack(len(payload)) + payload)
    done = 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], at_bytes + done)
    return len(piece)


def _pieces(content: bytes) -> list[bytes]:
    """All whole pieces: a power cut may have taken the last ones."""
    found, at = [], 0
    while at + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        end = at + _LENGTH.size + length
        if not length or end > len(content):
            break
        found.append(content[at + _LENGTH.size : end])
        at = end
    return found
