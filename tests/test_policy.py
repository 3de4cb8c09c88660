"""Facts about `opusclip_mlops.policy`: a policy says what it says, or which line is wrong."""

import hashlib
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops import policy as module
from opusclip_mlops.policy import (
    ApprovalRule,
    MetricRule,
    PolicyError,
    StageRules,
    better_of,
    read_policy,
    stage_named,
)

EXAMPLE = textwrap.dedent((module.__doc__ or "").split("\n\n")[1])


def production(rules: str) -> StageRules:
    """The rules of Production, written in braces."""
    text = f"roles: {{lead: [anna, Boris]}}\nstages:\n  Production: {rules}\n"
    return read_policy(text).stages["Production"]


def test_the_documented_example_is_read() -> None:
    """Every key that there is, with the values it has in the module's own text."""
    policy = read_policy(EXAMPLE)
    assert (policy.model, policy.order) == ("clip-generator", ("Staging", "Production"))
    assert policy.roles == {"lead": ("anna", "boris")}
    assert policy.stages["Staging"] == StageRules(metrics=(MetricRule(key="video/psnr", min=24),))
    assert policy.stages["Production"] == StageRules(
        metrics=(
            MetricRule(key="video/psnr", min=24, max=60),
            MetricRule(key="video/lpips", not_worse_than="Production", by=0.01, better="lower"),
            MetricRule(key="video/fid", max=40, passport="5f0c1d2e3a4b"),
        ),
        tags={"reviewed": "yes", "dataset": "any"},
        files=("checkpoint/weights.safetensors",),
        checkpoint_hash=True,
        signature=True,
        smoke_timeout_s=120,
        same_dataset_as="Production",
        approvals=ApprovalRule(count=1, roles=("lead",), not_by_author=True),
    )
    assert policy.stages["Production"].compared_with == {"Production"}


def test_the_text_is_kept_as_it_was_written() -> None:
    """With comments and line ends; its SHA-256 is what a verdict names."""
    text = "# ü\r\nstages: {Staging: {}}\r\n"
    policy = read_policy(text)
    assert policy.text == text
    assert policy.digest == hashlib.sha256(text.encode()).hexdigest()


def test_what_is_left_out_has_its_default() -> None:
    """Sixty seconds, one approval, by anybody but the author, no slack, and no rules."""
    rules = production(
        "{smoke_test: {}, approvals: {}, metrics: {val/loss: {not_worse_than: Staging}}}"
    )
    assert rules.smoke_timeout_s == 60
    assert rules.approvals == ApprovalRule(count=1, roles=(), not_by_author=True)
    assert rules.metrics[0] == MetricRule(key="val/loss", not_worse_than="Staging", better="lower")
    assert read_policy("stages: {Staging: {}}").rules("production") == StageRules()


def test_a_tag_wants_the_text_that_is_written() -> None:
    """Without quotes too, whatever YAML makes of it."""
    assert production("{tags: {a: yes, b: 007, c: 1.10, d: 2026-11-01}}").tags == {
        "a": "yes",
        "b": "007",
        "c": "1.10",
        "d": "2026-11-01",
    }


WRONG = {
    "{metrics: {video/psnr: {min: high}}}": "video/psnr: min must be a number, not 'high'",
    "{metrics: {k: {min: .nan}}}": "k: min must be a number, not '.nan'",
    "{metrics: {k: {min: 3, max: 2}}}": "k: min: it is above max, 2",
    "{metrics: {k: {}}}": "metrics: k: it needs min, max or not_worse_than",
    "{metrics: {k: 24}}": "metrics: k must be a mapping, not '24'",
    "{metrics: {k: {minimum: 3}}}": "metrics: k: unknown key 'minimum': known is min",
    "{metrics: {loss: {not_worse_than: Production, by: -0.1}}}": "loss: by: it must be 0 or more",
    "{metrics: {k: {min: 1, by: 2}}}": "k: by: it goes with not_worse_than, which is not there",
    "{metrics: {k: {min: 1, better: lower}}}": "k: better: it goes with not_worse_than",
    "{metrics: {k: {not_worse_than: Production}}}": "metrics: k: give better: lower or better: hi",
    "{metrics: {k: {not_worse_than: Canary}}}": "k: not_worse_than must be Staging or Production",
    "{metrics: {loss: {not_worse_than: Staging, better: less}}}": "better must be lower or higher",
    "{metrics: [k]}": "Production: metrics must be a mapping, not a list",
    "{tags: {a: }}": "tags: a must be a text, not empty",
    "{tags: {a: ~}}": "tags: a must be a text, not empty",
    "{tags: {a: [b]}}": "tags: a must be a text, not a list",
    "{files: weights}": "Production: files must be a list, as [a, b], not 'weights'",
    "{files: []}": "Production: files: the list is empty",
    "{files: [a, a]}": "Production: files: 'a' is in the list twice",
    "{files: [../a]}": "files: '../a' is no path below the version",
    "{files: [/etc/passwd]}": "files: '/etc/passwd' is no path below",
    "{checkpoint_hash: yes}": "checkpoint_hash must be verified, not 'yes'",
    "{signature: absent}": "signature must be present, not 'absent'",
    "{smoke_test: {timeout_s: 0}}": "timeout_s: it must be above 0 and at most 3600",
    "{smoke_test: {timeout_s: 3601}}": "timeout_s: it must be above 0 and at most 3600",
    "{smoke_test: 60}": "Production: smoke_test must be a mapping, not '60'",
    "{same_dataset_as: production}": "same_dataset_as must be Staging or Production, not 'prod",
    "{approvals: {count: 0}}": "count must be a whole number from 1 to 100, not '0'",
    "{approvals: {count: 1.5}}": "count must be a whole number from 1 to 100, not '1.5'",
    "{approvals: {count: 3, roles: [lead]}}": "approvals: 3 have to approve, and lead are 2",
    "{approvals: {roles: [boss]}}": "approvals: roles: no role 'boss' is in roles",
    "{approvals: {roles: [[lead]]}}": "approvals: roles must be a text, not a list",
    "{approvals: {not_by_author: 1}}": "not_by_author must be true or false, not '1'",
    "{metric: {}}": "stages: Production: unknown key 'metric': known is metrics",
    "": "stages: Production must be a mapping, not empty",
}


