"""Where things of ours lie in an MLflow run: its tags and the names of its files, there and back.

    media/video/<key>/step_<step>-<mark>.mp4 or .webm            a clip
    images/<key>+step+<step>+timestamp+<ms>+<mark>.png           its still, for MLflow's image grid
    images/<key>+step+<step>+timestamp+<ms>+<mark>+compressed.webp   the clip moving there
    media/image/<key>/step_<step>-<ms>-<mark>.png                one whose key images/ can't hold
    text/<key>/step_<step>-<ms>-<digest>.txt                     a text
    tables/<key>/step_<step>-<ms>-<digest>.json                  a table
    insights/<kind>/<key>/step_<step>-<ms>-<digest>.json         what a model looks like at a step
    insights/<kind>/<key>/step_<step>-<ms>-<digest>/<name>       a file of it
    panels/<panel>-<digest>/step_<step>-<ms>-<mark>.json         the samples of a panel at a step
    panels/<panel>-<digest>.html                                 all of them on one page
    datasets/<name>-<digest>-<mark>.json                         the films a dataset is made of
    origins/step_<step>-<mark>.json                              where a clip comes from
    checkpoints/<name>/                                          a checkpoint
    crash/<session>/                                             how a process died
    reports/<name>.html and .md                                  a report of the run, or of several
    opusclip/ranks/<machine>/<block>/<number>-<crc32>.bin        what ranks log on other machines
    opusclip/ranks/<machine>/alive.bin                           that a machine lives

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
LOGGED_IMAGES_TAG = "mlflow.loggedImages"
"""The tag by which MLflow's image grid knows that a run has pictures."""

CLIPS, TEXTS, IMAGES, CHECKPOINTS = "media/video", "text", "images", "checkpoints"
PANELS = "panels"
PICTURES, TABLES, INSIGHTS = "media/image", "tables", "insights"
DATASETS, ORIGINS = "datasets", "origins"
CRASHES = "crash"
REPORTS = "reports"
RANKS = "opusclip/ranks"

_PART_BYTES = 200
_IMAGE_KEY_CHARACTERS = 160
_PLAIN_CHARACTERS = 60
_MARK_DIGITS = 12
_MOST = 2**63 - 1
_ACCOUNT_DIGITS = 8
_CLIP = re.compile(rf"{CLIPS}/(.+)/step_(-?\d{{1,19}})-([^/]{{1,8}})\.(?:mp4|webm)")
_TEXT = re.compile(rf"{TEXTS}/(.+)/step_(-?\d{{1,19}})-(\d{{1,19}})-([0-9a-f]{{12}})\.txt")
_PICTURE = re.compile(rf"{PICTURES}/(.+)/step_(-?\d{{1,19}})-(\d{{1,19}})-([0-9a-f]{{12}})\.png")
_TABLE = re.compile(rf"{TABLES}/(.+)/step_(-?\d{{1,19}})-(\d{{1,19}})-([0-9a-f]{{12}})\.json")
_INSIGHT = re.compile(
    rf"{INSIGHTS}/([^/]+)/(.+)/step_(-?\d{{1,19}})-(\d{{1,19}})-([0-9a-f]{{12}})\.json"
)
_SAMPLES = re.compile(
    rf"{PANELS}/([^/]+)/step_(-?\d{{1,19}})-(\d{{1,19}})(?:-([0-9a-f]{{8}}))?\.json"
)
_SOURCES = re.compile(rf"{DATASETS}/[A-Za-z0-9_\-]+-[0-9a-f]{{12}}\.json")
_ORIGIN = re.compile(rf"{ORIGINS}/step_(-?\d{{1,19}})-([^/]{{1,8}})\.json")
# MLflow has written `%` for `+`, and `#` for `~`, in earlier versions.
_IMAGE = re.compile(
    rf"{IMAGES}/([^/]+?)([+%])step\2(-?\d{{1,19}})\2timestamp\2(\d{{1,19}})\2([^/+%]+)"
    r"(\.png|\.webp|[+%]compressed\.webp)"
)


@dataclass(frozen=True)
class Named:
    """What the name of a file says; `mark` tells files of one key, step and time apart.

    `kind` is that of an insight, empty for all else.
    """

    key: str
    step: int
    timestamp_ms: int
    mark: str
    kind: str = ""


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
    return _named(key_of_folder(found[1]), found[2], "0", found[3]) if found else None


def image_stem(key: str, step: int, timestamp_ms: int, mark: str) -> str:
    """The name that MLflow's image grid finds a picture by, without its ending.

    Of a key that the grid can't hold it ends with a digest: two such keys are never shown as one.
    """
    plain = "~".join(re.sub(r"[^a-zA-Z0-9_\-. ]", "_", part) for part in key.split("/"))
    if len(plain) > _IMAGE_KEY_CHARACTERS or plain != key.replace("/", "~"):
        plain = f"{plain[:_IMAGE_KEY_CHARACTERS]}_{_digest(key)[:8]}"
    return f"{plain}+step+{step}+timestamp+{timestamp_ms}+{mark}"


