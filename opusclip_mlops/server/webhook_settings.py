"""Who is told of decisions: a YAML file that `OPUSCLIP_WEBHOOKS` names, read with line numbers.

    webhooks:
      deploy-bot:                               # its name: small letters, digits, - and _
        url: https://bot.example.com/hooks/mlflow
        secret_file: /run/secrets/deploy-bot    # or secret_env: a variable of the server
        kinds: [promotion, rollback]            # all kinds when left out
        models: [clip-generator]                # all models when left out
        give_up_after_s: 86400                  # a day when left out
      chat:
        url_file: /run/secrets/chat-url         # where the address itself is a secret
        format: slack                           # a line of text; standard when left out

A secret file holds one secret to a line; with two of them each message is signed twice, while one
is being replaced by the other. A secret is `whsec_` and base64, or any text of 16 characters or
more. A message that nobody could check is not sent: `format: slack` alone does without a secret.

Addresses are https and public. `allow_http: true` and `allow_private: true` let others through, for
a receiver inside one's own network. A name is what a webhook is known by: another name begins anew,
with the decisions made from then on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from opusclip_mlops.decisions import Decision, Kind
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.webhooks import DAY_S, Receiver, Secret, fault_of_url, kept_in
from opusclip_mlops.written import PolicyError, Written, read_yaml

SETTING = "OPUSCLIP_WEBHOOKS"
"""The variable that holds the path of the file."""

_LONGEST_GIVE_UP_S = 30 * DAY_S
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_KINDS: tuple[str, ...] = get_args(Kind)
_KEYS = (
    "url", "url_file", "secret_file", "secret_env", "kinds", "models", "format", "give_up_after_s",
    "allow_http", "allow_private",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Webhook(Receiver):
    """Somebody who is told of decisions, known by its name from one start to the next.

    Attributes:
        kinds: The kinds of decisions that are told, empty for all.
        models: The registered models whose decisions are told, empty for all.
    """

    kinds: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()

    def wants(self, decision: Decision) -> bool:
        """Whether it is told of a decision."""
        is_kind = not self.kinds or decision.kind in self.kinds
        return is_kind and (not self.models or decision.model in self.models)


def configured_webhooks(environ: Mapping[str, str] | None = None) -> tuple[Webhook, ...]:
    """The webhooks of the file that `OPUSCLIP_WEBHOOKS` names, none where it is not set.

    Raises:
        ConfigError: As `read_webhooks`, or there is no such file.
    """
    path = (os.environ if environ is None else environ).get(SETTING, "").strip()
    if not path:
        return ()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(one_line(f"{SETTING}: {path} cannot be read ({reason})")) from error
    return read_webhooks(text, source=path)


def read_webhooks(text: str, *, source: str) -> tuple[Webhook, ...]:
    """Read the settings; the secrets they name are read too, and found to be ones.

    Args:
        text: The file, of 64 KiB at most.
        source: Its path; paths in it are taken from its folder.

    Raises:
        ConfigError: Anything that is not understood; the message begins with `source:line:`.
    """
    try:
        given = read_yaml(text, source=source).entries(("webhooks",))
        if "webhooks" not in given:
            raise ConfigError(one_line(f"{source}:1: it has no webhooks: name one with its url"))
        folder = Path(source).parent
        return tuple(_webhook(name, one, folder) for name, one in _named(given["webhooks"]))
    except PolicyError as error:
        raise ConfigError(str(error)) from error


def _named(given: Written) -> list[tuple[str, Written]]:
    found = list(given.entries().items())
    for name, one in found:
        if not _NAME.fullmatch(name):
            raise one.error("a name is small letters, digits, - and _, 40 at most")
    return found


def _webhook(name: str, given: Written, folder: Path) -> Webhook:
    known = given.entries(_KEYS)
    style = known["format"].one_of("standard", "slack") if "format" in known else "standard"
    return Webhook(
        name=name,
        url=_url(given, known, folder),
        secret=_secret(given, known, folder, is_needed=style == "standard"),
        kinds=_kinds(known["kinds"]) if "kinds" in known else frozenset(),
        models=_texts(known["models"]) if "models" in known else frozenset(),
        format=style,
        give_up_after_s=known["give_up_after_s"].whole(1, _LONGEST_GIVE_UP_S)
        if "give_up_after_s" in known
        else DAY_S,
        allow_private=_is_true(known, "allow_private"),
    )


def _url(given: Written, known: Mapping[str, Written], folder: Path) -> str:
    said = _only_one(given, known, "url", "url_file")
    if said is None:
        raise given.error("it needs a url, or a url_file")
    url = said.text() if "url" in known else _read(said, folder).strip()
    if fault := fault_of_url(url, allow_http=_is_true(known, "allow_http")):
        raise said.error(fault)
    return url


def _secret(
    given: Written, known: Mapping[str, Written], folder: Path, *, is_needed: bool
) -> Secret:
    said = _only_one(given, known, "secret_file", "secret_env")
    if said is None and is_needed:
        raise given.error("it needs a secret_file, or a secret_env: a message is signed")
    if said is None:
        return Secret()
    is_file = "secret_file" in known
    found = Secret(path=str(folder / said.text())) if is_file else Secret(variable=said.text())
    try:
        found.signing_keys()
    except ConfigError as error:
        raise said.error(str(error)) from error
    return found


def _only_one(given: Written, known: Mapping[str, Written], one: str, other: str) -> Written | None:
    if one in known and other in known:
        raise given.error(f"{one} and {other} exclude each other")
    return known.get(one) or known.get(other)


def _kinds(given: Written) -> frozenset[str]:
    return frozenset(one.one_of(*_KINDS) for one in given.items())


def _texts(given: Written) -> frozenset[str]:
    return frozenset(one.text() for one in given.items())


def _is_true(known: Mapping[str, Written], key: str) -> bool:
    return key in known and known[key].truth()


def _read(given: Written, folder: Path) -> str:
    try:
        return kept_in(str(folder / given.text()))
    except ConfigError as error:
        raise given.error(str(error)) from error
