"""Facts about `opusclip_mlops.redaction`: what is secret is in no text that is kept."""

import pytest

from opusclip_mlops.redaction import one_line, redacted


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://anna:pa/ss@db/mlflow", "postgresql://anna:***@db/mlflow"),
        ("https://anna:hunter22@mlflow.team/api", "https://anna:***@mlflow.team/api"),
        ("https://gh_t0ken@github.com/team", "https://***@github.com/team"),
        ("GET /x?token=abc123&step=4", "GET /x?token=***&step=4"),
        ("X-Amz-Signature=0ff1ce&X-Amz-Date=2026", "X-Amz-Signature=***&X-Amz-Date=2026"),
        ("password=hunter22 was refused", "password=*** was refused"),
        ("aws_secret_access_key=abcd1234", "aws_secret_access_key=***"),
        ("WANDB_API_KEY=0123abcd", "WANDB_API_KEY=***"),
        ("Authorization: Bearer eyJhbGciOi.x-y_z=", "Authorization: Bearer ***"),
        ("curl --password hunter22 --fast", "curl --password *** --fast"),
        ("--db-password hunter22", "--db-password ***"),
        ("secret: hunter22", "secret: ***"),
    ],
)
def test_what_is_secret_is_replaced(text: str, kept: str) -> None:
    """In URIs, in queries, behind names, flags and headers; all else stays."""
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "the token was refused",
        "a basic model, and its bearer is anna",
        "s3://bucket/secrets/weights.safetensors",
        "models:/clips/7 at http://127.0.0.1:5000/api",
        "monkey=banana",
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    """Words about secrets are none."""
    assert redacted(text) == text


def test_values_of_secret_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand; what is too short to be one stays."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("MY_TOKEN", "abc")
    assert redacted("said correct-horse to abc") == "said *** to abc"


def test_a_line_is_one_line_and_moves_no_cursor() -> None:
    """Newlines and tabs become spaces; escapes, bells and turned writing are left out."""
    assert one_line("a\n\tb \x1b[31mred\x07\x00 \u202egnp.exe") == "a b [31mred gnp.exe"
    assert one_line("по-русски — 日本 ✓") == "по-русски — 日本 ✓"
    assert one_line("x" * 600) == "x" * 500
