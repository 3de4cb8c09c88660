"""Rules as they are written: what is understood, and what is said of the rest."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from opusclip_mlops.alerts import Alerts, NotFinite, Threshold, Webhook
from opusclip_mlops.alerts.reading import FaultyAlerts, alerts_of, read_alerts
from opusclip_mlops.alerts.rules import GPU_KEYS, KINDS
from opusclip_mlops.errors import ConfigError
from tests.receivers import SECRET

FULL = """\
limit_per_hour: 5
webhooks:
  team: {url: https://example.com/hooks, secret_env: TEAM_SECRET, give_up_after_s: 60}
  chat: {url_env: CHAT_URL, format: slack}
rules:
  nan: {kind: not_finite, keys: "train/*", severity: error, actions: [stop, wandb, team]}
  high: {kind: threshold, keys: [train/loss], above: 10, points: 3, recover_at: 8, cooldown_s: 5}
  far: {kind: divergence, keys: [train/loss], factor: 2.5, window: 20, against: best}
  flat: {kind: plateau, keys: [val/loss], steps: 500, min_delta: 1e-3}
  stuck: {kind: no_progress, minutes: 5, actions: [chat]}
  worse: {kind: worse_than_production, keys: [video/psnr], model: clip, by: 0.5, goal: maximize}
  idle: {kind: gpu_idle, below_percent: 10}
  disk: {kind: disk_filling, above_percent: 80}
  lost: {kind: dropped_points, points: 100}
  late: {kind: mirror_lag, sinks: wandb, minutes: 3}
"""
ENVIRON = {"TEAM_SECRET": SECRET, "CHAT_URL": "https://chat.example.com/T0/secret"}


def faults(text: str, *, with_variables: bool = False) -> tuple[str, ...]:
    with pytest.raises(FaultyAlerts) as caught:
        read_alerts(text, source="a.yaml", with_variables=with_variables)
    return caught.value.faults


def rule(line: str) -> str:
    return f"rules:\n  one: {line}\n"


@pytest.fixture
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_variables")
def test_every_kind_of_rule_is_read() -> None:
    """With what is left out as its default."""
    found = read_alerts(FULL, source="a.yaml", with_variables=True)
    assert [str(one.__struct_config__.tag) for one in found.rules.values()] == [
        "not_finite", "threshold", "divergence", "plateau", "no_progress",
        "worse_than_production", "gpu_idle", "disk_filling", "dropped_points", "mirror_lag",
    ]  # fmt: skip
    assert {one.__struct_config__.tag for one in found.rules.values()} == KINDS.keys()
    assert found.rules["high"] == Threshold(
        keys=("train/loss",), above=10, points=3, recover_at=8, cooldown_s=5
    )
    assert found.rules["nan"].actions == ("stop", "wandb", "team")
    assert found.rules["idle"].patterns == GPU_KEYS
    assert found.webhooks["chat"] == Webhook(url_env="CHAT_URL", format="slack")
    assert found.limit_per_hour == 5


@pytest.mark.usefixtures("_variables")
def test_a_file_a_mapping_and_objects_give_the_same(tmp_path: Path) -> None:
    """There is one reader; what it gives goes through JSON."""
    (tmp_path / "a.yaml").write_text(FULL)
    found = alerts_of(tmp_path / "a.yaml", with_variables=True)
    assert alerts_of(found) == found
    plain = msgspec.to_builtins(found)
    assert alerts_of(plain) == found
    assert msgspec.convert(plain, Alerts) == found


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{keys: [a]}", "rules: one: it needs a kind: threshold, not_finite"),
        ("{kind: treshold, keys: [a]}", "one: kind must be threshold or not_finite"),
        ("{kind: threshold, above: 1}", "rules: one: it needs keys"),
        ("{kind: threshold, keys: [a]}", "it needs above or below, one of them"),
        ("{kind: threshold, keys: [a], above: 1, below: 0}", "it needs above or below, one"),
        ("{kind: threshold, keys: [a], above: 1, recover_at: 2}", "recover_at must not be higher"),
        ("{kind: threshold, keys: [a], below: 1, recover_at: 0}", "recover_at must not be lower"),
        ("{kind: threshold, keys: [a], abve: 1}", "unknown key 'abve': known is above"),
        ("{kind: threshold, keys: [a], above: high}", "one: above must be a number, not 'high'"),
        ("{kind: threshold, keys: [a], above: '1'}", "must be a number, not the text '1'"),
        ("{kind: threshold, keys: [], above: 1}", "one: keys: the list is empty"),
        ("{kind: threshold, keys: [a], above: 1, points: 0}", "a whole number from 1 to 10000"),
        ("{kind: divergence, keys: [a], factor: 1}", "factor: it must be from 1.001 to 1e+09"),
        ("{kind: no_progress, minutes: 0}", "minutes: it must be from 0.01 to 43200"),
        ("{kind: not_finite, keys: [a], severity: bad}", "severity must be info or warning or"),
        ("{kind: not_finite, keys: [a], actions: [mail]}", "no webhook is called 'mail': known"),
        (f"{{kind: not_finite, keys: [{'k' * 251}]}}", "100 texts of 250 characters at most"),
    ],
)  # fmt: skip
def test_a_rule_that_is_wrong_is_named_with_its_line_and_what_is_right(
    line: str, fault: str
) -> None:
    """One line, which begins with the file's name and the line's number."""
    (told,) = faults(rule(line))
    assert told.startswith("a.yaml:2: ")
    assert fault in told


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Each with its own line, and the error itself is one line."""
    text = (
        "rules:\n  a: {kind: plateau}\n  B: {kind: gpu_idle}\n  c:\n    kind: gpu_idle\n    x: 1\n"
    )
    assert [one.partition(": ")[0] for one in faults(text)] == ["a.yaml:2", "a.yaml:3", "a.yaml:6"]
    with pytest.raises(ConfigError, match=r"^a.yaml:2: [^\n]*\(and 2 more\)$"):
        read_alerts(text, source="a.yaml")


def test_all_that_is_wrong_with_one_rule_is_said() -> None:
    """Each part with its own line and its whole path; what follows from a slip is not said too."""
    text = """\
webhooks:
  team: {url_env: U, format: mail, sekret_env: S}
rules:
  a:
    kind: threshold
    key: [x]
    above: high
    severity: bad
    actions:
      - team
      - mail
  b: {kind: threshold, keys: x, below: 1, recover_at: 0, severity: bad}
  a: {kind: gpu_idle}
limit_per_hour: none
"""
    assert [one.removeprefix("a.yaml:") for one in faults(text)] == [
        "2: webhooks: team: unknown key 'sekret_env': known is secret_env",
        "2: webhooks: team: format must be standard or slack, not 'mail'",
        "13: rules: 'a' is given twice, first in line 4",
        "6: rules: a: unknown key 'key': known is keys",
        "7: rules: a: above must be a number, not 'high'",
        "8: rules: a: severity must be info or warning or error, not 'bad'",
        "11: rules: a: actions: no webhook is called 'mail': known is stop, wandb, team",
        "4: rules: a: it needs keys",
        "12: rules: b: severity must be info or warning or error, not 'bad'",
        "12: rules: b: recover_at must not be lower than below",
        "14: limit_per_hour must be a whole number from 1 to 1000, not 'none'",
    ]


def test_every_variable_that_is_not_set_is_said() -> None:
    """Not the first of them only."""
    text = "webhooks:\n  team: {url_env: U, secret_env: S}\nrules:\n  a: {kind: gpu_idle}\n"
    assert faults(text, with_variables=True) == (
        "a.yaml:2: webhooks: team: url_env: the variable U is not set",
        "a.yaml:2: webhooks: team: secret_env: the variable S is not set",
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{secret_env: S}", "it needs url or url_env, one of them"),
        ("{url: https://a.example, url_env: U, secret_env: S}", "it needs url or url_env"),
        ("{url: https://a.example}", "it needs secret_env"),
        ("{url: http://a.example, secret_env: S}", "it must be https"),
        ("{url: https://a:b@a.example, secret_env: S}", "put no name or password into it"),
        ("{url: 'https://a.example/?token=x', secret_env: S}", "name a variable by url_env"),
        ("{url: https://chat.example/T0, format: slack}", "a chat's address is kept out"),
        ("{url_env: U, secret_env: whsec_MfKQ9/8GKYq=}", "must be the name of an environment"),
        ("{url_env: https://a.example, secret_env: S}", "must be the name of an environment"),
    ],
)
def test_a_webhook_holds_no_secret_in_the_file(line: str, fault: str) -> None:
    """What looks like one is not repeated in the message."""
    text = f"webhooks:\n  team: {line}\n{rule('{kind: gpu_idle, actions: [team]}')}"
    (told,) = faults(text)
    assert told.startswith("a.yaml:2: ")
    assert fault in told
    assert "MfKQ9" not in told
    assert "token" not in told


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"S": SECRET}, "the variable U is not set"),
        ({"U": "https://a.example"}, "the variable S is not set"),
        ({"U": "https://a.example", "S": "short"}, "S is shorter than 16 characters"),
        ({"U": "http://a.example", "S": SECRET}, "what is in U: it must be https"),
    ],
)
def test_variables_that_are_named_must_be_set_before_training(
    environ: dict[str, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the file alone asks for none of them."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    text = "webhooks:\n  team: {url_env: U, secret_env: S}\nrules:\n  a: {kind: gpu_idle}\n"
    (told,) = faults(text, with_variables=True)
    assert told.startswith("a.yaml:2: ")
    assert fault in told
    assert SECRET not in told
    read_alerts(text, source="a.yaml")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a.yaml:1: the file is empty"),
        ("webhooks: {}", "it has no rules"),
        ("rules: {}", "it must have 1 to 100 entries"),
        ("rules:\n  - kind: gpu_idle", "rules must be a mapping, not a list"),
        ("rules: &a {b: {kind: gpu_idle}}", "anchors and aliases"),
        ("rules: {a: !!python/object:os.system {}}", "is not taken: write the value"),
        ("rules:\n\ta: 1", "a.yaml:2: a tab"),
        ("#" * 70_000, "more than 65536 bytes"),
        ("rules: {a: {kind: gpu_idle}}\nlimit_per_hour: 0", "a.yaml:2: limit_per_hour must be"),
        ("webhooks: {stop: {}}\nrules: {a: {kind: gpu_idle}}", "stop is an action"),
    ],
)
def test_a_file_that_is_no_rules_is_one_line(text: str, fault: str) -> None:
    """Nothing in it is made an object, and it is no longer than such a file is."""
    assert fault in faults(text)[0]