def image_of(path: str) -> Named | None:
    """What the name of a picture in MLflow's image grid says, None for any other file."""
    found = _IMAGE.fullmatch(path)
    if not found:
        return None
    key = found[1].replace("~", "/").replace("#", "/")
    return _named(key, found[3], found[4], found[5])


def picture_path(key: str, step: int, timestamp_ms: int, mark: str) -> str:
    """Where a picture lies whose key the image grid can't hold; its mark is that of its name there.

    Empty where the grid holds the key as it is: then the picture lies there only.
    """
    shown = image_of(f"{IMAGES}/{image_stem(key, step, timestamp_ms, mark)}.png")
    if shown is not None and shown.key == key:
        return ""
    return f"{PICTURES}/{folder_of_key(key)}/step_{step:08d}-{timestamp_ms}-{mark}.png"


def picture_of(path: str) -> Named | None:
    """What the name of such a picture says, None for any other file."""
    found = _PICTURE.fullmatch(path)
    return _named(key_of_folder(found[1]), *found.groups()[1:]) if found else None


def text_path(key: str, step: int, timestamp_ms: int, text: str) -> str:
    """Where a text lies: its own name for each, the same each time it is sent."""
    digest = _digest(f"{key}\0{text}")[:12]
    return f"{TEXTS}/{folder_of_key(key)}/step_{step:08d}-{timestamp_ms}-{digest}.txt"


def text_of(path: str) -> Named | None:
    """What the name of one of our texts says, None for any other file."""
    found = _TEXT.fullmatch(path)
    return _named(key_of_folder(found[1]), *found.groups()[1:]) if found else None


def table_path(key: str, step: int, timestamp_ms: int, digest: str) -> str:
    """Where a table lies: its own name for each content, the same each time it is sent."""
    name = f"step_{step:08d}-{timestamp_ms}-{digest[:_MARK_DIGITS]}.json"
    return f"{TABLES}/{folder_of_key(key)}/{name}"


def table_of(path: str) -> Named | None:
    """What the name of one of our tables says, None for any other file."""
    found = _TABLE.fullmatch(path)
    return _named(key_of_folder(found[1]), *found.groups()[1:]) if found else None


def insight_path(kind: str, key: str, step: int, timestamp_ms: int, digest: str) -> str:
    """Where an insight lies; its files are in the folder of this name without `.json`."""
    name = f"step_{step:08d}-{timestamp_ms}-{digest[:_MARK_DIGITS]}.json"
    return f"{INSIGHTS}/{kind}/{folder_of_key(key)}/{name}"


def insight_of(path: str) -> Named | None:
    """What the name of an insight says, None for any other file."""
    found = _INSIGHT.fullmatch(path)
    if not found:
        return None
    return _named(key_of_folder(found[2]), *found.groups()[2:], kind=found[1])


def samples_path(title: str, step: int, timestamp_ms: int, content: str = "") -> str:
    """Where the account of a panel's samples at a step lies; what is in it tells two apart."""
    mark = _digest(content)[:_ACCOUNT_DIGITS]
    return f"{PANELS}/{title}/step_{step:08d}-{timestamp_ms}-{mark}.json"


def samples_of(path: str) -> Named | None:
    """What the name of such an account says, its key the panel's title; None for any other file."""
    found = _SAMPLES.fullmatch(path)
    return _named(found[1], found[2], found[3], found[4] or "") if found else None


def wall_path(title: str) -> str:
    """Where the page lies that shows all samples of a panel."""
    return f"{PANELS}/{title}.html"


def sources_path(name: str, digest: str, sha256: str) -> str:
    """Where the list lies of the films that a dataset is made of; the last is the list's hash."""
    plain = (re.sub(r"[^A-Za-z0-9_\-]+", "-", part)[:_PLAIN_CHARACTERS] for part in (name, digest))
    return f"{DATASETS}/{'-'.join(plain)}-{sha256[:_MARK_DIGITS]}.json"


def is_sources(path: str) -> bool:
    """Whether such a list lies there."""
    return bool(_SOURCES.fullmatch(path))


def is_relayed(path: str) -> bool:
    """Whether machines of a run tell one another by it what ranks log, and that they live."""
    return path.startswith(f"{RANKS}/") and path.endswith(".bin")


def origin_path(step: int, mark: str) -> str:
    """Where it is written where a clip comes from; the mark is that of the clip's own name."""
    return f"{ORIGINS}/step_{step:08d}-{mark}.json"


def origin_of(path: str) -> Named | None:
    """What the name of such a file says, but key and time; None for any other file."""
    found = _ORIGIN.fullmatch(path)
    return _named("", found[1], "0", found[2]) if found else None


def _named(key: str, step: str, timestamp_ms: str, mark: str, *, kind: str = "") -> Named | None:
    """What a name says; None for numbers beyond 64 bits, which no name of ours has."""
    numbers = int(step), int(timestamp_ms)
    is_ours = all(-_MOST - 1 <= number <= _MOST for number in numbers)
    return Named(key, *numbers, mark, kind) if is_ours else None


def crash_folder(session: str) -> str:
    """Where it is reported how a process died."""
    return f"{CRASHES}/{folder_of_key(session.replace('/', '_'))}"


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
