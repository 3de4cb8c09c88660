"""Where a sample comes from: the model that made it, what it was asked for, and source material."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from opusclip_mlops.errors import DataError, RecordError
from opusclip_mlops.redaction import one_line, redacted

MOST_BYTES = 64 * 2**10
"""The longest account of a sample, as JSON: it is kept in the clip's own file."""

# Most paths hold none of these, and a list of films is long.
_MAY_HOLD_SECRETS = re.compile(r"://.*[@?=&]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClip:
    """A piece of a film, by timecodes.

    Attributes:
        uri: The film's path or URI; credentials in it are not kept.
        sha256: Of the film's file, 64 hexadecimal digits; "" where it is not known.
        start_s: Where the piece begins, in seconds from the film's first frame, 0 or more.
        end_s: Where it ends, None for the film's end.
        use: What it was taken for, such as "training" or "held out".
    """

    uri: str
    sha256: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    use: str = ""

    def __post_init__(self) -> None:
        if not self.uri.strip():
            raise RecordError("a source clip needs the uri of its film")
        if _MAY_HOLD_SECRETS.search(self.uri):
            object.__setattr__(self, "uri", redacted(self.uri))
        object.__setattr__(self, "sha256", self.sha256.lower())
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise RecordError(f"sha256 of {self.uri} is not 64 hexadecimal digits")
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", None if self.end_s is None else float(self.end_s))
        last_s = sys.float_info.max if self.end_s is None else self.end_s
        if not 0 <= self.start_s < last_s <= sys.float_info.max:
            raise RecordError(
                f"source clip of {self.uri} runs from {self.start_s} s to {self.end_s} s: "
                "give seconds, the start before the end"
            )

    @classmethod
    def of_file(
        cls,
        path: str | os.PathLike[str],
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        use: str = "",
    ) -> Self:
        """A piece of a film on this machine, with the hash of its file.

        Raises:
            DataError: The file cannot be read.
        """
        uri = os.path.realpath(path)
        return cls(uri=uri, sha256=sha256_of(uri), start_s=start_s, end_s=end_s, use=use)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is not said."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in content.items() if value not in ("", None)}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Read what `to_dict` gave.

        Raises:
            RecordError: It is no source clip.
        """
        try:
            return msgspec.convert(content, cls)
        except (msgspec.ValidationError, TypeError) as error:
            raise RecordError(f"this is no source clip: {one_line(str(error))}") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(str(error))}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made a sample, and of what.

    Attributes:
        prompt: The text it was asked for with.
        seed: Of the random numbers, None where there is none.
        sampler: The sampler's settings, JSON values: steps, guidance, schedule …
        checkpoint: Name of the checkpoint, as `save_checkpoint` returned it.
        weights_sha256: Of that checkpoint's weights; of a checkpoint of the same run it is found
            out on the way.
        sources: The films it was cut from or conditioned on.
    """

    prompt: str = ""
    seed: int | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    weights_sha256: str = ""
    sources: tuple[SourceClip, ...] = ()

    def __post_init__(self) -> None:
        if self.weights_sha256 and not _SHA256.fullmatch(self.weights_sha256):
            raise RecordError("weights_sha256 is not 64 hexadecimal digits")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is not said.

        Raises:
            RecordError: The sampler's settings are no JSON, or all is more than 64 KiB.
        """
        content: dict[str, Any] = {
            "prompt": self.prompt,
            "seed": self.seed,
            "sampler": dict(self.sampler),
            "checkpoint": self.checkpoint,
            "weights_sha256": self.weights_sha256,
            "sources": [one.to_dict() for one in self.sources],
        }
        said = {key: value for key, value in content.items() if value not in ("", None, {}, [])}
        check_account(said)
        return said


def plain_account(account: Mapping[str, Any]) -> dict[str, Any]:
    """An account as a record keeps it: plain JSON values, with room for the weights' hash.

    Raises:
        RecordError: It holds no JSON values, or none that a record can hold, or is too long.
    """
    check_account({"weights_sha256": "0" * 64, **account})
    plain: dict[str, Any] = json.loads(json.dumps(account))
    try:
        msgspec.msgpack.encode(plain)
    except (OverflowError, UnicodeEncodeError) as error:
        reason = one_line(str(error))
        raise RecordError(f"where a sample comes from cannot be kept: {reason}") from None
    return plain


def check_account(account: Mapping[str, Any]) -> None:
    """Accept JSON values that fit into a clip's file.

    Raises:
        RecordError: They are no JSON values, or more than 64 KiB.
    """
    try:
        text = json.dumps(account, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"where a sample comes from is no JSON: {one_line(str(error))}") from None
    if len(text.encode()) > MOST_BYTES:
        raise RecordError(
            f"where a sample comes from takes {len(text.encode())} bytes: at most {MOST_BYTES}"
        )
