"""Facts about `opusclip_mlops.redaction`: what is secret is in no text that is kept."""

import pytest

from opusclip_mlops.redaction import (
    may_be_secret,
    one_line,
    readable,
    redacted,
    secrets_here,
)


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
        ("Authorization: 0123456789", "Authorization: ***"),
        ("{'Authorization': 'Token abc123'}", "{'Authorization': 'Token ***'}"),
        ("connect(password='hunter22')", "connect(password='***')"),
        ("{'password': 'hunter22', 'fps': 8}", "{'password': '***', 'fps': 8}"),
        ('{"api_key": "abc123def"}', '{"api_key": "***"}'),
        ("aws_secret_access_key = abcd1234", "aws_secret_access_key = ***"),
        ("the id AKIAIOSFODNN7EXAMPLE is unknown", "the id *** is unknown"),
        ("wandb login 0123456789abcdef0123456789abcdef01234567", "wandb login ***"),
        ("local-0123456789abcdef0123456789abcdef01234567 is no key", "*** is no key"),
        ("with hf_abcdefghijklmnopqrst it works", "with *** it works"),
        ("as ghp_abcdefghijklmnopqrst01", "as ***"),
    ],
)
def test_what_is_secret_is_replaced(text: str, kept: str) -> None:
    """In URIs, in queries, behind names, flags and headers; all else stays.

    What is looked at first, because it costs less, is never wrong about it.
    """
    assert redacted(text) == kept
    assert may_be_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "the token was refused",
        "a basic model, and its bearer is anna",
        "s3://bucket/secrets/weights.safetensors",
        "models:/clips/7 at http://127.0.0.1:5000/api",
        "monkey=banana",
        "tokens = tokenizer(captions)",
        "authorization failed",
        "risk-aware-training-of-large-video-models",
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
    assert secrets_here() == ("correct-horse",)
    assert redacted("said correct-horse", values=()) == "said correct-horse"


def test_many_lines_are_made_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials, colours and cursors; a progress bar's states are lines of their own."""
    monkeypatch.setenv("STORE_TOKEN", "correct-horse")
    text = "\x1b[31mred\x1b[0m\tand \u202egnp\n10 %\r20 %\nit is correct-horse\npassword=hunter22"
    assert readable(text) == "red\tand gnp\n10 %\n20 %\nit is ***\npassword=***\n"
    assert readable("x" * 9000) == "x" * 4000 + "\n"
    assert readable("") == ""


def test_a_long_text_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind what is looked at nothing is shown, and half a secret would not be known for one."""
    monkeypatch.setenv("STORE_TOKEN", "correct-horse")
    text = "password=" + "x" * 3985 + " correct-horse end"
    assert one_line(text) == "password=***"
    assert one_line("_-" * 4000 + "token=abc") == ("_-" * 4000)[:500]


@pytest.mark.parametrize(
    "name", ["my_token", "A_" * 200 + "TOKEN", "9-api-key", "x" * 300 + "-secret"]
)
def test_a_name_of_any_length_says_that_it_is_secret(name: str) -> None:
    """What stands before the word that says so stays."""
    assert redacted(f"{name}=hunter22") == f"{name}=***"


def test_a_line_is_one_line_and_moves_no_cursor() -> None:
    """Newlines and tabs become spaces; escapes, bells and turned writing are left out."""
    assert one_line("a\n\tb \x1b[31mred\x07\x00 \u202egnp.exe") == "a b [31mred gnp.exe"
    assert one_line("по-русски — 日本 ✓") == "по-русски — 日本 ✓"
    assert one_line("x" * 600) == "x" * 500
