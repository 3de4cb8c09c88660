"""Facts about `opusclip_mlops.gates`: every condition is listed with its numbers, passed or not."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.gates import Approval, Candidate, Condition, Measure, Verdict, judge
from opusclip_mlops.passports import Passport
from opusclip_mlops.policy import PolicyError, read_policy
from opusclip_mlops.smoke import SmokeResult

NAN, INF = math.nan, math.inf


def version(number: int = 7, *, metrics: Any = None, **known: Any) -> Candidate:
    """A version of `kite`, of which these metrics came from its checkpoint."""
    measures = {key: Measure(value, "checkpoint") for key, value in (metrics or {}).items()}
    return Candidate(name="kite", version=number, metrics=measures, **known)


def verdict(rules: str, candidate: Candidate, **given: Any) -> Verdict:
    """What comes of rules of Production, written in braces."""
    text = f"roles: {{lead: [anna, boris], boss: [carla]}}\nstages: {{Production: {rules}}}"
    return judge(read_policy(text), "production", candidate, **given)


def only(rules: str, candidate: Candidate, **given: Any) -> Condition:
    """The one condition that such rules are."""
    (condition,) = verdict(rules, candidate, **given).conditions
    return condition


def compared(value: float, held: float, by: str, better: str) -> Condition:
    """A metric beside the holder's."""
    rules = f"{{metrics: {{k: {{not_worse_than: Production, by: {by}, better: {better}}}}}}}"
    holder = version(3, metrics={"k": held})
    return only(rules, version(metrics={"k": value}), holders={"Production": holder})


@pytest.mark.parametrize(
    ("value", "passed"),
    [
        (24.0, True), (60.0, True), (23.999999999999996, False), (60.00000000000001, False),
        (INF, False), (-INF, False), (NAN, False),
    ],
)  # fmt: skip
def test_a_value_at_a_bound_passes_and_beyond_it_does_not(value: float, passed: bool) -> None:
    """However near it is; what is no number passes no bound."""
    found = verdict("{metrics: {k: {min: 24, max: 60}}}", version(metrics={"k": value}))
    assert found.passed is passed
    assert [one.name for one in found.conditions] == ["k min", "k max"]


def measured(value: float, count: int | None, number: int = 7) -> Candidate:
    """A version with one metric that was measured over so many frames, None for no passport."""
    passport = None
    if count is not None:
        passport = Passport(metric="fid", version="1", count=count, unit="frames")
    return Candidate(
        name="kite", version=number, metrics={"fid": Measure(value, "checkpoint", passport)}
    )


@pytest.mark.parametrize(("mine", "theirs"), [(100, 50), (None, 50), (100, None)])
def test_a_value_that_was_measured_otherwise_than_the_holders_is_refused(
    mine: int | None, theirs: int | None
) -> None:
    """With what differs, unless the policy allows it."""
    rule = "not_worse_than: Production, better: lower"
    holders = {"Production": measured(40.0, theirs, 3)}
    found = only(f"{{metrics: {{fid: {{{rule}}}}}}}", measured(30.0, mine), holders=holders)
    differs = "count: 100 and 50" if mine and theirs else "passport: one has none"
    assert not found.passed
    assert found.note == f"version 3 in Production has 40; {differs}"
    assert found.wanted == "a value that was measured alike"
    allowed = f"{{metrics: {{fid: {{{rule}, unlike_passports: allowed}}}}}}"
    assert only(allowed, measured(30.0, mine), holders=holders).passed


def test_values_that_were_measured_alike_are_compared_by_their_numbers() -> None:
    """The same as two that have no passports."""
    rules = "{metrics: {fid: {not_worse_than: Production, better: lower}}}"
    for count in (100, None):
        holders = {"Production": measured(40.0, count, 3)}
        assert only(rules, measured(39.0, count), holders=holders).passed
        assert not only(rules, measured(41.0, count), holders=holders).passed


