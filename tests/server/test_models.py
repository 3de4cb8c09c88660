"""MLflow's registry store with the guard: what clients and pages may do to versions that serve."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops import chronicle
from opusclip_mlops.server.builders import registry_store, tracking_store
from opusclip_mlops.server.models import RegistryStore
from tests.journeys import store
from tests.promoters import NAME, is_settled, shown
from tests.server.guarding import guarded

pytestmark = pytest.mark.filterwarnings("ignore:.*transition_model_version_stage:FutureWarning")

PRODUCTION = {"Staging": [], "Production": [1], "production": 1}


@pytest.fixture
def served(tmp_path: Path) -> tuple[RegistryStore, MlflowClient]:
    """A guarded store whose version 1 of three holds Production, and a stock client to look."""
    registry, stock = guarded(tmp_path)
    registry.transition_model_version_stage(NAME, "1", "Production", False)
    return registry, stock


def test_a_transition_answers_as_mlflow_does(served: tuple[RegistryStore, MlflowClient]) -> None:
    """The version as it is now, its alias too; the holder before it is archived without a flag."""
    registry, stock = served
    moved = registry.transition_model_version_stage(NAME, "2", "production", False)
    assert (moved.version, moved.current_stage, moved.aliases) == (2, "Production", ["production"])
    assert registry.get_model_version(NAME, "1").current_stage == "Archived"
    assert is_settled(stock)


def test_an_alias_of_a_stage_is_a_promotion(served: tuple[RegistryStore, MlflowClient]) -> None:
    """Stage and alias move together, whichever is asked for; other aliases are anybody's."""
    registry, stock = served
    registry.set_registered_model_alias(NAME, "production", "2")
    registry.set_registered_model_alias(NAME, "staging", "3")
    registry.set_registered_model_alias(NAME, "best", "1")
    assert shown(stock) == {
        "Staging": [3],
        "Production": [2],
        "production": 2,
        "staging": 3,
        "best": 1,
    }
    registry.delete_registered_model_alias(NAME, "best")
    kinds = [one.kind for one in chronicle.history(NAME, client=stock)]
    assert kinds == ["promotion"] * 3
    assert is_settled(stock)


@pytest.mark.parametrize("alias", ["Production", "PRODUCTION", "Staging"])
def test_no_alias_is_taken_for_that_of_a_stage(
    served: tuple[RegistryStore, MlflowClient], alias: str
) -> None:
    """MLflow tells capitals apart, people do not; one that is there already can be taken away."""
    registry, stock = served
    with pytest.raises(MlflowException, match=f"alias {alias} would be taken for"):
        registry.set_registered_model_alias(NAME, alias, "2")
    assert shown(stock) == PRODUCTION
    stock.set_registered_model_alias(NAME, alias, "2")
    registry.delete_registered_model_alias(NAME, alias)
    assert shown(stock) == PRODUCTION


def test_who_leaves_a_stage_leaves_its_alias(served: tuple[RegistryStore, MlflowClient]) -> None:
    """A version that holds none moves between None and Archived as ever, without a record."""
    registry, stock = served
    registry.transition_model_version_stage(NAME, "2", "Archived", False)
    registry.transition_model_version_stage(NAME, "1", "None", False)
    assert shown(stock) == {"Staging": [], "Production": []}
    records = chronicle.history(NAME, client=stock)
    assert [(one.kind, one.version) for one in records] == [("promotion", 1), ("demotion", 1)]
    registry.delete_registered_model_alias(NAME, "production")
    registry.delete_model_version(NAME, "1")
    assert is_settled(stock)


