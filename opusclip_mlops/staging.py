"""Clips kept in a run's folder as they were given: the training thread pays for one write.

An array is kept as the npy file of its own numbers, with a line of JSON after it that says what
they mean; turning them into pictures is left to the shipper.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import tokenize
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    import numpy as np

    from opusclip_mlops.pixels import Array, Range, RgbPictures

_MOST_NOTE_BYTES = 4096
_COPY_BYTES = 1 << 20
_SEEN_BYTES = 512
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
_MOVES = b"acTL"  # a PNG that is an animation
_TEXT = bytes([*range(32, 127), *b"\t\n\r"])
_counter = itertools.count()


def stage(folder: RunFolder, video: Any, *, value_range: tuple[float, float]) -> str:
    """Keep a clip as it is at this moment in the run's folder; returns its file name there.

    An array or tensor is kept with its own numbers, frames of a list or an iterator are written
    one by one, and of a path's file there is a copy. A clip that looks wrong, though its values
    lie in their range, is kept with a warning.

    Raises:
        VideoError: not a clip, values outside their range, or no such file.
        OSError: it can't be written.
    """
    if isinstance(video, str | os.PathLike):
        return _stage_file(folder, Path(video))
    from opusclip_mlops.pixels import frames_of

    frames = frames_of(video)
    path = folder.media / f"{_new_stem()}.npy"
    if frames is None:
        found = _stage_array(path, video, value_range)
    else:
        found = _stage_frames(path, frames, value_range)
    if found:
        warnings.warn(f"a clip {found}", stacklevel=3)
    return path.name


@dataclass(frozen=True, eq=False)
class Staged:
    """A clip as it was staged from an array.

    Attributes:
        pictures: its pictures as RGB bytes, each read from the file when asked for.
        remark: what looked wrong with it, "" for nothing.
    """

    pictures: "RgbPictures"
    remark: str


def open_staged(path: Path) -> Staged:
    """The clip in a file that `stage` made of an array; little of it is held in memory.

    Raises:
        VideoError: the file is damaged.
        OSError: it is there, and can't be read now.
    """
    import numpy as np

    from opusclip_mlops.pixels import RgbPictures

    try:
        numbers = np.lib.format.open_memmap(path, mode="r")
        assert isinstance(numbers, np.memmap)
        note = _note_after(path, numbers.offset + numbers.nbytes)
        array = numbers.transpose(note["axes"]) if note["axes"] else numbers
        return Staged(RgbPictures(array, _ends_in(note)), one_line(str(note["remark"])))
    except FileNotFoundError as error:
        raise VideoError(f"staged clip {path.name} cannot be read: {error.strerror}") from None
    except (ArithmeticError, EOFError, LookupError, MemoryError, TypeError, ValueError,
            RecursionError, SyntaxError, tokenize.TokenError) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise VideoError(f"staged clip {path.name} cannot be read: {reason}") from None


def _note_after(path: Path, offset: int) -> dict[str, Any]:
    """What stands after the numbers; nothing did in files of version 0.1."""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(_MOST_NOTE_BYTES)
    return {"axes": None, "value_range": (0.0, 1.0), "remark": "", **json.loads(text or b"{}")}


def _ends_in(note: dict[str, Any]) -> "Range":
    black, white = (float(end) for end in note["value_range"])
    if not -math.inf < black < white < math.inf:
        raise ValueError(f"its range is {black} to {white}")
    return black, white


def _stage_array(path: Path, video: Any, value_range: "Range") -> str:
    from opusclip_mlops.pixels import as_array, check_values, doubt

    array = as_array(video)
    found = doubt(check_values(array, value_range), array.dtype, value_range)
    stored, axes = _as_in_memory(array)
    with _whole(path) as file:
        _write(file, _header(stored.dtype, stored.shape))
        for part in [stored] if stored.flags.c_contiguous else stored:
            _write_numbers(file, part)
        _write(file, _note(axes, value_range, found))
    return found


def _as_in_memory(array: "Array") -> tuple["Array", list[int] | None]:
    """The array with its axes as they lie in memory, and how to transpose it back."""
    if array.flags.c_contiguous:
        return array, None
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    return array.transpose(order), [order.index(axis) for axis in range(array.ndim)]


def _stage_frames(path: Path, frames: Iterator[Any], value_range: "Range") -> str:
    """Frames one by one under a header that is written again when their number is known."""
    from opusclip_mlops.pixels import doubt

    with _whole(path) as file:
        written = _Written(file, value_range)
        for frame in frames:
            written.add(frame)
        header = written.end()
        found = doubt((written.low, written.high), written.dtype, value_range)
        _write(file, _note(None, value_range, found))
        file.seek(0)
        _write(file, header)
    return found


@dataclass(eq=False)
class _Written:
    """Frames on their way into a file; the first one says what they are like."""

    file: FileIO
    value_range: "Range"
    count: int = 0
    shape: tuple[int, ...] = ()
    dtype: Any = None
    low: float = math.inf
    high: float = -math.inf

    def add(self, video: Any) -> None:
        from opusclip_mlops.pixels import as_array, check_shape, check_values

        frame = as_array(video)
        if self.count == 0:
            self.shape, self.dtype = frame.shape, frame.dtype
            _write(self.file, _header(self.dtype, (0, *self.shape)))
        check_shape(frame, self.shape, self.count)
        low, high = check_values(frame[None], self.value_range)
        self.low, self.high = min(self.low, low), max(self.high, high)
        _write_numbers(self.file, _as_type(frame, self.dtype, self.count))
        self.count += 1

    def end(self) -> bytes:
        """The header, once there are all frames: what they are may depend on their number."""
        import numpy as np

        from opusclip_mlops.pixels import colours, no_frames

        if self.count == 0:
            raise no_frames()
        shape = (self.count, *self.shape)
        colours(np.broadcast_to(np.zeros((), self.dtype), shape))
        return _header(self.dtype, shape)


def _as_type(frame: "Array", dtype: "np.dtype[Any]", index: int) -> "Array":
    try:
        return frame.astype(dtype, casting="same_kind", copy=False)
    except TypeError:
        raise VideoError(
            f"the frames differ in type, {dtype} and, at frame {index}, {frame.dtype}: "
            "bring them to one type first"
        ) from None


@functools.lru_cache(maxsize=64)
def _header(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    """The start of an npy file; of one length whatever the first number of the shape is."""
    from numpy.lib import format as npy

    file = BytesIO()
    npy.write_array_header_1_0(
        file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _note(axes: list[int] | None, value_range: "Range", remark: str) -> bytes:
    black, white = value_range
    content = {"axes": axes, "value_range": (float(black), float(white)), "remark": remark}
    return json.dumps(content).encode()


def _write_numbers(file: FileIO, numbers: "Array") -> None:
    import numpy as np

    _write(file, np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)


def _write(file: FileIO, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _stage_file(folder: RunFolder, path: Path) -> str:
    name = f"{_new_stem()}{path.suffix.lower()}"
    try:
        _check_file(path)
        with _whole(folder.media / name) as file, path.open("rb") as original:
            while part := original.read(_COPY_BYTES):
                _write(file, part)
    except PermissionError as error:
        raise VideoError(f"video file {path} cannot be read: {error.strerror}") from None
    return name


def _check_file(path: Path) -> None:
    """What can be seen at once is said at once; the rest is for the shipper, who decodes."""
    if not path.is_file():
        raise VideoError(f"no such video file: {path}")
    with path.open("rb") as file:
        start = file.read(_SEEN_BYTES)
    if not start:
        raise VideoError(f"video file {path} is empty: was it written to its end?")
    if start.startswith(_PICTURES) and _MOVES not in start:
        raise VideoError(f"video file {path} is a picture: open it and pass [picture]")
    if start.translate(None, _TEXT) == b"" and not start.startswith(b"YUV4MPEG2"):
        raise VideoError(f"video file {path} holds text: pass a video file")


def _new_stem() -> str:
    return f"{os.getpid()}-{next(_counter):06d}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[FileIO]:
    """A file to write to; it appears under its name when it is whole, and only then."""
    temporary = path.with_name(f".{path.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with FileIO(temporary, "wb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
