"""Promoting past the gate: the policy kept with a model judges, whoever asks and however."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import chronicle, gated
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.policy import PolicyError
from opusclip_mlops.promotion import GateRefused
from tests.journeys import store, wait_until
from tests.servers import BIN

NAME = "clip-generator"
POLICY = """\
model: clip-generator
order: [Staging, Production]
roles: {lead: [anna]}
stages:
  Staging: {metrics: {video/psnr: {min: 24}}}
  Production:
    metrics: {video/psnr: {min: 24, not_worse_than: Production, by: 0.5}}
    approvals: {count: 1, roles: [lead]}
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A store with a model whose three versions scored 25, 26 and 20."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "boris")
    client = MlflowClient()
    experiment = client.create_experiment("films", str(tmp_path / "artifacts"))
    client.create_registered_model(NAME)
    for psnr in (25.0, 26.0, 20.0):
        run = client.create_run(experiment, tags={"mlflow.user": "carl"})
        client.log_metric(run.info.run_id, "video/psnr", psnr, step=1)
        source = Path(run.info.artifact_uri, "model")
        source.mkdir(parents=True)
        client.create_model_version(NAME, str(source), run.info.run_id)
    return client


def stages(client: MlflowClient) -> dict[int, str]:
    """Where each version is."""
    found = client.search_model_versions(f"name = '{NAME}'")
    return {int(one.version): str(one.current_stage) for one in found}