REFUSED: dict[str, tuple[Callable[[RegistryStore], object], str]] = {
    "the version": (lambda one: one.delete_model_version(NAME, "1"), "promote another version"),
    "the model": (lambda one: one.delete_registered_model(NAME), "move it to Archived first"),
    "its name": (lambda one: one.rename_registered_model(NAME, "clips"), "keeps its name"),
    "its alias": (
        lambda one: one.delete_registered_model_alias(NAME, "production"),
        "promote another version, or move it to Archived",
    ),
    "the holder to Staging": (
        lambda one: one.transition_model_version_stage(NAME, "1", "Staging", True),
        "which nobody would hold then",
    ),
    "its history": (
        lambda one: one.set_registered_model_tag(
            NAME, RegisteredModelTag("opusclip.history", "0" * 32)
        ),
        "only decisions write it",
    ),
    "its head": (
        lambda one: one.delete_registered_model_tag(NAME, "opusclip.history.head"),
        "only decisions write it",
    ),
    "a model born with one": (
        lambda one: one.create_registered_model(
            "clips", [RegisteredModelTag("opusclip.history", "0" * 32)]
        ),
        "only decisions write it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_serves_is_not_taken_away(
    served: tuple[RegistryStore, MlflowClient], what: str
) -> None:
    """Refused in one line that says what to do, and nothing is changed."""
    registry, stock = served
    call, told = REFUSED[what]
    with pytest.raises(MlflowException) as raised:
        call(registry)
    assert raised.value.get_http_status_code() == 400
    assert told in raised.value.message
    assert "\n" not in raised.value.message
    assert shown(stock) == PRODUCTION
    assert len(chronicle.history(NAME, client=stock)) == 1
    assert is_settled(stock)


def test_what_was_put_into_a_stage_without_the_guard_is_not_deleted(
    served: tuple[RegistryStore, MlflowClient],
) -> None:
    """The registry counts as well as the history."""
    registry, stock = served
    stock.transition_model_version_stage(NAME, "3", "Staging")
    with pytest.raises(MlflowException, match=r"version 3 of .* holds Staging"):
        registry.delete_model_version(NAME, "3")


ABSENT: list[tuple[str, tuple[object, ...]]] = [
    ("transition_model_version_stage", ("no", "1", "Staging", False)),
    ("transition_model_version_stage", (NAME, "9", "Staging", False)),
    ("transition_model_version_stage", (NAME, "9", "None", False)),
    ("transition_model_version_stage", (NAME, "1", "Live", False)),
    ("transition_model_version_stage", (NAME, "1", "None", True)),
    ("set_registered_model_alias", ("no", "production", "1")),
    ("set_registered_model_alias", (NAME, "production", "9")),
    ("delete_registered_model_alias", ("no", "production")),
    ("delete_model_version", (NAME, "9")),
    ("delete_registered_model", ("no",)),
    ("rename_registered_model", ("no", "yes")),
]


def test_what_is_not_there_is_told_as_mlflow_does(
    served: tuple[RegistryStore, MlflowClient],
) -> None:
    """No such model, version or stage: the error that clients know."""
    registry, _ = served
    stock = SqlAlchemyStore(registry.db_uri)  # type: ignore[no-untyped-call]
    for name, given in ABSENT:
        with pytest.raises(MlflowException) as ours:
            getattr(registry, name)(*given)
        with pytest.raises(MlflowException) as theirs:
            getattr(stock, name)(*given)
        assert (ours.value.error_code, ours.value.message) == (
            theirs.value.error_code,
            theirs.value.message,
        )


def test_prompts_keep_their_aliases(served: tuple[RegistryStore, MlflowClient]) -> None:
    """MLflow's prompts are registered models too; a model with a history becomes none."""
    registry, stock = served
    registry.create_registered_model("words", [RegisteredModelTag(IS_PROMPT_TAG_KEY, "true")])
    stock.create_model_version("words", source="prompt-template")
    registry.set_registered_model_alias("words", "production", "1")
    assert registry.get_model_version("words", "1").current_stage == "None"
    registry.delete_registered_model_alias("words", "production")
    registry.delete_model_version("words", "1")
    registry.rename_registered_model("words", "sayings")
    registry.delete_registered_model("sayings")
    with pytest.raises(MlflowException, match="is no prompt"):
        registry.set_registered_model_tag(NAME, RegisteredModelTag(IS_PROMPT_TAG_KEY, "true"))
    assert shown(stock) == PRODUCTION


def test_no_prompt_takes_the_name_of_what_was_decided_about(
    served: tuple[RegistryStore, MlflowClient],
) -> None:
    """Neither made, renamed nor tagged so: a prompt's aliases pass no gate."""
    registry, _ = served
    prompt = RegisteredModelTag(IS_PROMPT_TAG_KEY, "true")
    registry.transition_model_version_stage(NAME, "1", "Archived", False)
    registry.delete_registered_model(NAME)
    registry.create_registered_model("words", [prompt])
    with pytest.raises(MlflowException, match="is no prompt"):
        registry.create_registered_model(NAME, [prompt])
    with pytest.raises(MlflowException, match="is no prompt"):
        registry.rename_registered_model("words", NAME)
    registry.create_registered_model(NAME)
    with pytest.raises(MlflowException, match="is no prompt"):
        registry.set_registered_model_tag(NAME, prompt)


def test_the_registry_is_in_the_database_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere nothing could be decided in one transaction: the server does not start."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"opusclip+{store(tmp_path / 'runs')}")
    with pytest.raises(MlflowException, match="two databases: leave --registry-store-uri out"):
        RegistryStore(f"opusclip+{store(tmp_path / 'models')}")
    RegistryStore(f"opusclip+{store(tmp_path / 'runs')}")


def test_runs_and_models_are_guarded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With either of them stock, histories or stages would be anybody's to write."""
    uri = store(tmp_path)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    with pytest.raises(MlflowException, match="begin both URIs with `opusclip"):
        registry_store(f"opusclip+{uri}")
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"opusclip+{uri}")
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", uri)
    with pytest.raises(MlflowException, match="begin both URIs with `opusclip"):
        tracking_store(f"opusclip+{uri}", str(tmp_path))