@pytest.mark.parametrize("rules", WRONG)
def test_a_rule_that_is_not_understood_is_told_with_its_line(rules: str) -> None:
    """File, line, which thing, what it must be and what it is."""
    with pytest.raises(PolicyError) as refused:
        production(rules)
    assert str(refused.value).startswith("gates.yaml:3: ")
    assert WRONG[rules] in str(refused.value)


WRONG_FILES = {
    "stages:\n": "f:1: stages must be a mapping, not empty",
    "stages: {}\n": "f:1: stages: it names no stage",
    "model: a\n": "f:1: it has no stages",
    "model: [a]\nstages: {Staging: {}}\n": "f:1: model must be a text, not a list",
    "stages:\n  Staging: {}\n  production: {}\n": "f:3: stages: unknown key 'production'",
    "stages: {Archived: {}}\n": "f:1: stages: unknown key 'Archived'",
    "stages: {Staging: {}}\n\norder: [Staging, Canary]\n": "f:3: order must be Staging or Prod",
    "stages: {Staging: {}}\norder: [Staging, Staging]\n": "f:2: order: 'Staging' is in the list",
    "stages: {Staging: {}}\nroles: {lead: anna}\n": "f:2: roles: lead must be a list",
    "stages: {Staging: {}}\nroles: {lead: [anna, anna]}\n": "f:2: roles: lead: 'anna' is in",
    "stages: {Staging: {}}\nmodel:\n\n  [a]\n": "f:2: model must be a text, not a list",
    "stages: {Staging: {}}\norder:\n- Staging\n- Canary\n": "f:4: order must be Staging or",
    "stages: {Staging: {smoke_test: {timeout_s:\n soon}}}\n": "f:2: smoke_test: timeout_s must",
    "stages: {Staging: {}}\nowner: anna\n": "f:2: unknown key 'owner'",
    "stages:\n  Staging:\n    tags:\n      k: a\n      k: b\n": "f:5: Staging: tags: 'k' is given",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_policy_that_is_not_understood_is_told_with_its_line(text: str) -> None:
    """Wherever in the file it is."""
    with pytest.raises(PolicyError) as refused:
        read_policy(text, source="f")
    assert str(refused.value).startswith(WRONG_FILES[text])


def test_a_stage_is_known_in_any_case() -> None:
    """As it is typed in a command; other names are an error."""
    assert [stage_named(one) for one in ("production", " STAGING ")] == ["Production", "Staging"]
    for other in ("None", "Archived", "", "Prod"):
        with pytest.raises(PolicyError, match="give Staging or Production"):
            stage_named(other)


def test_a_policy_is_for_the_model_it_names() -> None:
    """Without a name it is for any."""
    read_policy("stages: {Staging: {}}").check_model("kite")
    policy = read_policy("model: kite\nstages: {Staging: {}}", source="f")
    policy.check_model("kite")
    with pytest.raises(PolicyError, match=r"^f: this policy is for model kite, not for Kite$"):
        policy.check_model("Kite")


def test_which_way_is_better_is_told_by_the_words_of_a_name() -> None:
    """A name that has none, or one of each, has to say it."""
    lower = ["loss", "val/loss", "training_loss", "video/LPIPS", "test.fvd", "mse"]
    higher = ["video/psnr", "ssim", "val-accuracy"]
    assert {better_of(one) for one in lower} == {"lower"}
    assert {better_of(one) for one in higher} == {"higher"}
    assert {better_of(one) for one in ("glossy", "psnr_error", "k", "")} == {""}


@given(st.lists(st.sampled_from(EXAMPLE.split("\n")), max_size=30), st.integers(0, 9), st.text())
def test_a_policy_cut_to_pieces_is_a_policy_or_one_error(
    lines: list[str], at: int, other: str
) -> None:
    """No other error comes of lines that are lost, doubled or in another order."""
    text = "\n".join([*lines[:at], other, *lines[at:]])
    said = "gates.yaml:"
    try:
        read_policy(text)
    except PolicyError as error:
        said = str(error)
    assert said.startswith("gates.yaml:")
