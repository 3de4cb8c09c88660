"""Where things of ours lie in an MLflow run: its tags and the names of its files, there and back.

    media/video/<key>/step_<step>-<mark>.mp4                     a clip
    images/<key>+step+<step>+timestamp+<ms>+<mark>.png           its still, for MLflow's image grid
    images/<key>+step+<step>+timestamp+<ms>+<mark>+compressed.webp   the clip moving there
    text/<key>/step_<step>-<ms>-<digest>.txt                     a text
    checkpoints/<name>/                                          a checkpoint

In folders a key is exact: `:` is written `~`, and a part too long for a file system goes on in the
folder inside, after a `+`. Under `images/` names are MLflow's own, and a key is what they can hold.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

LOCAL_ID_TAG = "opusclip.local_id"
MIRROR_ID_TAG = "opusclip.mirror_id"
MIRROR_OF_TAG = "opusclip.mirror_of"
MIRRORS_TAG = "opusclip.mirrors"
BEST_TAG = "opusclip.checkpoint.best"
LAST_TAG = "opusclip.checkpoint.last"
REASON_TAG = "opusclip.end_reason"

CLIPS, TEXTS, IMAGES, CHECKPOINTS = "media/video", "text", "images", "checkpoints"

_PART_BYTES = 200
_IMAGE_KEY_CHARACTERS = 160
_CLIP = re.compile(rf"{CLIPS}/(.+)/step_(-?\d+)-([^/]{{1,8}})\.mp4")
_TEXT = re.compile(rf"{TEXTS}/(.+)/step_(-?\d+)-(\d+)-([0-9a-f]{{12}})\.txt")
# MLflow has written `%` for `+`, and `#` for `~`, in earlier versions.
_IMAGE = re.compile(
    rf"{IMAGES}/([^/]+?)([+%])step\2(-?\d+)\2timestamp\2(\d+)\2([^/+%]+)"
    r"(\.png|\.webp|[+%]compressed\.webp)"
)


@dataclass(frozen=True)
class Named:
    """What the name of a file says; `mark` tells files of one key, step and time apart."""

    key: str
    step: int
    timestamp_ms: int
    mark: str


def folder_of_key(key: str) -> str:
    """A key as folders, from which `key_of_folder` gets it back."""
    parts = key.replace(":", "~").split("/")
    return "/".join("+/".join(_pieces(part)) for part in parts)


def key_of_folder(folder: str) -> str:
    """The key whose folders these are."""
    return folder.replace("+/", "").replace("~", ":")


def clip_folder(key: str) -> str:
    """Where the clips of a key lie."""
    return f"{CLIPS}/{folder_of_key(key)}"


def clip_of(path: str) -> Named | None:
    """What the name of one of our clips says, but its time; None for any other file."""
    found = _CLIP.fullmatch(path)
    return Named(key_of_folder(found[1]), int(found[2]), 0, found[3]) if found else None


def image_stem(key: str, step: int, timestamp_ms: int, mark: str) -> str:
    """The name that MLflow's image grid finds a picture by, without its ending."""
    plain = "~".join(re.sub(r"[^a-zA-Z0-9_\-. ]", "_", part) for part in key.split("/"))
    if len(plain) > _IMAGE_KEY_CHARACTERS:
        plain = f"{plain[:_IMAGE_KEY_CHARACTERS]}_{_digest(key)[:8]}"
    return f"{plain}+step+{step}+timestamp+{timestamp_ms}+{mark}"


def image_of(path: str) -> Named | None:
    """What the name of a picture in MLflow's image grid says, None for any other file."""
    found = _IMAGE.fullmatch(path)
    if not found:
        return None
    key = found[1].replace("~", "/").replace("#", "/")
    return Named(key, int(found[3]), int(found[4]), found[5])


def text_path(key: str, step: int, timestamp_ms: int, text: str) -> str:
    """Where a text lies: its own name for each, the same each time it is sent."""
    digest = _digest(f"{key}\0{text}")[:12]
    return f"{TEXTS}/{folder_of_key(key)}/step_{step:08d}-{timestamp_ms}-{digest}.txt"


def text_of(path: str) -> Named | None:
    """What the name of one of our texts says, None for any other file."""
    found = _TEXT.fullmatch(path)
    if not found:
        return None
    return Named(key_of_folder(found[1]), int(found[2]), int(found[3]), found[4])


def _pieces(part: str) -> Iterator[str]:
    piece = ""
    for character in part:
        if len((piece + character).encode()) > _PART_BYTES:
            yield piece
            piece = ""
        piece += character
    yield piece


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
