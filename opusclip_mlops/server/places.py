"""Databases by their URI: with `opusclip+` before it, and as MLflow itself takes it."""

from __future__ import annotations

import re

PREFIX = "opusclip+"


def stock_uri(uri: str) -> str:
    """The URI as MLflow's own stores take it; PostgreSQL always by psycopg2.

    What a bare `postgresql://` means depends on the version of SQLAlchemy; with psycopg 3 MLflow
    cannot archive the versions in a stage.
    """
    scheme, colon, rest = uri.partition("://")
    if not colon:
        return uri
    plain = scheme.lower().removeprefix(PREFIX)
    return f"{_PSYCOPG2 if plain in _POSTGRES else plain}://{rest}"


_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
_PSYCOPG2 = "postgresql+psycopg2"


def shown_uri(uri: str) -> str:
    """The URI for people: without the password, and without settings that may hold one."""
    before, at, place = uri.rpartition("@")
    if not at or stock_uri(uri).startswith("sqlite:"):
        return uri.partition("?")[0]
    scheme, colon, rest = before.partition("://")
    # Behind a question mark it may be a setting, or a part of the password.
    place = "…" if "?" in before else place.partition("?")[0]
    return f"{scheme}{colon}{re.split('[:/?]', rest)[0]}@{place}"
