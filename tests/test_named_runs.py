"""A run by what people call it, asked of a real MLflow."""

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.named_runs import run_called
from tests.journeys import store


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, dict[str, str]]:
    """Runs of two experiments, their ids by their names; one was deleted."""
    client = MlflowClient(store(tmp_path_factory.mktemp("runs")))
    ids = {}
    for number, name in enumerate(("base", "base-long", 'it\'s 100% "it"', "under_line", "gone")):
        experiment = client.create_experiment(f"e{number}")
        ids[name] = client.create_run(experiment, run_name=name).info.run_id
    client.create_run(client.create_experiment("twins"), run_name="twin")
    client.create_run(client.create_experiment("others"), run_name="twin")
    client.delete_run(ids["gone"])
    return client, ids


def test_a_run_is_found_by_id_name_or_beginning(runs: tuple[MlflowClient, dict[str, str]]) -> None:
    """A whole name comes before the beginning of another."""
    client, ids = runs
    named = {
        ids["base"]: "base", ids["base"][:20]: "base", "base": "base", "base-": "base-long",
        "under_": "under_line", "it": "it's 100% \"it\"",
    }  # fmt: skip
    for name, meant in named.items():
        assert run_called(client, name).info.run_id == ids[meant], name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nobody", "no run in MLflow is called 'nobody'"),
        ("", "no run in MLflow is called ''"),
        ("f" * 32, f"no run in MLflow is called '{'f' * 32}'"),
        ("gone", "no run in MLflow is called 'gone'"),
        ("underXline", "no run in MLflow is called 'underXline'"),
        ("%", "no run in MLflow is called '%'"),
        ("' OR attributes.run_name LIKE '%", "no run in MLflow is called"),
        ("a'b\"c\\\n", "no run in MLflow is called"),
        ("twin", "2 runs are called 'twin': "),
        ("base-long ", "no run in MLflow is called 'base-long '"),
    ],
)
def test_a_run_that_is_not_clear_is_one_line(
    runs: tuple[MlflowClient, dict[str, str]], name: str, problem: str
) -> None:
    """None, several, or a name that would be a question of its own."""
    with pytest.raises(RegistryError) as raised:
        run_called(runs[0], name)
    assert str(raised.value).startswith(problem)
    is_none = problem.startswith("no run")
    assert (", or another --tracking-uri than sqlite:" in str(raised.value)) is is_none
    assert len(str(raised.value).splitlines()) == 1


def test_a_deleted_run_says_so(runs: tuple[MlflowClient, dict[str, str]]) -> None:
    """Whoever gives its id is told what to do."""
    client, ids = runs
    with pytest.raises(RegistryError, match="was deleted in MLflow: restore it first"):
        run_called(client, ids["gone"])