@pytest.mark.parametrize(
    "given",
    [{"rules": {"a": {1, 2}}}, {"rules": float("nan")}, [], {"rules": {"a": {"kind": "x"}}}],
)
def test_a_mapping_that_is_wrong_has_no_line(given: Any) -> None:
    """Its lines are nobody's."""
    with pytest.raises(FaultyAlerts, match=r"^alerts: "):
        alerts_of(given)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(FaultyAlerts, match=r"away.yaml: cannot be read \(No such file"):
        alerts_of(tmp_path / "away.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FaultyAlerts, match="no UTF-8 text"):
        alerts_of(tmp_path / "b.yaml")


def test_rules_are_made_in_code_too() -> None:
    """And checked like any other."""
    made = Alerts(rules={"nan": NotFinite(keys=("*",), actions=("nobody",))})
    with pytest.raises(ConfigError, match=r"^alerts: .*no webhook is called 'nobody'"):
        alerts_of(made)


def test_the_example_of_the_document_is_understood() -> None:
    """Every kind of rule stands in it, and nothing that is wrong."""
    document = Path(__file__).resolve().parents[2] / "docs" / "alerts.md"
    text = document.read_text().partition("```yaml\n")[2].partition("```")[0]
    found = read_alerts(text, source="docs/alerts.md")
    assert {one.__struct_config__.tag for one in found.rules.values()} == KINDS.keys()


def test_a_sink_that_is_none_is_named() -> None:
    """Its rule would never say anything."""
    text = "rules: {late: {kind: mirror_lag, sinks: [wandbb], minutes: 3}}"
    [fault] = faults(text)
    assert "known is mlflow, tensorboard, wandb" in fault
    read_alerts(text.replace("wandbb", "w*"), source="a.yaml", with_variables=False)
