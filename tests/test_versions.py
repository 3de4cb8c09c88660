"""Facts about `opusclip_mlops.versions`: logged models and registered versions as records."""

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run

from opusclip_mlops.listing import Found
from opusclip_mlops.records import About, Files
from opusclip_mlops.versions import ModelReader
from tests.journeys import store
from tests.servers import mlflow_server

pytestmark = pytest.mark.filterwarnings("ignore:.*stages will be removed.*")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = store(Path.cwd())
    # A database registry looks `models:/<id>` up in the process's tracking URI.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri, uri)


def new_run(client: MlflowClient) -> Run:
    found = client.get_experiment_by_name("films")
    return client.create_run(found.experiment_id if found else client.create_experiment("films"))


def logged_model(client: MlflowClient, run: Run, step: int, tmp_path: Path) -> LoggedModel:
    """A model of one file, logged at a step."""
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    model = client.create_logged_model(
        experiment_id, name="vae", source_run_id=run_id, tags={"by": "ann"}, params={"d": "4"}
    )
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return client.get_logged_model(model.model_id)


def read(client: MlflowClient, run: Run) -> Found:
    return ModelReader(client, client.get_run(run.info.run_id)).read()


def records(found: Found, kind: type) -> list:
    return [part.record for part in found.parts if isinstance(part.record, kind)]


def test_each_logged_model_is_a_set_of_files(client: MlflowClient, tmp_path: Path) -> None:
    """With its place, size, params, tags and last metrics, under a name of its own."""
    run = new_run(client)
    models = [logged_model(client, run, step, tmp_path) for step in (10, 20)]
    for step, value in ((1, 0.5), (2, 0.25)):
        client.log_metric(run.info.run_id, "fvd", value, step=step, model_id=models[0].model_id)
    found = read(client, run)
    first, second = records(found, Files)
    assert [first.aliases, second.aliases] == [["step-10"], ["step-20"]]
    assert first.name == f"vae-{models[0].model_id}"
    assert first.kind == "model"
    assert first.metadata["param.d"] == "4"
    assert first.metadata["tag.by"] == "ann"
    assert first.metadata["metric.fvd"] == "0.25"
    assert first.metadata["status"] == "READY"
    assert first.sizes_bytes == {"MLmodel": 11}
    assert Path(first.uris["MLmodel"].removeprefix("file://")).read_text() == "flavors: {}"
    [left] = found.left_out
    assert left.name == f"logged model {models[0].model_id}"
    assert "1 other" in left.reason


def version_of(client: MlflowClient, run: Run, model: LoggedModel, name: str = "clip-vae") -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    made = client.create_model_version(
        name,
        model.model_uri,
        run.info.run_id,
        tags={"opusclip.step": "20"},
        description="good",
        model_id=model.model_id,
    )
    return str(made.version)


def test_a_registered_version_is_words_and_files(client: MlflowClient, tmp_path: Path) -> None:
    """Stage, aliases, tags and source as words; its files under the model's name."""
    run = new_run(client)
    model = logged_model(client, run, 20, tmp_path)
    number = version_of(client, run, model)
    client.transition_model_version_stage("clip-vae", number, "Staging")
    client.set_registered_model_alias("clip-vae", "champion", number)
    client.set_registered_model_tag("clip-vae", "team", "video")
    client.update_registered_model("clip-vae", "all of them")
    found = read(client, run)
    [about] = records(found, About)
    assert about.name == f"registry/clip-vae/{number}"
    assert about.values["stage"] == "Staging"
    assert about.values["aliases"] == "champion"
    assert about.values["tag.opusclip.step"] == "20"
    assert about.values["description"] == "good"
    assert about.values["model_description"] == "all of them"
    assert about.values["model_tag.team"] == "video"
    assert about.values["source"] == f"models:/{model.model_id}"
    last = client.get_model_version("clip-vae", number).last_updated_timestamp
    assert about.timestamp_ms == last
    [files] = [one for one in records(found, Files) if one.name == "clip-vae"]
    assert files.aliases == [f"mlflow-v{number}", "champion", "staging"]
    assert files.metadata["version"] == number
    assert list(files.uris) == ["MLmodel"]
    assert found.left_out == []


def test_a_stage_points_at_one_version_only(client: MlflowClient, tmp_path: Path) -> None:
    """Two versions in Production: the higher number has the name, as in MLflow; it is said."""
    run, other = new_run(client), new_run(client)
    model = logged_model(client, run, 20, tmp_path)
    first, second = version_of(client, run, model), version_of(client, other, model)
    for number in (first, second):
        client.transition_model_version_stage("clip-vae", number, "Production")
    found = read(client, run)
    files = [one for one in records(found, Files) if one.name == "clip-vae"]
    assert [one.aliases for one in files] == [[f"mlflow-v{first}"]]
    assert records(found, About)[0].values["stage"] == "Production"
    assert f"version {second} only" in found.left_out[0].reason
    files = [one for one in records(read(client, other), Files) if one.name == "clip-vae"]
    assert [one.aliases for one in files] == [[f"mlflow-v{second}", "production"]]