def test_a_bound_can_be_for_one_way_of_measuring_only() -> None:
    """A value with another passport, or with none, does not pass it."""
    passport = measured(1.0, 100).metrics["fid"].passport
    assert passport is not None
    rules = f'{{metrics: {{fid: {{max: 40, passport: "{passport.digest}"}}}}}}'
    assert verdict(rules, measured(30.0, 100)).passed
    [condition] = verdict(rules, measured(30.0, 50)).failed
    assert (condition.name, condition.wanted) == ("fid passport", passport.digest)
    assert verdict(rules, measured(30.0, None)).failed[0].measured == "no passport"


def test_a_metric_that_is_missing_or_nan_fails_and_says_so() -> None:
    """Each of its bounds is listed."""
    missing = verdict(
        "{metrics: {k: {min: 1, max: 2, not_worse_than: Production, better: lower}}}", version()
    )
    assert [one.passed for one in missing.conditions] == [False] * 3
    assert missing.lines()[1] == "  FAILED  k min: nothing, wanted 1 (it was not measured)"
    nan = only("{metrics: {k: {min: 24}}}", version(metrics={"k": NAN}))
    assert nan.line() == "FAILED  k min: nan, wanted 24 (checkpoint)"


@pytest.mark.parametrize(
    ("value", "held", "by", "better", "passed"),
    [
        (0.19, 0.18, "0.01", "lower", True),
        (0.8, 0.1, "0.7", "lower", True),
        (0.8000000000000002, 0.1, "0.7", "lower", False),
        (0.2, 0.3, "0.1", "higher", True),
        (0.19999999999999998, 0.3, "0.1", "higher", False),
        (24.2, 24.3, "0.1", "higher", True),
        (5.0, 5.0, "0", "higher", True),
        (5.0, 5.0, "0", "lower", True),
        (4.9, 5.0, "0", "higher", False),
        (4.9, 5.0, "0", "lower", True),
        (INF, INF, "1", "higher", True),
        (1.0, INF, "1", "higher", False),
        (1.0, INF, "1", "lower", True),
        (NAN, 5.0, "1", "lower", False),
    ],
)
def test_a_value_is_not_worse_than_the_holders_by_the_numbers_as_written(
    value: float, held: float, by: str, better: str, passed: bool
) -> None:
    """0.1 and 0.7 are 0.8 here, which they are not in floating point."""
    assert compared(value, held, by, better).passed is passed


def test_a_comparison_shows_both_values_and_the_bound() -> None:
    """So that nobody has to look them up."""
    assert compared(0.2, 0.18, "0.01", "lower").line() == (
        "FAILED  k not worse than Production: 0.2, wanted 0.19 "
        "(version 3 in Production has 0.18 (checkpoint), by 0.01; lower is better; checkpoint)"
    )


def test_where_nobody_holds_the_stage_there_is_nothing_to_be_worse_than() -> None:
    """It passes and says so; the same goes for the dataset."""
    rules = "{metrics: {loss: {not_worse_than: Production}}, same_dataset_as: Production}"
    found = verdict(rules, version(metrics={"loss": 0.5}))
    assert found.passed
    assert all("nobody is in Production yet" in one.note for one in found.conditions)


@pytest.mark.parametrize("held", [{}, {"loss": NAN}])
def test_a_holder_without_the_metric_cannot_be_compared_with(held: dict[str, float]) -> None:
    """That fails, and says whose metric is missing."""
    found = only(
        "{metrics: {loss: {not_worse_than: Production}}}",
        version(metrics={"loss": 0.5}),
        holders={"Production": version(3, metrics=held)},
    )
    assert not found.passed
    assert "version 3 in Production has" in found.note
    assert "cannot be compared" in found.note


def test_each_stage_is_compared_with_its_own_holder() -> None:
    """A policy may name another stage than the one that is entered."""
    rules = "{metrics: {loss: {not_worse_than: Staging}, mse: {not_worse_than: Production}}}"
    holders = {
        "Staging": version(5, metrics={"loss": 1.0, "mse": 0.0}),
        "Production": version(3, metrics={"loss": 0.0, "mse": 1.0}),
    }
    assert verdict(rules, version(metrics={"loss": 1.0, "mse": 1.0}), holders=holders).passed


def test_tags_files_signature_and_weights() -> None:
    """A tag has the wanted value, or any; a file lies below the version or its artifacts."""
    rules = """{
      tags: {a: "yes", b: any, c: any, d: x},
      files: [MLmodel, checkpoint/w, gone],
      checkpoint_hash: verified,
      signature: present}"""
    files = {"MLmodel": 0, "artifacts/checkpoint/w": 12}
    known = {"tags": {"a": "yes", "b": "b", "c": "", "d": "y"}, "files": files}
    found = verdict(rules, version(**known, has_signature=True, checkpoint_problem=""))
    assert [one.line() for one in found.conditions] == [
        "passed  tag a: yes, wanted yes",
        "passed  tag b: b, wanted any",
        "FAILED  tag c: no such tag, wanted any",
        "FAILED  tag d: y, wanted x",
        "passed  file MLmodel: present, wanted present",
        "passed  file checkpoint/w: 12 bytes, wanted present",
        "FAILED  file gone: missing, wanted present",
        "passed  checkpoint hash: verified, wanted verified",
        "passed  signature: present, wanted present",
    ]


def test_what_was_not_looked_at_does_not_pass() -> None:
    """No hash, no smoke test, no signature: a candidate says it only where it is known."""
    rules = "{checkpoint_hash: verified, signature: present, smoke_test: {timeout_s: 5}}"
    assert [one.line() for one in verdict(rules, version()).conditions] == [
        "FAILED  checkpoint hash: not checked, wanted verified",
        "FAILED  signature: missing, wanted present",
        "FAILED  smoke test: not tested: another condition failed, wanted an answer within 5 s",
    ]
    alone = only("{smoke_test: {timeout_s: 5}}", version())
    assert alone.line() == "FAILED  smoke test: not tested, wanted an answer within 5 s"


def test_the_smoke_test_keeps_its_place_where_it_was_not_made() -> None:
    """Conditions stand in the order of their kinds, also where a later one failed."""
    rules = "{tags: {a: any}, smoke_test: {}, same_dataset_as: Production, approvals: {}}"
    found = verdict(rules, version(tags={"a": "b"}, author="anna"))
    assert [(one.name, one.passed) for one in found.conditions] == [
        ("tag a", True),
        ("smoke test", False),
        ("same dataset as Production", True),
        ("approvals", False),
    ]
    assert found.conditions[1].measured == "not tested: another condition failed"


def test_a_smoke_test_says_how_it_went() -> None:
    """Its reason and how long it took, passed or not."""
    rules = "{smoke_test: {timeout_s: 2.5}}"
    failed = only(rules, version(smoke=SmokeResult(False, "ValueError: no kite", 1.25)))
    assert failed.line() == (
        "FAILED  smoke test: ValueError: no kite, wanted an answer within 2.5 s (1.2 s)"
    )
    assert only(rules, version(smoke=SmokeResult(True, "it answered (list)", 1))).passed


@pytest.mark.parametrize(
    ("mine", "theirs", "passed"), [("a", "a", True), ("a", "b", False), ("", "", False)]
)
def test_the_dataset_is_the_holders(mine: str, theirs: str, passed: bool) -> None:
    """Two that nobody knows are not the same."""
    holder = version(3, dataset_digest=theirs)
    found = only(
        "{same_dataset_as: Production}",
        version(dataset_digest=mine),
        holders={"Production": holder},
    )
    assert found.passed is passed


@pytest.mark.parametrize(
    ("mine", "theirs", "passed"),
    [
        (("t1", "e"), ("t2", "e"), True),
        (("t", "e1"), ("t", "e2"), False),
        (("t", "e"), ("t", ""), True),
        (("t", ""), ("t", "e"), True),
        (("e", ""), ("t", "e"), False),
    ],
)
def test_what_both_were_evaluated_on_counts_before_what_they_were_trained_on(
    mine: tuple[str, str], theirs: tuple[str, str], passed: bool
) -> None:
    """Where one of them says nothing of its evaluation, the training's counts."""
    candidate, holder = (
        version(number, dataset_digest=trained_on, evaluation_digest=evaluated_on)
        for number, (trained_on, evaluated_on) in ((7, mine), (3, theirs))
    )
    rules = "{same_dataset_as: Production}"
    found = only(rules, candidate, holders={"Production": holder})
    assert found.passed is passed
    use = "evaluated on" if mine[1] and theirs[1] else "trained on"
    assert found.note == f"{use}; of version 3 in Production"


def test_a_stage_is_entered_in_order() -> None:
    """A version was in the earlier stage, whatever the case; the first one is free."""
    policy = read_policy("order: [Staging, Production]\nstages: {Staging: {}}")
    assert judge(policy, "Staging", version()).passed
    refused = judge(policy, "Production", version())
    assert refused.lines() == [
        "kite 7 to Production: refused, 1 of 1 conditions failed",
        "  FAILED  order: never was in Staging, wanted Staging before Production",
    ]
    assert judge(policy, "Production", version(), been_in=["staging"]).passed


APPROVALS = {
    "nobody": ("{}", "anna", [], False),
    "somebody": ("{}", "anna", ["boris"], True),
    "the author": ("{}", "anna", ["anna"], False),
    "the author in another case": ("{}", "anna", [" ANNA "], False),
    "the author where that is allowed": ("{not_by_author: false}", "anna", ["anna"], True),
    "an author nobody knows": ("{}", "", ["anna"], False),
    "an author nobody asks for": ("{not_by_author: false}", "", ["anna"], True),
    "no role": ("{roles: [lead]}", "carla", ["dora"], False),
    "another role": ("{roles: [lead]}", "dora", ["carla"], False),
    "a role": ("{roles: [lead]}", "carla", ["anna"], True),
    "one of two roles": ("{roles: [lead, boss]}", "dora", ["carla"], True),
    "the same twice": ("{count: 2}", "carla", ["anna", "anna", "Anna"], False),
    "two": ("{count: 2, roles: [lead]}", "carla", ["anna", "boris"], True),
    "two, one of them the author": ("{count: 2, roles: [lead]}", "anna", ["anna", "boris"], False),
    "no name": ("{}", "anna", ["", " "], False),
}


@pytest.mark.parametrize("case", APPROVALS)
def test_who_approves_counts_once_by_role_and_not_as_author(case: str) -> None:
    """Roles are those of the policy; an unknown author might be anybody."""
    rule, author, actors, passed = APPROVALS[case]
    given = [Approval(actor, 1_000 + at) for at, actor in enumerate(actors)]
    found = only(f"{{approvals: {rule}}}", version(author=author), approvals=given)
    assert found.passed is passed, found.line()


@pytest.mark.parametrize(
    ("author", "registered_by", "actor", "passed"),
    [
        ("annak", "anna", "anna", False),
        ("annak", "anna", "AnnaK", False),
        ("annak", "anna", "boris", True),
        ("", "anna", "boris", True),
        ("", "anna", "anna", False),
    ],
)
def test_who_registered_a_version_is_its_author_too(
    author: str, registered_by: str, actor: str, passed: bool
) -> None:
    """A run's user and who approves may be known by different names of one person."""
    candidate = version(author=author, registered_by=registered_by)
    found = only("{approvals: {}}", candidate, approvals=[Approval(actor, 1)])
    assert found.passed is passed, found.line()


def test_who_was_logged_in_for_the_run_is_its_author_too() -> None:
    """Whatever user the run names, and whoever registered the version."""
    candidate = version(author="zoe", registered_by="bot", made_by="anna")
    for actor, passed in (("anna", False), ("boris", True)):
        found = only("{approvals: {}}", candidate, approvals=[Approval(actor, 1)])
        assert found.passed is passed, found.line()


def test_approvals_that_do_not_count_are_named() -> None:
    """With why."""
    given = [Approval(one, 1) for one in ("anna", "boris", "dora")]
    rules = "{approvals: {count: 2, roles: [lead]}}"
    assert only(rules, version(author="anna"), approvals=given).line() == (
        "FAILED  approvals: 1, wanted 2 of lead, not by the author "
        "(by boris; no role for it: dora; the author: anna)"
    )


def test_a_policy_without_rules_for_a_stage_asks_for_nothing() -> None:
    """The verdict passes and says it."""
    found = judge(read_policy("stages: {Staging: {}}"), "Production", version())
    assert found.passed
    assert found.lines() == ["kite 7 to Production: passed, the policy asks for nothing"]


def test_another_models_policy_and_another_stage_are_errors() -> None:
    """No verdict is made of them."""
    policy = read_policy("model: crow\nstages: {Staging: {}}")
    with pytest.raises(PolicyError, match="for model crow, not for kite"):
        judge(policy, "Staging", version())
    with pytest.raises(PolicyError, match="unknown stage 'Archived'"):
        judge(read_policy("stages: {Staging: {}}"), "Archived", version())


def test_a_verdict_names_its_policy_and_survives_json() -> None:
    """With NaN, infinity and the text "nan" told apart."""
    policy = read_policy("stages: {Production: {metrics: {k: {min: 1}}, tags: {t: 'nan'}}}")
    found = judge(policy, "Production", version(metrics={"k": NAN}, tags={"t": "nan"}))
    assert found.policy_digest == policy.digest
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Verdict.from_dict(json.loads(text))
    assert again.to_dict() == found.to_dict()
    assert again.lines() == found.lines()
    assert math.isnan(again.conditions[0].measured)  # type: ignore[arg-type]
    assert again.conditions[1].measured == "nan"


VALUES = st.none() | st.text() | st.floats(allow_nan=False)


@given(st.lists(st.builds(Condition, st.text(), st.booleans(), VALUES, VALUES, st.text())))
def test_any_verdict_survives_json(conditions: list[Condition]) -> None:
    """Whatever stands in its texts and numbers."""
    found = Verdict(
        model="k",
        version=1,
        stage="Staging",
        conditions=tuple(conditions),
        policy_digest="d",
    )
    assert Verdict.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


NO_VERDICTS: list[Any] = [
    {},
    {"conditions": None},
    {"conditions": [3]},
    {"conditions": [{}], "model": "k", "version": 1, "stage": "s", "policy_digest": "d"},
    {"conditions": [], "model": 3, "version": 1, "stage": "s", "policy_digest": "d"},
    {"conditions": [{"measured": {"non_finite": "x"}, "wanted": 1}]},
    {"conditions": [{"measured": {}, "wanted": 1}]},
    [],
    None,
]


@pytest.mark.parametrize("content", NO_VERDICTS, ids=str)
def test_what_is_no_verdict_is_one_error(content: Any) -> None:
    """It may come out of a record that somebody wrote."""
    with pytest.raises(RegistryError, match="this is no verdict"):
        Verdict.from_dict(content)


def test_a_verdict_that_only_says_it_passed_has_not() -> None:
    """The conditions tell it."""
    content = judge(
        read_policy("stages: {Staging: {signature: present}}"), "Staging", version()
    ).to_dict()
    assert content["passed"] is False
    assert not Verdict.from_dict({**content, "passed": True}).passed


def test_long_and_secret_texts_are_cut() -> None:
    """A verdict is kept and shown: each text is one line of 200 characters, without credentials."""
    tags = {"t": "a\nb http://anna:secret@example.org " + "x" * 1_000}
    line = only("{tags: {t: any}}", version(tags=tags)).line()
    assert "\n" not in line
    assert "secret" not in line
    assert len(line) < 300
