"""Takes credentials out of texts that are kept: faults, reasons, logs."""

import os
import re
from collections.abc import Iterable

_IN_WEB_URI = re.compile(r"(?i)(https?://[^/@\s:'\"]*):[^/\s]+@")
_TOKEN_IN_WEB_URI = re.compile(r"(?i)(https?://)[^/@\s:'\"]+@")
# A database's password may hold a slash.
_IN_URI = re.compile(r"(?i)(?<![\w+])((?!https?:)[a-z][\w+.\-]{0,40}://[^/@\s:'\"]*):[^\s'\"]+@")
_SECRET = r"password|passwd|token|secret(?:[_-]?access)?(?:[_-]?key)?|api[_-]?key"
_NAMED = re.compile(
    rf"(?i)(?<![a-z])((?:{_SECRET}|sig|x-amz-signature|x-amz-credential)=)[^&\s'\"]+"
)
_SAID = re.compile(
    rf"(?i)((?:--(?:[\w\-]{{0,64}}-)?(?:{_SECRET})|(?<![a-z])(?:{_SECRET}):)\s+)[^\s'\"]+"
)
_IN_HEADER = re.compile(r"(?i)\b((?:Bearer|Basic)\s+)[\w.~+/\-]{6,}=*")
_AUTHORIZATION = re.compile(
    r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:[a-z]+\s+)?)[^\s'\",*][^\s'\",]*"
)
_QUOTED = re.compile(rf"(?i)((?<![a-z])(?:{_SECRET})['\"]?\s*[:=]\s*[rbu]?['\"])[^'\"]+")
_SPACED = re.compile(
    r"(?i)((?<![a-z])(?:passwo?r?d|secret(?:[_-]?access)?(?:[_-]?key)?|api[_-]?key)"
    r"\s+=\s*)[^\s'\"]+"
)
# What a key of AWS, W&B, Hugging Face, GitHub, GitLab, Slack and others looks like by itself.
_KEY = re.compile(
    r"(?<![\w\-])(?:(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])|local-[0-9a-f]{40}"
    r"|(?:hf_|gh[opsur]_|github_pat_|glpat-|wandb_v\d_|xox[abprs]-|sk-)[\w\-]{16,})"
)
_LOGIN = re.compile(r"(?i)(\bwandb\s+login\s+(?:--\S+\s+)*)[\w\-]{20,}")
_SUSPECT = (
    "://", "passw", "token", "secret", "api_key", "api-key", "apikey", "sig=", "x-amz", "bearer",
    "basic", "authorization", "akia", "asia", "local-", "hf_", "gho_", "ghp_", "ghs_", "ghu_",
    "ghr_", "github_pat_", "glpat-", "wandb", "xox", "sk-",
)  # fmt: skip
_SECRET_NAME = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)")
_SHORTEST_SECRET = 6
_LINE_CHARACTERS = 4000
# A terminal's sequences; control characters but the tab; what turns the direction of writing.
_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def redacted(text: str, *, values: Iterable[str] | None = None) -> str:
    """The text with `***` for what is secret: in URIs, behind a name that says so, in variables.

    `values` are secret wherever they stand: those of this process's environment when None.
    """
    text = _IN_URI.sub(r"\1:***@", text)
    text = _IN_WEB_URI.sub(r"\1:***@", text)
    text = _TOKEN_IN_WEB_URI.sub(r"\1***@", text)
    for named in (_NAMED, _QUOTED, _SPACED, _SAID, _AUTHORIZATION, _IN_HEADER, _LOGIN):
        text = named.sub(r"\1***", text)
    text = _KEY.sub("***", text)
    for value in secrets_here() if values is None else values:
        text = text.replace(value, "***")
    return text


def secrets_here() -> tuple[str, ...]:
    """The values of this process's environment whose names say that they are secret."""
    return tuple(os.environ[name] for name in secret_names_here())


def secret_names_here() -> tuple[str, ...]:
    """The names of this process's variables that say that they are secret."""
    return tuple(
        name
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)
    )


def readable(text: str) -> str:
    """Many lines without credentials, nor what would move a terminal's cursor or colour it.

    Of a line longer than 4,000 characters the beginning is kept: what looks for credentials takes
    long for a very long one.
    """
    values = secrets_here()
    lines = (_CONTROL.sub("", line[:_LINE_CHARACTERS]) for line in text.splitlines())
    return "".join(f"{_cleaned(line, values)}\n" for line in lines)


def _cleaned(line: str, values: tuple[str, ...]) -> str:
    is_plain = not may_be_secret(line) and not any(value in line for value in values)
    return line if is_plain else redacted(line, values=values)


def may_be_secret(text: str) -> bool:
    """Whether a text may hold what is secret, values of the environment aside; never wrongly no.

    It costs a fraction of `redacted`.
    """
    lower = text.lower()
    for word in _SUSPECT:  # noqa: SIM110 - it is called for every line of a log
        if word in lower:
            return True
    return False


def one_line(text: str, *, at_most: int = 500) -> str:
    """The text on one line, without credentials, cut to `at_most` characters.

    What would move a terminal's cursor, or turn its writing round, is left out.
    """
    words = " ".join(redacted(_beginning(text, 8 * at_most)).split())
    return "".join(one for one in words if one.isprintable())[:at_most]


def _beginning(text: str, at_most: int) -> str:
    """The first words of a long text: half a secret would not be known for one."""
    words = " ".join(text.split())
    if len(words) <= at_most:
        return words
    return words[:at_most].rpartition(" ")[0] or words[:at_most]