def test_an_alias_named_like_a_stage_has_the_last_word(
    client: MlflowClient, tmp_path: Path
) -> None:
    """`production` as an alias of one version and the stage of another: the alias holds."""
    run = new_run(client)
    model = logged_model(client, run, 20, tmp_path)
    first, second = version_of(client, run, model), version_of(client, run, model)
    client.set_registered_model_alias("clip-vae", "production", first)
    client.transition_model_version_stage("clip-vae", second, "Production")
    found = read(client, run)
    files = [one for one in records(found, Files) if one.name == "clip-vae"]
    assert [one.aliases for one in files] == [
        [f"mlflow-v{first}", "production"],
        [f"mlflow-v{second}"],
    ]
    assert found.left_out[0].name == f"registry/clip-vae/{second}"


def test_a_version_of_plain_artifacts_has_their_files(client: MlflowClient) -> None:
    """A version made from a folder of the run refers to where that folder lies."""
    run = new_run(client)
    client.log_text(run.info.run_id, "flavors: {}", "model/MLmodel")
    client.create_registered_model("old")
    client.create_model_version("old", f"{run.info.artifact_uri}/model", run.info.run_id)
    [files] = records(read(client, run), Files)
    assert list(files.uris) == ["MLmodel"]
    stored = Path(files.uris["MLmodel"].removeprefix("file://"))
    assert stored.read_text() == "flavors: {}"


def test_models_that_are_gone_are_accounted_for(client: MlflowClient, tmp_path: Path) -> None:
    """A deleted logged model is named with the reason; the others are carried."""
    run = new_run(client)
    gone, kept = (logged_model(client, run, step, tmp_path) for step in (1, 2))
    client.delete_logged_model(gone.model_id)
    found = read(client, run)
    assert [one.name for one in records(found, Files)] == [f"vae-{kept.model_id}"]
    assert [one.name for one in found.left_out] == [f"logged model {gone.model_id}"]


def test_many_versions_are_all_read(client: MlflowClient) -> None:
    """Versions come oldest first, past the tenth and past the first page that is asked for."""
    run = new_run(client)
    client.log_text(run.info.run_id, "", "model/MLmodel")
    client.create_registered_model("old")
    for _ in range(103):
        client.create_model_version("old", f"{run.info.artifact_uri}/model", run.info.run_id)
    names = [one.name for one in records(read(client, run), About)]
    assert names == [f"registry/old/{number}" for number in range(1, 104)]


def test_nan_of_a_logged_model_is_said_as_mlflow_keeps_it(
    client: MlflowClient, tmp_path: Path
) -> None:
    """MLflow keeps NaN as 0 in a logged model; the run's own points keep NaN."""
    run = new_run(client)
    model = logged_model(client, run, 1, tmp_path)
    client.log_metric(run.info.run_id, "fvd", math.nan, model_id=model.model_id)
    [files] = records(read(client, run), Files)
    assert files.metadata["metric.fvd"] == "0.0"


def test_a_server_says_what_a_database_says(tmp_path: Path) -> None:
    """Where versions are texts and files are proxied: the same words, aliases and files."""
    with mlflow_server(tmp_path) as address:
        remote = MlflowClient(address, address)
        run = new_run(remote)
        model = logged_model(remote, run, 20, tmp_path)
        first, second = (version_of(remote, run, model) for _ in range(2))
        for number in (first, second):
            remote.transition_model_version_stage("clip-vae", number, "Production")
        remote.set_registered_model_alias("clip-vae", "champion", first)
        found = read(remote, run)
    logged, *versions = records(found, Files)
    assert (logged.name, logged.aliases) == (f"vae-{model.model_id}", ["step-20"])
    assert [one.aliases for one in versions] == [
        ["mlflow-v1", "champion"],
        ["mlflow-v2", "production"],
    ]
    uri = f"{model.artifact_location}/MLmodel"
    assert [one.uris for one in (logged, *versions)] == [{"MLmodel": uri}] * 3
    abouts = records(found, About)
    assert [one.name for one in abouts] == ["registry/clip-vae/1", "registry/clip-vae/2"]
    assert [one.values["aliases"] for one in abouts if "aliases" in one.values] == ["champion"]
    assert [one.name for one in found.left_out] == ["registry/clip-vae/1"]