def test_a_version_goes_through_its_stages(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused without its approval, let through with it; stage, alias and history say the same."""
    gated.set_policy(NAME, POLICY)
    gated.promote(NAME, 1, to="staging")
    with pytest.raises(GateRefused, match="approvals"):
        gated.promote(NAME, 1, to="Production")
    assert stages(client)[1] == "Staging"
    with pytest.raises(GateRefused, match="no role for it: boris"):
        gated.promote(NAME, 1, to="Production", approve=True)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    made = gated.promote(NAME, 1, to="Production", approve=True, reason="looks good")
    assert (made.version, made.actor, made.reason) == (1, "anna", "looks good")
    assert stages(client)[1] == "Production"
    assert int(client.get_model_version_by_alias(NAME, "production").version) == 1
    kinds = [one.kind for one in chronicle.history(NAME)]
    assert kinds == ["policy", "promotion", "approval", "approval", "promotion"]
    assert chronicle.verify_history(NAME) == []


def test_a_refusal_lists_every_condition_and_changes_nothing(client: MlflowClient) -> None:
    """A version that scored too low: all conditions with their numbers, passed or not."""
    gated.set_policy(NAME, POLICY)
    before = len(chronicle.history(NAME))
    with pytest.raises(GateRefused) as refused:
        gated.promote(NAME, 3, to="Production")
    text = "\n".join(refused.value.verdict.lines())
    assert "video/psnr min: 20, wanted 24" in text
    assert "never was in Staging" in text
    assert "nobody is in Production yet" in text
    assert len(chronicle.history(NAME)) == before
    assert set(stages(client).values()) == {"None"}
    assert gated.check(NAME, 3, to="Production").lines() == refused.value.verdict.lines()


def test_force_needs_a_reason_and_says_what_was_passed_over(client: MlflowClient) -> None:
    """It is recorded as forced, with the conditions that failed."""
    gated.set_policy(NAME, POLICY)
    with pytest.raises(RegistryError, match="reason"):
        gated.promote(NAME, 3, to="Production", force=True)
    made = gated.promote(NAME, 3, to="Production", force=True, reason="the demo is today")
    assert made.forced
    verdict = chronicle.verdict_of(made)
    assert verdict is not None
    assert verdict["passed"] is False
    assert stages(client)[3] == "Production"


def test_a_rollback_is_not_asked_what_a_promotion_is(client: MlflowClient) -> None:
    """The version before serves again, approvals or not; the history says why."""
    for version in (1, 2):
        gated.promote(NAME, version, to="Production")
    gated.set_policy(NAME, POLICY)
    made = gated.rollback(NAME, reason="colours are wrong")
    assert (made.version, made.previous_holder) == (1, 2)
    assert stages(client) == {1: "Production", 2: "Archived", 3: "None"}


@pytest.mark.parametrize("policy", ["", POLICY])
def test_a_rollback_is_smoke_tested_where_there_is_an_example(
    client: MlflowClient, policy: str
) -> None:
    """Without a policy too, or with one that asks for no smoke test; force gets past it."""
    for version in (1, 2):
        gated.promote(NAME, version, to="Production")
    if policy:
        gated.set_policy(NAME, policy)
    model = Path(client.get_model_version(NAME, "1").source, "MLmodel")
    model.write_text("saved_input_example_info: {artifact_path: input_example.json}\n")
    with pytest.raises(GateRefused, match="smoke test") as refused:
        gated.rollback(NAME, reason="colours are wrong")
    asked = refused.value.verdict.to_dict()
    assert [one["name"] for one in asked["conditions"]] == ["smoke test"]
    assert bool(asked["policy_digest"]) == bool(policy)
    assert stages(client)[2] == "Production"
    made = gated.rollback(NAME, reason="colours are wrong", force=True)
    assert (made.version, made.forced) == (1, True)


@pytest.mark.parametrize("text", ["{}", "a: [", "- 1", "saved_input_example_info:"])
def test_a_rollback_to_a_version_without_an_example_passes(client: MlflowClient, text: str) -> None:
    """Whatever its model's own file holds; a policy that asks for a smoke test refuses it."""
    for version in (1, 2, 3):
        gated.promote(NAME, version, to="Production")
    for version in ("1", "2"):
        Path(client.get_model_version(NAME, version).source, "MLmodel").write_text(text)
    assert gated.rollback(NAME, reason="colours are wrong").version == 2
    gated.set_policy(NAME, "stages: {Production: {smoke_test: {}}}\n")
    with pytest.raises(GateRefused, match="smoke test"):
        gated.rollback(NAME, reason="colours are wrong")


def test_a_damaged_history_is_not_taken_for_one_without_a_policy(client: MlflowClient) -> None:
    """What the gate says is not known then."""
    gated.set_policy(NAME, POLICY)
    experiment = client.get_experiment_by_name("opusclip registry")
    client.rename_experiment(experiment.experiment_id, "cleaned up")
    with pytest.raises(RegistryError, match="is not known, its history is damaged"):
        gated.check(NAME, 3, to="Staging")


def test_a_place_that_mlflow_does_not_know_is_one_line() -> None:
    """Before anything else is done."""
    for call in (
        lambda place: gated.promote(NAME, 1, to="Staging", **place),
        lambda place: gated.rollback(NAME, reason="x", **place),
        lambda place: gated.check(NAME, 1, to="Staging", **place),
        lambda place: gated.set_policy(NAME, POLICY, **place),
        lambda place: gated.watch(rounds=1, show=print, **place),
    ):
        with pytest.raises(RegistryError, match=r"^cannot reach MLflow: .*bogus"):
            call({"tracking_uri": "bogus://x"})


def test_what_is_no_policy_is_refused_with_its_line(client: MlflowClient) -> None:
    """Nothing is kept; a policy for another model is refused too."""
    with pytest.raises(PolicyError, match=r"gates\.yaml:2: .*min"):
        gated.set_policy(NAME, "stages:\n  Staging: {metrics: {loss: {min: high}}}\n")
    client.create_registered_model("other")
    with pytest.raises(PolicyError, match="clip-generator"):
        gated.set_policy("other", POLICY)
    assert chronicle.policy_of(NAME) == ""


def test_what_is_moved_by_hand_is_seen(client: MlflowClient) -> None:
    """A version the gate lets through stays where a hand put it, another is put back."""
    gated.set_policy(NAME, POLICY)
    seen: list[gated.Sighting] = []
    gated.watch([NAME], rounds=1, show=seen.append)
    assert seen == []
    for version, stage, kind in ((1, "Staging", "external"), (3, "None", "repair")):
        client.transition_model_version_stage(NAME, str(version), "Staging")
        gated.watch(rounds=1, show=seen.append)
        assert [one.decision.kind for one in seen if one.decision][-1] == kind
        assert stages(client)[version] == stage
    assert int(client.get_model_version_by_alias(NAME, "staging").version) == 1
    assert chronicle.verify_history(NAME) == []


def test_a_registry_that_is_away_is_told_once(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher outlives it, and says when it answers again."""
    seen: list[gated.Sighting] = []
    waits = iter([lambda: None, lambda: client.create_registered_model("lost"), lambda: None])
    monkeypatch.setattr(gated.time, "sleep", lambda _: next(waits)())
    gated.watch(["lost"], rounds=4, show=seen.append)
    assert "lost" in seen[0].problem
    assert [one.problem for one in seen[1:]] == [""]


@pytest.mark.usefixtures("client")
def test_the_command_does_it_all(tmp_path: Path, said: Callable[..., tuple[int, str]]) -> None:
    """Policy, check, promotion, history and rollback by the command; exit codes tell."""
    (tmp_path / "gates.yaml").write_text(POLICY)
    assert said("gates", "set", NAME, "gates.yaml")[0] == 0
    assert said("gates", "show", NAME) == (0, POLICY)
    code, text = said("gates", "check", NAME, "3", "--to", "Staging")
    assert (code, "FAILED  video/psnr min: 20, wanted 24" in text) == (1, True)
    assert said("promote", NAME, "1", "--to", "Staging", "--reason", "first")[0] == 0
    code, text = said("promote", NAME, "1", "--to", "Production", "--json")
    assert (code, json.loads(text)["passed"]) == (1, False)
    assert said("promote", NAME, "9", "--to", "Staging")[0] == 2
    assert said("gates", "check", NAME, "9", "--to", "Staging")[0] == 2
    code, text = said("history", NAME)
    assert (code, "Staging: version 1" in text, "first" in text) == (0, True, True)
    code, text = said("history", NAME, "--verify", "--json")
    assert (code, json.loads(text)) == (0, {"records": 2, "problems": []})
    code, text = said("history", NAME, "--at", "2020-01-01T00:00", "--json")
    assert (code, json.loads(text)["history"]) == (0, [])
    assert said("history", NAME, "--at", "yesterday")[0] == 2
    code, text = said("rollback", NAME, "--reason", "why not")
    assert (code, text.startswith("error: nobody held Production")) == (2, True)


def test_the_watcher_goes_on_until_it_is_stopped(client: MlflowClient, tmp_path: Path) -> None:
    """Started as a command it records a move by hand, and ends at SIGTERM."""
    log = tmp_path / "watch.log"
    with log.open("wb") as out:
        line = [BIN / "opusclip", "watch", "--poll", "0.2", "--json"]
        watcher = subprocess.Popen(line, stdout=out, stderr=out)
    try:
        client.transition_model_version_stage(NAME, "2", "Production")
        wait_until(lambda: "external" in log.read_text())
    finally:
        watcher.terminate()
    assert watcher.wait() == 0, log.read_text()
    assert int(client.get_model_version_by_alias(NAME, "production").version) == 2


def unrun(client: MlflowClient) -> None:
    """Somebody deletes the run of version 3."""
    client.delete_run(client.get_model_version(NAME, "3").run_id)


def unmade(client: MlflowClient) -> None:
    """Version 3 says that it is made of a checkpoint, and its files hold none."""
    client.set_model_version_tag(NAME, "3", "opusclip.checkpoint", "epoch_0000-step_000001")


@pytest.mark.parametrize(("lose", "said"), [(unrun, "is deleted"), (unmade, "has lost its check")])
def test_what_nobody_can_judge_is_put_back_when_a_hand_moves_it(
    client: MlflowClient, lose: Callable[[MlflowClient], None], said: str
) -> None:
    """It does not stay in Production, and does not stand in the way of the next decision."""
    gated.promote(NAME, 1, to="Production")
    gated.set_policy(NAME, "stages: {Production: {metrics: {video/psnr: {min: 24}}}}\n")
    lose(client)
    client.transition_model_version_stage(NAME, "3", "Production", archive_existing_versions=True)
    seen: list[gated.Sighting] = []
    gated.watch([NAME], rounds=1, show=seen.append)
    [made] = [one.decision for one in seen if one.decision]
    assert (made.kind, said in made.reason) == ("repair", True)
    assert stages(client) == {1: "Production", 2: "None", 3: "None"}
    gated.promote(NAME, 2, to="Production")
    assert chronicle.verify_history(NAME) == []
    with pytest.raises(RegistryError, match=said):
        gated.promote(NAME, 3, to="Production")
    made = gated.promote(NAME, 3, to="Production", force=True, reason="the demo is today")
    assert made.reason.startswith("the demo is today (not judged: ")
    assert said in made.reason


def test_what_is_moved_after_the_history_began_is_not_said_to_be_older(
    client: MlflowClient,
) -> None:
    """A history that began with what stood there; what a hand does later is told as that."""
    for stage in ("Staging", "Production"):
        client.transition_model_version_stage(NAME, "1", stage)
        gated.watch([NAME], rounds=1, show=lambda _: None)
    assert [one.reason for one in chronicle.history(NAME)] == [
        "version 1 was put into Staging by hand, before this history began",
        "version 1 was put into Production by hand",
    ]


@pytest.mark.usefixtures("client")
def test_a_version_that_is_not_there_passes_no_check() -> None:
    """Without a policy too, which asks for nothing."""
    with pytest.raises(RegistryError, match=f"cannot read version 9 of '{NAME}'"):
        gated.check(NAME, 9, to="Staging")
