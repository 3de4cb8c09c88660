"""Facts about `opusclip_mlops.server.places`: one database, whatever its URI looks like."""

import pytest

from opusclip_mlops.server.places import shown_uri, stock_uri


@pytest.mark.parametrize(
    ("uri", "stock"),
    [
        ("opusclip+sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("OPUSCLIP+SQLite:///Mlflow.db", "sqlite:///Mlflow.db"),
        ("opusclip+postgresql://u:p@h/d", "postgresql+psycopg2://u:p@h/d"),
        ("opusclip+postgresql+psycopg2://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgres://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgresql+psycopg://u@h/d?sslmode=require", "postgresql+psycopg2://u@h/d?sslmode=require"),
        ("mysql://u@h/d", "mysql://u@h/d"),
        ("./mlruns", "./mlruns"),
    ],
)  # fmt: skip
def test_a_uri_is_that_of_mlflows_own_store_and_postgresql_is_reached_by_psycopg2(
    uri: str, stock: str
) -> None:
    assert stock_uri(uri) == stock
    assert stock_uri(stock) == stock


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("opusclip+postgresql://kim:s3@cr/et@h:5/d", "opusclip+postgresql://kim@h:5/d"),
        ("postgresql://h/d?user=kim&password=secret", "postgresql://h/d"),
        ("postgresql://kim:sec?ret@h/d", "postgresql://kim@…"),
        ("postgresql://h/d?user=kim&password=se@cret", "postgresql://h@…"),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        ("opusclip+sqlite:///a/b.db", "opusclip+sqlite:///a/b.db"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown
