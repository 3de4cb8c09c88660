"""Facts about `opusclip_mlops.contrasts`: in what runs differ, their points aside."""

from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from opusclip_mlops.contrasts import Contrast, Facts, contrasts, facts_of
from tests.mlflow_runs import again, client, new_run


def facts(**fields: Any) -> Facts:
    return Facts(run_id="1" * 32, run_name="kite", status="FINISHED", start_ms=0, **fields)


def differing(first: dict[str, str], second: dict[str, str], section: str = "params") -> list[str]:
    found = contrasts([facts(**{section: first}), facts(**{section: second})])
    return [one.name for one in found[section]]


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("0.001", "1e-3", True),
        ("1", "1.0", True),
        ("9007199254740993", "9007199254740992", False),
        ("1", "True", False),
        ("nan", "NaN", False),
        ("nan", "nan", True),
        ("", "0", False),
        ("inf", "Infinity", False),
    ],
)
def test_params_that_are_equal_as_numbers_are_equal(first: str, second: str, is_same: bool) -> None:
    """Exactly, not as floats; what is no number is a text."""
    assert (differing({"lr": first}, {"lr": second}) == []) is is_same


def test_tags_are_texts() -> None:
    """Version 1.0 is not version 1.00 there."""
    assert differing({"v": "1.0"}, {"v": "1.00"}, "tags") == ["v"]


def test_what_one_run_lacks_is_told_for_all() -> None:
    """In the order of the runs, by name."""
    every = [facts(params={"lr": "1", "b": "2"}), facts(params={"lr": "1"}), facts()]
    assert contrasts(every)["params"] == (
        Contrast(name="b", values=("2", None, None)),
        Contrast(name="lr", values=("1", "1", None)),
    )


def test_no_credentials_are_shown_and_none_hides_a_difference() -> None:
    """Two passwords are two values, and neither is printed."""
    found = contrasts([facts(params={"db": f"sql://u:{one}@h/d"}) for one in ("p1", "p2")])
    assert found["params"] == (Contrast(name="db", values=("sql://u:***@h/d",) * 2),)
    found = contrasts([facts(params={"db_password": one}) for one in ("p1", "p2")])
    assert found["params"] == (Contrast(name="db_password", values=("***", "***")),)


def test_a_run_is_read_as_mlflow_holds_it() -> None:
    """Code, data and environment have sections of their own; user tags are the rest."""
    run = new_run(
        team="films", mlflow__source__git__commit="abc", opusclip__git_dirty="true",
        mlflow__project__entryPoint="train", opusclip__library__torch="2.1", opusclip__host="h1",
        opusclip__end_reason="KeyError: 'x'", mlflow__note__content="a note",
    )  # fmt: skip
    mlflow: MlflowClient = client()
    run_id = run.info.run_id
    used = [
        DatasetInput(
            Dataset(name=name, digest=digest, source_type="local", source="{}"),
            [InputTag("mlflow.data.context", use)] if use else [],
        )
        for name, digest, use in (("b", "d2", "training"), ("a", "d1", "training"), ("c", "d3", ""))
    ]
    mlflow.log_inputs(run_id, used)
    mlflow.log_param(run_id, "lr", 0.1)
    mlflow.set_terminated(run_id, "FAILED", end_time=run.info.start_time + 1500)
    mlflow.update_run(run_id, status="RUNNING")
    running = again(run)
    assert running.info.end_time is not None
    assert facts_of(running).duration_s is None  # it went on, and keeps the end it had
    mlflow.update_run(run_id, status="FAILED")
    found = facts_of(again(run))
    assert (found.status, found.duration_s, found.end_reason) == ("FAILED", 1.5, "KeyError: 'x'")
    assert (found.params, found.tags) == ({"lr": "0.1"}, {"team": "films"})
    assert {**found.code, "program": ""} == {
        "commit": "abc", "dirty": "true", "entry point": "train", "program": ""
    }  # fmt: skip
    assert found.data == {"training": "a (d1), b (d2)", "no context": "c (d3)"}
    assert found.environment["torch"] == "2.1"
    assert found.environment["host"] == "h1"


def test_a_run_that_goes_on_has_no_duration() -> None:
    """It is not taken for one of no length."""
    assert facts_of(new_run()).duration_s is None
