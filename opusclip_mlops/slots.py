"""A file that is written over in place: a full disk has room, a checksum tells a torn one."""

import errno
import os
import struct
import zlib
from pathlib import Path

_HEADER = struct.Struct("<II")


def write_slot(path: Path, content: bytes) -> None:
    """Write a content over the one before it.

    Raises:
        OSError: it is longer than all before it, and the disk is full.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        frame = _HEADER.pack(len(content), zlib.crc32(content)) + content
        if os.pwrite(descriptor, frame, 0) < len(frame):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_slot(path: Path) -> bytes | None:
    """The content that was written last; None where there is none, or a torn one."""
    try:
        frame = path.read_bytes()
        size_bytes, checksum = _HEADER.unpack_from(frame)
    except (FileNotFoundError, NotADirectoryError, struct.error):
        return None
    content = frame[_HEADER.size : _HEADER.size + size_bytes]
    return content if len(content) == size_bytes and zlib.crc32(content) == checksum else None
