"""The file that says who is told: read with line numbers, and its secrets from elsewhere."""

from pathlib import Path

import pytest

from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server.webhook_settings import configured_webhooks, read_webhooks
from tests.receivers import SECRET

URL = "https://bot.example.com/hooks/1"
GOOD = f"url: {URL}, secret_file: secret"


@pytest.fixture(autouse=True)
def _secrets(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "url").write_text(f"{URL}\n")
    (tmp_path / "short").write_text("0123456789")
    (tmp_path / "odd").write_text("whsec_no base64")
    (tmp_path / "bytes").write_bytes(b"\xff" * 32)


def of(tmp_path: Path, text: str) -> str:
    """What is wrong with it, without the file's path."""
    source = str(tmp_path / "w.yaml")
    with pytest.raises(ConfigError) as raised:
        read_webhooks(text, source=source)
    return str(raised.value).removeprefix(f"{source}:").replace(f"{tmp_path}/", "")


def test_all_of_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are taken from the file's folder; what is left out has a value."""
    monkeypatch.setenv("CHAT", "a plain secret of some length")
    text = f"""
webhooks:
  deploy-bot: {{{GOOD}}}
  chat_2:
    url_file: url
    secret_env: CHAT
    kinds: [promotion, rollback]
    models: [clip-generator]
    format: slack
    give_up_after_s: 60
    allow_private: true
  plain: {{url: "http://10.0.0.1:8080/x", allow_http: true, format: slack}}
"""
    bot, chat, plain = read_webhooks(text, source=str(tmp_path / "w.yaml"))
    assert (bot.name, bot.url, bot.host, bot.format) == (
        "deploy-bot",
        URL,
        "bot.example.com",
        "standard",
    )
    assert (bot.kinds, bot.models, bot.give_up_after_s) == (frozenset(), frozenset(), 86_400)
    assert not bot.allow_private
    assert [len(key) for key in bot.secret.signing_keys()] == [24]
    assert (chat.url, chat.format, chat.give_up_after_s, chat.allow_private) == (
        URL,
        "slack",
        60,
        True,
    )
    assert chat.secret.signing_keys() == (b"a plain secret of some length",)
    assert (plain.secret.signing_keys(), plain.host) == ((), "10.0.0.1")
    made = Decision(kind="promotion", model="clip-generator", version=1)
    other = Decision(kind="approval", model="clip-generator", version=1)
    assert [one.wants(made) for one in (bot, chat)] == [True, True]
    assert [one.wants(other) for one in (bot, chat)] == [True, False]


def test_a_secret_is_replaced_while_both_hold(tmp_path: Path) -> None:
    """One to a line, read anew each time."""
    (told,) = read_webhooks(f"webhooks: {{bot: {{{GOOD}}}}}", source=str(tmp_path / "w.yaml"))
    (tmp_path / "secret").write_text(f"{SECRET}\n\n another secret text \n")
    assert [len(key) for key in told.secret.signing_keys()] == [24, 19]
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match=r"secret cannot be read \(No such file"):
        told.secret.signing_keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: the file is empty"),
        ("hooks: {}", "1: unknown key 'hooks': known is webhooks"),
        ("webhooks: [a]", "1: webhooks must be a mapping, not a list"),
        ("webhooks:\n  A b: {}", "2: webhooks: A b: a name is small letters"),
        ("webhooks:\n  a.b: {}", "2: webhooks: a.b: a name is small letters"),
        ("webhooks:\n  a: {}", "2: webhooks: a: it needs a url, or a url_file"),
        (f"webhooks:\n  a:\n    url: {URL}", "2: webhooks: a: it needs a secret_file"),
        (f"webhooks:\n  a: {{{GOOD}, secret: x}}", "2: webhooks: a: unknown key 'secret'"),
        (f"webhooks:\n  a: {{{GOOD}}}\n  a: {{{GOOD}}}", "3: webhooks: 'a' is given twice"),
        (f"webhooks:\n  a: {{{GOOD}, url_file: url}}", "2: webhooks: a: url and url_file exclude"),
        (f"webhooks:\n  a: {{{GOOD}, kinds: [deletion]}}", "2: a: kinds must be promotion or"),
        (f"webhooks:\n  a: {{{GOOD}, kinds: []}}", "2: a: kinds: the list is empty"),
        (f"webhooks:\n  a: {{{GOOD}, format: xml}}", "2: a: format must be standard or slack"),
        (
            f"webhooks:\n  a: {{{GOOD}, give_up_after_s: 0}}",
            "2: a: give_up_after_s must be a whole",
        ),
        (f"webhooks:\n  a: {{{GOOD}, allow_private: maybe}}", "2: a: allow_private must be true"),
        ("webhooks:\n  a: {url: ftp://x/y}", "2: a: url: it is no address like https://host/path"),
        ("webhooks:\n  a: {url: 'https://x:port/'}", "2: a: url: it is no address"),
        ("webhooks:\n  a: {url: 'https://x/a b'}", "2: a: url: it is no address"),
        ("webhooks:\n  a: {url: 'https:///path'}", "2: a: url: it is no address"),
        ("webhooks:\n  a: {url: 'https://me:pw@x/y'}", "2: a: url: put no name or password"),
        ("webhooks:\n  a: {url: http://x/y}", "2: a: url: it must be https: allow_http: true"),
        ("webhooks:\n  a: {url_file: nowhere}", "2: a: url_file: nowhere cannot be read (No such"),
        (
            f"webhooks:\n  a: {{url: {URL}, secret_file: nowhere}}",
            "2: a: secret_file: nowhere cannot",
        ),
        (f"webhooks:\n  a: {{url: {URL}, secret_file: short}}", "2: a: secret_file: the secret in"),
        (
            f"webhooks:\n  a: {{url: {URL}, secret_file: odd}}",
            "2: a: secret_file: what stands behind",
        ),
        (
            f"webhooks:\n  a: {{url: {URL}, secret_file: bytes}}",
            "2: a: secret_file: bytes cannot",
        ),
        (
            f"webhooks:\n  a: {{url: {URL}, secret_env: UNSET}}",
            "2: a: secret_env: no secret is in UNSET",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    """In one line, without a secret."""
    found = of(tmp_path, text)
    assert found.startswith(said)
    assert "\n" not in found
    assert "pw" not in found


def test_the_setting_names_the_file(tmp_path: Path) -> None:
    """Not set it means nobody; a file that cannot be read is an error that names the setting."""
    assert configured_webhooks({}) == ()
    path = tmp_path / "w.yaml"
    path.write_text(f"webhooks: {{bot: {{{GOOD}}}}}")
    assert [one.name for one in configured_webhooks({"OPUSCLIP_WEBHOOKS": str(path)})] == ["bot"]
    for odd in (tmp_path / "nowhere", tmp_path, tmp_path / "bytes"):
        with pytest.raises(ConfigError, match=f"OPUSCLIP_WEBHOOKS: {odd} cannot be read"):
            configured_webhooks({"OPUSCLIP_WEBHOOKS": str(odd)})
